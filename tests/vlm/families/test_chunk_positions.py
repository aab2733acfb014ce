"""Positions of a prompt alone, against those that the stock model gives it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from compress import compress
from tests.tiny import CASES, Case
from tests.vlm import encoders, models
from vlm.embedded import mini
from vlm.families import adapter_of
from vlm.model import FoveateConfig, FoveateForConditionalGeneration, FoveateProcessor

BY_NAME = {case.name: case for case in CASES}
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def stock_positions(model: Any, inputs: dict[str, Any]) -> Tensor:
    """(B, S, 3): what the language model is given."""
    seen: list[Tensor] = []

    def see(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["position_ids"])

    handle = model.model.language_model.register_forward_pre_hook(
        see, with_kwargs=True, prepend=True
    )
    with torch.no_grad():
        model.model(**inputs)
    handle.remove()
    return seen[0][-3:].permute(1, 2, 0).double()


def ask(case: Case, inputs: dict[str, Any]) -> Tensor | None:
    media = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
    mask = inputs["attention_mask"].bool()
    return adapter_of(case.model()).chunk_positions(inputs["input_ids"], mask, media)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", QWEN)
def test_a_batch_of_images_and_videos(name: str, side: str) -> None:
    case = BY_NAME[name]
    inputs = case.inputs(case.samples(), side)
    if name == "qwen2_5_vl":
        inputs["second_per_grid_ts"] = torch.tensor([1.0, 2.0])
    actual, mask = ask(case, inputs), inputs["attention_mask"].bool()
    assert actual is not None and actual.dtype == torch.float64
    expected = stock_positions(case.model(), inputs)
    assert torch.equal(actual[mask], expected[mask])
    assert (actual[~mask] == 0).all()
    if name == "qwen2_5_vl":  # seconds count
        inputs["second_per_grid_ts"] = torch.tensor([1.0, 1.0])
        assert not torch.equal(ask(case, inputs), actual)


@pytest.mark.parametrize("name", QWEN)
def test_a_grid_in_the_place_of_a_later_turn(name: str) -> None:
    """Tokens of a grid stand at (t, h, w), also if earlier text is cached: ids may be the new ones
    alone, with the token types of the whole sequence."""
    case = BY_NAME[name]
    sample = case.sample((2, ("image", "b"), 3))
    inputs = case.inputs([sample])
    whole = ask(case, inputs)
    types = inputs["mm_token_type_ids"]
    inputs["mm_token_type_ids"] = torch.cat([torch.zeros(1, 9, dtype=types.dtype), types], 1)
    again = ask(case, inputs)
    assert whole is not None and again is not None and torch.equal(whole, again)
    first = int(types[0].nonzero()[0])
    start = whole[0, first]
    steps = (whole[0, first : first + 4] - start).tolist()
    assert steps == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 0, 3]]


@pytest.mark.parametrize("name", QWEN)
def test_a_row_of_padding_alone(name: str) -> None:
    case = BY_NAME[name]
    inputs = case.inputs([case.sample((2, ("image", "b"), 3))])
    more = {k: torch.cat([inputs[k], torch.zeros_like(inputs[k])]) for k in
            ("input_ids", "attention_mask", "mm_token_type_ids")}  # fmt: skip
    actual, alone = ask(case, inputs | more), ask(case, inputs)
    assert actual is not None and alone is not None
    assert torch.equal(actual[0], alone[0]) and (actual[1] == 0).all()


def test_what_the_stock_model_places_as_text() -> None:
    case = BY_NAME["qwen2_vl"]
    inputs = case.inputs([case.sample((2, ("image", "b"), 3))])
    del inputs["mm_token_type_ids"]
    assert ask(case, inputs) is None


@pytest.mark.parametrize("name", ["llava", "smolvlm", "foveate"])
def test_one_axis_has_no_chunk_positions(name: str) -> None:
    """Foveate's tiny model has a scheme with one position a row."""
    case = BY_NAME[name]
    assert ask(case, case.inputs(case.samples())) is None


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_foveate_with_mrope(side: str) -> None:
    """Its own plan, from pixels or from encoded inputs."""
    config = FoveateConfig(
        text_config=models.text_config(
            hf.Qwen2VLTextConfig,
            rope_parameters={"rope_type": "default", "mrope_section": [2, 3, 3]},
        ),
        experts=[encoders.expert("clip").config],
        fusion={"scheme": {"clip": {"type": "MRoPE"}}},
        image_token_id=4,
    )
    model = encoders.randomise(FoveateForConditionalGeneration(config), std=0.25).eval()
    processor = FoveateProcessor.for_model(config, mini.build_tokenizer())
    pictures = [models.picture(seed) for seed in range(3)]
    texts = ["<image> what is it", "<image> and then <image>"]
    processor.tokenizer.padding_side = side
    inputs = dict(processor(images=pictures, text=texts, padding=True, return_tensors="pt"))
    ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask").bool()
    adapter = adapter_of(model)
    actual = adapter.chunk_positions(ids, mask, inputs)
    with compress(model, "duet", budget=1.0):  # without one, the model looks positions up
        expected = stock_positions(
            model, {"input_ids": ids, "attention_mask": mask.long(), **inputs}
        )
    assert actual is not None and actual.dtype == torch.float64
    assert not torch.equal(actual[..., 1], actual[..., 2])
    assert torch.equal(actual[mask], expected[mask])
    encoded = {"image": adapter.core.get_image_features(**inputs)}
    assert torch.equal(actual, adapter.chunk_positions(ids, mask, {"mm_encoder_outputs": encoded}))
