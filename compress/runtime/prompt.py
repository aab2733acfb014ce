"""A prompt as it came, on the host: which tokens are visual, what asks about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from compress.budget import Allocation
from compress.errors import CompressionError
from compress.runtime.encoded import PIXELS, Encoded
from vlm.families import ModelAdapter, VisualInput


@dataclass(frozen=True)
class PlacedInput:
    """A visual input in its prompt: the batch's row and the columns (N,) int64 of its tokens.

    following: the column of the token after it in its sample, None at the sample's end. sample: the
    number of the sample that it belongs to. encoded, index: where it was encoded.
    """

    row: int
    columns: Tensor
    following: int | None
    sample: int
    encoded: Encoded
    index: int

    @property
    def input(self) -> VisualInput:
        return self.encoded.inputs[self.index]

    @property
    def allocation(self) -> Allocation:
        """The counts that the budget gives it."""
        return self.encoded.allocations[self.index]


@dataclass(frozen=True)
class SampleText:
    """The text of one sample: a row of the batch, or one of those that are packed in it.

    after: columns of the text after its first visual input, answers left out. query: columns whose
    attention ranks the visual tokens. count: text tokens. trailing: real tokens after the last
    visual one. row: of the batch. predictor: of a sample that begins with visual inputs, the number
    of the last one before any text, which has to predict the first word; None of any other.
    """

    row: int
    after: Tensor
    query: Tensor
    count: int
    trailing: int
    predictor: int | None

    def next_to(self, columns: Tensor) -> int | None:
        """Column of the first text token after a visual input at `columns`; None if none follows,
        or only an answer."""
        later = self.after[self.after > int(columns.max())]
        return int(later[0]) if len(later) else None


@dataclass(frozen=True)
class HostPrompt:
    """ids, mask: (B, S), the mask bool. answers: (B, S) bool, tokens that the model is to say;
    None if there are none. samples: (B, S) int64, ascending; None if a row is one sample."""

    ids: Tensor
    mask: Tensor
    answers: Tensor | None
    samples: Tensor | None

    @cached_property
    def sample_columns(self) -> list[tuple[int, Tensor]]:
        """(row, columns of its tokens) of every sample, in order; padding is left out."""
        found = []
        for row in range(len(self.mask)):
            real = self.mask[row].nonzero().flatten()
            if self.samples is None:
                found.append((row, real))
                continue
            _, lengths = torch.unique_consecutive(self.samples[row, real], return_counts=True)
            found += [(row, columns) for columns in real.split(lengths.tolist())]
        return found


def find_inputs(
    adapter: ModelAdapter, encoded: Mapping[str, Encoded], prompt: HostPrompt
) -> list[PlacedInput]:
    """The visual inputs of a prompt, in order of rows and of columns in them.

    Raises ValueError where placeholders and visual inputs do not match, CompressionError where a
    kind has placeholders and was not encoded under the compression.
    """
    number_of = _sample_numbers(prompt)
    placed = []
    for kind in adapter.kinds:
        here = (prompt.ids == adapter.placeholder(kind)) & prompt.mask
        totals = here.sum(1).tolist()
        if not any(totals):
            continue
        if kind not in encoded:
            raise without_pixels(kind, sum(totals))
        one = encoded[kind]
        if adapter.one_run_one_input:
            runs = [_runs(row) for row in here[:: one.repeats(totals)]]
            one = one.joined([run for row in runs for run in row])
        for row, members in enumerate(one.by_row(totals)):
            columns = here[row].nonzero().flatten().split([one.inputs[i].count for i in members])
            for part, index in zip(columns, members, strict=True):
                sample = int(number_of[row, part[0]])
                after = (number_of[row, int(part[-1]) + 1 :] == sample).nonzero().flatten()
                following = int(part[-1] + 1 + after[0]) if len(after) else None
                placed.append(PlacedInput(row, part, following, sample, one, index))
    return sorted(placed, key=lambda item: (item.row, int(item.columns[0])))


def without_pixels(kind: str, count: int) -> CompressionError:
    """The error for placeholders that come without visual inputs."""
    return CompressionError(
        f"the prompt has {count} {kind} placeholder tokens and no {kind} came with it: pass "
        f"{PIXELS[kind]}, or take the placeholders out of the prompt"
    )


def _sample_numbers(prompt: HostPrompt) -> Tensor:
    """(B, S) int64: the number of the sample that each token belongs to, over all rows."""
    numbers = torch.full(prompt.mask.shape, -1)
    for number, (row, columns) in enumerate(prompt.sample_columns):
        numbers[row, columns] = number
    return numbers


def _runs(row: Tensor) -> list[int]:
    values, lengths = torch.unique_consecutive(row, return_counts=True)
    return lengths[values].tolist()


def sample_texts(
    prompt: HostPrompt, placed: Sequence[PlacedInput], query_rows: str
) -> list[SampleText]:
    """The text of every sample.

    query_rows: as `Method.query_rows`. "last" is the last text token after the first visual input,
    or, where there are answers, each token that one follows directly (PyramidDrop's rule for
    training); "all" and "salient" all the text after it. Where there is no such text, as in
    "<image>" at the very end or right before an answer, the last token that is no answer asks.
    """
    is_text = prompt.mask.clone()
    for item in placed:
        is_text[item.row, item.columns] = False
    texts = []
    for number, (row, columns) in enumerate(prompt.sample_columns):
        numbers = [n for n, item in enumerate(placed) if item.sample == number]
        inputs = [placed[n].columns for n in numbers]
        text = columns[is_text[row, columns]]
        after = text
        if inputs:
            after = text[text > min(int(one.max()) for one in inputs)]
        last = max((int(one.max()) for one in inputs), default=-1)
        spoken = None if prompt.answers is None else prompt.answers[row]
        if spoken is not None:
            after = after[~spoken[after]]
        query = _query_columns(columns, after, spoken, query_rows)
        trailing = int((columns > last).sum())
        first_word = int(text[0]) if len(text) else prompt.mask.shape[1]
        leading = [n for n in numbers if int(placed[n].columns.max()) < first_word]
        predictor = leading[-1] if leading else None
        texts.append(SampleText(row, after, query, len(text), trailing, predictor))
    return texts


def _query_columns(
    columns: Tensor, after: Tensor, spoken: Tensor | None, query_rows: str
) -> Tensor:
    """Columns of the query rows of one sample; at least one, unless the sample is empty."""
    query = after
    if query_rows == "last":
        query = after[-1:]
        if spoken is not None and bool(spoken[columns].any()):
            said = spoken[columns]
            query = columns[:-1][said[1:] & ~said[:-1]]
    if len(query):
        return query
    asked = columns if spoken is None else columns[~spoken[columns]]
    return (asked if len(asked) else columns)[-1:]
