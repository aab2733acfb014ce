"""Which tokens leave when a memory is over its budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from compress.stream.memories import Older
from compress.stream.memory import Rows
from compress.stream.options import Options


def choose(
    groups: Sequence[Rows],
    options: Options,
    steps: int,
    grid: tuple[int, int],
    attention: Callable[[int], Tensor],
) -> list[Tensor] | None:
    """Indices (S',) int64 of the tokens that stay, for each group; None if all do.

    Text before the stream and the newest `options.recent` of `steps` steps stay. Words of an older
    step stay with it, and leave with its last visual token. attention: gives (S,), for a group,
    what a question that names nothing attends to.
    """
    if len(groups[0]) <= options.budget and options.memory.holds_older:
        return None
    kept = [
        _choose(rows, options, steps, grid, (number, len(groups)), attention)
        for number, rows in enumerate(groups)
    ]
    if all(len(index) == len(rows) for index, rows in zip(kept, groups, strict=True)):
        return None
    return kept


def _choose(
    rows: Rows,
    options: Options,
    steps: int,
    grid: tuple[int, int],
    group: tuple[int, int],
    attention: Callable[[int], Tensor],
) -> Tensor:
    old = (rows.step >= 0) & (rows.step < steps - options.recent)
    older = (old & (rows.cell >= 0)).nonzero().flatten()
    room = options.budget - int((~old).sum())
    part = rows.gather(older)
    given = Older(
        part.step,
        part.cell,
        part.draw,
        grid,
        steps,
        part.fields,
        *group,
        lambda: attention(group[0])[older],
    )
    count = min(room, len(older)) if options.memory.holds_older else 0
    while True:
        keep = torch.zeros(0, dtype=torch.int64)
        if 0 < count < len(older):
            keep = options.memory.keep(given, count)
        elif count > 0:
            keep = torch.arange(len(older))
        stays = ~old
        stays[older[keep]] = True
        words = old & (rows.cell < 0)
        stays |= words & torch.isin(rows.step, part.step[keep])
        over = int(stays.sum()) - options.budget
        if over <= 0 or count <= 0:
            return stays.nonzero().flatten()
        count -= over
