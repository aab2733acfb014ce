"""From pixels to tokens: the views and blocks of visual inputs, and the experts' tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)

from vlm.experts import FeatureCache
from vlm.fusion import Block, Fusion, Pair, image_blocks, video_blocks

Pixels = Tensor | Mapping[str, Tensor]
Tiles = Tensor | Mapping[str, Tensor] | None


@dataclass
class FoveateModelOutput(BaseModelOutputWithPast):
    """What the model without its head gives. image_hidden_states: (N, D), all images' tokens."""

    image_hidden_states: Tensor | None = None


@dataclass
class FoveateOutput(CausalLMOutputWithPast):
    """What the model gives. image_hidden_states: (N, D), all images' tokens."""

    image_hidden_states: Tensor | None = None


@dataclass
class FoveateFeatures(BaseModelOutputWithPooling):
    """Visual inputs as tokens of the language model.

    pooler_output: for each visual input its tokens (N, D), what `forward` puts at placeholders.
    blocks: for each visual input, the expert and the grid of its tokens.
    saliency: for each visual input (N,) float32, and cell_keys: for each visual input a tensor
        (n, Dk) for each block; both without gradient, None unless scores were requested.
    """

    pooler_output: Any = None
    blocks: list[tuple[Block, ...]] | None = None
    saliency: list[Tensor] | None = None
    cell_keys: list[list[Tensor]] | None = None

    def part(self, start: int, stop: int) -> FoveateFeatures:
        """The visual inputs from `start` to `stop` - 1."""
        fields = {k: None if v is None else v[start:stop] for k, v in self.items()}
        return FoveateFeatures(**fields)


def by_expert(argument: str, pixels: Pixels, experts: Sequence[str]) -> dict[str, Tensor]:
    """The pixels for each expert, by name. Raises ValueError if they are of other experts."""
    if isinstance(pixels, Tensor):
        pixels = {experts[0]: pixels} if len(experts) == 1 else {"": pixels}
    if list(pixels) != list(experts):
        raise ValueError(
            f"{argument} for experts {list(pixels)}: expected a tensor for each of "
            f"{list(experts)}, in this order"
        )
    return dict(pixels)


def blocks_of_images(
    grids: Mapping[str, Pair], pixels: Mapping[str, Tensor], tiles: Tiles
) -> list[tuple[Block, ...]]:
    """The blocks of each image; see `FoveateModel.get_image_features`."""
    by_name = tiles if isinstance(tiles, Mapping) else dict.fromkeys(pixels, tiles)
    shapes: dict[str, list[Pair]] = {}
    for name, views in pixels.items():
        arrangements = by_name.get(name)
        shapes[name] = [(1, 1)] * len(views) if arrangements is None else arrangements.tolist()
        count = sum(down * across + (down * across > 1) for down, across in shapes[name])
        if count != len(views):
            raise ValueError(
                f"pixel_values of {name!r} hold {len(views)} views and image_tiles says {count}: "
                "expected one view of each image and, of an image with tiles, its tiles"
            )
    counts = {name: len(rows) for name, rows in shapes.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"pixel_values hold {counts} images: expected as many for each expert")
    return [
        image_blocks(grids, {name: (rows[i][0], rows[i][1]) for name, rows in shapes.items()})
        for i in range(max(counts.values()))
    ]


def blocks_of_videos(
    grids: Mapping[str, Pair],
    pixels: Mapping[str, Tensor],
    frames: Tensor | None,
    times: Tensor | None,
) -> list[tuple[Block, ...]]:
    """The blocks of each video; see `FoveateModel.get_video_features`."""
    counts = {name: len(views) for name, views in pixels.items()}
    lengths = [max(counts.values())] if frames is None else frames.tolist()
    if set(counts.values()) != {sum(lengths)} or (times is not None and len(times) != sum(lengths)):
        raise ValueError(
            f"video_frames says {lengths} frames, pixel_values_videos hold {counts} and "
            f"video_times {None if times is None else len(times)}: expected equal numbers"
        )
    stamps = [None] * len(lengths) if times is None else times.split(lengths)
    return [
        video_blocks(grids, count, None if stamp is None else tuple(stamp.tolist()))
        for count, stamp in zip(lengths, stamps, strict=True)
    ]


def encode(
    experts: nn.ModuleDict,
    fusion: Fusion,
    pixels: Mapping[str, Tensor],
    scores: bool,
    cache: FeatureCache | None,
) -> dict[str, dict[str, Tensor]]:
    """For each expert, by kind, (views, tokens, width).

    Kinds are "features", and "keys" and "saliency" (width 1) if they were requested and tokens have
    grid cells of their own. Calls each expert and each layer of the fusion once.
    """
    encoded = {}
    for name, views in pixels.items():
        expert: Any = experts[name]
        if cache is not None and expert.config.frozen:
            seen = cache(expert, views, scores)
        else:
            seen = expert(views, scores)
        encoded[name] = {"features": fusion(name, seen.features, seen.grid)}
        if seen.saliency is not None and fusion.config.kind == "mlp":
            saliency = seen.saliency[..., None]
            encoded[name]["keys"] = fusion.per_token(name, seen.keys, seen.grid)
            encoded[name]["saliency"] = fusion.per_token(name, saliency, seen.grid)
    return encoded


def in_order(
    views: Mapping[str, Mapping[str, Tensor]],
    grids: Mapping[str, Pair],
    inputs: list[tuple[Block, ...]],
    stays: Tensor,
) -> FoveateFeatures:
    """From the views of each expert to the blocks of each visual input.

    views: from `encode`. grids: of one view, by expert. inputs: the blocks of each visual input.
    stays: (inputs, experts) bool; the tokens of the others are set to zero.
    """
    taken = dict.fromkeys(views, 0)
    order = {name: place for place, name in enumerate(views)}
    parts_by_input: list[list[dict[str, Tensor]]] = []
    for blocks, kept in zip(inputs, stays.tolist(), strict=True):
        parts_by_input.append([])
        for block in blocks:
            grid, first = grids[block.expert], taken[block.expert]
            taken[block.expert] += block.tokens // (grid[0] * grid[1])
            part = slice(first, taken[block.expert])
            parts = {kind: _raster(x[part], block, grid) for kind, x in views[block.expert].items()}
            if not kept[order[block.expert]]:
                parts["features"] = parts["features"] * 0
            parts_by_input[-1].append(parts)
    features = FoveateFeatures(
        pooler_output=[torch.cat([part["features"] for part in parts]) for parts in parts_by_input],
        blocks=inputs,
    )
    if all("saliency" in part for parts in parts_by_input for part in parts):
        features.saliency = [
            torch.cat([p["saliency"][:, 0] for p in parts]) for parts in parts_by_input
        ]
        features.cell_keys = [[part["keys"] for part in parts] for parts in parts_by_input]
    return features


def _raster(views: Tensor, block: Block, view: Pair) -> Tensor:
    """(views, n, D) of the views that make up a block to its (tokens, D), in raster order."""
    steps, rows, columns = block.grid
    tiled = views.reshape(steps, rows // view[0], columns // view[1], *view, views.shape[-1])
    return tiled.transpose(2, 3).reshape(block.tokens, -1)
