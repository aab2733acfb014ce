"""MMTok: tokens that cover both the question and the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from compress import ops
from compress.methods.base import Method
from compress.ops import greedy
from compress.tokens import Reduction, VisualTokens


@dataclass(frozen=True)
class MMTok(Method):
    """MMTok (ICLR 2026, section 3; code Ironieser/MMTok): maximum coverage.

    The tokens of the question and the visual tokens themselves are to be covered. What token j
    gives to each is a softmax over visual tokens of cosines: of projected features to the text at
    `text_temperature`, and of pre-projector features to each other at `visual_temperature`, the
    latter weighted by `weight`. Greedy facility location selects tokens.

    Departures: all real question tokens count (the released code drops English stop words from a
    fixed list). An input without text is covered visually alone; without pre-projector features the
    projected ones are used.
    """

    wants: ClassVar[frozenset[str]] = frozenset({"text_query", "pre_projector"})
    pairwise: ClassVar[bool] = True

    text_temperature: float = 0.02
    visual_temperature: float = 0.2
    weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight < 0:
            raise ValueError(f"MMTok: weight is {self.weight}; it must not be negative")
        for name in ("text_temperature", "visual_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"MMTok: {name} is {getattr(self, name)}; it must be above 0")

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        with torch.no_grad():
            selected = [
                greedy.cover(self._table(tokens, part), keep)
                for part in ops.batches(len(tokens.features), tokens.count)
            ]
        return ops.prune(tokens.features, torch.cat(selected))

    def _table(self, tokens: VisualTokens, part: slice) -> torch.Tensor:
        """(b, N + Q, N): what each visual and text token gets from each visual token."""
        x = (tokens.features if tokens.pre_projector is None else tokens.pre_projector)[part]
        table = ops.gram(ops.unit(x)).div_(self.visual_temperature).softmax(2)
        table = table.mul_(self.weight / tokens.count)
        if tokens.text_query is None:
            return table
        text = ops.cosine(tokens.text_query[part], tokens.features[part])
        share = (text / self.text_temperature).softmax(2)
        if tokens.text_query_mask is None:
            share = share / max(1, text.shape[1])
        else:
            mask = tokens.text_query_mask[part]
            share = share * (mask / mask.sum(1, keepdim=True).clamp(min=1))[..., None]
        return torch.cat([table, share], 1)
