"""Methods on plain tensors, for models that are not transformers models."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.budget import resolve_budget
from compress.methods import Method, get_method
from compress.tokens import Reduction, VisualTokens


def reduce(
    features: Tensor,
    method: str | Method,
    count: int | float,
    *,
    saliency: Tensor | None = None,
    keys: Tensor | None = None,
    grid: tuple[int, int] | tuple[int, int, int] | None = None,
    text_query: Tensor | None = None,
    text_query_mask: Tensor | None = None,
    pre_projector: Tensor | None = None,
    shallow_saliency: Tensor | None = None,
    attention: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Reduction:
    """Reduce (B, N, D) features to `count` tokens by the pre-LLM part of a method.

    method: a name or an instance. count: tokens to keep (int), or a fraction of N (float in
    (0, 1], rounded, at least one). grid: (H, W) or (T, H, W); default one row of N tokens.
    The other tensors are the fields of `VisualTokens`; `method.needs` names those that it must
    have, `method.wants` those that it uses if they are given.

    Raises ValueError or TypeError, naming the argument, if one does not fit.
    """
    if not isinstance(features, Tensor) or features.dim() != 3:
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"features must be a tensor (B, N, D), got {got}")
    n = features.shape[1]
    shape = (1, 1, n) if grid is None else tuple(grid)
    if len(shape) == 2:
        shape = (1, *shape)
    if len(shape) != 3:
        raise ValueError(f"grid must be (H, W) or (T, H, W), got {grid}")
    tokens = VisualTokens(
        features,
        shape,
        keys,
        saliency,
        text_query,
        text_query_mask,
        pre_projector,
        shallow_saliency,
        attention,
    )
    keep = max(1, round(resolve_budget(count, n, "count")))
    return get_method(method).reduce(tokens, keep, generator)
