"""DUET's variants, its published counts, and what lies between them."""

from __future__ import annotations

from itertools import pairwise

# Fields of `Duet` that its variant sets.
OPTIONS = ("saliency", "cluster", "merge", "query", "order", "layers", "ratios")
# The published schedule drops all visual tokens, which is not safe on every model.
PUBLISHED_SCHEDULE = ((0.5, 0.75), (0.5, 0.0))
VARIANTS = {
    "default": ("auto", "pool", "add", "all", "rank", (0.25,), (0.5,)),
    "released": ("auto", "pool", "add", "all", "rank", *PUBLISHED_SCHEDULE),
    "paper": ("received", "attention", "mean", "last", "raster", *PUBLISHED_SCHEDULE),
}

# (dense, depth) -> budget -> (dominant, contextual): LLaVA-1.5 and each tile of LLaVA-NeXT,
# LLaVA-NeXT as a whole (5 tiles), a frame of Video-LLaVA, its 8 frames as a whole. The published
# Qwen2.5-VL counts (1023, 608, 243) do not give their stated averages: the solver's are used.
PUBLISHED = {
    (576, 32): {192: (300, 7), 128: (170, 35), 64: (72, 30), 32: (45, 6)},
    (2880, 32): {640: (850, 175), 320: (360, 150), 160: (225, 30)},
    (256, 32): {120: (160, 32), 17: (20, 7)},
    (2048, 32): {960: (1280, 256), 136: (160, 56)},
}
_SHARES = ((102 / 576, 30 / 102), (205 / 576, 35 / 205), (307 / 576, 7 / 307))


def published_split(keep: int, dense: int) -> tuple[int, int]:
    """(dominant, contextual) of `keep` tokens: as published, or of an interpolated share."""
    for (tokens, _), budgets in PUBLISHED.items():
        for pair in budgets.values():
            if (tokens, keep) == (dense, sum(pair)):
                return pair
    contextual = min(keep - 1, round(keep * _interpolate(keep / dense)))
    return keep - contextual, contextual


def _interpolate(kept: float) -> float:
    """Contextual share at a kept fraction, linear between the LLaVA-1.5 points, flat outside."""
    if kept <= _SHARES[0][0]:
        return _SHARES[0][1]
    for (x0, y0), (x1, y1) in pairwise(_SHARES):
        if kept <= x1:
            return y0 + (y1 - y0) * (kept - x0) / (x1 - x0)
    return _SHARES[-1][1]
