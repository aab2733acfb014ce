"""Reading one vision layer: values, threads, nested captures, and layers that did not run."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.marks import each_case
from tests.reference_vision import encode
from tests.tiny import CASES, Case
from vlm.attention import FusedReader, SegmentHeads, Segments, heads
from vlm.families import adapter_of

BY_NAME = {case.name: case for case in CASES}


def shown(case: Case) -> list[tuple[str, str, int]]:
    """The images of all samples of a case."""
    return [
        visual_input
        for sample in case.samples()
        for visual_input in sample.shown
        if visual_input[0] == "image"
    ]


def image_call(case: Case, images: list[tuple[str, str, int]]) -> dict[str, Any]:
    return case.media("image", [image[1:] for image in images])


def run(case: Case, call: dict[str, Any]) -> tuple[Any, Any]:
    """The adapter and the open reader's capture of one call."""
    adapter = adapter_of(case.model())
    layer = adapter.vision_layers("image")[adapter.scoring_layer("image", None)]
    reader = adapter.reader(layer)
    handles = reader.attach()
    try:
        with reader.capture() as capture, torch.no_grad():
            adapter.core.get_image_features(**call, return_dict=True)
    finally:
        for handle in handles:
            handle.remove()
    return adapter, capture


@each_case
def test_all_inputs_of_a_call_at_once(case: Case) -> None:
    """Pooled by token, they are what the reference reads off the stock model, image by image."""
    images = shown(case)
    call = image_call(case, images)
    adapter, capture = run(case, call)
    inputs = adapter.inputs("image", call)
    read = capture.heads(inputs)
    saliency = adapter.pool(inputs, read.saliency("auto"))
    keys = adapter.pool(inputs, read.keys())
    with torch.no_grad():
        alone = [encode(case.model(), case, *image) for image in images]
    for name, values in (("saliency", saliency), ("keys", keys)):
        expected = torch.cat([single.fields[name] for single in alone])
        # The reference marks separators by -1.
        separators = torch.cat([single.source for single in alone]) < 0
        values = values.reshape(len(expected), -1)
        expected = expected.reshape(len(expected), -1)
        torch.testing.assert_close(values[~separators], expected[~separators], atol=1e-5, rtol=1e-4)
        assert (values[separators] == 0).all() or case.keeps_cls("image")


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "mistral3", "foveate"])
def test_threads_read_their_own(name: str) -> None:
    """Readers are shared, captures are not: each thread gets what it gets alone."""
    case = BY_NAME[name]
    adapter = adapter_of(case.model())
    layer = adapter.vision_layers("image")[adapter.scoring_layer("image", None)]
    reader = adapter.reader(layer)
    calls = [image_call(case, [("image", "a", seed)]) for seed in range(4)]
    expected = []
    for call in calls:
        _, capture = run(case, call)
        expected.append(capture.heads(adapter.inputs("image", call)).saliency("received"))
    handles = reader.attach()
    wrong: list[int] = []
    meet = threading.Barrier(len(calls))

    def ask(number: int) -> None:
        call = calls[number]
        inputs = adapter.inputs("image", call)
        for _ in range(5):
            with reader.capture() as capture, torch.no_grad():
                meet.wait(60)  # all captures are open before the first layer runs
                adapter.core.get_image_features(**call, return_dict=True)
                meet.wait(60)  # all layers have run before the first capture is read
            if not torch.equal(capture.heads(inputs).saliency("received"), expected[number]):
                wrong.append(number)

    def work(number: int) -> None:
        try:
            ask(number)
        except Exception:
            wrong.append(number)
            meet.abort()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for handle in handles:
        handle.remove()
    assert wrong == []


def test_nothing_is_kept_outside_a_capture() -> None:
    case = BY_NAME["llava"]
    call = image_call(case, [("image", "a", 0)])
    adapter, capture = run(case, call)
    inputs = adapter.inputs("image", call)
    capture.heads(inputs)
    with pytest.raises(RuntimeError, match="ran unseen"):
        capture.heads(inputs)  # given up by the first
    reader = capture.reader
    handles = reader.attach()
    with reader.capture() as empty:
        pass
    adapter.core.get_image_features(**call)
    for handle in handles:
        handle.remove()
    with pytest.raises(RuntimeError, match=r"compress\(\) first"):
        empty.heads(inputs)
    assert not any(isinstance(value, Tensor) for value in vars(reader).values())


def test_the_inner_of_two_captures_gets_the_call() -> None:
    case = BY_NAME["llava"]
    call = image_call(case, [("image", "a", 0)])
    adapter, first = run(case, call)
    inputs = adapter.inputs("image", call)
    handles = first.reader.attach()
    with first.reader.capture() as outer, first.reader.capture() as inner:
        adapter.core.get_image_features(**call)
    for handle in handles:
        handle.remove()
    assert inner.heads(inputs).saliency("auto").shape == (64,)
    with pytest.raises(RuntimeError, match="ran unseen"):
        outer.heads(inputs)


def test_frames_are_told_from_the_grids() -> None:
    """Qwen2-VL: a video of two frames beside an image; no length is read from the device."""
    case = BY_NAME["qwen2_vl"]
    call = case.media("video", [("v", 0), ("one", 1)])
    adapter = adapter_of(case.model())
    reader = adapter.reader(adapter.vision_layers("video")[-1])
    assert isinstance(reader, FusedReader)
    handles = reader.attach()
    with reader.capture() as capture, torch.no_grad():
        adapter.core.get_video_features(**call, return_dict=True)
    for handle in handles:
        handle.remove()
    read = capture.heads(adapter.inputs("video", call))
    assert [tuple(attention_map.shape) for attention_map in read.attention()] == [(64, 64)] * 3
    assert len(read.segments) == 1  # neighbours of one length


# ------------------------------------------------------------------ the arithmetic


def segments(count: int = 3, length: int = 7, mask: bool = False) -> Segments:
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(count, 2, length, 4, generator=draw) for _ in "qk")
    seen = None
    if mask:
        seen = torch.rand(count, 1, length, length, generator=draw) > 0.3
        seen[..., 0] = True
    bias = torch.randn(count, 2, length, length, generator=draw)
    return Segments(query, key, 0.3, seen, lambda s, q: bias[s][:, :, q])


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("logits", [1, 28, 60, 2**24])
def test_chunks_change_nothing(mask: bool, logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    part = segments(mask=mask)
    assert part.bias is not None
    raw = part.query @ part.key.mT * part.scale + part.bias(slice(None), slice(None))
    if part.mask is not None:
        raw = raw.masked_fill(~part.mask, -torch.inf)
    maps = raw.softmax(-1).mean(1)
    monkeypatch.setattr(heads, "LOGITS", logits)
    torch.testing.assert_close(part.maps(), maps)
    torch.testing.assert_close(part.received(), maps.mean(1))
    torch.testing.assert_close(part.from_class_token(), maps[:, 0])


def test_chunks_bound_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    weights = Segments.weights

    def measured(self: Segments, *slices: slice) -> Tensor:
        actual = weights(self, *slices)
        sizes.append(actual.numel())
        return actual

    monkeypatch.setattr(Segments, "weights", measured)
    monkeypatch.setattr(heads, "LOGITS", 60)
    segments().received()
    assert max(sizes) <= 60 and sum(sizes) == 3 * 2 * 7 * 7


def test_a_class_token_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="no class token"):
        SegmentHeads([segments()]).saliency("cls")


def test_a_prefix_is_no_row() -> None:
    read = SegmentHeads([segments()], has_class_token=True, prefix=2)
    assert read.saliency("auto").shape == (15,) and read.keys().shape == (15, 4)
    assert [attention_map.shape for attention_map in read.attention()] == [(5, 5)] * 3
    assert torch.equal(read.saliency("auto"), segments().from_class_token()[:, 2:].flatten())
