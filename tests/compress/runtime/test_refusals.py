"""Unsupported uses are refused with a sentence that names the cause."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from compress import CompressionError, compress
from compress.methods import Duet
from tests.compress.common import CLOSE, answer
from tests.tiny import CASES, Case, Sample

BY_NAME = {case.name: case for case in CASES}
LLAVA, QWEN = BY_NAME["llava"], BY_NAME["qwen2_vl"]
BOTH = Duet(layers=(1, 3), ratios=(0.6, 0.3))
NEXT = torch.tensor([[9]])


@pytest.mark.parametrize("case", [LLAVA, QWEN], ids=lambda case: case.name)
def test_a_budget_of_no_tokens(case: Case) -> None:
    with pytest.raises(ValueError, match=r"budget is 0\b") as caught:
        compress(case.model(), "duet", budget=0)
    assert str(2**62) not in str(caught.value)


@pytest.mark.parametrize("case", [LLAVA, QWEN], ids=lambda case: case.name)
def test_placeholders_without_pixels(case: Case) -> None:
    model, sample = case.model(), case.samples()[0]
    bare = case.inputs([Sample(sample.ids)])
    with compress(model, "duet", budget=case.budget):
        for run in (lambda: model(**bare), lambda: model.generate(**bare, max_new_tokens=2)):
            with pytest.raises(ValueError, match=r"image.*pixel_values") as caught:
                run()
            assert "attached" not in str(caught.value)


def test_placeholders_of_another_kind_without_pixels() -> None:
    """A video's, where only the image came."""
    model = QWEN.model()
    sample = QWEN.sample((2, ("image", "a"), 3, ("video", "v"), 4))
    given = QWEN.inputs([sample])
    del given["pixel_values_videos"], given["video_grid_thw"]
    given["mm_token_type_ids"] = given["mm_token_type_ids"].clamp(max=1)
    with (
        compress(model, "duet", budget=9),
        pytest.raises((ValueError, StopIteration), match=r"video.*pixel_values") as caught,
    ):
        model(**given, position_ids=torch.arange(len(sample.ids)).expand(3, 1, -1))
    assert "attached" not in str(caught.value)


@pytest.mark.parametrize("case", [LLAVA, QWEN], ids=lambda case: case.name)
def test_full_ids_and_pixels_on_a_shortened_cache(case: Case) -> None:
    model, given = case.model(), case.inputs(case.samples()[:1])
    with compress(model, BOTH, budget=case.budget):
        first = answer(model, given)
        ids = torch.cat([first.sequences, torch.tensor([[9, 10, 11]])], dim=1)
        again: dict[str, Any] = given | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        again |= case.extra({"input_ids": ids})
        with pytest.raises(CompressionError, match=r"(?i)new ids only"):
            model.generate(**again, past_key_values=first.past_key_values, max_new_tokens=2)


def shortened(model: Any) -> DynamicCache:
    """A cache that a compression of `model` has filled."""
    cache = DynamicCache()
    model(**LLAVA.inputs(LLAVA.samples()[:1]), past_key_values=cache)
    return cache


@torch.no_grad()
def test_a_shortened_cache_without_its_compression() -> None:
    """Its layers differ in length and its positions have gaps: the stock model cannot go on."""
    model = LLAVA.fresh()
    c = compress(model, BOTH, budget=16)
    cache, other = shortened(model), shortened(model)
    wanted = model(input_ids=NEXT, past_key_values=other).logits
    c.remove()
    mask = torch.ones(1, len(LLAVA.samples()[0].ids) + 1, dtype=torch.int64)
    with pytest.raises(CompressionError, match=r"compress"):
        model(input_ids=NEXT, past_key_values=cache)
    with pytest.raises(CompressionError, match=r"compress"):
        model.generate(input_ids=NEXT, attention_mask=mask, past_key_values=cache, max_new_tokens=1)
    with compress(model, BOTH, budget=16):
        actual = model(input_ids=NEXT, past_key_values=cache).logits
    torch.testing.assert_close(actual, wanted, **CLOSE)


@torch.no_grad()
def test_other_caches_go_on_after_remove() -> None:
    """Those of the stock model, of text under a compression, and one that was reset."""
    model, text = LLAVA.fresh(), {"input_ids": LLAVA.sample([6], seed=3).ids[None]}
    cache = DynamicCache()
    model(**text, past_key_values=cache)
    wanted = model(input_ids=NEXT, past_key_values=cache).logits
    with compress(model, BOTH, budget=16):
        of_text, used = DynamicCache(), shortened(model)
        model(**text, past_key_values=of_text)
    assert torch.equal(model(input_ids=NEXT, past_key_values=of_text).logits, wanted)
    used.reset()
    model(**text, past_key_values=used)
    assert torch.equal(model(input_ids=NEXT, past_key_values=used).logits, wanted)
