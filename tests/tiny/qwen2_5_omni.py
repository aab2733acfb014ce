"""The thinkers of Qwen2.5-Omni and Qwen3-Omni: Qwen2.5-VL and Qwen3-VL; a grid of a video spans two
positions a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen2_5_omni import configuration_qwen2_5_omni as omni
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as thinker
from transformers.models.qwen3_omni_moe import configuration_qwen3_omni_moe as omni3
from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as thinker3

from tests.tiny.base import IMAGE_TOKEN, VIDEO_TOKEN, text
from tests.tiny.qwen2_5_vl import Qwen2_5VL
from tests.tiny.qwen2_vl import ROPE, Qwen2VL
from tests.tiny.qwen3_vl import EXPERTS, VISION

AUDIO = {
    "num_mel_bins": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "d_model": 16,
    "output_dim": 32,
}
MARKS = {
    "vision_start_token_id": 3,
    "vision_end_token_id": 1,
    "audio_start_token_id": 70,  # beside the words of prompts
    "position_id_per_seconds": 2,
}


class Qwen2_5Omni(Qwen2_5VL):  # noqa: N801 - as the model is called
    name = "qwen2_5_omni"
    model_class = "Qwen2_5OmniThinkerForConditionalGeneration"
    since = "5.22"
    quick = False

    def config(self, depth: int) -> Any:
        return omni.Qwen2_5OmniThinkerConfig(
            vision_config=super().config(depth).vision_config.to_dict()
            | {"model_type": "qwen2_5_omni_vision_encoder"},
            text_config=text(depth=depth, rope_parameters=dict(ROPE)),
            audio_config=AUDIO,
            image_token_index=IMAGE_TOKEN,
            video_token_index=VIDEO_TOKEN,
            audio_token_index=71,
            **MARKS,
        )

    def build(self, config: Any) -> Any:
        return thinker.Qwen2_5OmniThinkerForConditionalGeneration(config)

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        return with_seconds(super().media(kind, shown), kind)

    def extra(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}


class Qwen3Omni(Qwen2VL):
    name = "qwen3_omni_moe"
    model_class = "Qwen3OmniMoeThinkerForConditionalGeneration"
    since = "5.22"
    quick = False

    def config(self, depth: int) -> Any:
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
        return omni3.Qwen3OmniMoeThinkerConfig(
            vision_config=VISION | {"deepstack_visual_indexes": [0, 2]},
            text_config=text(depth=depth, head_dim=8, rope_parameters=rope, **EXPERTS),
            audio_config=AUDIO | {"downsample_hidden_size": 8},
            image_token_id=IMAGE_TOKEN,
            video_token_id=VIDEO_TOKEN,
            audio_token_id=71,
            **MARKS,
        )

    def build(self, config: Any) -> Any:
        return thinker3.Qwen3OmniMoeThinkerForConditionalGeneration(config)

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        return with_seconds(super().media(kind, shown), kind)

    def extra(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}


def with_seconds(given: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    if kind == "video":
        given["video_second_per_grid"] = torch.ones(len(given["video_grid_thw"]))
    return given
