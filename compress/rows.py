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
    places (n,) int64 of its tokens in the row, in the order in which the input has them. left:
    whether padding goes to the left.
    """

    mask: Tensor
    slots: list[list[Tensor]]
    left: bool

    @classmethod
    def of(cls, visual: Tensor, mask: Tensor, counts: Sequence[Sequence[int]]) -> Rows:
        """Cut each row's visual tokens into its visual inputs.

        visual: (B, S) bool, the placeholders; mask: (B, S) bool; counts: cells of each input.
        """
        slots = [
            list(places.nonzero().flatten().split(list(row)))
            for places, row in zip(visual, counts, strict=True)
        ]
        return cls(mask, slots, bool((~mask[:, 0]).any()))

    @property
    def lengths(self) -> Tensor:
        """(B,) int64: tokens of each row, padding left out."""
        return self.mask.sum(1)

    def visual(self) -> Tensor:
        """(B, S) bool: True at visual tokens."""
        out = torch.zeros_like(self.mask)
        for row, inputs in enumerate(self.slots):
            for places in inputs:
                out[row, places] = True
        return out

    def after(self, kept: Sequence[Sequence[Tensor]]) -> tuple[Rows, Tensor, Tensor]:
        """The rows that stay when each visual input keeps some of its tokens.

        kept: for each row and input, which of its tokens stay, as indices into its slots, in the
            order in which they are to stand (that of the slots, unless a method reorders them).
        Returns the new rows (B, M), `index` (B, M) int64, the old place of each new token (0 at
        padding), and `back` (B, S) int64, the new place of the last token at or before each old
        one: hidden states gathered by `back` have the old length again, and text that follows a
        dropped token is predicted from the last token that is left (references: forward-fill).
        """
        text = self.mask & ~self.visual()
        sources, places = [], []
        for row, inputs in enumerate(self.slots):
            stay = [slots[k] for slots, k in zip(inputs, kept[row], strict=True)]
            standing = torch.cat([text[row].nonzero().flatten(), *(s.sort().values for s in stay)])
            order = standing.argsort(stable=True)
            taken = torch.cat([text[row].nonzero().flatten(), *stay])
            sources.append(taken[order])
            places.append(standing[order])
        lengths = torch.tensor([len(source) for source in sources])
        width = int(lengths.max())
        mask = torch.zeros(len(sources), width, dtype=torch.bool)
        index = torch.zeros(len(sources), width, dtype=torch.int64)
        back = torch.zeros(self.mask.shape, dtype=torch.int64)
        slots_after: list[list[Tensor]] = []
        everywhere = torch.arange(self.mask.shape[1])
        for row, (source, place) in enumerate(zip(sources, places, strict=True)):
            first = width - len(source) if self.left else 0
            mask[row, first : first + len(source)] = True
            index[row, first : first + len(source)] = source
            back[row] = first + (torch.searchsorted(place, everywhere, right=True) - 1).clamp(min=0)
            slots_after.append(
                [
                    first + torch.searchsorted(place, slots[k].sort().values)
                    for slots, k in zip(self.slots[row], kept[row], strict=True)
                ]
            )
        return Rows(mask, slots_after, self.left), index, back

    def queries(self, rule: str, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Which text tokens rank the visual ones: places (B, Q) int64, and mask (B, Q) bool.

        rule: "last" the last text token, or with labels each token that an answer follows
            directly (PyramidDrop's rule for training); "all" every text token after the first
            visual one, or with labels those of them that are no answer.
        labels: (B, S), -100 where nothing is predicted; None in generation. Text that is not
            there ("<image>" at the very end) leaves the last token of the row.
        """
        chosen = []
        for row, text in enumerate(self.mask & ~self.visual()):
            last = self.mask[row].nonzero().flatten()[-1:]
            after = text.nonzero().flatten()
            if self.slots[row]:
                after = (
                    after[
                        after > min(int(places.min()) for places in self.slots[row] if len(places))
                    ]
                    if any(len(p) for p in self.slots[row])
                    else after
                )
            asked = None if labels is None else labels[row]
            if rule == "last":
                found = last
                if asked is not None and bool((asked != -100).any()):
                    begins = (asked[1:] != -100) & (asked[:-1] == -100)
                    found = begins.nonzero().flatten()
                elif len(after):
                    found = after[-1:]
            else:
                found = after if asked is None else after[asked[after] == -100]
            chosen.append(found if len(found) else last)
        width = max(len(places) for places in chosen)
        where = torch.zeros(len(chosen), width, dtype=torch.int64)
        real = torch.zeros(len(chosen), width, dtype=torch.bool)
        for row, places in enumerate(chosen):
            where[row, : len(places)], real[row, : len(places)] = places, True
        return where, real
