"""`measure` times both sides of a compression."""

from __future__ import annotations

import pytest

from compress.measure import measure
from tests import tiny


def test_measure_gives_every_time_and_leaves_no_hook() -> None:
    model = tiny.llava()
    model(**tiny.images_and_text(1))  # transformers installs hooks of its own at the first forward

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    before = hooks()
    report = measure(model, tiny.images_and_text(1), "duet", 16, new_tokens=3, repeats=1)
    for side in (report.dense, report.reduced):
        times = (side.vision, side.prefill, side.decode)
        assert all(value is not None and value > 0 for value in times)
    assert report.dense.reduce is None and (report.reduced.plan or 0) > 0
    assert report.reduced.first == pytest.approx(
        sum(getattr(report.reduced, n) for n in ("vision", "reduce", "plan", "prefill"))
    )
    assert hooks() == before
