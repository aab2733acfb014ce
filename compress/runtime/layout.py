"""Where the tokens of a padded batch are, before and after some of them leave.

How many tokens each visual input has is known on the host; which ones is known on the device alone.
So no step here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from compress.runtime.tensors import copy_to


@dataclass(frozen=True)
class BatchLayout:
    """A batch of B rows padded to S columns, with T visual tokens in all.

    text_lengths: text tokens of each row. input_rows, counts: for each visual input, the row that
    it is in and its number of tokens. On the device: mask (B, S) bool, False at padding; rows and
    columns, (T,) int64, where each visual token is, input by input, in the input's own order;
    samples (B, S) int64, ascending, which of the samples packed in a row a token belongs to, None
    where a row is one sample. left: whether padding is on the left.
    """

    text_lengths: tuple[int, ...]
    input_rows: tuple[int, ...]
    counts: tuple[int, ...]
    mask: Tensor
    rows: Tensor
    columns: Tensor
    samples: Tensor | None
    left: bool

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, padding left out."""
        lengths = list(self.text_lengths)
        for row, count in zip(self.input_rows, self.counts, strict=True):
            lengths[row] += count
        return lengths

    @property
    def is_padded(self) -> bool:
        """Whether any row has padding."""
        return any(length != self.mask.shape[1] for length in self.lengths)

    @property
    def offsets(self) -> list[int]:
        """The first of each input's tokens among all T."""
        return [0, *accumulate(self.counts)][:-1]

    @property
    def text(self) -> Tensor:
        """(B, S) bool: True at text, False at visual tokens and padding."""
        return self.mask & ~self.visual

    @property
    def visual(self) -> Tensor:
        """(B, S) bool: True at visual tokens."""
        visual = torch.zeros_like(self.mask)
        visual[self.rows, self.columns] = True
        return visual

    def index_in_sample(self) -> Tensor:
        """(B, S) int64: how many tokens of its own sample come before each token."""
        count = self.mask.long().cumsum(1) - 1
        if self.samples is None:
            return count
        first = torch.searchsorted(self.samples.contiguous(), self.samples.contiguous())
        return count - count.gather(1, first)

    def after(self, kept: Tensor, counts: Sequence[int]) -> tuple[BatchLayout, Tensor, Tensor]:
        """The layout when each visual input keeps some of its tokens.

        Args:
            kept: (T',) int64, indices of the kept tokens among all T, input by input, in the
                order in which an input's tokens are to stand.
            counts: how many tokens each input keeps.

        Returns:
            The new layout; `index` (B, W) int64, the old column of each new token, 0 at padding;
            and `back` (B, S) int64, the new column of the last token at or before each old one.
            Hidden states gathered by `back` have their old length again, and text after a dropped
            token is predicted from the last token that is left.
        """
        device, width = self.mask.device, self.mask.shape[1]
        lengths = list(self.text_lengths)
        for row, count in zip(self.input_rows, counts, strict=True):
            lengths[row] += count
        new_width = max(lengths)
        firsts = [new_width - length if self.left else 0 for length in lengths]
        # Flat bookkeeping of the new tokens, row by row, made on the host: where each goes.
        row_of = [row for row, length in enumerate(lengths) for _ in range(length)]
        column_of = [first + i for first, n in zip(firsts, lengths, strict=True) for i in range(n)]
        input_of = [number for number, count in enumerate(counts) for _ in range(count)]
        new_rows, new_columns, inputs, row_firsts = copy_to(
            device, row_of, column_of, input_of, firsts
        )
        # Kept tokens of an input stand in its places in ascending order, whatever their own order.
        kept_rows = self.rows[kept]
        places = self.columns[kept]
        standing = (inputs * width + places).sort(stable=True).values - inputs * width
        # Every token that stays, text first, sorted by row and place.
        text_flat = self._text_places()
        key = torch.cat([text_flat, kept_rows * width + standing])
        source = torch.cat([text_flat % width, places])
        order = key.sort(stable=True).indices
        index = torch.zeros(len(lengths), new_width, dtype=torch.int64, device=device)
        index[new_rows, new_columns] = source[order]
        mask = torch.zeros_like(index, dtype=torch.bool)
        mask[new_rows, new_columns] = True
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=device)
        visual = inverse[len(text_flat) :]
        stays = torch.zeros(self.mask.numel(), dtype=torch.int64, device=device)
        stays.scatter_add_(0, key, torch.ones_like(key))
        last = stays.view_as(self.mask).cumsum(1) - 1
        back = last.clamp(min=0)
        samples = None
        if self.samples is not None:
            # The token before may be of another sample, where a sample's first tokens are dropped.
            samples = torch.full_like(index, torch.iinfo(torch.int64).max)
            flat = self.samples.flatten()
            samples[new_rows, new_columns] = flat[new_rows * width + source[order]]
            own_first = torch.searchsorted(samples, self.samples.contiguous())
            back = back.maximum(own_first - row_firsts[:, None])
        back = back + row_firsts[:, None]
        layout = BatchLayout(
            self.text_lengths,
            self.input_rows,
            tuple(counts),
            mask,
            new_rows[visual],
            new_columns[visual],
            samples,
            self.left,
        )
        return layout, index, back

    def _text_places(self) -> Tensor:
        """(text tokens,) int64: row * S + column of each text token, ascending."""
        total = sum(self.text_lengths)
        # A stable sort of booleans puts the text first without asking how much there is.
        return (~self.text).flatten().to(torch.uint8).sort(stable=True).indices[:total]
