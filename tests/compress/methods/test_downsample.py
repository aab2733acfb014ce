"""Down-sampling: its pooling of bare features, and what it asks of the vision encoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from compress import compress, reduce
from compress.methods import Downsample, Duet, get_method, list_methods
from compress.runtime.attach import CompressionError
from tests.compress.common import encodings
from tests.tiny import CASES
from vlm.families import adapter_of

BY_NAME = {case.name: case for case in CASES}


def test_on_bare_features_it_is_pooling() -> None:
    features = torch.randn(2, 36, 5, generator=torch.Generator().manual_seed(0))
    pooled, small = (reduce(features, m, 9, grid=(6, 6)) for m in ("pool", "downsample"))
    assert torch.equal(pooled.features, small.features)
    assert torch.equal(pooled.assign, small.assign)


def test_what_the_vision_encoder_is_given() -> None:
    assert [name for name in list_methods() if get_method(name).resizes_input] == ["downsample"]
    assert Downsample().input_side((1, 6, 6), 9) == 3
    blocks = Downsample().input_blocks((1, 6, 6), 9).reshape(6, 6)
    assert blocks[::2, ::2].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    for grid in ((2, 6, 6), (1, 3, 12)):
        with pytest.raises(ValueError, match="square grid"):
            Downsample().input_side(grid, 9)
    with pytest.raises(NotImplementedError, match="Duet"):
        Duet().input_side((1, 6, 6), 9)


def run(model: Any, inputs: dict[str, Any], budget: float) -> tuple[Any, list[tuple[int, ...]]]:
    sizes: list[tuple[int, ...]] = []
    encoder = adapter_of(model).vision_encoder

    def see(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        sizes.append(tuple(output.last_hidden_state.shape))

    with compress(model, "downsample", budget) as c, torch.no_grad():
        handle = encoder.register_forward_hook(see, with_kwargs=True)
        model(**inputs)
        handle.remove()
        return c.export(), sizes


def test_the_encoder_sees_fewer_patches_and_every_block_gets_its_row() -> None:
    case = BY_NAME["llava"]
    model, inputs = case.model("sdpa"), case.inputs(case.samples())
    family = adapter_of(model)
    small = family.side // 2
    exported, sizes = run(model, inputs, 0.25)
    assert sizes[0][1] == 1 + small * small
    assert all(len(entry["anchor"]) == small * small for entry in exported)

    patch = model.config.vision_config.patch_size
    picture = inputs["pixel_values"]
    shrunk = functional.interpolate(
        picture, (small * patch, small * patch), mode="bicubic", antialias=True
    )
    with torch.no_grad():
        seen = family.vision_encoder(
            shrunk, interpolate_pos_encoding=True, output_hidden_states=True
        )
        layer = model.config.vision_feature_layer
        wanted = family.core.multi_modal_projector(seen.hidden_states[layer][:, 1:])
        with compress(model, "downsample", 0.25), encodings(model) as encoded:
            model(**inputs)
    images = encoded["image"]
    assert images.features is not None and images.reductions is not None
    features = images.features.split(images.counts)
    anchors = [reduction.anchor[0] for reduction in images.reductions]
    for actual, theirs, anchor in zip(features, wanted, anchors, strict=True):
        torch.testing.assert_close(actual[anchor], theirs, rtol=1e-4, atol=1e-5)


def test_counts_are_squares_and_all_is_untouched() -> None:
    case = BY_NAME["llava"]
    model, inputs = case.model("sdpa"), case.inputs(case.samples())
    side = adapter_of(model).side
    for budget in (1, 0.3, side * side - 1):
        exported, _ = run(model, inputs, budget)
        assert {round(len(entry["anchor"]) ** 0.5) ** 2 for entry in exported} == {
            len(exported[0]["anchor"])
        }
    with torch.no_grad():
        plain = model(**inputs).logits
        with compress(model, "downsample", 1.0):
            assert torch.equal(model(**inputs).logits, plain)
        assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "internvl"])
def test_other_vision_encoders_are_refused(name: str) -> None:
    with pytest.raises(CompressionError, match="smaller picture"):
        compress(BY_NAME[name].model("sdpa"), "downsample", 0.25)
