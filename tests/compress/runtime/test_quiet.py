"""A compression synchronises rarely in prefill, and never in decoding."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    DynamicCache,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from compress import compress
from compress.ops import greedy
from tests.device_counter import Counts, DeviceCounter, to_device

TEXT, PATCHES = 9, 64
SLOW = (("duet", True), ("foveate", False), ("fastv", False), ("fastv", True))


@cache
def llava() -> Any:
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        image_size=32, patch_size=4, projection_dim=16,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=64,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=5)
    return LlavaForConditionalGeneration(config).eval()


def prompt(rows: int, images: int, padded: bool) -> dict[str, torch.Tensor]:
    part = torch.cat([torch.tensor([7, 8, 9]), torch.full((PATCHES,), 5)])
    ids = torch.cat([*[part] * images, torch.arange(10, 10 + TEXT)]).expand(rows, -1).clone()
    mask = torch.ones_like(ids)
    if padded:
        ids[0, :2], mask[0, :2] = 0, 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": torch.rand(rows * images, 3, 32, 32),
    }


def count(
    method: str | None, rows: int, images: int = 1, padded: bool = False
) -> tuple[Counts, Counts]:
    """What prefill and a decoded token take."""
    given = prompt(rows, images, padded)
    model = copy.deepcopy(llava())
    with torch.no_grad(), DeviceCounter() as counter:
        model = to_device(model)
        if method is not None:
            compress(model, method, budget=20)
        cache_object, inputs = DynamicCache(), to_device(given)
        counter.take()
        model(**inputs, past_key_values=cache_object, logits_to_keep=1)
        prefill = counter.take()
        length, mask = given["input_ids"].shape[1], given["attention_mask"]
        for number in range(2):
            mask = torch.cat([mask, torch.ones(rows, 1, dtype=torch.int64)], dim=1)
            step = {
                "input_ids": to_device(torch.full((rows, 1), 9)),
                "position_ids": to_device(torch.full((rows, 1), length + number)),
                # As generate does: a mask of ones is dropped.
                "attention_mask": to_device(mask) if padded else None,
            }
            counter.take()
            model(**step, past_key_values=cache_object, logits_to_keep=1)
        return prefill, counter.take()


@pytest.fixture(autouse=True)
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is none that Triton knows."""
    monkeypatch.setattr(greedy, "_fused", lambda table: None)


@pytest.mark.parametrize(
    ("method", "padded"),
    [
        ("duet", False),
        ("foveate", True),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW),
    ],
)
def test_waits_and_copies_do_not_grow_with_the_batch(method: str, padded: bool) -> None:
    stock, stock_decode = (c.totals() for c in count(None, 2, padded=padded))
    small, small_decode = (c.totals() for c in count(method, 2, padded=padded))
    large, large_decode = (c.totals() for c in count(method, 4, images=2, padded=padded))
    assert small["syncs"] <= stock["syncs"] + 4
    assert large["syncs"] == small["syncs"]
    assert large["copies"] == small["copies"]
    assert small_decode["syncs"] == large_decode["syncs"] == stock_decode["syncs"]
    assert small_decode["copies"] == stock_decode["copies"] == 0


def test_decoding_without_a_bias_launches_what_the_stock_model_does() -> None:
    stock, duet = (count(method, 2)[1].totals() for method in (None, "duet"))
    assert duet == stock
