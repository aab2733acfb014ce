"""Long videos end to end: decoded, encoded and reduced in chunks, then used for questions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compress import LongVideo, compress, stream_video, video_prompt
from positions import V2PE, MRoPE
from tests.marks import later
from tests.tiny import CASES
from tests.vlm import models
from tests.vlm.clips import write_clip
from vlm.media import MediaError
from vlm.model import FoveateForConditionalGeneration

FRAMES = np.random.RandomState(0).randint(0, 255, (30, 40, 30, 3), dtype=np.uint8)
ROWS = {"window": {"sam": 2}, "scheme": {"sam": {"type": "Compact", "by": "row"}}}
NEW = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": -1}


def chunks(size, frames=FRAMES):
    for start in range(0, len(frames), size):
        yield frames[start : start + size]


@pytest.fixture(scope="module", params=["experts", "llava"])
def built(request):
    if request.param == "experts":
        return (*models.build(("clip", "sam"), ROWS), "<video>")
    return (*models.stock_llava(), "<image>")


def text(token):
    return f"USER: {token}\nWhat ASSISTANT:"


@pytest.mark.parametrize("total", [30, *later(None)])
def test_the_size_of_the_chunks_changes_nothing(built, total):
    model, processor, _ = built
    videos = [
        stream_video(model, processor, chunks(size), "foveate", 40, total=total, window=4)
        for size in (1, 4, 7, 30)
    ]
    for video in videos[1:]:
        torch.testing.assert_close(video.features, videos[0].features, atol=1e-5, rtol=1e-4)
        for a, b in zip(video.kept, videos[0].kept, strict=True):
            assert torch.equal(a.places, b.places) and torch.equal(a.size, b.size)
    per_frame = videos[0].dense // 30
    assert len(videos[0]) == 40 if total else 24 <= len(videos[0]) <= 40
    assert videos[0].most <= 40 + 4 * per_frame < videos[0].dense


@torch.no_grad()
def test_with_all_tokens_it_is_the_dense_model(built):
    """Features, and every logit of the prompt, against the model's own way with videos."""
    model, processor, token = built
    few = FRAMES[:5]
    video = stream_video(model, processor, chunks(2, few), "duet", 10**6)
    assert len(video) == video.dense and video.times is None
    given = video_prompt(model, processor, text(token), [video], positions="original")
    actual = model(**given).logits
    if token == "<video>":
        dense = processor(videos=[few], text=text(token))
    else:
        dense = processor(images=list(few), text=text(token * 5), return_tensors="pt")
    torch.testing.assert_close(actual, model(**dense).logits, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("positions", ["compact", "original", V2PE(1 / 16)])
@torch.no_grad()
def test_an_answer_is_what_the_language_model_says_by_itself(built, positions):
    """Prefill and decoding, against one forward of it on the tokens and positions by hand."""
    model, processor, token = built
    video = stream_video(model, processor, chunks(5), "divprune", 24, total=30)
    given = video_prompt(model, processor, text(token), [video], positions)
    out = model.generate(**given, **NEW, output_logits=True, return_dict_in_generate=True)
    ids = torch.cat([given["input_ids"][0], out.sequences[0, -4:-1]])
    mask = ids == given["input_ids"][0].mode().values  # the placeholders are the most frequent
    first = int(mask.nonzero()[0])
    embeds = model.get_input_embeddings()(ids)
    embeds[mask] = video.features
    places = [float(i) for i in range(len(ids))]
    if positions != "compact":
        places, last = places[:first], first - 1.0
        for kept, (frames, rows, columns) in zip(video.kept, video.grids, strict=True):
            step = 1 / 16 if isinstance(positions, V2PE) else 1.0
            by_row = positions == "original" and kept is not video.kept[0]
            width = 1 if by_row else columns
            for t, h, w in kept.places.tolist():
                places.append(last + step * ((t * rows + h) * width + (0 if by_row else w) + 1))
            last = float(np.ceil(last + step * frames * rows * width))
        places += [last + 1 + i for i in range(len(ids) - len(places))]
    hidden = model.model.language_model(
        inputs_embeds=embeds[None],
        position_ids=torch.tensor([places]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
    ).last_hidden_state
    expected = model.lm_head(hidden)[0, -4:]
    torch.testing.assert_close(torch.cat(out.logits), expected, atol=1e-4, rtol=1e-3)


def test_a_file_is_read_whole_and_the_budget_used(built, tmp_path):
    model, processor, token = built
    path = tmp_path / "clip.mp4"
    write_clip(path, 40, rate=4)
    videos = [
        stream_video(model, processor, path, "divprune", 30, fps=2.0, chunk=size, window=3)
        for size in (1, 6)
    ]
    assert [len(video) for video in videos] == [30, 30]
    assert videos[0].grids[0][0] == 20
    np.testing.assert_allclose(videos[0].times, np.arange(20) / 2, atol=0.01)
    for a, b in zip(videos[0].kept, videos[1].kept, strict=True):
        assert torch.equal(a.places, b.places)
    given = video_prompt(model, processor, text(token * 2), videos)
    assert model.generate(**given, **NEW).shape[1] == given["input_ids"].shape[1] + 4


def test_the_budget_is_dealt_over_the_experts(built):
    model, processor, _ = built
    video = stream_video(model, processor, chunks(5), "uniform", 40, total=30)
    assert [len(kept) for kept in video.kept] == ([20, 20] if len(video.kept) == 2 else [40])


def test_nothing_is_left_on_the_model(built):
    model, processor, _ = built
    with pytest.raises(ValueError, match=r"float64 \(2, 5\): expected uint8"):
        stream_video(model, processor, iter([FRAMES[:2], np.zeros((2, 5))]), "uniform", 8)
    with compress(model, "duet", 8):  # would be refused, were one attached
        pass


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"budget": 0.5}, TypeError, "budget is 0.5"),
        ({"budget": 1}, ValueError, "budget is 1"),
        ({"method": "fastv"}, ValueError, "nothing before"),
        ({"video": "none.mp4"}, MediaError, "none.mp4"),
        ({"video": iter([])}, ValueError, "without frames"),
    ],
)
def test_bad_input_is_named(built, given, error, says):
    model, processor, _ = built
    settings = {"video": chunks(8), "method": "uniform", "budget": 8, **given}
    with pytest.raises(error, match=says):
        stream_video(model, processor, **settings)


def test_prompts_that_do_not_fit(built):
    model, processor, token = built
    video = stream_video(model, processor, chunks(8), "uniform", 8)
    for broken, count in ((text(""), 1), (text(token * 2), 1), (text(token), 2)):
        with pytest.raises(ValueError, match="placeholders"):
            video_prompt(model, processor, broken, [video] * count)
    with pytest.raises(ValueError, match="'somewhere'"):
        video_prompt(model, processor, text(token), [video], "somewhere")
    with pytest.raises(ValueError, match="several axes"):
        video_prompt(model, processor, text(token), [video], MRoPE())


def test_a_question_is_the_query():
    model, processor = models.build(("clip",))
    results = [
        stream_video(model, processor, chunks(8), "cdpruner", 20, question=question)
        for question in ("What colour is the star", "How many")
    ]
    assert isinstance(results[0], LongVideo)
    assert not torch.equal(results[0].kept[0].places, results[1].kept[0].places)


def test_other_families_are_refused():
    case = next(case for case in CASES if case.name == "qwen2_vl")
    with pytest.raises(ValueError, match="'qwen2_vl', whose videos are not"):
        stream_video(case.model(), None, chunks(8))


def test_the_model_reloaded_says_the_same(tmp_path):
    model, processor = models.build(("clip",))
    model.save_pretrained(tmp_path)
    again = FoveateForConditionalGeneration.from_pretrained(tmp_path)
    videos = [stream_video(m, processor, chunks(8), "uniform", 8) for m in (model, again)]
    assert torch.equal(videos[0].features, videos[1].features)
