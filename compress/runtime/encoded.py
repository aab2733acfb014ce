"""Visual inputs as the vision side left them, and which rows of a prompt hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compress.tokens import Reduction
from vlm.families import VisualInput


@dataclass
class Encoded:
    """The visual inputs of one call of the vision side, in order.

    kind: "image" or "video". fields: what the scoring layers gave, a list of one (N, ...) tensor an
    input for each name. reductions: made before the projector, None where merging follows it;
    carriers: for each, (M,) int64, the tokens that brought its rows through the projector, None
    where nothing was merged. projected: one (N, D) tensor an input, as the language model is to
    receive them; None until the call is over.
    """

    kind: str
    inputs: list[VisualInput]
    fields: dict[str, list[Tensor]] = field(default_factory=dict)
    reductions: list[Reduction] | None = None
    carriers: list[Tensor] | None = None
    projected: list[Tensor] | None = None

    @property
    def counts(self) -> list[int]:
        """Tokens of each input."""
        return [item.count for item in self.inputs]

    def by_input(self, x: Tensor) -> list[Tensor]:
        """Values of all rows of the tower, (R, ...), as one tensor an input."""
        return list(x.split([item.rows for item in self.inputs]))

    def finish(self, pooler_output: Any) -> None:
        """Take the features that the call returned: a tensor or tensors, of any grouping."""
        flat = torch.cat([x.reshape(-1, x.shape[-1]) for x in pooler_output])
        self.projected = list(flat.split(self.counts))

    def times(self, totals: Sequence[int]) -> int:
        """How often `generate` repeats each prompt (for its beams), from placeholders by row.

        Raises ValueError where placeholders and inputs do not match.
        """
        times, rest = divmod(sum(totals), sum(self.counts))
        if rest or times < 1 or len(totals) % times:
            raise ValueError(self._message(totals))
        return times

    def rows(self, totals: Sequence[int]) -> list[list[int]]:
        """Which inputs each row of a batch holds; repeated prompts hold the same ones.

        Raises ValueError where placeholders and inputs do not match.
        """
        counts, times = self.counts, self.times(totals)
        rows: list[list[int]] = []
        at = 0
        for first in range(0, len(totals), times):
            held, left = [], totals[first]
            while left > 0 and at < len(counts):
                held.append(at)
                left -= counts[at]
                at += 1
            same = all(total == totals[first] for total in totals[first : first + times])
            if left or not same:
                raise ValueError(self._message(totals))
            rows += [held] * times
        if at != len(counts):
            raise ValueError(self._message(totals))
        return rows

    def joined(self, runs: Sequence[int]) -> Encoded:
        """The same with inputs joined so that each fills a run of placeholders.

        runs: lengths of the runs, in order. Raises ValueError where they do not match.
        """
        members: list[list[int]] = []
        at = 0
        for run in runs:
            held: list[int] = []
            while run > 0 and at < len(self.inputs):
                held.append(at)
                run -= self.inputs[at].count
                at += 1
            if run:
                raise ValueError(self._message(runs))
            members.append(held)

        def joined(name: str, values: list[Tensor]) -> list[Tensor]:
            join = torch.block_diag if name == "attention" else lambda *x: torch.cat(x)
            return [join(*(values[i] for i in held)) for held in members]

        return Encoded(
            self.kind,
            [VisualInput.join([self.inputs[i] for i in held]) for held in members],
            fields={name: joined(name, values) for name, values in self.fields.items()},
            projected=joined("projected", self.projected or []),
        )

    def _message(self, totals: Sequence[int]) -> str:
        return (
            f"the prompts hold {sum(totals)} placeholder tokens of kind {self.kind} "
            f"({list(totals)} by row) and the visual inputs have {sum(self.counts)} "
            f"({self.counts}): expected the same numbers, in order"
        )
