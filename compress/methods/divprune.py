"""DivPrune: the subset whose closest pair is farthest apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from compress import ops
from compress.methods.base import Method
from compress.ops import greedy
from compress.tokens import Reduction, VisualTokens


@dataclass(frozen=True)
class DivPrune(Method):
    """DivPrune (arXiv 2503.02175, section 3; code vbdi/divprune): max-min diversity.

    Greedy farthest-point selection by cosine distance of projected features, from the token
    farthest from its nearest neighbour. Needs no attention. Kept tokens keep their positions
    (the released code renumbers them); a video over 8,192 tokens is cut into windows.
    """

    pairwise: ClassVar[bool] = True

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        return ops.prune(tokens.features, greedy.farthest(tokens.features, keep))
