"""The thinkers of Qwen2.5-Omni and Qwen3-Omni: Qwen2.5-VL and Qwen3-VL with audio beside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlm.attention import AttentionReader, PackedReader
from vlm.families.qwen2_5_vl import Qwen2_5VL
from vlm.families.qwen2_vl import Qwen2VL
from vlm.inputs import FrameLayout


class Qwen2_5Omni(Qwen2_5VL):  # noqa: N801 - as the model is called
    """`Qwen2_5OmniThinkerForConditionalGeneration`. Audio tokens are text to a reduction."""

    name = "qwen2_5_omni"
    prunes_patches = False
    model_types = frozenset({"qwen2_5_omni_thinker"})

    def reader(self, layer: Any) -> AttentionReader:
        return PackedReader(layer.attn)

    @property
    def frame_layout(self) -> FrameLayout | None:
        return None

    def chunk_positions(self, ids: Tensor, mask: Tensor, media: Mapping[str, Any]) -> Tensor | None:
        return _positions(self.core, ids, mask, media)


class Qwen3Omni(Qwen2VL):
    """`Qwen3OmniMoeThinkerForConditionalGeneration`, with DeepStack as in Qwen3-VL."""

    name = "qwen3_omni_moe"
    prunes_patches = False
    model_types = frozenset({"qwen3_omni_moe_thinker"})

    @property
    def frame_layout(self) -> FrameLayout | None:
        return None

    def chunk_positions(self, ids: Tensor, mask: Tensor, media: Mapping[str, Any]) -> Tensor | None:
        return _positions(self.core, ids, mask, media)


def _positions(core: Any, ids: Tensor, mask: Tensor, media: Mapping[str, Any]) -> Tensor | None:
    """See `ModelAdapter.chunk_positions`; the stock function reads the ids and no token types."""

    def given(name: str) -> Tensor | None:
        value = media.get(name)
        return None if value is None else torch.as_tensor(value).cpu()

    grids = given("image_grid_thw"), given("video_grid_thw")
    if grids == (None, None):
        return None
    audio = given("feature_attention_mask")
    positions, _ = core.get_rope_index(
        ids.cpu(),
        *grids,
        mask.cpu().long(),
        bool(media.get("use_audio_in_video")),
        None if audio is None else audio.sum(1),
        given("video_second_per_grid"),
    )
    placed: Tensor = positions.permute(1, 2, 0).double() * mask.cpu()[..., None]
    return placed.to(ids.device)
