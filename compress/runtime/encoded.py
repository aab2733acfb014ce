"""Visual inputs as the vision side left them, and which rows of a prompt hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from compress.adaptive import Adaptive
from compress.budget import Allocation
from compress.runtime.adaptive import allocations
from compress.runtime.reduce_inputs import InputTokens
from compress.runtime.settings import Settings
from compress.tokens import Reduction
from vlm.families import VisualInput

_ON_OUTPUT = "foveate_encoded"
# The argument of the model that brings the pixels of a kind.
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


@dataclass
class Encoded:
    """The visual inputs of one call of `get_{kind}_features`, in order; T tokens in all.

    settings: of the compression under which they were encoded. call: arguments of the call but its
    pixels, such as grids, which `generate` hands to no one else. fields: what the scoring layers
    gave, one (T, ...) tensor for each field of VisualTokens; attention: one (N, N) map an input,
    None unless the method reads it. reductions: made before the projector, None where the reduction
    follows it; carriers: for each, (M,) int64, the tokens whose rows took the merged features
    through the projector, None where all tokens are kept. features: (T, D), as the language model
    is to receive them (see `ModelAdapter.features_of`); None until the call is over. chosen: the
    counts that the budget gives each input, once they are known. reduce_ms: time spent.
    """

    kind: str
    inputs: list[VisualInput]
    settings: Settings
    call: Mapping[str, Any] = field(default_factory=dict)
    fields: dict[str, Tensor] = field(default_factory=dict)
    attention: list[Tensor] | None = None
    reductions: list[Reduction] | None = None
    carriers: list[Tensor] | None = None
    features: Tensor | None = None
    chosen: list[Allocation] | None = None
    reduce_ms: float = 0.0

    def __deepcopy__(self, memo: dict[int, object]) -> Encoded:
        """Generation copies the output that carries this; the settings belong to the model."""
        return self

    @property
    def counts(self) -> list[int]:
        """Tokens of each input."""
        return [item.count for item in self.inputs]

    @property
    def offsets(self) -> list[int]:
        """The first of each input's tokens among all T."""
        return [0, *accumulate(self.counts)][:-1]

    @property
    def allocations(self) -> list[Allocation]:
        """The counts that the budget gives each input; an adaptive one looks at `features`."""
        if self.chosen is None:
            budget = self.settings.budget
            if isinstance(budget, Adaptive):
                features: Tensor = self.features  # type: ignore[assignment]
                tokens = InputTokens(self.inputs, features, self.fields)
                self.chosen = allocations(self.settings, tokens)
            else:
                self.chosen = [self.settings.allocation(count) for count in self.counts]
        return self.chosen

    def bind(self, output: Any) -> None:
        """Hand this on with the output of the call."""
        self.features = self._flat(output)
        if self.features is None:
            return
        setattr(output, _ON_OUTPUT, self)

    @staticmethod
    def of(output: Any) -> Encoded | None:
        """What `bind` handed on with an output; None if it was not encoded under a compression."""
        return getattr(output, _ON_OUTPUT, None)

    def is_in(self, output: Any) -> bool:
        """Whether an output holds these features, all and in order. Waits for the device."""
        features = self._flat(output)
        if features is None or self.features is None:
            return False
        return torch.equal(features, self.features)

    def _flat(self, output: Any) -> Tensor | None:
        features = self.settings.adapter.features_of(output)
        if features is None:
            return None
        return torch.cat([x.reshape(-1, x.shape[-1]) for x in features])

    def repeats(self, totals: Sequence[int]) -> int:
        """How often `generate` repeats each prompt for its beams, from placeholders by row.

        Raises ValueError where placeholders and inputs do not match.
        """
        times, rest = divmod(sum(totals), sum(self.counts))
        if rest or times < 1 or len(totals) % times:
            raise ValueError(self._mismatch(totals))
        return times

    def by_row(self, totals: Sequence[int]) -> list[list[int]]:
        """Which inputs each row of a batch holds; repeated prompts hold the same ones.

        Raises ValueError where placeholders and inputs do not match.
        """
        counts, times = self.counts, self.repeats(totals)
        rows: list[list[int]] = []
        number = 0
        for first in range(0, len(totals), times):
            members, left = [], totals[first]
            while left > 0 and number < len(counts):
                members.append(number)
                left -= counts[number]
                number += 1
            same = all(total == totals[first] for total in totals[first : first + times])
            if left or not same:
                raise ValueError(self._mismatch(totals))
            rows += [members] * times
        if number != len(counts):
            raise ValueError(self._mismatch(totals))
        return rows

    def joined(self, runs: Sequence[int]) -> Encoded:
        """The same with inputs joined so that each fills one run of placeholders.

        runs: lengths of the runs, in order. Raises ValueError where they do not match.
        """
        groups: list[list[int]] = []
        number = 0
        for run in runs:
            members, left = [], run
            while left > 0 and number < len(self.inputs):
                members.append(number)
                left -= self.inputs[number].count
                number += 1
            if left:
                raise ValueError(self._mismatch(runs))
            groups.append(members)
        attention = self.attention
        if attention is not None:
            attention = [torch.block_diag(*(attention[i] for i in group)) for group in groups]
        inputs = [VisualInput.join([self.inputs[i] for i in group]) for group in groups]
        return replace(self, inputs=inputs, attention=attention, chosen=None)

    def _mismatch(self, totals: Sequence[int]) -> str:
        return (
            f"the prompts hold {sum(totals)} placeholder tokens of kind {self.kind} "
            f"({list(totals)} by row) and the visual inputs have {sum(self.counts)} "
            f"({self.counts}): expected the same numbers, in order"
        )
