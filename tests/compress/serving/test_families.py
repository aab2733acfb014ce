"""Where vLLM's models differ from those of transformers; no vLLM is needed for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from compress.serving.vllm.families import ServedLlava


def _llava(built: int, depth: int) -> Any:
    """LLaVA as vLLM builds it: the layers up to the one whose output the projector gets."""
    layers = [SimpleNamespace(self_attn=SimpleNamespace(attn=number)) for number in range(built)]
    vision = SimpleNamespace(model_type="clip_vision_model", num_hidden_layers=depth)
    config = SimpleNamespace(
        vision_config=vision, vision_feature_layer=-2, vision_feature_select_strategy="default"
    )
    tower = SimpleNamespace(encoder=SimpleNamespace(layers=layers))
    return ServedLlava(SimpleNamespace(config=config, vision_tower=tower))  # type: ignore[arg-type]


def test_layers_are_counted_as_in_the_whole_encoder() -> None:
    served = _llava(built=23, depth=24)
    scoring = {index: served.scoring_layer("image", index) for index in (None, -2, 5, -24)}
    assert scoring == {None: 22, -2: 22, 5: 5, -24: 0}
    assert served.reader(served.vision_layers("image")[22]).attention == 22


def test_a_layer_that_is_not_built_is_refused() -> None:
    served = _llava(built=23, depth=24)
    last = served.vision_layers("image")[served.scoring_layer("image", -1)]
    with pytest.raises(ValueError, match="behind the one whose output the projector gets"):
        served.reader(last)
