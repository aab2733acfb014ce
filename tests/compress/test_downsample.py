"""The picture made smaller: what the tower sees, where its tokens stand, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from compress import CompressionError, compress, reduce
from tests.tiny import CASES
from vlm.families import adapter_of

BY_NAME = {case.name: case for case in CASES}


def run(model: Any, inputs: dict[str, Any], budget: float) -> tuple[Any, list[tuple[int, ...]]]:
    sizes: list[tuple[int, ...]] = []
    tower = adapter_of(model).tower

    def see(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        sizes.append(tuple(output.last_hidden_state.shape))

    with compress(model, "downsample", budget) as c, torch.no_grad():
        handle = tower.register_forward_hook(see, with_kwargs=True)
        model(**inputs)
        handle.remove()
        return c.export(), sizes


def test_the_tower_sees_fewer_patches_and_every_block_gets_its_row() -> None:
    case = BY_NAME["llava"]
    model, inputs = case.model("sdpa"), case.inputs(case.samples())
    family = adapter_of(model)
    small = family.side // 2
    found, sizes = run(model, inputs, 0.25)
    assert sizes[0][1] == 1 + small * small
    assert all(len(one["anchor"]) == small * small for one in found)

    patch = model.config.vision_config.patch_size
    picture = inputs["pixel_values"]
    shrunk = functional.interpolate(
        picture, (small * patch, small * patch), mode="bicubic", antialias=True
    )
    with torch.no_grad():
        seen = family.tower(shrunk, interpolate_pos_encoding=True, output_hidden_states=True)
        layer = model.config.vision_feature_layer
        wanted = family.core.multi_modal_projector(seen.hidden_states[layer][:, 1:])
    # The first sample alone: three words, then the image.
    entering: list[torch.Tensor] = []

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        entering.append(kwargs["inputs_embeds"][0, 3 : 3 + small * small])

    with torch.no_grad(), compress(model, "downsample", 0.25):
        handle = family.language_model.register_forward_pre_hook(look, with_kwargs=True)
        model(**case.inputs(case.samples()[:1]))
        handle.remove()
    torch.testing.assert_close(entering[0], wanted[0], rtol=1e-4, atol=1e-5)


def test_counts_are_squares_and_all_is_untouched() -> None:
    case = BY_NAME["llava"]
    model, inputs = case.model("sdpa"), case.inputs(case.samples())
    side = adapter_of(model).side
    for budget in (1, 0.3, side * side - 1):
        found, _ = run(model, inputs, budget)
        assert {round(len(one["anchor"]) ** 0.5) ** 2 for one in found} == {len(found[0]["anchor"])}
    with torch.no_grad():
        plain = model(**inputs).logits
        with compress(model, "downsample", 1.0):
            assert torch.equal(model(**inputs).logits, plain)
        assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "internvl"])
def test_other_towers_are_refused(name: str) -> None:
    with pytest.raises(CompressionError, match="smaller picture"):
        compress(BY_NAME[name].model("sdpa"), "downsample", 0.25)


def test_on_bare_features_it_is_pooling() -> None:
    features = torch.randn(2, 36, 5, generator=torch.Generator().manual_seed(0))
    pooled, small = (reduce(features, m, 9, grid=(6, 6)) for m in ("pool", "downsample"))
    assert torch.equal(pooled.features, small.features)
    assert torch.equal(pooled.assign, small.assign)
