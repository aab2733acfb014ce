"""DUET: dominant and contextual tokens before the language model, a schedule inside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress import ops
from compress.budget import Allocation, Schedule, resolve_budget, stage_layers
from compress.methods.base import Method, choose
from compress.methods.duet_budgets import PUBLISHED, published_split
from compress.tokens import Reduction, VisualTokens


@dataclass(frozen=True)
class Duet(Method):
    """DUET (arXiv 2602.18846, section 3; code AMD-AGI/DUET-VLM).

    Before the language model: the `dominant` most salient cells are kept, and of the rest `width`
    cells per contextual token are merged into it. Inside it: n, then n/2 from half depth on, then
    none from three quarters on, so that the mean is 0.625 n.

    variant: "paper" or "released", which sets what is left at None:
        merge "mean" or "add" (anchor plus the mean of its other members, which conserves nothing),
        query "last" or "all", order "raster" or "rank" (dominant, then contextual by saliency).
    saliency: "cls", "received" (mean over all queries: the paper's text) or "auto".
    cluster: "pool" (released: anchors are every `width`-th of the `width` * C most salient rest,
        members the others of that pool, by cosine of keys), "attention" (the paper: centres are
        the C most salient of the rest, members those they attend to most; needs `attention`) or
        "visionzip" (anchors evenly spaced over all the rest in raster order, members all others).
    contextual: share (float) or number (int) of contextual tokens; None: as published, linear
        between. A video is reduced frame by frame, as Video-LLaVA's is.
    layers, ratios: stages (int: layer, float: share of the depth), and shares kept of what entered.

    Departures from the released code: the class token is not kept (its count of dominant tokens
    includes it); ties go to the lower index; "attention" clusters do not overlap (a cell goes to
    the centre that attends to it most); "salient" text is chosen by its likeness to the image
    (`Method.salient_rows`), not by a part-of-speech tagger.
    """

    features_from: ClassVar[str] = "pre_projector"
    per_frame: ClassVar[bool] = True

    variant: str = "paper"
    saliency: str = "auto"
    cluster: str = "pool"
    width: int = 4
    contextual: int | float | None = None
    merge: str | None = None
    query: str | None = None
    order: str | None = None
    layers: tuple[int | float, ...] = (0.5, 0.75)
    ratios: tuple[float, ...] = (0.5, 0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(self, variant=("paper", "released"), saliency=("auto", "cls", "received"))
        released = self.variant == "released"
        for name, paper, code in (
            ("merge", "mean", "add"),
            ("query", "last", "all"),
            ("order", "raster", "rank"),
        ):
            if getattr(self, name) is None:
                object.__setattr__(self, name, code if released else paper)
        choose(self, cluster=("pool", "attention", "visionzip"), merge=("mean", "add"))
        choose(self, query=("last", "all", "salient"), order=("raster", "rank"))
        if self.width < 1:
            raise ValueError(f"Duet: width is {self.width}; it must be at least 1")
        if len(self.layers) != len(self.ratios):
            raise ValueError(f"Duet: layers {self.layers} and ratios {self.ratios} must pair up")
        if any(not 0 <= ratio <= 1 for ratio in self.ratios):
            raise ValueError(f"Duet: ratios must lie in 0..1, got {self.ratios}")

    @property
    def needs(self) -> frozenset[str]:
        swap = {"attention"} if self.cluster == "attention" else {"keys"}
        return frozenset({"saliency"} | swap)

    @property
    def saliency_rule(self) -> str:
        return self.saliency

    @property
    def query_rows(self) -> str:
        return self.query or "last"

    def schedule(self, keep: int, depth: int) -> Schedule:
        layers = stage_layers(depth, self.layers)
        counts = (int(keep * ratio) for ratio in self.ratios)
        return tuple(zip(layers, counts, strict=False))

    def allocate(self, dense: int, depth: int, budget: int | float) -> Allocation:
        target = resolve_budget(budget, dense)
        split = PUBLISHED.get((dense, depth), {}).get(target)  # type: ignore[call-overload]
        if split and (self.layers, self.ratios) == ((0.5, 0.75), (0.5, 0.0)):
            return Allocation(dense, depth, sum(split), self.schedule(sum(split), depth))
        return super().allocate(dense, depth, budget)

    def split(self, keep: int, dense: int) -> tuple[int, int]:
        """(dominant, contextual) of `keep` tokens; at least one is dominant."""
        if self.contextual is None:
            return published_split(keep, dense)
        share = self.contextual
        count = share if isinstance(share, int) else round(share * keep)
        if not 0 <= count <= keep:
            raise ValueError(f"Duet: contextual is {self.contextual}; it must lie in 0..{keep}")
        count = min(count, keep - 1)
        return keep - count, count

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        dominant, contextual = self.split(keep, tokens.count)
        ranked = ops.rank(tokens.need("saliency"))
        if contextual == 0:
            return ops.prune(tokens.features, ranked[:, :dominant])
        first, rest = ranked[:, :dominant].sort(dim=1).values, ranked[:, dominant:]
        anchors, assign = self._cluster(tokens, rest, contextual)
        anchor = torch.cat([first, anchors], 1)
        assign = torch.where(assign < 0, assign, assign + dominant)
        raster = self.order == "raster"
        return ops.merge(tokens.features, anchor, assign, rule=str(self.merge), raster=raster)

    def _cluster(self, tokens: VisualTokens, rest: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Anchors (B, count) among `rest` (by saliency, best first), and assign (B, N)."""
        left = rest.shape[1]
        pool = min(self.width * count, left)
        if self.cluster == "attention":
            assign = _by_attention(tokens.need("attention"), rest, count, self.width)
            return rest[:, :count], assign
        if self.cluster == "visionzip":
            rest, pool = rest.sort(dim=1).values, left
        places = range(0, pool, max(1, pool // count))[:count]
        stay = torch.tensor(sorted(set(range(pool)) - set(places)), dtype=torch.int64)
        anchors = rest[:, torch.tensor(places, device=rest.device)]
        members = rest[:, stay.to(rest.device)]
        return anchors, ops.to_nearest(tokens.need("keys"), anchors, members)


def _by_attention(attention: Tensor, rest: Tensor, count: int, width: int) -> Tensor:
    """assign (B, N): for the first `count` of `rest`, the `width` - 1 cells they attend to most."""
    b, n, _ = attention.shape
    centres = rest[:, :count]
    seen = ops.wide(ops.gather(attention, centres))  # (B, count, N)
    free = torch.zeros(b, n, dtype=torch.bool, device=rest.device)
    free.scatter_(1, rest[:, count:], True)
    seen = seen.masked_fill(~free[:, None], -1.0)
    order = seen.sort(dim=2, descending=True, stable=True).indices[..., : width - 1]
    picked = torch.zeros_like(seen, dtype=torch.bool).scatter_(2, order, True)
    best, row = seen.masked_fill(~picked, -1.0).max(dim=1)
    assign = torch.where(best >= 0, row, -1)
    own = torch.arange(count, device=rest.device).expand(b, count)
    return assign.scatter(1, centres, own)
