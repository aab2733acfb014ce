"""Adapters: inputs, tokens and layers."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from compress import CompressionError, compress
from tests.marks import each_case
from tests.tiny import CASES, Case
from tests.vlm import models
from vlm.families import ADAPTERS, UnknownFamily, adapter_of
from vlm.families.refused import REFUSED

BY_NAME = {case.name: case for case in CASES}


def calls(case: Case) -> list[tuple[str, dict[str, Any]]]:
    """All inputs of a case's samples in one call a kind."""
    adapter = adapter_of(case.model())
    shown = [visual_input for sample in case.samples() for visual_input in sample.shown]
    kinds = [
        kind for kind in adapter.kinds if any(visual_input[0] == kind for visual_input in shown)
    ]
    return [
        (k, case.media(k, [visual_input[1:] for visual_input in shown if visual_input[0] == k]))
        for k in kinds
    ]


@each_case
def test_pooling_all_inputs_is_pooling_each(case: Case) -> None:
    adapter = adapter_of(case.model())
    for kind, call in calls(case):
        inputs = adapter.inputs(kind, call)
        rows = torch.randn(sum(item.rows for item in inputs), 5)
        whole = adapter.pool(inputs, rows)
        parts = rows.split([item.rows for item in inputs])
        each = [adapter.pool([item], part) for item, part in zip(inputs, parts, strict=True)]
        assert [len(pooled) for pooled in each] == [item.count for item in inputs]
        torch.testing.assert_close(whole, torch.cat(each))
        torch.testing.assert_close(adapter.pool(inputs, rows[:, 0]), whole[:, 0])
        for item, tokens in zip(inputs, each, strict=True):
            separators = torch.ones(item.count, dtype=torch.bool)
            for view in item.views:
                separators[view.indices] = False
            if item.source is None or bool((item.source < 0).any()):
                assert (tokens[separators] == 0).all()


@each_case
def test_inputs_leave_no_trace(case: Case) -> None:
    """Calls of several threads could not tell one another's state apart."""
    adapter = adapter_of(case.model())
    before = dict(vars(adapter))
    for kind, call in calls(case):
        adapter.inputs(kind, call)
    assert vars(adapter) == before


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_refused_family_says_why(model_type: str) -> None:
    model = torch.nn.Module()
    model.config = SimpleNamespace(model_type=model_type)
    model.model = torch.nn.Module()
    with pytest.raises(UnknownFamily, match=re.escape(REFUSED[model_type])):
        adapter_of(model)


@pytest.mark.parametrize(
    ("name", "part", "option", "value"),
    [
        ("molmo2", "text_config", "norm_after", True),
        ("molmo2", "text_config", "rope_scaling_layers", [0]),
        ("molmo2", "vision_config", "num_key_value_heads", 2),
        ("llama4", "vision_config", "pixel_shuffle_ratio", 0.3),
    ],
)
def test_a_structure_that_is_not_known_is_refused(
    name: str, part: str, option: str, value: Any
) -> None:
    model = BY_NAME[name].model()
    config = getattr(model.config, part)
    known = getattr(config, option)
    setattr(config, option, value)
    try:
        with pytest.raises(UnknownFamily, match=rf"{option}=.* is not known: expected"):
            adapter_of(model)
    finally:
        setattr(config, option, known)


def test_refused_families_are_not_held() -> None:
    assert not REFUSED.keys() & {kind for family in ADAPTERS for kind in family.model_types}


def test_a_refused_video_says_why() -> None:
    case = BY_NAME["glm4v"]
    model, inputs = case.model(), case.inputs([case.samples()[0]])
    inputs["pixel_values_videos"] = inputs.pop("pixel_values")
    inputs["video_grid_thw"] = inputs.pop("image_grid_thw")
    with (
        compress(model, "divprune", budget=4),
        pytest.raises(CompressionError, match="its frames have the placeholder of images"),
    ):
        model(**inputs)


def test_kinds_of_layers() -> None:
    model = BY_NAME["llava"].fresh()
    config = model.model.language_model.config
    assert adapter_of(model).layer_kinds == ("full_attention",) * 4
    assert adapter_of(model).reach("full_attention") is None
    config.sliding_window = 8
    assert adapter_of(model).layer_kinds == ("sliding_attention",) * 4
    assert adapter_of(model).reach("sliding_attention") == 8
    config.layer_types = ["sliding_attention", "full_attention"] * 2
    assert adapter_of(model).layer_kinds == ("sliding_attention", "full_attention") * 2


def test_only_two_families_encode_videos_by_frame() -> None:
    able = [case.name for case in CASES if adapter_of(case.model()).videos_by_frame]
    assert able == ["llava", "foveate"]
    with pytest.raises(NotImplementedError, match="frame by frame"):
        adapter_of(BY_NAME["gemma3"].model()).frames_call(None, torch.zeros(1).numpy())


def test_families_that_take_streams() -> None:
    able = [case.name for case in CASES if adapter_of(case.model()).frame_layout is not None]
    qwen = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"]
    assert set(able) == {"llava", *qwen}  # and Foveate's own model with one expert


@torch.no_grad()
def test_features_of_several_layers() -> None:
    """An expert whose features are those of two layers, side by side."""
    model, processor = models.build(("clip",), layer=[-2, -1])
    adapter = adapter_of(model)
    depth = len(adapter.vision_layers("image"))
    assert adapter.feature_layer("image") == depth - 1
    inputs = processor(images=[models.picture(0)], text="<image> what")
    dense = models.logits(model, inputs)
    with compress(model, "duet", budget=8) as c:
        reduced = models.logits(model, inputs)
        assert c.report().budget < 16
    assert reduced.isfinite().all() and not torch.equal(reduced, dense)
