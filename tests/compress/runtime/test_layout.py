"""Where tokens of a padded batch are, against a slow way that moves lists about."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.runtime.layout import BatchLayout

LENGTHS = st.lists(st.integers(0, 4), min_size=1, max_size=3)


def layout_of(rows: list[list[int]], left: bool) -> BatchLayout:
    """Rows as lists of -1 (text) and numbers of visual inputs, which do not repeat over rows."""
    width = max(len(row) for row in rows)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    places: dict[int, list[tuple[int, int]]] = {}
    for number, row in enumerate(rows):
        first = width - len(row) if left else 0
        mask[number, first : first + len(row)] = True
        for column, item in enumerate(row):
            if item >= 0:
                places.setdefault(item, []).append((number, first + column))
    flat = [place for item in sorted(places) for place in places[item]]
    return BatchLayout(
        text_lengths=tuple(sum(item < 0 for item in row) for row in rows),
        input_rows=tuple(places[item][0][0] for item in sorted(places)),
        counts=tuple(len(places[item]) for item in sorted(places)),
        mask=mask,
        rows=torch.tensor([row for row, _ in flat]),
        columns=torch.tensor([column for _, column in flat]),
        samples=None,
        left=left,
    )


@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_after_keeps_what_is_kept_in_order(data: st.DataObject) -> None:
    rows, number = [], 0
    for _ in range(data.draw(st.integers(1, 3), label="rows")):
        row = [-1]
        for text, tokens in data.draw(
            st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), min_size=1, max_size=3)
        ):
            # Text in the middle of an input, as the time stamps of Qwen3-VL's videos.
            half = tokens // 2
            row += [-1] * text + [number] * half + [-1] * (text % 2) + [number] * (tokens - half)
            number += 1
        rows.append(row)
    layout = layout_of(rows, data.draw(st.booleans(), label="left"))
    kept, counts = [], []
    for first, count in zip(layout.offsets, layout.counts, strict=True):
        chosen = data.draw(st.lists(st.integers(0, count - 1), unique=True))
        if data.draw(st.booleans(), label="in order"):
            chosen.sort()
        kept += [first + element for element in chosen]
        counts.append(len(chosen))
    after, index, back = layout.after(torch.tensor(kept, dtype=torch.int64), counts)
    visual = {
        (int(r), int(c)): n
        for n, (r, c) in enumerate(zip(layout.rows, layout.columns, strict=True))
    }
    start = 0
    wanted_rows = []
    # Each kept token of an input stands in the kept places of the input, in ascending order.
    stands: dict[int, int] = {}
    for count in counts:
        part = kept[start : start + count]
        for place, element in zip(sorted(part), part, strict=True):
            stands[place] = element
        start += count
    for row in range(len(layout.mask)):
        real = layout.mask[row].nonzero().flatten().tolist()
        wanted = []
        for column in real:
            token = visual.get((row, column))
            if token is None:
                wanted.append(column)
            elif token in stands:
                wanted.append(int(layout.columns[stands[token]]))
        wanted_rows.append((real, wanted))
    width = max(len(wanted) for _, wanted in wanted_rows)
    for row, (real, wanted) in enumerate(wanted_rows):
        first = width - len(wanted) if layout.left else 0
        got = index[row][after.mask[row]].tolist()
        assert got == wanted
        assert after.mask[row].nonzero().flatten().tolist() == list(
            range(first, first + len(wanted))
        )
        standing = [c for c in real if (row, c) not in visual or visual[row, c] in stands]
        for column in real:
            before = sum(element <= column for element in standing)
            assert int(back[row, column]) == first + max(before - 1, 0)
    # The new layout says where each kept token is, in its own order.
    places = [int(index[r, c]) for r, c in zip(after.rows, after.columns, strict=True)]
    assert places == [int(layout.columns[element]) for element in kept]
    assert after.lengths == [len(wanted) for _, wanted in wanted_rows]


def test_samples_do_not_borrow_from_the_one_before() -> None:
    """Packed: where the first tokens of a sample are all dropped, its text answers for them."""
    layout = layout_of([[-1, 0, 0, 1, 1, -1]], left=False)
    samples = torch.tensor([[0, 0, 0, 1, 1, 1]])
    layout = BatchLayout(**(vars(layout) | {"samples": samples}))
    after, index, back = layout.after(torch.tensor([0]), [1, 0])
    assert index.tolist() == [[0, 1, 5]]
    assert back.tolist() == [[0, 1, 1, 2, 2, 2]]
    assert after.samples is not None and after.samples.tolist() == [[0, 0, 1]]
    assert after.index_in_sample().tolist() == [[0, 1, 0]]
