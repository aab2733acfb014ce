"""Reducing visual inputs of any make-up: views of one shape together, results by input."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from compress import ops
from compress.methods import Method
from compress.ops.windows import deal
from compress.tokens import Reduction, VisualTokens
from vlm.families import View, VisualInput


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
    method: Method,
    inputs: Sequence[VisualInput],
    features: Sequence[Tensor],
    keeps: Sequence[int],
    fields: dict[str, list[Tensor]],
    generator: torch.Generator | None,
    queries: Sequence[Tensor] | None = None,
) -> list[Reduction]:
    """Reduce visual inputs, each to its number of tokens.

    The views of an input share its tokens in proportion to their cells; separators stay only
    where every cell does.

    features: (N, D) an input; fields: further fields of VisualTokens, one (N, ...) tensor an
    input; queries: (Q, D) text embeddings an input. Returns reductions of N tokens with B = 1.
    """
    jobs: list[tuple[int, View, int]] = []
    for number, (item, keep) in enumerate(zip(inputs, keeps, strict=True)):
        if keep < item.count:
            cells = [len(view.indices) for view in item.views]
            shares = deal(min(keep, sum(cells)), cells)
            jobs += [(number, view, n) for view, n in zip(item.views, shares, strict=True)]

    def run(key: Any, members: list[int]) -> list[Reduction]:
        grid, keep = key
        if keep == 0:
            return [_nothing(features[jobs[m][0]], len(jobs[m][1].indices)) for m in members]

        def pick(values: Sequence[Tensor], across: bool = False) -> Tensor:
            cut = []
            for number, view, _ in (jobs[m] for m in members):
                slots = view.indices.to(values[number].device)
                one = values[number][slots]
                cut.append(one[:, slots] if across else one)
            return torch.stack(cut)

        given = {name: pick(values, name == "attention") for name, values in fields.items()}
        if queries is not None:
            given |= _stacked([queries[jobs[m][0]] for m in members])
        tokens = VisualTokens(pick(features), grid, **given)
        reduced = method.reduce(tokens, keep, generator)
        return [reduced.sample(b) for b in range(len(members))]

    parts = iter(grouped([(view.grid, keep) for _, view, keep in jobs], run))
    found = []
    for item, x, keep in zip(inputs, features, keeps, strict=True):
        if keep == item.count:
            found.append(Reduction.identity(x[None]))
        else:
            found.append(_joined(item, x, keep, [next(parts) for _ in item.views]))
    return found


def _stacked(queries: Sequence[Tensor]) -> dict[str, Tensor]:
    width = max(len(q) for q in queries)
    padded = [torch.cat([q, q.new_zeros(width - len(q), q.shape[1])]) for q in queries]
    real = [[k < len(q) for k in range(width)] for q in queries]
    mask = torch.tensor(real, device=padded[0].device).reshape(len(queries), width)
    return {"text_query": torch.stack(padded), "text_query_mask": mask}


def _nothing(x: Tensor, cells: int) -> Reduction:
    none = torch.empty(1, 0, dtype=torch.int64, device=x.device)
    return Reduction(x.new_empty(1, 0, x.shape[1]), none.new_full((1, cells), -1), none, none)


def _joined(item: VisualInput, x: Tensor, keep: int, parts: list[Reduction]) -> Reduction:
    """The reductions of an input's views as one of all its tokens."""
    if len(parts) == 1 and len(item.views[0].indices) == item.count:
        return parts[0]
    device, start = x.device, 0
    levels = 1 + max(len(part.more) for part in parts)
    maps = torch.full((levels, item.count), -1, device=device)
    anchors = []
    for view, part in zip(item.views, parts, strict=True):
        slots = view.indices.to(device)
        for level, assign in enumerate((part.assign, *part.more)):
            maps[level, slots] = torch.where(assign[0] < 0, assign[0], assign[0] + start)
        anchors.append(slots[part.anchor[0]])
        start += part.count
    rows = [part.features[0] for part in parts]
    sizes = [part.size[0] for part in parts]
    if keep > start:  # every cell is kept: some of the separators too
        empty = torch.ones(item.count, dtype=torch.bool, device=device)
        empty[torch.cat([view.indices for view in item.views]).to(device)] = False
        extra = empty.nonzero().flatten()[: keep - start]
        maps[0, extra] = torch.arange(start, keep, device=device)
        anchors.append(extra)
        rows.append(x[extra])
        sizes.append(torch.ones_like(extra))
    anchor = torch.cat(anchors)
    whole = Reduction(
        torch.cat(rows)[None],
        maps[:1],
        anchor[None],
        torch.cat(sizes)[None],
        tuple(level[None] for level in maps[1:]),
    )
    return _in_order(whole) if keep > start else whole


def _in_order(reduction: Reduction) -> Reduction:
    """Rows by ascending anchor."""
    order = reduction.anchor[0].argsort(stable=True)
    new = order.argsort()

    def renamed(assign: Tensor) -> Tensor:
        return torch.where(assign < 0, assign, new[assign.clamp(min=0)])

    return Reduction(
        reduction.features[:, order],
        renamed(reduction.assign),
        reduction.anchor[:, order],
        reduction.size[:, order],
        tuple(renamed(level) for level in reduction.more),
    )


def pooled(x: Tensor, reduction: Reduction, size: Tensor) -> Tensor:
    """(N, D) -> (M, D): for each row the mean of the tokens that went to it, in x's dtype.

    For features that follow others through a reduction, such as those of DeepStack's layers.
    size: (N,) cells in each token.
    """
    alone = not reduction.more and bool((reduction.size[0] == size[reduction.anchor[0]]).all())
    if alone:
        return x[reduction.anchor[0]]
    total = x.new_zeros(1, reduction.count, x.shape[1], dtype=ops.wide(x).dtype)
    for level in (reduction.assign, *reduction.more):
        total = total + ops.segment_sum(ops.wide(x)[None] * size[:, None], level, reduction.count)
    return (total[0] / reduction.size[0][:, None]).to(x.dtype)
