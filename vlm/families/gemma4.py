"""Gemma 4: patches of any shape under 2-D RoPE, k x k of them averaged, decoder layers that share
keys, and an embedding of each token for each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm.attention import AttentionReader, PaddedReader, Segments, cut_to_pictures
from vlm.families.base import ModelAdapter
from vlm.families.gemma3 import runs
from vlm.families.internvl import shuffled
from vlm.families.rotation import rotate_halves
from vlm.inputs import VisualInput


class Gemma4(ModelAdapter):
    """`Gemma4ForConditionalGeneration`.

    The frames of a video stand in the prompt with their time stamps between them. In models with
    `use_bidirectional_attention="vision"`, the tokens of an image attend to each other in both
    directions in sliding layers. Audio tokens are text to a reduction.
    """

    name = "gemma4"
    model_types = frozenset({"gemma4"})
    kinds: ClassVar[tuple[str, ...]] = ("image", "video")
    along = ("per_layer_inputs",)
    has_blocks = True
    block_kinds = frozenset({"sliding_attention"})
    blocks_cross_windows = False

    @property
    def down(self) -> int:
        """Patches along each side of a token."""
        return int(self.config.vision_config.pooling_kernel_size)

    @property
    def vision_encoder(self) -> nn.Module:
        return self.core.vision_tower

    def vision_layers(self, kind: str) -> Sequence[Any]:
        return self.core.vision_tower.encoder.layers

    def reader(self, layer: Any) -> AttentionReader:
        return _Reader(layer.self_attn)

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        sides = call[f"{kind}_position_ids"].amax(1).add(1).div(self.down, rounding_mode="floor")
        grids = [(1, height, width) for width, height in sides.tolist()]
        if kind == "video":  # the frames of a video are of one size
            frames = call["num_frames_per_video"].tolist()
            starts = [sum(frames[:number]) for number in range(len(frames))]
            grids = [(n, *grids[start][1:]) for n, start in zip(frames, starts, strict=True)]
        return [VisualInput.plain(grid, pooled=self.down**2) for grid in grids]

    def pool(self, inputs: Sequence[VisualInput], rows: Tensor) -> Tensor:
        return shuffled(inputs, rows, self.down)

    def attention_blocks(self, ids: Tensor, media: Mapping[str, Any]) -> Tensor | None:
        types = media.get("mm_token_type_ids")
        two_way = self.language_model.config.use_bidirectional_attention == "vision"
        if types is None or not two_way:
            return None
        types = types[:, -ids.shape[1] :]
        visual = functional.pad((types == 1) | (types == 2), (0, ids.shape[1] - types.shape[1]))
        return runs(visual)  # candidates of assisted decoding have no types

    def blank(self, kind: str) -> dict[str, Tensor]:
        width, side = 3 * self.config.vision_config.patch_size**2, torch.arange(self.down)
        places = torch.cartesian_prod(side, side).flip(1)[None]
        name = "pixel_values" if kind == "image" else "pixel_values_videos"
        call = {name: torch.zeros(1, self.down**2, width), f"{kind}_position_ids": places}
        return call if kind == "image" else call | {"num_frames_per_video": torch.tensor([1])}


class _Reader(PaddedReader):
    """One half of a head turns by a patch's column, the other by its row."""

    def attach(self) -> list[Any]:
        hook = self.argument_hook("position_embeddings")
        handle = self.attention.register_forward_pre_hook(hook, with_kwargs=True)
        return [handle, *super().attach()]

    def segments(self, values: Mapping[Any, Any], inputs: Sequence[VisualInput]) -> list[Segments]:
        cos, sin = (part.chunk(2, dim=-1) for part in values["position_embeddings"])

        def turned(x: Tensor) -> Tensor:
            halves = x.transpose(1, 2).chunk(2, dim=-1)
            parts = zip(halves, cos, sin, strict=True)
            return torch.cat([rotate_halves(*part) for part in parts], dim=-1)

        query, key = turned(values["q"]), turned(values["k"])
        key = key.repeat_interleave(self.attention.num_key_value_groups, 1)
        return cut_to_pictures(Segments(query, key, float(self.attention.scaling)), inputs)
