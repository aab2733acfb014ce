"""How many tokens of each visual input an adaptive budget leaves."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from compress.adaptive import Adaptive, Shared
from compress.budget import Allocation
from compress.methods import Method, gains_of
from compress.ops import windows
from compress.runtime.reduce_inputs import InputTokens
from compress.runtime.settings import Settings
from compress.tokens import VisualTokens


@torch.no_grad()
def allocations(settings: Settings, tokens: InputTokens) -> list[Allocation]:
    """The allocation of each input under the settings' budget. Waits once for the device.

    tokens: the inputs, with what the vision side knows of them.
    """
    budget, counts = settings.budget, [item.count for item in tokens.inputs]
    if not isinstance(budget, Adaptive):
        return [settings.allocation(count) for count in counts]
    fixed: list[Allocation] = []
    if isinstance(budget, Shared):
        fixed = [settings.allocation(count, budget.budget) for count in counts]
    gains = _gains(settings.method, tokens)
    left = torch.cat(gains).cpu().split(counts)
    entering = budget.counts([own.tolist() for own in left], [one.keep for one in fixed])
    # A budget that the schedule could not spend gave up some of its pairs.
    pairs = max((len(one.schedule) for one in fixed), default=None)
    return [
        settings.entering(count, keep, pairs) for count, keep in zip(counts, entering, strict=True)
    ]


def _gains(method: Method, tokens: InputTokens) -> list[Tensor]:
    """(N,) for each input: what each further token adds to what is covered, descending."""
    edges = [0, *accumulate(item.count for item in tokens.inputs)]
    gains = []
    for item, start, stop in zip(tokens.inputs, edges, edges[1:], strict=False):
        parts = []
        whole = len(item.views) == 1 and len(item.views[0].indices) == item.count
        grid = item.views[0].grid if whole else (1, 1, item.count)
        frames = max(1, windows.WINDOW // (grid[1] * grid[2])) if whole else 1
        step = min(item.count, frames * grid[1] * grid[2])
        for first in range(start, stop, step):
            size = min(step, stop - first)
            shape = (size // (grid[1] * grid[2]), *grid[1:])
            cut = slice(first, first + size)
            saliency = tokens.fields.get("saliency")
            saliency = None if saliency is None else saliency[cut][None]
            part = VisualTokens(tokens.features[cut][None], shape, saliency=saliency)
            parts.append(gains_of(method, part)[0] * (size / item.count))
        gains.append(torch.cat(parts).float().sort(descending=True).values)
    return gains
