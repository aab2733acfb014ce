"""Reducing visual inputs of any make-up: planes of one shape together, results by input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby
from typing import NamedTuple

import torch
from torch import Tensor

from compress import ops
from compress.ops.windows import deal
from compress.runtime.settings import Settings
from compress.runtime.tensors import copy_to
from compress.tokens import Grid, Reduction, VisualTokens, require_finite
from vlm.families import VisualInput


@dataclass(frozen=True)
class TextQueries:
    """Text embeddings that methods read.

    features: (n, Q, D); mask: (n, Q) bool, True at real tokens; lengths: real tokens of each of the
    n. of_input: which of the n belongs to each visual input.
    """

    features: Tensor
    mask: Tensor
    lengths: tuple[int, ...]
    of_input: tuple[int, ...]

    def select(self, inputs: Sequence[int]) -> TextQueries:
        """The same for some of the visual inputs."""
        return replace(self, of_input=tuple(self.of_input[number] for number in inputs))

    def at(self, index: Tensor, numbers: Sequence[int]) -> dict[str, Tensor]:
        """Fields of VisualTokens made of some of the texts, as wide as the longest of them.

        index: `numbers` on the device.
        """
        width = max(self.lengths[number] for number in numbers)
        return {
            "text_query": self.features[index, :width],
            "text_query_mask": self.mask[index, :width],
        }


@dataclass(frozen=True)
class InputTokens:
    """The dense tokens of several visual inputs, one after another; T in all.

    features: (T, D). fields: further fields of VisualTokens, (T, ...). attention: one (N, N) map
    an input. text: what methods read of the prompt.
    """

    inputs: Sequence[VisualInput]
    features: Tensor
    fields: dict[str, Tensor] = field(default_factory=dict)
    attention: Sequence[Tensor] | None = None
    text: TextQueries | None = None


class _Plane(NamedTuple):
    """A view of one input that loses some of its tokens."""

    number: int
    view: int
    grid: Grid
    keep: int
    indices: Tensor  # (n,) int64 on the host, into the input's tokens


def reduce_inputs(settings: Settings, tokens: InputTokens, keeps: Sequence[int]) -> list[Reduction]:
    """Reduce visual inputs, each to its number of tokens.

    The views of an input share its tokens in proportion to their sizes. Separators stay only where
    every token of every view does.

    Returns:
        One reduction of B = 1 for each input.

    Raises:
        ValueError: a value is NaN or infinite, or a field that the method needs is absent.
    """
    planes = _planes(tokens.inputs, keeps)
    if planes:
        values = {"features": tokens.features, **tokens.fields}
        if tokens.text is not None:
            padding = ~tokens.text.mask[..., None]
            values["text_query"] = tokens.text.features.masked_fill(padding, 0)
        require_finite(values)
    offsets = [0, *accumulate(item.count for item in tokens.inputs)]
    separators = [_kept_separators(*pair) for pair in zip(tokens.inputs, keeps, strict=True)]
    texts = [] if tokens.text is None else [tokens.text.of_input[p.number] for p in planes]
    firsts, text_of, *indices = copy_to(
        tokens.features.device,
        [offsets[plane.number] for plane in planes],
        texts,
        *(plane.indices for plane in planes),
        *separators,
    )
    indices, separators = indices[: len(planes)], indices[len(planes) :]
    parts: list[Reduction] = []
    # Planes of one shape and count follow one another: they are reduced as one batch.
    for _, group in groupby(enumerate(planes), key=lambda pair: _shape(pair[1])):
        numbers = [number for number, _ in group]
        batch = slice(numbers[0], numbers[-1] + 1)
        text = None
        if tokens.text is not None:
            text = tokens.text.at(text_of[batch], texts[batch])
        parts += _reduce_planes(
            settings, tokens, planes[batch], indices[batch], firsts[batch], text
        )
    of_views: list[dict[int, tuple[Tensor, Reduction]]] = [{} for _ in tokens.inputs]
    for plane, index, part in zip(planes, indices, parts, strict=True):
        of_views[plane.number][plane.view] = (index, part)
    reductions = []
    for number, (item, keep) in enumerate(zip(tokens.inputs, keeps, strict=True)):
        features = tokens.features[offsets[number] : offsets[number + 1]]
        if keep == item.count:
            reductions.append(Reduction.identity(features[None]))
        else:
            reductions.append(_joined(features, _in_order(of_views[number]), separators[number]))
    return reductions


def _in_order(parts: dict[int, tuple[Tensor, Reduction]]) -> list[tuple[Tensor, Reduction]]:
    return [parts[view] for view in sorted(parts)]


def _reduce_planes(
    settings: Settings,
    tokens: InputTokens,
    planes: Sequence[_Plane],
    indices: Sequence[Tensor],
    firsts: Tensor,
    text: dict[str, Tensor] | None,
) -> list[Reduction]:
    """Reduce planes of one shape and count.

    indices: the planes' tokens within their inputs, (n,) each; firsts: (b,) the first token of
    each plane's input among all T.
    """
    grid, keep = planes[0].grid, planes[0].keep
    if keep == 0:
        return [_nothing(tokens.features, len(index)) for index in indices]
    where = torch.stack(list(indices)) + firsts[:, None]
    given = {name: values[where] for name, values in tokens.fields.items()}
    if tokens.attention is not None:
        maps = [tokens.attention[plane.number] for plane in planes]
        cut = [one[index][:, index] for one, index in zip(maps, indices, strict=True)]
        given["attention"] = torch.stack(cut)
    visual = VisualTokens(tokens.features[where], grid, **given, **(text or {}))
    reduction = settings.method.reduce(visual, keep, settings.generator, check=False)
    return [reduction.sample(b) for b in range(len(planes))]


def _shape(plane: _Plane) -> tuple[Grid, int]:
    return plane.grid, plane.keep


def _planes(inputs: Sequence[VisualInput], keeps: Sequence[int]) -> list[_Plane]:
    """The views of inputs that lose tokens, with their shares; those of one shape together."""
    planes = []
    for number, (item, keep) in enumerate(zip(inputs, keeps, strict=True)):
        if keep < item.count:
            sizes = [len(view.indices) for view in item.views]
            shares = deal(min(keep, sum(sizes)), sizes)
            planes += [
                _Plane(number, place, view.grid, share, view.indices)
                for place, (view, share) in enumerate(zip(item.views, shares, strict=True))
            ]
    return sorted(planes, key=_shape)


def _kept_separators(item: VisualInput, keep: int) -> Tensor:
    """(n,) int64: separators that stay of an input that keeps all tokens of its views."""
    room = keep - sum(len(view.indices) for view in item.views)
    if keep == item.count or room <= 0:
        return torch.zeros(0, dtype=torch.int64)
    separator = torch.ones(item.count, dtype=torch.bool)
    separator[torch.cat([view.indices for view in item.views])] = False
    return separator.nonzero().flatten()[:room]


def _nothing(features: Tensor, count: int) -> Reduction:
    """A view that keeps no token."""
    none = torch.empty(1, 0, dtype=torch.int64, device=features.device)
    dropped = none.new_full((1, count), -1)
    return Reduction(features.new_empty(1, 0, features.shape[1]), dropped, none, none)


def _joined(
    features: Tensor, parts: Sequence[tuple[Tensor, Reduction]], separators: Tensor
) -> Reduction:
    """The reductions of an input's views as one of all its N tokens.

    features: (N, D). parts: for each view, (n,) which of the tokens it has, and its reduction.
    separators: tokens in no view that stay.
    """
    count = len(features)
    if len(parts) == 1 and len(parts[0][0]) == count:
        return parts[0][1]
    levels = 1 + max(len(part.more) for _, part in parts)
    maps = torch.full((levels, count), -1, device=features.device)
    anchors, start = [], 0
    for index, part in parts:
        for level, assign in enumerate((part.assign, *part.more)):
            maps[level, index] = torch.where(assign[0] < 0, assign[0], assign[0] + start)
        anchors.append(index[part.anchor[0]])
        start += part.count
    rows = [part.features[0] for _, part in parts]
    sizes = [part.size[0] for _, part in parts]
    if len(separators):
        stop = start + len(separators)
        maps[0, separators] = torch.arange(start, stop, device=features.device)
        anchors.append(separators)
        rows.append(features[separators])
        sizes.append(torch.ones_like(separators))
    whole = Reduction(
        torch.cat(rows)[None],
        maps[:1],
        torch.cat(anchors)[None],
        torch.cat(sizes)[None],
        tuple(level[None] for level in maps[1:]),
    )
    return whole.by_anchor() if len(separators) else whole


def flat_assign(reductions: Sequence[Reduction]) -> list[Tensor]:
    """For each level of the reductions (1, unless a method hands on several), (T,) int64: the
    output token among all T' that each input token goes to, or -1."""
    device = reductions[0].anchor.device
    news = [0, *accumulate(reduction.count for reduction in reductions)][:-1]
    olds = [reduction.assign.shape[1] for reduction in reductions]
    offset = torch.tensor(news).repeat_interleave(torch.tensor(olds))
    (offset,) = copy_to(device, offset)
    levels = []
    for level in range(1 + max(len(reduction.more) for reduction in reductions)):
        maps = [
            reduction.assign[0] if level == 0
            else reduction.more[level - 1][0] if level <= len(reduction.more)
            else torch.full_like(reduction.assign[0], -1)
            for reduction in reductions
        ]  # fmt: skip
        assign = torch.cat(maps)
        levels.append(torch.where(assign < 0, assign, assign + offset))
    return levels


def flat_anchor(reductions: Sequence[Reduction]) -> Tensor:
    """(T',) int64: the token among all T that each output token stands for."""
    firsts = [0, *accumulate(reduction.assign.shape[1] for reduction in reductions)][:-1]
    counts = [reduction.count for reduction in reductions]
    offset = torch.tensor(firsts).repeat_interleave(torch.tensor(counts))
    anchor = torch.cat([reduction.anchor[0] for reduction in reductions])
    (offset,) = copy_to(anchor.device, offset)
    return anchor + offset


def pooled(x: Tensor, reductions: Sequence[Reduction], size: Tensor) -> Tensor:
    """(T, D) -> (T', D): for each output token the mean of the tokens that went to it.

    For features that follow others through a reduction, such as those of DeepStack's layers.
    size: (T,) dense tokens in each.
    """
    anchor = flat_anchor(reductions)
    new_size = torch.cat([reduction.size[0] for reduction in reductions])
    total = x.new_zeros(1, len(anchor), x.shape[1], dtype=ops.wide(x).dtype)
    for assign in flat_assign(reductions):
        weighted = ops.wide(x)[None] * size[:, None]
        total = total + ops.segment_sum(weighted, assign[None], len(anchor))
    mean = (total[0] / new_size[:, None]).to(x.dtype)
    return torch.where((new_size == size[anchor])[:, None], x[anchor], mean)
