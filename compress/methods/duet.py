"""DUET: dominant and contextual tokens before the language model, a schedule in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress import ops
from compress.budget import Allocation, Schedule, resolve_budget, schedule_layers
from compress.methods import duet_budgets as known
from compress.methods.base import Method, choose
from compress.methods.duet_clusters import by_attention, by_keys
from compress.tokens import Reduction, VisualTokens


@dataclass(frozen=True)
class Duet(Method):
    """DUET (arXiv 2602.18846, section 3; code AMD-AGI/DUET-VLM).

    Pre-LLM: the `dominant` most salient tokens are kept, and of the rest `width` tokens for each
    contextual token are merged into it. In-LLM, as published: n tokens, n/2 from half of the depth
    on, none from three quarters on, 0.625 n on average. The last step loses colours and names
    elsewhere than on LLaVA-1.5, and is no part of the default schedule.

    variant: what is left at None. "released", what the code does; "paper", what the paper says, far
        worse on the embedded benchmark (it reads the encoder's last layer, not the one projected);
        "default", as "released", but half of the tokens are left from a quarter of the depth.
    saliency: "received", attention averaged over all queries (paper), "cls", or "auto", from the
        class token where there is one (released).
    cluster: "pool" (released): anchors are every `width`-th of the `width` * C most salient of the
        rest, members the others of that pool, by cosine of keys. "attention" (paper): anchors are
        the C most salient of the rest, members those they attend to most; needs `attention`.
        "visionzip": anchors are evenly spaced over the rest, members all others.
    merge: "mean" (paper), or "add" (released), the anchor plus the mean of the other members, which
        conserves nothing.
    query: text rows that rank tokens: "last" (paper), "all" (released) or "salient".
    order: "raster" (paper), or "rank" (released): dominant, then contextual tokens by saliency.
    contextual: share (float) or number (int) of contextual tokens. None: as published, or between.
        A video is reduced frame by frame, as in Video-LLaVA.
    layers, ratios: the in-LLM schedule: layers (int) or shares of the depth (float), and the share
        of what entered that is left from there on. score: what ranks tokens there (`Method.score`).

    Departures from the released code: the class token is not kept (its number of dominant tokens
    includes it); ties go to the lower index. From the paper: "attention" clusters do not overlap (a
    token goes to the anchor that attends to it most). From both: `Method.salient_rows` chooses the
    "salient" text, not a part-of-speech tagger.
    """

    features_from: ClassVar[str] = "pre_projector"
    per_frame: ClassVar[bool] = True

    variant: str = "default"
    saliency: str | None = None
    cluster: str | None = None
    width: int = 4
    contextual: int | float | None = None
    merge: str | None = None
    query: str | None = None
    order: str | None = None
    layers: tuple[int | float, ...] | None = None
    ratios: tuple[float, ...] | None = None
    score: str = "attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(self, variant=tuple(known.VARIANTS))
        for name, value in zip(known.OPTIONS, known.VARIANTS[self.variant], strict=True):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        choose(self, saliency=("auto", "cls", "received"), merge=("mean", "add"))
        choose(self, cluster=("pool", "attention", "visionzip"))
        choose(self, query=("last", "all", "salient"), order=("raster", "rank"))
        if self.width < 1:
            raise ValueError(f"Duet: width is {self.width}; it must be at least 1")
        layers, ratios = self._steps
        if len(layers) != len(ratios):
            raise ValueError(f"Duet: layers {layers} and ratios {ratios} must pair up")
        if any(not 0 <= ratio <= 1 for ratio in ratios):
            raise ValueError(f"Duet: ratios must lie in 0..1, got {ratios}")

    @property
    def _steps(self) -> tuple[tuple[int | float, ...], tuple[float, ...]]:
        return self.layers or (), self.ratios or ()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"saliency", "attention" if self.cluster == "attention" else "keys"})

    @property
    def scoring_layer(self) -> int | None:
        return -1 if self.variant == "paper" else None

    @property
    def saliency_rule(self) -> str:
        return str(self.saliency)

    @property
    def ordered(self) -> bool:
        return self.order == "raster"

    @property
    def query_rows(self) -> str:
        return str(self.query)

    def schedule(self, keep: int, depth: int) -> Schedule:
        shares, ratios = self._steps
        layers = schedule_layers(depth, shares)
        return tuple(zip(layers, (int(keep * ratio) for ratio in ratios), strict=False))

    def allocate(self, dense: int, depth: int, budget: int | float) -> Allocation:
        target = resolve_budget(budget, dense)
        split = known.PUBLISHED.get((dense, depth), {}).get(target)  # type: ignore[call-overload]
        if split and self._steps == known.PUBLISHED_SCHEDULE:
            return Allocation(dense, depth, sum(split), self.schedule(sum(split), depth))
        return super().allocate(dense, depth, budget)

    def split(self, keep: int, dense: int) -> tuple[int, int]:
        """(dominant, contextual) of `keep` tokens; at least one is dominant."""
        if self.contextual is None:
            return known.published_split(keep, dense)
        share = self.contextual
        count = share if isinstance(share, int) else round(share * keep)
        if not 0 <= count <= keep:
            raise ValueError(f"Duet: contextual is {self.contextual}; it must lie in 0..{keep}")
        return (keep - count, count) if count < keep else (1, keep - 1)

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
        rule = str(self.merge)
        return ops.merge(tokens.features, anchor, assign, rule=rule, raster=self.ordered)

    def _cluster(self, tokens: VisualTokens, rest: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Anchors (B, count) of `rest` (by saliency, best first), and assign (B, N)."""
        if self.cluster == "attention":
            return by_attention(tokens.need("attention"), rest, count, self.width)
        if self.cluster == "visionzip":
            return by_keys(tokens.need("keys"), rest.sort(dim=1).values, count)
        return by_keys(tokens.need("keys"), rest[:, : self.width * count], count)
