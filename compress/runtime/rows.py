"""Where the tokens of a padded batch are, before and after some of them leave. Host side only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The layout of a batch of B sequences padded to S tokens.

    mask: (B, S) bool, False at padding. slots: for each row and each of its visual inputs, the
    places (n,) int64 of its tokens in the row, in the order in which the input has them.
    samples: (B, S) int64, ascending: which of the samples that are packed in a row each token is
    of; None where each row is one sample.
    """

    mask: Tensor
    slots: list[list[Tensor]]
    samples: Tensor | None = None

    @property
    def left(self) -> bool:
        """Whether padding goes to the left."""
        return bool((~self.mask[:, 0]).any())

    def visual(self) -> Tensor:
        """(B, S) bool: True at visual tokens."""
        out = torch.zeros_like(self.mask)
        for row, inputs in enumerate(self.slots):
            for places in inputs:
                out[row, places] = True
        return out

    def each(self, row: int) -> list[Tensor]:
        """The places of the tokens of each sample in a row, padding left out."""
        real = self.mask[row].nonzero().flatten()
        if self.samples is None:
            return [real]
        _, lengths = torch.unique_consecutive(self.samples[row, real], return_counts=True)
        return list(real.split(lengths.tolist()))

    def place_in_sample(self) -> Tensor:
        """(B, S) int64: how many tokens of its sample come before each token."""
        count = self.mask.long().cumsum(1) - 1
        if self.samples is not None:
            for row in range(len(count)):
                for places in self.each(row):
                    count[row, places] -= count[row, places[0]].clone()
        return count

    def beside(self, row: int, slots: Tensor, places: Tensor) -> Tensor:
        """Those of some places in a row that are of the same sample as a visual input's slots."""
        if self.samples is None or not len(slots):
            return places
        return places[self.samples[row, places] == self.samples[row, slots[0]]]

    def after(self, kept: Sequence[Sequence[Tensor]]) -> tuple[Rows, Tensor, Tensor]:
        """The rows that stay when each visual input keeps some of its tokens.

        kept: for each row and input, which of its tokens stay, as indices into its slots, in the
            order in which they are to stand (that of the slots, unless a method reorders them).
        Returns the new rows (B, M), `index` (B, M) int64, the old place of each new token (0 at
        padding), and `back` (B, S) int64, the new place of the last token at or before each old
        one: hidden states gathered by `back` have the old length again, and text that follows a
        dropped token is predicted from the last token that is left (references: forward-fill).
        """
        text = self.text()
        sources, places, orders = [], [], []
        for row, inputs in enumerate(self.slots):
            stay = [slots[k] for slots, k in zip(inputs, kept[row], strict=True)]
            standing = torch.cat([text[row].nonzero().flatten(), *(s.sort().values for s in stay)])
            order = standing.argsort(stable=True)  # cells may stand for several rows
            orders.append(order)
            taken = torch.cat([text[row].nonzero().flatten(), *stay])
            sources.append(taken[order])
            places.append(standing[order])
        lengths = torch.tensor([len(source) for source in sources])
        width = int(lengths.max())
        mask = torch.zeros(len(sources), width, dtype=torch.bool)
        index = torch.zeros(len(sources), width, dtype=torch.int64)
        back = torch.zeros(self.mask.shape, dtype=torch.int64)
        slots_after: list[list[Tensor]] = []
        samples = None
        if self.samples is not None:
            samples = torch.full((len(sources), width), int(self.samples.max()) + 1)
        everywhere = torch.arange(self.mask.shape[1])
        left = self.left
        for row, (source, place) in enumerate(zip(sources, places, strict=True)):
            first = width - len(source) if left else 0
            mask[row, first : first + len(source)] = True
            index[row, first : first + len(source)] = source
            last = (torch.searchsorted(place, everywhere, right=True) - 1).clamp(min=0)
            if samples is not None and self.samples is not None:
                own = self.samples[row, source]
                samples[row, first : first + len(source)] = own
                # Not from the sample before, where the first tokens of one are all dropped.
                last = last.maximum(torch.searchsorted(own, self.samples[row]))
            back[row] = first + last
            blocks = [len(source) - sum(len(k) for k in kept[row]), *(len(k) for k in kept[row])]
            new = first + orders[row].argsort()
            slots_after.append(list(new.split(blocks))[1:])
        return Rows(mask, slots_after, samples), index, back

    def text(self) -> Tensor:
        """(B, S) bool: True at text, False at visual tokens and padding."""
        return self.mask & ~self.visual()

    def after_visual(self, answers: Tensor | None) -> list[Tensor]:
        """For each row, the places of the text tokens after its first visual input (by sample).

        answers: (B, S) bool, tokens that the model is to say; they are left out.
        """
        found = []
        for row, text in enumerate(self.text()):
            parts = []
            for sample in self.each(row):
                places = sample[text[sample]]
                ends = [int(s.max()) for s in self.slots[row] if _within(s[:1], sample).any()]
                parts.append(places[places > min(ends)] if ends else places)
            joined = torch.cat(parts)
            found.append(joined if answers is None else joined[~answers[row, joined]])
        return found

    def queries(self, rule: str, answers: Tensor | None) -> list[Tensor]:
        """Which tokens of each row rank the visual ones, as places (Q,).

        rule: "last" the last text token, or where there are answers each token that one follows
            directly (PyramidDrop's rule for training); "all" the text tokens after the first
            visual input. Text that is not there ("<image>" at the very end, or right before the
            answer) leaves the last token that is no answer.
        """
        chosen = []
        for row, after in enumerate(self.after_visual(answers)):
            parts = []
            for real in self.each(row):
                found = after[_within(after, real)]
                if rule != "all":
                    found = found[-1:]
                    if answers is not None and bool(answers[row, real].any()):
                        spoken = answers[row, real]
                        found = real[:-1][spoken[1:] & ~spoken[:-1]]
                if not len(found):
                    asked = real if answers is None else real[~answers[row, real]]
                    found = (asked if len(asked) else real)[-1:]
                parts.append(found)
            chosen.append(torch.cat(parts))
        return chosen


def _within(places: Tensor, sample: Tensor) -> Tensor:
    """Which of some places lie between the first and the last of a sample's."""
    if not len(sample):
        return torch.zeros_like(places, dtype=torch.bool)
    return (places >= sample[0]) & (places <= sample[-1])


def padded(places: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Places of each row as (B, Q) int64, and (B, Q) bool: True where there is one."""
    width = max(len(one) for one in places)
    where = torch.zeros(len(places), width, dtype=torch.int64)
    real = torch.zeros(len(places), width, dtype=torch.bool)
    for row, one in enumerate(places):
        where[row, : len(one)], real[row, : len(one)] = one, True
    return where, real
