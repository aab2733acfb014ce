"""A watched stream: equal to a direct prefill, bounded, unchanged by questions."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from compress import StreamError, watch
from compress.stream.memories import MEMORIES, Random, Uniform
from compress.stream.step import Reader
from tests.compress.stream.hosts import HOSTS, direct, frames, host
from tests.tiny import CASES
from vlm.media import Video

QUICK = ("mini", "qwen3_vl")
SLOW = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in HOSTS]
SAID = "What is it?"
# Tokens of a step (words included) and of the text before the stream.
STEP = {"mini": 144, "mini-1d": 147, "qwen2_vl": 16, "qwen2_5_vl": 16, "qwen3_vl": 31}


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("count", [5, pytest.param(4, marks=pytest.mark.slow)])
def test_nothing_evicted_equals_a_direct_prefill(name: str, count: int) -> None:
    model, processor = host(name)
    shown = frames(count, name)
    stream = watch(model, processor, "uniform", 4000)
    stream.push(shown[:3])
    stream.push(shown[3:])
    expected = direct(name, shown, SAID)
    assert expected.abs().max() > 1
    torch.testing.assert_close(stream.logits(SAID), expected, atol=2e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["eager", "unrotated", "lazy"])
def test_policies_that_move_tokens_do_nothing_where_nothing_is_evicted(positions: str) -> None:
    model, processor = host("qwen2_vl")
    shown = frames(6, "qwen2_vl")
    stream = watch(model, processor, "uniform", 4000, positions=positions)
    stream.push(shown)
    expected = direct("qwen2_vl", shown, SAID)
    torch.testing.assert_close(stream.logits(SAID), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "memory"),
    [
        ("qwen2_vl", "scored"),
        ("qwen3_vl", "change"),
        *(
            pytest.param(name, memory, marks=pytest.mark.slow)
            for name in ("qwen2_vl", "qwen3_vl")
            for memory in (*MEMORIES, "divprune")
        ),
    ],
)
def test_what_is_kept_and_what_is_evicted_is_what_was_seen(name: str, memory: str) -> None:
    model, processor = host(name)
    budget = 4 + 3 * STEP[name] + 25
    stream = watch(model, processor, memory, budget, recent=2)
    before = len(stream.track.before)
    for number in range(1, 9):
        stream.push(frames(2, name, seed=number))
        track, report = stream.track, stream.report()
        for group, rows in enumerate(track.memory.rows):
            visual = rows.cell >= 0
            assert int(visual.sum()) + track.evicted[group] == report.seen == 16 * number
            assert len(rows) <= budget
            assert bool((rows.step[:before] == -1).all())  # the system text stays
            for step in range(max(0, number - 2), number):  # and so do recent steps
                assert int((visual & (rows.step == step)).sum()) == 16
            # Words stay with their step, and leave with it.
            words = rows.step[(rows.cell < 0) & (rows.step >= 0)].unique()
            assert set(words.tolist()) <= set(rows.step[visual].tolist())
            key = rows.step * 16 + rows.cell
            assert bool((key[visual].diff() > 0).all())  # in order
        lengths = {track.memory.cache.layers[layer].keys.shape[2] for layer in range(4)}
        assert lengths == {report.kept + report.text}
    if memory != "recent":
        assert report.kept > 32


@pytest.mark.parametrize(
    ("memory", "positions"),
    [
        ("random", "eager"),
        *(
            pytest.param(memory, positions, marks=pytest.mark.slow)
            for memory in ("foveate", "scored", "change")
            for positions in ("original", "unrotated", "grouped", "v2pe", "lazy")
        ),
    ],
)
def test_questions_in_any_order_equal_streams_of_their_own(memory: str, positions: str) -> None:
    model, processor = host("qwen2_vl")
    questions = ["What is it?", "Where is the star?", "In which row is it?"]

    def stream() -> object:
        made = watch(model, processor, memory, 70, recent=2, positions=positions)
        made.push(frames(9, "qwen2_vl"))
        return made

    alone = {question: stream().logits(question) for question in questions}
    one = stream()
    for question in [*questions, *questions[::-1]]:
        assert torch.equal(one.logits(question), alone[question])
        one.ask(question, max_new_tokens=2)
    other = frames(3, "qwen2_vl", seed=9)
    one.push(other, [20, 21, 22])
    untouched = stream()
    untouched.push(other, [20, 21, 22])
    assert torch.equal(one.logits(SAID), untouched.logits(SAID))


@pytest.mark.slow
def test_memory_is_flat() -> None:
    model, processor = host("qwen2_vl")
    stream = watch(model, processor, "change", 70, recent=2)
    sizes = []
    for number in range(20):
        stream.push(frames(2, "qwen2_vl", seed=number))
        report = stream.report()
        sizes.append((report.cache_bytes, report.most, len(stream.track.pictures)))
    assert {(size[0], size[1]) for size in sizes[6:]} == {(sizes[5][0], 70 + 16)}
    assert max(size[2] for size in sizes) < 20  # pictures of evicted steps are gone


@pytest.mark.slow
def test_how_frames_are_pushed_changes_nothing() -> None:
    model, processor = host("mini")
    shown = frames(5)
    one = watch(model, processor, "random", 600, recent=2)
    one.push(shown)
    other = watch(model, processor, Random(), 600, recent=2)
    for frame in shown:
        other.push(frame)
    video = watch(model, processor, "random", 600, recent=2)
    times = np.arange(5.0)
    video.push(Video(shown, times, np.arange(5), 1.0, 5.0, "clip"))
    assert torch.equal(one.logits(SAID), other.logits(SAID))
    assert torch.equal(one.logits(SAID), video.logits(SAID))


def test_an_answer_is_greedy_decoding() -> None:
    model, processor = host("qwen2_vl")
    stream = watch(model, processor, "uniform", 4000)
    shown = frames(4, "qwen2_vl")
    stream.push(shown)
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": SAID}]}],
        add_generation_prompt=True,
    )
    videos = [torch.from_numpy(shown).permute(0, 3, 1, 2)]
    inputs = processor(text=[text], videos=videos, do_sample_frames=False, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    expected = processor.tokenizer.decode(
        out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    assert stream.ask(SAID, max_new_tokens=5) == expected.strip()


def test_bad_input() -> None:
    model, processor = host("qwen2_vl")
    with pytest.raises(StreamError, match=r"memory is 'best'.*recent, uniform"):
        watch(model, processor, "best")
    with pytest.raises(ValueError, match=r"positions is 'true'.*original, eager"):
        watch(model, processor, positions="true")
    with pytest.raises(StreamError, match=r"budget is 0"):
        watch(model, processor, budget=0)
    with pytest.raises(StreamError, match=r"recent is 1\.5"):
        watch(model, processor, recent=1.5)  # type: ignore[arg-type]
    stream = watch(model, processor, Uniform(), 60)
    with pytest.raises(StreamError, match=r"before the first frame"):
        stream.ask(SAID)
    with pytest.raises(StreamError, match=r"budget is 60 tokens: expected at least 68"):
        stream.push(frames(2, "qwen2_vl"))
    assert stream.report().seen == 0
    stream = watch(model, processor, Uniform(), 100)
    stream.push(frames(3, "qwen2_vl"), [0, 1, 2.5])
    with pytest.raises(StreamError, match=r"a frame at 2 s follows one at 2.5 s"):
        stream.push(frames(1, "qwen2_vl"), 2)
    with pytest.raises(StreamError, match=r"2 for 1 frames"):
        stream.push(frames(1, "qwen2_vl"), [3, 4])
    with pytest.raises(StreamError, match=r"40 x 32 pixels and those before were 32 x 32"):
        stream.push(np.zeros((1, 32, 40, 3), np.uint8))
    with pytest.raises(StreamError, match=r"float32 \(1, 32, 32, 3\)"):
        stream.push(np.zeros((1, 32, 32, 3), np.float32))
    assert stream.report().steps == 1  # nothing of them was taken


def test_a_family_without_streams_is_refused() -> None:
    (case,) = (case for case in CASES if case.name == "gemma3")
    with pytest.raises(StreamError, match=r"'gemma3', whose frames cannot be pushed one by one"):
        watch(case.model(), None)


def test_one_call_at_a_time() -> None:
    model, processor = host("qwen2_vl")
    stream = watch(model, processor, "uniform", 200)
    stream.push(frames(2, "qwen2_vl"))
    errors: list[Exception] = []

    class Streamer:
        def put(self, value: object) -> None:
            thread = threading.Thread(target=push)
            thread.start()
            thread.join()

        def end(self) -> None:
            pass

    def push() -> None:
        try:
            stream.push(frames(2, "qwen2_vl", seed=1))
        except StreamError as error:
            errors.append(error)

    stream.ask(SAID, max_new_tokens=1, streamer=Streamer())
    assert "push() while another thread" in str(errors[0])
    stream.push(frames(2, "qwen2_vl", seed=1))


def test_overlay(tmp_path: object) -> None:
    model, processor = host("qwen2_vl")
    stream = watch(model, processor, "random", 70, recent=2)
    with pytest.raises(StreamError, match=r"before the first step"):
        stream.overlay()
    stream.push(frames(12, "qwen2_vl"))
    picture = stream.overlay(tmp_path / "memory.png", limit=3)  # type: ignore[operator]
    assert picture.width > 3 * 96
    assert (tmp_path / "memory.png").stat().st_size  # type: ignore[operator]


def test_streams_beside_each_other_encode_a_step_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = host("qwen2_vl")
    shown = frames(8, "qwen2_vl")
    alone = watch(model, processor, "uniform", 70, recent=2)
    alone.push(shown)
    one = watch(model, processor, "foveate", 70, recent=2)
    other = watch(model, processor, "uniform", 70, recent=2, beside=one)
    calls: list[int] = []
    encode = Reader._encode

    def counted(reader: Reader, shown: np.ndarray) -> object:
        calls.append(len(shown))
        return encode(reader, shown)

    monkeypatch.setattr(Reader, "_encode", counted)
    for number in range(0, 8, 2):
        one.push(shown[number : number + 2])
        other.push(shown[number : number + 2])
    assert len(calls) == 4
    assert torch.equal(other.logits(SAID), alone.logits(SAID))
