"""Visual inputs as the vision side left them, and what the prompt's rows hold of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compress.tokens import Grid, Reduction, VisualTokens


@dataclass
class Encoded:
    """The visual inputs of the last call of the vision side, in order.

    grids: (t, h, w) of each. fields: what the scoring layer gave, a list of one tensor an input
    for each name. reductions: made before the projector, None for methods that run after it.
    projected: one (N, D) tensor an input, as the language model is to receive them.
    """

    grids: list[Grid]
    fields: dict[str, list[Tensor]] = field(default_factory=dict)
    reductions: list[Reduction] | None = None
    projected: list[Tensor] = field(default_factory=list)

    @property
    def cells(self) -> list[int]:
        """Cells of each input."""
        return [t * h * w for t, h, w in self.grids]

    def rows(self, totals: Sequence[int]) -> list[list[int]]:
        """Which inputs each row of a batch holds, from its number of placeholders.

        `generate` repeats each prompt for its beams: k rows that follow one another then hold the
        same inputs. Raises ValueError where placeholders and inputs do not match.
        """
        cells, given = self.cells, sum(self.cells)
        times, rest = divmod(sum(totals), given)
        message = (
            f"the prompts hold {sum(totals)} placeholder tokens ({list(totals)} by row) and the "
            f"visual inputs have {given} cells ({cells}): expected the same numbers, in order"
        )
        if rest or times < 1 or len(totals) % times:
            raise ValueError(message)
        rows: list[list[int]] = []
        at = 0
        for first in range(0, len(totals), times):
            held, left = [], totals[first]
            while left > 0 and at < len(cells):
                held.append(at)
                left -= cells[at]
                at += 1
            same = all(total == totals[first] for total in totals[first : first + times])
            if left or not same:
                raise ValueError(message)
            rows += [held] * times
        if at != len(cells):
            raise ValueError(message)
        return rows


def grouped(keys: Iterable[Any], run: Callable[[Any, list[int]], Sequence[Any]]) -> list[Any]:
    """Run once for each distinct key, on the indices that have it; results in the given order."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    results: dict[int, Any] = {}
    for key, members in groups.items():
        results.update(zip(members, run(key, members), strict=True))
    return [results[index] for index in sorted(results)]


def reduce_inputs(
    method: Any,
    features: Sequence[Tensor],
    grids: Sequence[Grid],
    keeps: Sequence[int],
    fields: dict[str, list[Tensor]],
    generator: torch.Generator | None,
    queries: Sequence[Tensor] | None = None,
) -> list[Reduction]:
    """Reduce visual inputs of any shapes: those of one shape together, results in order.

    features: (N, D) an input; fields: further fields of VisualTokens, one tensor an input;
    queries: (Q, D) text embeddings an input. Returns reductions with B = 1.
    """

    def run(key: tuple[Grid, int], members: list[int]) -> list[Reduction]:
        grid, keep = key
        stacked = {
            name: torch.stack([values[i] for i in members]) for name, values in fields.items()
        }
        if queries is not None:
            width = max(len(queries[i]) for i in members)
            padded = [queries[i] for i in members]
            stacked["query"] = torch.stack(
                [torch.cat([q, q.new_zeros(width - len(q), q.shape[1])]) for q in padded]
            )
            stacked["query_mask"] = torch.tensor(
                [[k < len(q) for k in range(width)] for q in padded], device=padded[0].device
            )
        batch = torch.stack([features[i] for i in members])
        reduced = method.reduce(VisualTokens(batch, grid, **stacked), keep, generator)
        return [reduced.select(b) for b in range(len(members))]

    return grouped(zip(grids, keeps, strict=True), run)
