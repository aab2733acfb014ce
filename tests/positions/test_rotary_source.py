"""A planned rotary embedding that asks a function for the table of each call."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from positions import (
    V2PE,
    PlannedRotary,
    PositionError,
    PositionTable,
    Text,
    plan,
)
from tests.positions.hosts import (
    index_of,
    merged_plan,
    text_model,
)

CURRENT = ContextVar("current", default=None)


def test_the_source_is_asked_at_each_call():
    module = text_model("qwen2_vl").rotary_emb
    x, index = torch.zeros(1, 1, 32), index_of(1, 12)
    stock = module(x, index.expand(3, 1, -1))
    with PlannedRotary(module, source=CURRENT.get) as planned:
        assert torch.equal(module(x, index.expand(3, 1, -1))[0], stock[0])
        token = CURRENT.set(PositionTable.from_plans([merged_plan()]))
        merged = module(x, index)
        CURRENT.reset(token)
        assert torch.equal(module(x, index.expand(3, 1, -1))[0], stock[0])
        with pytest.raises(PositionError, match="source="):
            planned.table = PositionTable.from_plans([plan([Text(4)])])
    with PlannedRotary(module).use(PositionTable.from_plans([merged_plan()])):
        assert torch.equal(module(x, index)[0], merged[0])
    flat = text_model("llama").rotary_emb
    with PlannedRotary(flat, source=CURRENT.get):
        CURRENT.set(PositionTable.from_plans([merged_plan(slots=None)]))
        with pytest.raises(PositionError, match="reads one axis"):
            flat(x, index)
        CURRENT.set(None)


def test_threads_have_tables_of_their_own():
    """Each thread reaches the module between the two hooks of the others."""
    module = text_model("llama").rotary_emb
    plans = [merged_plan(V2PE(1 / 2**n)) for n in range(4)]
    x, index = torch.zeros(1, 1, 32), index_of(1, 12)
    expected = []
    for made in plans:
        with PlannedRotary(module).use(PositionTable.from_plans([made])):
            expected.append(module(x, index))
    together = threading.Barrier(len(plans), timeout=20)

    def meet(*_):
        together.wait()

    def run(made):
        CURRENT.set(PositionTable.from_plans([made]))
        return module(x, index)

    with PlannedRotary(module, source=CURRENT.get):
        waits = module.register_forward_pre_hook(meet)
        with ThreadPoolExecutor(len(plans)) as pool:
            results = list(pool.map(run, plans))
        waits.remove()
    for got, alone in zip(results, expected, strict=True):
        assert torch.equal(got[0], alone[0]) and torch.equal(got[1], alone[1])
    assert not torch.equal(results[0][0], results[1][0])


@pytest.mark.parametrize("host", ["llama", "qwen2_5_vl"])
def test_decoding_compiles_once(host):
    """With a table for each forward that says so, no index is read and nothing is recompiled."""
    torch._dynamo.reset()
    module, compiled = text_model(host).rotary_emb, CompileCounter()
    forward = torch.compile(module, backend=compiled, fullgraph=True)
    with PlannedRotary(module, source=CURRENT.get):
        for step in range(4):
            made = plan([Text(1)], start=20.5 + step)
            table = PositionTable.from_plans([made])
            CURRENT.set(dataclasses.replace(table, start=10 + step, in_order=True))
            x, index = torch.zeros(1, 1, 32), index_of(1, 1, start=10 + step)
            assert torch.equal(forward(x, index)[0], module(x, index)[0])
        CURRENT.set(None)
    assert compiled.frame_count == 1
