"""Foveate's own model: any number of experts, whose blocks of tokens follow one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm.experts.scoring import Seen, saliency
from vlm.families.base import Family, UnknownFamily, View, VisualInput
from vlm.families.taps import Tap
from vlm.fusion import Block
from vlm.model.features import blocks_of_images, blocks_of_videos, by_expert, in_order


class FoveateFamily(Family):
    """`FoveateForConditionalGeneration` with the MLP fusion.

    Merging follows the fusion; with one expert and no windows it comes before, as in LLaVA.
    """

    name = "foveate"
    model_types = frozenset({"foveate"})
    kinds = ("image", "video")

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        if self.core.fusion.config.kind != "mlp":
            raise UnknownFamily(
                "a Q-Former's tokens have no place in the picture and no attention in a tower: "
                "only the MLP fusion can be reduced"
            )
        self.blocks: list[tuple[Block, ...]] = []

    def placeholder(self, kind: str) -> int:
        # A model made of a stock LLaVA has no token for videos; no id is -1.
        found = getattr(self.config, f"{kind}_token_id")
        return -1 if found is None else int(found)

    @property
    def cells(self) -> int | None:
        if any(expert.max_tiles > 1 for expert in self.config.expert_configs):
            return None
        return sum(rows * columns for rows, columns in self.core.grids.values())

    @property
    def tower(self) -> nn.Module:
        return self.core.experts if len(self.core.experts) > 1 else self.core.vision_tower

    def vision_layers(self, kind: str) -> Sequence[Any]:
        """Depths that every expert has, counted from the back."""
        depth = min(len(e.family.layers(e.tower)) for e in self.core.experts.values())
        return range(-depth, 0)

    def feature_layer(self, kind: str) -> int:
        given = {expert.layer for expert in self.config.expert_configs if expert.layer != "last"}
        depth = len(self.vision_layers(kind))
        last = max((i if isinstance(i, int) else i[-1] for i in given), default=-1)
        return min(max(last + depth if last < 0 else last - 1, 0), depth - 1)

    def tap(self, layer: Any) -> Tap:
        return ExpertsTap(self, layer)

    def merge_point(self, kind: str) -> nn.Module | None:
        (name, *others), fusion = list(self.core.experts), self.core.fusion
        plain = not others and fusion.config.window.get(name, 1) == 1 and kind == "image"
        plain = plain and self.config.expert_configs[0].max_tiles == 1
        return fusion.first[name] if plain else None

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        names, grids = list(self.core.experts), self.core.grids
        if kind == "image":
            pixels = by_expert("pixel_values", call["pixel_values"], names)
            self.blocks = blocks_of_images(grids, pixels, call.get("image_tiles"))
        else:
            pixels = by_expert("pixel_values_videos", call["pixel_values_videos"], names)
            self.blocks = blocks_of_videos(grids, pixels, call.get("video_frames"), None)
        return [_visual_input(blocks) for blocks in self.blocks]

    def blank(self, kind: str) -> dict[str, Any]:
        name = "pixel_values" if kind == "image" else "pixel_values_videos"
        pixels = {e.name: torch.zeros(1, 3, *e.image_size) for e in self.config.expert_configs}
        return {name: pixels if len(pixels) > 1 else next(iter(pixels.values()))}


class ExpertsTap(Tap):
    """Reads the layer at one depth of every expert (SAM: the layer of its own settings, since only
    some of its layers attend to the whole image)."""

    def __init__(self, family: FoveateFamily, depth: int) -> None:
        super().__init__()
        self.family = family
        self.layers = {}
        for name, expert in family.core.experts.items():
            own = expert.config.scoring_layer if expert.config.family == "sam" else depth
            layers = expert.family.layers(expert.tower)
            self.layers[name] = layers[max(own, -len(layers))]

    def attach(self) -> list[Any]:
        handles = []
        for name, expert in self.family.core.experts.items():
            layer = self.layers[name]
            parts = {"": layer} if expert.family.watch is None else expert.family.watch(layer)
            for part, module in parts.items():
                hook = self._hook(name, part)
                handles.append(module.register_forward_hook(hook, with_kwargs=True))
        return handles

    def _hook(self, name: str, part: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            if self.active:
                self._seen.setdefault(name, {})[part] = Seen(args, kwargs, output)

        return hook

    def take(self, rows: Sequence[int]) -> Any:
        seen, self._seen = self._seen, {}
        if len(seen) != len(self.layers):
            raise RuntimeError("an expert's scoring layer ran unseen: compress first, compile then")
        return _Scores(self, seen)

    def blocks(self, rows: Sequence[int]) -> Any:
        raise NotImplementedError("experts are read by `take`")

    @property
    def scale(self) -> float:
        raise NotImplementedError("experts have scales of their own")


class _Scores:
    """Keys and saliency of all experts, for each token in the order of the sequence."""

    def __init__(self, tap: ExpertsTap, seen: dict[str, dict[str, Seen]]) -> None:
        self.tap, self.family, self.seen = tap, tap.family, seen

    def saliency(self, rule: Any) -> Tensor:
        """(R,) float32; of several experts, each one's divided by its mean over the call."""
        found = {}
        for name, expert, prefix in self._experts():
            attention = self._attention(name, expert)
            if attention is None:
                received = expert.family.tokens(self.seen[name][""].output).float().norm(dim=-1)
            else:
                received = saliency(attention, prefix, rule if prefix else "received")
            if len(self.seen) > 1:
                received = received / received.mean().clamp(min=torch.finfo(torch.float32).tiny)
            found[name] = received[..., None]
        return self._in_order(found)[:, 0]

    def keys(self) -> Tensor:
        """(R, sum of widths): each expert's in columns of its own, so that none resembles
        another's."""
        found = {}
        for name, expert, prefix in self._experts():
            attention = self._attention(name, expert)
            if attention is None:
                found[name] = expert.family.tokens(self.seen[name][""].output)
            else:
                found[name] = attention.key.mean(1)[:, prefix:]
        widths = [keys.shape[-1] for keys in found.values()]
        for place, name in enumerate(found):
            sides = (sum(widths[:place]), sum(widths[place + 1 :]))
            found[name] = nn.functional.pad(found[name].float(), sides)
        return self._in_order(found)

    def attention(self) -> list[Tensor]:
        """Not offered: experts do not attend to one another."""
        raise ValueError("attention between the tokens of several experts is not known")

    def _experts(self) -> list[tuple[str, Any, int]]:
        experts = self.family.core.experts
        return [(name, e, e.family.prefix(e.tower)) for name, e in experts.items()]

    def _attention(self, name: str, expert: Any) -> Any:
        read = expert.family.attention
        return None if read is None else read(self.tap.layers[name], self.seen[name])

    def _in_order(self, cells: dict[str, Tensor]) -> Tensor:
        """(views, cells, C) by expert to (R, C)."""
        core = self.family.core
        views = {
            name: {"features": core.fusion.per_token(name, x, core.experts[name].grid)}
            for name, x in cells.items()
        }
        stays = torch.ones(len(self.family.blocks), len(views), dtype=torch.bool)
        ordered = in_order(views, core.grids, self.family.blocks, stays)
        return torch.cat(list(ordered.pooler_output))


def _visual_input(blocks: tuple[Block, ...]) -> VisualInput:
    views, start = [], 0
    for block in blocks:
        views.append(View(block.grid, torch.arange(start, start + block.tokens)))
        start += block.tokens
    planes = tuple(block.grid for block in blocks)
    return VisualInput(start, tuple(views), start, torch.arange(start), planes)
