"""The embedded model gets the same inputs in training as in use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.marks import later
from tests.train.mini.conftest import COUNTS
from train.mini.data import (
    ASKED,
    IMAGE,
    PIXELS,
    STRANGE,
    SYMBOLS,
    UNKNOWN,
    VIDEO,
    Drawn,
    Lessons,
    original_positions,
    pack,
    turns_of,
)
from vlm.embedded import mini
from vlm.embedded.scenes import FIELDS, clip_questions, make_clip, make_scene, questions

STEPS = 25


@pytest.mark.parametrize("axes", ["mrope", *later("1d")])
@pytest.mark.parametrize("kind", [IMAGE, VIDEO])
def test_training_shows_a_question_as_the_processor_does(
    kind: str, axes: mini.Axes, folder: Path
) -> None:
    model, processor = mini.build(3, axes)
    rng, shown = np.random.default_rng(5), Drawn.prepare(kind, folder, COUNTS[kind]).images[2]
    if kind == IMAGE:
        asked, shown = questions(make_scene(2), rng), Image.fromarray(shown[0])
    else:
        asked = clip_questions(make_clip(2), rng)
    turns = turns_of(kind, 2, np.random.default_rng(5), captioned=False, letters=0.0)
    where, after = original_positions(kind, axes)
    batch = pack([turns], where[None], after)
    lm = model.model.language_model
    with torch.no_grad():
        media_inputs = processor(**{f"{kind}s": [shown]}, text=f"<{kind}>")
        pixels = media_inputs["pixel_values" if kind == IMAGE else "pixel_values_videos"]
        features = getattr(model.model, f"get_{kind}_features")(pixels).pooler_output[0]
        words = lm.get_input_embeddings()
        prefix = batch.positions.shape[2] - len(where) - batch.ids.shape[1]
        parts = [{"type": kind}, {"type": "text", "text": asked[0].text}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True
        )
        full = processor(**{f"{kind}s": [shown]}, text=text)
        head = words(full["input_ids"][:, :prefix])
        hidden = lm(
            inputs_embeds=torch.cat([head, features[None], words(batch.ids)], dim=1),
            attention_mask=batch.mask,
            position_ids=batch.positions if axes == "mrope" else batch.positions[0],
        ).last_hidden_state
        together = model.lm_head(hidden)[0, prefix + len(where) :]
        start = 0
        for question, (ids, _) in zip(asked, turns, strict=True):
            parts[1]["text"] = question.text
            text = processor.apply_chat_template(
                [{"role": "user", "content": parts}], add_generation_prompt=True
            )
            inputs = processor(**{f"{kind}s": [shown]}, text=text)
            alone = model(**inputs).logits[0, prefix + len(where) :]
            assert inputs["input_ids"][0, prefix + len(where) :].tolist() == ids[: len(alone)]
            actual = together[start : start + len(alone)]
            torch.testing.assert_close(actual, alone, rtol=1e-3, atol=1e-4)
            start += len(ids)


def test_lessons_are_the_same_for_a_step_and_go_through_everything(data: dict[str, Drawn]) -> None:
    lessons = Lessons(data, {IMAGE: 2, VIDEO: 1}, 10, 4, "mrope", 64, 0.5, 0.5)
    for a, b in zip(lessons[7].values(), lessons[7].values(), strict=True):
        assert torch.equal(a.fields, b.fields)
        assert a.batch is not None and b.batch is not None
        assert all(torch.equal(x, y) for x, y in zip(a.batch, b.batch, strict=True))
        assert (a.fields[:, 0] > 0).sum(1).min() > 0 and a.fields.shape[2] == 64
    steps = np.stack([data[IMAGE].pick(step, 2, 4) for step in range(6)])
    first, second = steps[:3].ravel().tolist(), steps[3:].ravel().tolist()
    assert sorted(first) == sorted(second) == list(range(6)) and first != second


@pytest.mark.parametrize("field", ASKED)
def test_of_a_blended_field_nothing_is_asked(field: str) -> None:
    tokenizer, others = mini.build_tokenizer(), 0
    for seed in range(20):
        turns = turns_of(IMAGE, seed, np.random.default_rng(0), False, 0.0, 4, field)
        asked = [text for ids, _ in turns if "the dot" not in (text := tokenizer.decode(ids))]
        assert not any(word in text for text in asked for word in ASKED[field])
        others += len(asked)
    assert others > 60


def test_the_first_of_a_lesson_are_shown_as_symbols(data: dict[str, Drawn]) -> None:
    lessons = Lessons(data, {IMAGE: 4, VIDEO: 2}, STEPS, 0, "mrope", None, symbols=0.5)
    shown = {
        k: torch.stack([lessons[step][k].told for step in range(STEPS)]) for k in lessons.sizes
    }
    names = list(FIELDS)
    for kind, fields in ((IMAGE, {"colour", "shape"}), (VIDEO, {"colour"})):
        half = shown[kind].shape[1] // 2
        assert set(shown[kind][:, half:].flatten().tolist()) == {PIXELS, STRANGE}
        kinds_shown = set(shown[kind][:, :half].flatten().tolist())
        assert kinds_shown == {SYMBOLS, *(names.index(field) for field in fields)}


def test_what_is_strange_is_not_told(data: dict[str, Drawn]) -> None:
    lessons = Lessons(data, {IMAGE: 6}, 20, 0, "mrope", None, symbols=0.3)
    fields = [list(FIELDS).index(field) for field in ASKED]
    for step in range(20):
        lesson = lessons[step][IMAGE]
        colours, shapes = (lesson.fields[:, fields] == UNKNOWN).all(2).unbind(1)
        assert torch.equal(colours ^ shapes, lesson.told == STRANGE)
        true = data[IMAGE].pixels(data[IMAGE].pick(step, 6, 0)).float()
        pixels = lesson.pixels.float()
        spread, before = ((p.amax(-1) - p.amin(-1)).amax((1, 2)) for p in (pixels, true))
        same = ~(colours ^ shapes)
        assert torch.equal(pixels[same], true[same])
        assert (spread[colours] < 0.85 * before[colours]).all()
        changed = (pixels[shapes] != true[shapes]).any(-1).float().mean((1, 2))
        assert ((changed > 0.01) & (changed < 0.5)).all()  # the shapes alone


def test_a_mosaic_shows_what_its_labels_say(data: dict[str, Drawn]) -> None:
    drawn = data[IMAGE]
    pixels, fields = drawn.mosaics(5, np.random.default_rng(0))
    assert pixels.shape == (5, 96, 96, 3) and fields.shape == (5, len(FIELDS), 144)
    side, width, sources = mini.GRID // 4, 24, set()
    for number in range(5):
        for row, column in np.ndindex(4, 4):
            at = np.s_[row * width : (row + 1) * width, column * width : (column + 1) * width]
            (source, *_) = [
                k for k in range(6) if np.array_equal(drawn.images[k, 0][at], pixels[number][at])
            ]
            cells = np.arange(144).reshape(12, 12)
            inside = cells[row * side : (row + 1) * side, column * side : (column + 1) * side]
            actual = fields[number][:, inside.ravel()].numpy()
            np.testing.assert_array_equal(actual, drawn.labels[source][:, inside.ravel()])
            sources.add(source)
    assert len(sources) > 2


def test_what_is_slow_to_learn_is_asked_more_often() -> None:
    once, often = (
        [turns_of(kind, 1, np.random.default_rng(0), True, 0.0, rounds) for rounds in (1, 4)]
        for kind in (IMAGE, VIDEO)
    )
    for single, four in (once, often):
        assert len(single) < len(four) and len({tuple(ids) for ids, _ in four}) == len(four)
    plain = turns_of(IMAGE, 1, np.random.default_rng(0), False, 0.0)
    assert len(plain) == len(once[0]) - 1  # no caption
