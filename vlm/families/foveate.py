"""Foveate's own model: any number of experts, whose blocks of tokens follow one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from positions import MRoPE, Scheme
from vlm.attention import AttentionReader
from vlm.experts.base import ExpertOutput
from vlm.families.base import ModelAdapter, UnknownFamily, layer_of
from vlm.families.expert_heads import ExpertsReader
from vlm.families.resize import smaller_pictures
from vlm.fusion import Block
from vlm.inputs import FrameLayout, View, VisualInput
from vlm.model.features import FoveateFeatures, blocks_of_images, blocks_of_videos, by_expert
from vlm.model.positions import plan_batch


class FoveateAdapter(ModelAdapter):
    """`FoveateForConditionalGeneration` with the MLP fusion.

    Merging follows the fusion; with one expert and no windows it comes before, as in LLaVA.
    """

    name = "foveate"
    model_types = frozenset({"foveate"})
    kinds = ("image", "video")
    videos_by_frame = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        if self.core.fusion.config.kind != "mlp":
            raise UnknownFamily(
                "a Q-Former's tokens have no place in the picture and no attention in a vision "
                "encoder: only the MLP fusion can be reduced"
            )
        for part in ("layers", "norm", "rotary_emb"):
            if not hasattr(self.language_model, part):
                raise UnknownFamily(
                    f"{type(self.language_model).__name__} has no {part!r}: expected a language "
                    "model with layers, norm and rotary_emb, as Llama has"
                )
        (expert, *others) = self.config.expert_configs
        square = expert.family in ("clip", "siglip") and isinstance(
            expert.encoder["patch_size"], int
        )
        self.resizes = square and not others and expert.max_tiles == 1

    def placeholder(self, kind: str) -> int:
        # A model made of a stock LLaVA has no token for videos; no id is -1.
        token_id = getattr(self.config, f"{kind}_token_id")
        return -1 if token_id is None else int(token_id)

    @property
    def image_tokens(self) -> int | None:
        if any(expert.max_tiles > 1 for expert in self.config.expert_configs):
            return None
        return sum(rows * columns for rows, columns in self.core.grids.values())

    @property
    def vision_encoder(self) -> nn.Module:
        return self.core.experts if len(self.core.experts) > 1 else self.core.vision_tower

    def vision_layers(self, kind: str) -> Sequence[int]:
        """Depths that every expert has: those of the first half counted from the front, the others
        from the back, since experts need not be equally deep."""
        depth = min(len(e.family.layers(e.encoder)) for e in self.core.experts.values())
        return [at if at < depth // 2 else at - depth for at in range(depth)]

    def feature_layer(self, kind: str) -> int:
        """The deepest layer that any expert's features come from."""
        depth = len(self.vision_layers(kind))
        layers = [e.layer for e in self.config.expert_configs if not isinstance(e.layer, str)]
        last = max((layer_of(layer, depth) for layer in layers), default=depth - 1)
        return min(max(last, 0), depth - 1)

    def reader(self, layer: Any) -> AttentionReader:
        return ExpertsReader(self.core, layer)

    def projector_input(self, kind: str) -> nn.Module | None:
        (name, *others), fusion = list(self.core.experts), self.core.fusion
        plain = not others and fusion.config.window.get(name, 1) == 1
        plain = plain and (kind == "video" or self.config.expert_configs[0].max_tiles == 1)
        return fusion.first[name] if plain else None

    def resized(self, side: int, block_of: Tensor) -> AbstractContextManager[None]:
        (expert,) = self.core.experts.values()
        pixels = side * expert.config.encoder["patch_size"]

        def spread(output: ExpertOutput) -> ExpertOutput:
            index = block_of.to(output.features.device)
            keys, saliency = (
                None if x is None else x[:, index] for x in (output.keys, output.saliency)
            )
            return ExpertOutput(output.features[:, index], output.grid, keys, saliency)

        return smaller_pictures(expert.encoder, (pixels, pixels), expert, spread)

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        names, grids = list(self.core.experts), self.core.grids
        if kind == "image":
            pixels = by_expert("pixel_values", call["pixel_values"], names)
            blocks = blocks_of_images(grids, pixels, call.get("image_tiles"))
        else:
            pixels = by_expert("pixel_values_videos", call["pixel_values_videos"], names)
            blocks = blocks_of_videos(grids, pixels, call.get("video_frames"), None)
        return [_visual_input(one) for one in blocks]

    def pool(self, inputs: Sequence[VisualInput], rows: Tensor) -> Tensor:
        return rows  # readers and the fusion give rows by token

    def chunk_positions(self, ids: Tensor, mask: Tensor, media: Mapping[str, Any]) -> Tensor | None:
        """See `ModelAdapter.chunk_positions`.

        Reads `mm_encoder_outputs`, or else the pixels with `image_tiles`, `video_frames` and
        `video_times`. None unless an expert's scheme is M-RoPE: other schemes have one axis.
        """
        if not any(isinstance(scheme, MRoPE) for scheme in self.view_schemes()):
            return None
        placed = {}
        for kind in self.kinds:
            blocks = self._blocks_of(kind, media)
            if blocks is not None:
                placed[self.placeholder(kind)] = blocks
        if not placed:
            return None
        positions = torch.zeros(*ids.shape, 3, dtype=torch.float64)
        plans = plan_batch(ids, mask, placed, self.core.fusion)
        for row, real, plan in zip(positions, mask.bool().cpu(), plans, strict=True):
            row[real] = plan.positions[:, 0]
        return positions.to(ids.device)

    def _blocks_of(self, kind: str, media: Mapping[str, Any]) -> list[tuple[Block, ...]] | None:
        encoded = (media.get("mm_encoder_outputs") or {}).get(kind)
        if encoded is not None:
            return list(encoded.blocks or [])
        names, grids = list(self.core.experts), self.core.grids
        name = "pixel_values" if kind == "image" else "pixel_values_videos"
        if media.get(name) is None:
            return None
        pixels = by_expert(name, media[name], names)
        if kind == "image":
            return blocks_of_images(grids, pixels, media.get("image_tiles"))
        return blocks_of_videos(grids, pixels, media.get("video_frames"), media.get("video_times"))

    @property
    def frame_layout(self) -> FrameLayout | None:
        """None with several experts, whose blocks of a video do not follow one another frame by
        frame, with schemes other than M-RoPE's own, and without a placeholder for videos."""
        (scheme, *others) = self.view_schemes()
        rate = scheme.tokens_per_second if isinstance(scheme, MRoPE) else None
        plain = scheme is None or scheme == MRoPE(tokens_per_second=rate)
        if others or not plain or self.placeholder("video") < 0:
            return None
        return FrameLayout("video", rate=rate)

    def frames_call(self, processor: Any, frames: np.ndarray) -> tuple[str, dict[str, Any]]:
        call = processor(videos=[frames])
        return "video", {name: value for name, value in call.items() if name != "video_times"}

    def encoder_output(self, features: Sequence[Tensor]) -> FoveateFeatures:
        return FoveateFeatures(pooler_output=list(features))

    def view_schemes(self) -> list[Scheme | None]:
        return [self.core.fusion.config.scheme_of(name) for name in self.core.experts]

    def blank(self, kind: str) -> dict[str, Any]:
        name = "pixel_values" if kind == "image" else "pixel_values_videos"
        pixels = {e.name: torch.zeros(1, 3, *e.image_size) for e in self.config.expert_configs}
        return {name: pixels if len(pixels) > 1 else next(iter(pixels.values()))}


def _visual_input(blocks: tuple[Block, ...]) -> VisualInput:
    views, start = [], 0
    for block in blocks:
        views.append(View(block.grid, torch.arange(start, start + block.tokens)))
        start += block.tokens
    planes = tuple(block.grid for block in blocks)
    return VisualInput(start, tuple(views), start, torch.arange(start), planes, note=blocks)
