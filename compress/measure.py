"""Run a prompt dense and reduced, in turn, and report what each part took."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from compress.defaults import BUDGET, METHOD
from compress.methods import Method
from compress.report.clock import Clock
from compress.report.cost import Report
from compress.report.record import cache_bytes
from compress.runtime.attach import compress
from vlm.decoder import cache_of
from vlm.families import ModelAdapter, adapter_of


def measure(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    method: str | Method = METHOD,
    budget: int | float = BUDGET,
    *,
    new_tokens: int = 8,
    repeats: int = 5,
    **options: Any,
) -> Report:
    """Time `model.generate(**inputs)` dense and under `compress(model, method, budget)`.

    Both run `repeats` times in turn after one warm-up each, so that a drift of the machine meets
    both; each figure is the median. Greedy, `new_tokens` tokens, none of them the end.

    Args:
        inputs: what the processor gave, with at least one visual input.
        options: further arguments of `compress`.

    Returns:
        The report with all its times; `memory` only on a CUDA device.
    """
    adapter = adapter_of(model)
    seen: dict[str, dict[str, list[float]]] = {
        "dense": defaultdict(list),
        "reduced": defaultdict(list),
    }
    dense_cache = 0
    for turn in range(repeats + 1):
        with _stopwatch(adapter, Clock()) as (clock, caches):
            memory = _run(model, inputs, new_tokens)
            totals, dense_cache = dict(clock.totals), caches[0]
        _note(seen["dense"], totals, memory, turn)
        with compress(model, method, budget, **options) as attached:
            attached.clock.exact = True
            with _stopwatch(adapter, attached.clock) as (clock, _):
                memory = _run(model, inputs, new_tokens)
                totals = dict(clock.totals)
            _note(seen["reduced"], totals, memory, turn)
            report = attached.report()
    figures = {side: _medians(values, new_tokens) for side, values in seen.items()}
    return replace(
        report,
        dense=replace(report.dense, cache=dense_cache, **figures["dense"]),
        reduced=replace(report.reduced, **figures["reduced"]),
    )


def _run(model: Any, inputs: Mapping[str, Tensor], new_tokens: int) -> int | None:
    gpu = model.device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    model.generate(**inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
    return torch.cuda.max_memory_allocated() if gpu else None


def _note(
    into: dict[str, list[float]], totals: Mapping[str, float], memory: int | None, turn: int
) -> None:
    if turn == 0:  # warm-up
        return
    for name, value in totals.items():
        into[name].append(value)
    if memory is not None:
        into["memory"].append(memory)


def _medians(values: Mapping[str, list[float]], new_tokens: int) -> dict[str, Any]:
    medians: dict[str, Any] = {name: statistics.median(samples) for name, samples in values.items()}
    if "decode" in medians:
        medians["decode"] /= max(new_tokens - 1, 1)
    if "memory" in medians:
        medians["memory"] = int(medians["memory"])
    return medians


@contextmanager
def _stopwatch(adapter: ModelAdapter, clock: Clock) -> Iterator[tuple[Clock, list[int]]]:
    """Time the encoder and the language model by hooks; the reduction's own time is left out."""
    clock.exact = True
    caches: list[int] = []
    name, before = "", 0.0

    def spent() -> float:
        return clock.totals.get("reduce", 0.0) + clock.totals.get("plan", 0.0)

    def begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal name, before
        name, before = "decode" if caches else "prefill", spent()
        clock.start(name)

    def finish(module: nn.Module, args: Any, output: Any) -> None:
        clock.stop(name)
        clock.totals[name] -= spent() - before
        caches.append(cache_bytes(cache_of(output)))

    encoder, lm = adapter.vision_encoder, adapter.language_model
    handles = [
        encoder.register_forward_pre_hook(lambda *_: clock.start("vision")),
        encoder.register_forward_hook(lambda *_: clock.stop("vision")),
        # Before the compression's own hooks, so that what they do is seen, and taken off again.
        lm.register_forward_pre_hook(begin, with_kwargs=True, prepend=True),
        lm.register_forward_hook(finish),
    ]
    try:
        yield clock, caches
    finally:
        for handle in handles:
            handle.remove()
