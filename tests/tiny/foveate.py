"""Foveate's own model: two experts, of which one cuts tiles and one has windows and rows.

The CLIP expert has 4 x 4 tokens a view. The SigLIP expert has 6 x 6 patches, four of which make a
token, and one position a row of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, SiglipVisionConfig

from tests.tiny.base import IMAGE_TOKEN, VIDEO_TOKEN, Case, View, noise, text
from vlm.experts import expert_config
from vlm.model import FoveateConfig, FoveateForConditionalGeneration

TILES = {"a": (1, 1), "b": (1, 2)}
FRAMES = {"v": 2, "one": 1}
SIZES = {"clip": 16, "siglip": 24}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "patch_size": 4,
}


class Foveate(Case):
    name = "foveate"
    model_class = "FoveateForConditionalGeneration"
    vision = ("experts.clip.encoder", "experts.siglip.encoder")
    projector = "fusion"
    pools = None
    has_cls = True  # of the first expert
    feature_layer = -2
    experts: ClassVar[tuple[str, ...]] = ("clip", "siglip")
    budget = 18
    layouts = (
        (3, ("image", "a"), 7),
        (5, ("image", "b"), 2),
        (1, ("image", "a"), 4, ("video", "v"), 3, ("image", "b"), 6),
        (2, ("video", "v"), 3),
    )

    def config(self, depth: int) -> Any:
        encoders = {
            "clip": CLIPVisionConfig(image_size=SIZES["clip"], **VISION),
            "siglip": SiglipVisionConfig(
                image_size=SIZES["siglip"], vision_use_head=False, **VISION
            ),
        }
        more: dict[str, Any] = {"clip": {"layer": -2, "max_tiles": 2}, "siglip": {}}
        return FoveateConfig(
            text_config=LlamaConfig(**text(depth=depth)),
            experts=[expert_config(n, n, encoder, **more[n]) for n, encoder in encoders.items()],
            fusion={
                "window": {"siglip": 2},
                "scheme": {"siglip": {"type": "Compact", "by": "row"}},
            },
            image_token_id=IMAGE_TOKEN,
            video_token_id=VIDEO_TOKEN,
        )

    def build(self, config: Any) -> Any:
        return FoveateForConditionalGeneration(config)

    def tokens(self, kind: str, variant: str) -> Tensor:
        if kind == "video":
            return torch.full((FRAMES[variant] * 25,), VIDEO_TOKEN)
        down, across = TILES[variant]
        tiled = 16 * down * across if down * across > 1 else 0
        return torch.full((25 + tiled,), IMAGE_TOKEN)

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Any]:
        if kind == "video":
            counts = {name: [FRAMES[variant] for variant, _ in shown] for name in SIZES}
        else:
            crops = [TILES[variant][0] * TILES[variant][1] for variant, _ in shown]
            views = [1 + many if many > 1 else 1 for many in crops]
            counts = {"clip": views, "siglip": [1] * len(shown)}
        pixels = {
            name: torch.cat(
                [
                    noise(count, 3, SIZES[name], SIZES[name], seed=seed)
                    for count, (_, seed) in zip(counts[name], shown, strict=True)
                ]
            )
            for name in SIZES
        }
        if kind == "video":
            return {
                "pixel_values_videos": pixels,
                "video_frames": torch.tensor(counts["clip"]),
            }
        tiles = torch.tensor([TILES[variant] for variant, _ in shown])
        return {
            "pixel_values": pixels,
            "image_tiles": {"clip": tiles, "siglip": torch.ones_like(tiles)},
        }

    def views(self, kind: str, variant: str) -> list[View]:
        grids = [(1, 4, 4)]
        if kind == "video":
            grids = [(FRAMES[variant], 4, 4), (FRAMES[variant], 3, 3)]
        else:
            down, across = TILES[variant]
            grids += [(1, 4 * down, 4 * across)] if down * across > 1 else []
            grids += [(1, 3, 3)]
        layouts, start = [], 0
        for grid in grids:
            count = grid[0] * grid[1] * grid[2]
            layouts.append((grid, list(range(start, start + count))))
            start += count
        return layouts

    def by_token(self, kind: str, variant: str, values: Sequence[Tensor]) -> Tensor:
        """Values of the tokens of each expert's views, (views, tokens, C), by token, (N, C)."""
        clip, siglip = values
        rows, down, across = [], 1, 1
        if kind == "image":
            rows += [clip[0]]
            down, across = TILES[variant]
            clip = clip[1:]
        if kind == "video":
            rows += list(clip)
        elif len(clip):
            plane = [
                clip[row // 4 * across + column // 4][row % 4 * 4 + column % 4]
                for row in range(4 * down)
                for column in range(4 * across)
            ]
            rows += [torch.stack(plane)]
        for view in siglip:
            blocks = [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
            groups = [
                [12 * row + column for column in block] for row in range(3) for block in blocks
            ]
            rows += [torch.stack([view[block].mean(0) for block in groups])]
        return torch.cat(rows)

    def positions(self, sample: Any) -> tuple[Tensor, int]:
        """(S, 1) positions of a sample, and the next one: SigLIP's tokens one a row of 3."""
        numbers: list[int] = []
        shown = iter(sample.shown)
        at = cursor = 0
        ids = sample.ids.tolist()
        while at < len(ids):
            if ids[at] not in (IMAGE_TOKEN, VIDEO_TOKEN):
                numbers.append(cursor)
                at, cursor = at + 1, cursor + 1
                continue
            kind, variant, _ = next(shown)
            total = len(self.tokens(kind, variant))
            rows = 9 * FRAMES.get(variant, 1)
            numbers += [cursor + i for i in range(total - rows)]
            cursor += total - rows
            numbers += [cursor + i // 3 for i in range(rows)]
            at, cursor = at + total, cursor + rows // 3
        return torch.tensor(numbers)[:, None], cursor
