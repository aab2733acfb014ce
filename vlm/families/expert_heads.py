"""Attention of several experts as one: their tokens in the order of the sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vlm.attention import AttentionReader, Call, SegmentHeads
from vlm.families.base import UnknownFamily
from vlm.inputs import VisualInput
from vlm.model.features import in_order


class ExpertsReader(AttentionReader):
    """Reads the layer at one depth of every expert.

    SAM is read at the layer of its own settings, since only some of its layers attend to the whole
    image.

    core: the `FoveateModel`. depth: index of the layer in every expert.
    """

    def __init__(self, core: Any, depth: int) -> None:
        self.core = core
        self.layers = {}
        for name, expert in core.experts.items():
            own = expert.config.scoring_layer if expert.config.family == "sam" else depth
            self.layers[name] = expert.family.layers(expert.encoder)[own]
        prefixes = [e.family.prefix(e.encoder) for e in core.experts.values()]
        self.has_class_token = all(prefix > 0 for prefix in prefixes)

    def attach(self) -> list[Any]:
        """See `AttentionReader.attach`."""
        handles = []
        for name, expert in self.core.experts.items():
            layer = self.layers[name]
            parts = {"": layer} if expert.family.watch is None else expert.family.watch(layer)
            for part, module in parts.items():
                hook = self._hook(name, part)
                handles.append(module.register_forward_hook(hook, with_kwargs=True))
        return handles

    def _hook(self, name: str, part: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            self.store((name, part), Call(args, kwargs, output))

        return hook

    def read(self, values: Mapping[Any, Any], inputs: Sequence[VisualInput]) -> ExpertHeads:
        """See `AttentionReader.read`."""
        calls: dict[str, dict[str, Call]] = {name: {} for name in self.layers}
        for (name, part), call in values.items():
            calls[name][part] = call
        if not all(calls.values()):
            if self.core.feature_cache is not None:
                raise UnknownFamily(
                    "features come from feature_cache and the experts do not run, so their scores "
                    "cannot be read: set model.model.feature_cache to None under a compression"
                )
            raise RuntimeError("an expert's scoring layer ran unseen: compress first, compile then")
        return ExpertHeads(self, calls, inputs)


class ExpertHeads:
    """`Heads` of several experts, with one row for each token in the order of the sequence.

    The tokens of one expert are reduced by themselves, so values of different experts are never
    compared.
    """

    def __init__(
        self,
        reader: ExpertsReader,
        calls: Mapping[str, dict[str, Call]],
        inputs: Sequence[VisualInput],
    ) -> None:
        self.core, self.inputs = reader.core, inputs
        self._heads: dict[str, SegmentHeads | None] = {}
        self._features: dict[str, Tensor] = {}
        for name, expert in self.core.experts.items():
            family, prefix = expert.family, expert.family.prefix(expert.encoder)
            if family.attention is None:
                self._heads[name] = None
                self._features[name] = family.tokens(calls[name][""].output).float()
            else:
                segments = family.attention(reader.layers[name], calls[name])
                self._heads[name] = SegmentHeads([segments], prefix > 0, prefix)

    def saliency(self, rule: str) -> Tensor:
        """(R,) float32, see `Heads.saliency`; of an expert without attention, the norm of its
        features. "auto" is what the expert's own settings say."""
        for name, heads in self._heads.items():
            if rule == "cls" and (heads is None or not heads.has_class_token):
                raise ValueError(
                    f"saliency='cls', but expert {name!r} has no class token: expected 'received' "
                    "or 'auto'"
                )
        values = {}
        for name, heads in self._heads.items():
            if heads is None:
                values[name] = self._features[name].norm(dim=-1)[..., None]
            else:
                own = self.core.experts[name].config.saliency if rule == "auto" else rule
                values[name] = self._by_view(name, heads.saliency(own)[:, None])
        return self._in_order(values)[:, 0]

    def keys(self) -> Tensor:
        """(R, widest d), see `Heads.keys`; narrower ones are filled up with zeros. Those of an
        expert without attention are its features."""
        values = {}
        for name, heads in self._heads.items():
            if heads is None:
                values[name] = self._features[name]
            else:
                values[name] = self._by_view(name, heads.keys().float())
        widest = max(keys.shape[-1] for keys in values.values())
        return self._in_order(
            {name: nn.functional.pad(x, (0, widest - x.shape[-1])) for name, x in values.items()}
        )

    def attention(self) -> list[Tensor]:
        """One map a visual input, 0 between views: (tokens, tokens) float32, head mean."""
        maps = {}
        for name, heads in self._heads.items():
            if heads is None:
                raise ValueError(f"expert {name!r} has no attention, so there is no map of it")
            whole = torch.stack(heads.attention())
            # Queries are pooled to tokens, then keys.
            maps[name] = self._pooled(name, self._pooled(name, whole).mT).mT
        places = self._index.split([item.rows for item in self.inputs])
        return [self._map(maps, of) for of in places]

    def _map(self, maps: Mapping[str, Tensor], places: Tensor) -> Tensor:
        """places: (N,) of the tokens of a visual input among the tokens of all views."""
        whole = next(iter(maps.values())).new_zeros(len(places), len(places))
        first = 0
        for view in maps.values():
            views, tokens, _ = view.shape
            own = ((places >= first) & (places < first + views * tokens)).nonzero().flatten()
            of, token = (places[own] - first) // tokens, (places[own] - first) % tokens
            same = of[:, None] == of
            pairs = view[of[:, None], token[:, None], token] * same.to(view.device)
            whole[own[:, None], own] = pairs
            first += views * tokens
        return whole

    def _by_view(self, name: str, rows: Tensor) -> Tensor:
        """(views * cells, C) -> (views, cells, C)."""
        down, across = self.core.experts[name].grid
        return rows.unflatten(0, (-1, down * across))

    def _pooled(self, name: str, cells: Tensor) -> Tensor:
        """(views, cells, C) -> (views, tokens, C)."""
        pooled: Tensor = self.core.fusion.per_token(name, cells, self.core.experts[name].grid)
        return pooled

    def _in_order(self, values: Mapping[str, Tensor]) -> Tensor:
        """(views, cells, C) by expert to (R, C)."""
        flat = torch.cat([self._pooled(name, x).flatten(0, 1) for name, x in values.items()])
        return flat[self._index.to(flat.device, non_blocking=True)]

    @cached_property
    def _index(self) -> Tensor:
        """(R,) int64 on the host: each token's place among the tokens of all views by expert."""
        blocks = [item.note for item in self.inputs]
        views: dict[str, dict[str, Tensor]] = {}
        first = 0
        for name, (down, across) in self.core.grids.items():
            own = [b.tokens for blocks_of in blocks for b in blocks_of if b.expert == name]
            numbers = torch.arange(first, first + sum(own), dtype=torch.float64)
            views[name] = {"features": numbers.reshape(-1, down * across, 1)}
            first += sum(own)
        stays = torch.ones(len(blocks), len(views), dtype=torch.bool)
        ordered = in_order(views, self.core.grids, blocks, stays)
        return torch.cat(list(ordered.pooler_output or []))[:, 0].long()
