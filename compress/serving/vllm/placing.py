"""Positions of kept tokens in vLLM: where they are known, how they travel, how they are completed.

vLLM asks for the positions of a prompt when it arrives, before any image is encoded. By then the
length of an image in the prompt, and where the text after it stands, are known; which tokens are
kept is not. So the tokens of an image get a mark in place of a position: -1 - s for an image that
starts at position s. Their places relative to s are known once the image is encoded. They travel
behind the embeddings, in extra columns, since vLLM caches embeddings by image. When a chunk of the
prompt is about to run, the columns are cut off and the marks that belong to them are replaced.

A mark that was replaced is left alone. A chunk that is computed twice, after a preemption, is
therefore placed as it was the first time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BASE = 256
"""Columns hold digits of this base: bfloat16 represents integers up to 256 exactly."""
DIGITS = 2


def to_columns(places: Tensor, dtype: torch.dtype) -> Tensor:
    """Places (M, axes) int64 as columns (M, axes * DIGITS) of digits.

    Raises ValueError for a place that has more digits.
    """
    if places.numel() and not 0 <= int(places.min()) <= int(places.max()) < BASE**DIGITS:
        raise ValueError(f"an image has places outside 0..{BASE**DIGITS - 1}")
    digits = [places // BASE**power % BASE for power in range(DIGITS)]
    return torch.stack(digits, -1).flatten(1).to(dtype)


def from_columns(columns: Tensor) -> Tensor:
    """The inverse of `to_columns`."""
    digits = columns.round().long().unflatten(1, (-1, DIGITS))
    return sum(digits[..., power] * BASE**power for power in range(DIGITS))


def dense_positions(
    length: int, images: Sequence[tuple[int, int, int]], axes: int
) -> tuple[Tensor, int]:
    """The positions of a prompt whose images are not encoded yet.

    length: of the prompt, in tokens. images: (offset, count, span) of each, ascending: the first
    of its tokens, their number, and the positions that the dense image takes. axes: of the model.

    Returns (3, length) int64, marks in place of the images' tokens, and what is added to the
    number of a generated token to give its position. Of a model with one axis, which reads the
    first row, the others hold the last position of the dense image: if the prompt ends in an
    image, `delta` finds it there.
    """
    positions = torch.empty(3, length, dtype=torch.int64)
    at = position = 0
    for offset, count, span in images:
        positions[:, at:offset] = torch.arange(position, position + offset - at)
        position += offset - at
        positions[:axes, offset : offset + count] = -1 - position
        positions[axes:, offset : offset + count] = position + span - 1
        at, position = offset + count, position + span
    positions[:, at:] = torch.arange(position, position + length - at)
    return positions, position - at


def delta(positions: Tensor) -> int:
    """What is added to the number of a generated token to give its position. (3, n) int64."""
    return int(positions[:, -1].max()) + 1 - positions.shape[1]


def complete(
    positions: Tensor, is_visual: Tensor, computed: int, embeddings: Sequence[Tensor], axes: int
) -> list[Tensor]:
    """Replace the marks of the images' tokens of one chunk, in place.

    positions: (3, n) int64 of the whole prompt. is_visual: (n,) bool, the tokens of its images.
    computed: tokens of the prompt that were computed before. embeddings: of the images' tokens
    that follow, in order, any number of them, with `axes * DIGITS` columns behind.

    Returns the embeddings without those columns.
    """
    width = axes * DIGITS
    columns = torch.cat([part[:, -width:] for part in embeddings])
    places = from_columns(columns).mT.to(positions.device)
    rows = computed + is_visual[computed:].nonzero()[: len(columns), 0].to(positions.device)
    marks = positions[:axes, rows]
    positions[:axes, rows] = torch.where(marks < 0, -1 - marks + places, marks)
    return [part[:, :-width] for part in embeddings]


def standing(
    is_visual: Tensor, anchor: Tensor, text: Tensor, features: Tensor, places: Tensor
) -> tuple[Tensor, Tensor]:
    """The tokens that are left of an image or video and of the text within it, such as time stamps.

    is_visual: (L,) bool on the host, of the dense tokens. anchor: (M,) int64, the visual token that
    each kept one stands for, in the order in which they enter. text: (L - N, D), embeddings of the
    others; features: (M, D) or wider. places: (L, axes) of the dense tokens.

    Returns embeddings (L - N + M, D or wider) and their places. Text stands before and after the
    same tokens as dense. Kept tokens stand where kept ones do, in their own order.
    """
    visual = is_visual.nonzero().flatten().to(anchor.device)[anchor]
    others = (~is_visual).nonzero().flatten().to(anchor.device)
    order = torch.cat([others, visual.sort().values]).argsort(stable=True)
    wide = features.new_zeros(len(others), features.shape[1])
    wide[:, : text.shape[1]] = text
    where = places.to(anchor.device)[torch.cat([others, visual])]
    return torch.cat([wide, features])[order], where[order]
