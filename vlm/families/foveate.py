"""Foveate's own model: any number of experts, whose blocks of tokens follow one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from vlm.experts.base import ExpertOutput
from vlm.experts.scoring import Seen, saliency, weights
from vlm.families.base import ModelAdapter, UnknownFamily, View, VisualInput
from vlm.families.resize import smaller_pictures
from vlm.families.taps import Tap
from vlm.fusion import Block
from vlm.model.features import blocks_of_images, blocks_of_videos, by_expert, in_order


class FoveateAdapter(ModelAdapter):
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
        for part in ("layers", "norm", "rotary_emb"):
            if not hasattr(self.language_model, part):
                raise UnknownFamily(
                    f"{type(self.language_model).__name__} has no {part!r}: expected a language "
                    "model with layers, norm and rotary_emb, as Llama has"
                )
        self.blocks: list[tuple[Block, ...]] = []
        (expert, *others) = self.config.expert_configs
        known = expert.family in ("clip", "siglip") and isinstance(expert.tower["patch_size"], int)
        self.resizes = known and not others and expert.max_tiles == 1

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

    def vision_layers(self, kind: str) -> Sequence[int]:
        """Depths that every expert has: those of the first half counted from the front, the others
        from the back, since experts need not be equally deep."""
        depth = min(len(e.family.layers(e.tower)) for e in self.core.experts.values())
        return [at if at < depth // 2 else at - depth for at in range(depth)]

    def feature_layer(self, kind: str) -> int:
        given = {expert.layer for expert in self.config.expert_configs if expert.layer != "last"}
        depth = len(self.vision_layers(kind))
        last = max((i if isinstance(i, int) else i[-1] for i in given), default=-1)
        return min(max(last + depth if last < 0 else last - 1, 0), depth - 1)

    def tap(self, layer: Any) -> Tap:
        return ExpertsTap(self, layer)

    def merge_point(self, kind: str) -> nn.Module | None:
        (name, *others), fusion = list(self.core.experts), self.core.fusion
        plain = not others and fusion.config.window.get(name, 1) == 1
        plain = plain and (kind == "video" or self.config.expert_configs[0].max_tiles == 1)
        return fusion.first[name] if plain else None

    def resized(self, side: int, block_of: Tensor) -> AbstractContextManager[None]:
        (expert,) = self.core.experts.values()
        pixels = side * expert.config.tower["patch_size"]

        def spread(output: ExpertOutput) -> ExpertOutput:
            index = block_of.to(output.features.device)
            keys, seen = (
                None if x is None else x[:, index] for x in (output.keys, output.saliency)
            )
            return ExpertOutput(output.features[:, index], output.grid, keys, seen)

        return smaller_pictures(expert.tower, (pixels, pixels), expert, spread)

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

    def __init__(self, family: FoveateAdapter, depth: int) -> None:
        super().__init__()
        self.family = family
        self.layers = {}
        for name, expert in family.core.experts.items():
            own = expert.config.scoring_layer if expert.config.family == "sam" else depth
            self.layers[name] = expert.family.layers(expert.tower)[own]

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
            if self.family.core.feature_cache is not None:
                raise UnknownFamily(
                    "features come from feature_cache and the experts do not run, so their scores "
                    "cannot be read: set model.model.feature_cache to None under a compression"
                )
            raise RuntimeError("an expert's scoring layer ran unseen: compress first, compile then")
        return _Scores(self, seen)

    def blocks(self, rows: Sequence[int]) -> Any:
        raise NotImplementedError("experts are read by `take`")

    @property
    def scale(self) -> float:
        raise NotImplementedError("experts have scales of their own")


class _Scores:
    """What `Heads` tells, for each token in the order of the sequence; see there.

    The tokens of one expert are reduced by themselves, so what one expert tells is never compared
    with what another does.
    """

    def __init__(self, tap: ExpertsTap, seen: dict[str, dict[str, Seen]]) -> None:
        self.family, self.seen = tap.family, seen
        self.layers = tap.layers

    def saliency(self, rule: Any) -> Tensor:
        """(R,) float32; for an expert without attention, the norm of its features."""
        found = {}
        for name, _, prefix in self._experts():
            if rule == "cls" and not prefix:
                raise ValueError(
                    f"saliency='cls', but expert {name!r} has no class token: use 'received' or "
                    "'auto'"
                )
        for name, expert, prefix in self._experts():
            attention = self._attention(name, expert)
            if attention is None:
                received = self._features(name, expert).norm(dim=-1)
            else:
                received = saliency(attention, prefix, rule)
            found[name] = received[..., None]
        return self._in_order(found)[:, 0]

    def keys(self) -> Tensor:
        """(R, widest Dk), those of narrower experts filled up with zeros."""
        found = {}
        for name, expert, prefix in self._experts():
            attention = self._attention(name, expert)
            if attention is None:
                found[name] = self._features(name, expert)
            else:
                found[name] = attention.key.mean(1)[:, prefix:].float()
        widest = max(keys.shape[-1] for keys in found.values())
        return self._in_order(
            {n: nn.functional.pad(x, (0, widest - x.shape[-1])) for n, x in found.items()}
        )

    def attention(self) -> list[Tensor]:
        """One map a visual input, 0 between views: (tokens, tokens) float32, head mean."""
        number = {name: place for place, name in enumerate(self.seen)}
        maps, places = {}, {}
        for name, expert, prefix in self._experts():
            attention = self._attention(name, expert)
            if attention is None:
                raise ValueError(f"expert {name!r} has no attention, so there is no map of it")
            found = weights(attention)[:, prefix:, prefix:]
            # Queries are pooled to tokens, then keys.
            found = self._pooled(name, self._pooled(name, found).mT).mT
            views, tokens, _ = found.shape
            maps[name] = found
            at = torch.cartesian_prod(torch.arange(views), torch.arange(tokens)).float()
            of = torch.full((len(at), 1), float(number[name]))
            places[name] = torch.cat([of, at], 1).unflatten(0, (views, tokens))
        return [self._map(maps, of.long()) for of in self._by_input(places)]

    def _map(self, maps: dict[str, Tensor], of: Tensor) -> Tensor:
        """of: (N, 3), the expert, view and token that each token of a visual input is."""
        whole = next(iter(maps.values())).new_zeros(len(of), len(of))
        for place, found in enumerate(maps.values()):
            mine = (of[:, 0] == place).nonzero().flatten()
            view, token = of[mine, 1], of[mine, 2]
            same = view[:, None] == view
            pairs = found[view[:, None], token[:, None], token] * same.to(found.device)
            whole[mine[:, None], mine] = pairs
        return whole

    def _experts(self) -> list[tuple[str, Any, int]]:
        experts = self.family.core.experts
        return [(name, e, e.family.prefix(e.tower)) for name, e in experts.items()]

    def _attention(self, name: str, expert: Any) -> Any:
        read = expert.family.attention
        return None if read is None else read(self.layers[name], self.seen[name])

    def _features(self, name: str, expert: Any) -> Tensor:
        tokens: Tensor = expert.family.tokens(self.seen[name][""].output)
        return tokens.float()

    def _pooled(self, name: str, cells: Tensor) -> Tensor:
        core = self.family.core
        found: Tensor = core.fusion.per_token(name, cells, core.experts[name].grid)
        return found

    def _by_input(self, tokens: dict[str, Tensor]) -> list[Tensor]:
        """(views, tokens, C) by expert to (N, C) by visual input."""
        stays = torch.ones(len(self.family.blocks), len(tokens), dtype=torch.bool)
        views = {name: {"features": x} for name, x in tokens.items()}
        ordered = in_order(views, self.family.core.grids, self.family.blocks, stays)
        return list(ordered.pooler_output)

    def _in_order(self, cells: dict[str, Tensor]) -> Tensor:
        """(views, cells, C) by expert to (R, C)."""
        return torch.cat(self._by_input({n: self._pooled(n, x) for n, x in cells.items()}))


def _visual_input(blocks: tuple[Block, ...]) -> VisualInput:
    views, start = [], 0
    for block in blocks:
        views.append(View(block.grid, torch.arange(start, start + block.tokens)))
        start += block.tokens
    planes = tuple(block.grid for block in blocks)
    return VisualInput(start, tuple(views), start, torch.arange(start), planes)
