"""What each further token adds to what is covered of an input: the measure of adaptive budgets."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.methods.base import Method
from compress.methods.foveate import Foveate
from compress.ops import greedy
from compress.tokens import VisualTokens


@torch.no_grad()
def gains_of(method: Method, tokens: VisualTokens) -> Tensor:
    """(B, N) float32 or better, descending, summing to 1: what each further token adds to the
    weight that is covered, if tokens are taken greedily.

    Weight and cover are those of `Foveate`, with the method's own options if it is one. The reach
    of a token is that of a ninth of all, whatever is kept.
    """
    judge = method if isinstance(method, Foveate) else Foveate()
    near = judge.kernel(tokens, max(1, tokens.count // 9))
    return greedy.gains(near * judge.weights(tokens)[..., None])
