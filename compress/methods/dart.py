"""DART: keep the tokens that duplicate the pivots least."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from compress import ops
from compress.budget import Plan
from compress.methods.base import Method
from compress.methods.fastv import FastV
from compress.ops.windows import shares
from compress.tokens import LayerTokens, Reduction


@dataclass(frozen=True)
class DART(Method):
    """DART (EMNLP 2025, arXiv 2502.11494, section 3; as ported in ModelTC/LightCompress).

    All tokens enter; from decoder layer `layer` on the pivots and their least similar tokens go
    on. Pivots are the `visual` visual and `text` text tokens with the largest L1 norm of keys in
    layer - 1; each in turn takes its share of the visual tokens with the lowest cosine of hidden
    states to it. Needs no attention.

    Departures: pivots act in a fixed order, visual then text, each by norm (the port iterates a
    set); hidden states are taken as they enter the layer (the port applies the model's final
    norm); text pivots come from the text after the visual input, and where there are too few the
    first visual pivot acts for them; a count that 8 does not divide is dealt evenly.
    """

    in_llm_only: ClassVar[bool] = True
    in_llm_needs: ClassVar[frozenset[str]] = frozenset({"keys", "text_keys", "text", "text_mask"})

    layer: int = 2
    visual: int = 4
    text: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("layer", 1), ("visual", 1), ("text", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"DART: {name} is {getattr(self, name)}; at least {least}")

    @property
    def scored_by(self) -> str:
        return "previous"

    def plans(self, dense: int, depth: int) -> Iterator[Plan]:
        same: Iterator[Plan] = FastV(layer=self.layer).plans(dense, depth)
        return same

    def select_in_llm(
        self, tokens: LayerTokens, count: int, generator: torch.Generator | None
    ) -> Reduction:
        with torch.no_grad():
            return ops.prune(tokens.hidden, self._choose(tokens, count), tokens.size)

    def _choose(self, tokens: LayerTokens, count: int) -> torch.Tensor:
        norm = ops.wide(tokens.need("keys")).abs().sum(2)
        pivots = ops.top(norm, min(self.visual, count))
        each = shares(count - pivots.shape[1], pivots.shape[1] + self.text)
        near = self._near(tokens, pivots).scatter(
            2, pivots[:, None].expand(-1, len(each), -1), torch.inf
        )
        chosen = [pivots]
        for i, share in enumerate(sorted(each, reverse=True)):
            taken = ops.top(-near[:, i], share)
            chosen.append(taken)
            near = near.scatter(2, taken[:, None].expand(-1, len(each), -1), torch.inf)
        return torch.cat(chosen, 1)

    def _near(self, tokens: LayerTokens, pivots: torch.Tensor) -> torch.Tensor:
        """(B, pivots + text, n): cosine of each visual token to each pivot in turn."""
        own = ops.cosine(ops.gather(tokens.hidden, pivots), tokens.hidden)
        mask, text = tokens.need("text_mask"), tokens.need("text")
        norm = ops.wide(tokens.need("text_keys")).abs().sum(2).masked_fill(~mask, -1.0)
        best = ops.top(norm, min(self.text, norm.shape[1]))
        theirs = ops.cosine(ops.gather(text, best), tokens.hidden)
        theirs = torch.where(mask.gather(1, best)[..., None], theirs, own[:, :1])
        short = self.text - best.shape[1]
        return torch.cat([own, theirs, own[:, :1].expand(-1, short, -1)], 1)
