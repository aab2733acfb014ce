"""What a reduction costs and saves: tokens a layer, multiply-adds, key/value bytes, times."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from compress.tokens import Grid, Reduction

if TYPE_CHECKING:
    from compress.runtime.stage import Prompt
    from vlm.families import ModelAdapter


def layer_macs(tokens: int, hidden: int, key_value: int, inner: int) -> int:
    """Multiply-adds of one decoder layer in prefill: 2 n d^2 + 2 n d d_kv + 2 n^2 d + 3 n d m.

    tokens n, hidden d, key/value width d_kv, inner width m of a gated MLP; a multiply-add counts
    one (FastV's formula with SwiGLU's third matrix and grouped keys and values).
    """
    n, d = tokens, hidden
    return 2 * n * d * d + 2 * n * d * key_value + 2 * n * n * d + 3 * n * d * inner


def prefill_macs(counts: Sequence[int], config: Any) -> int:
    """Multiply-adds of a prefill with `counts[l]` tokens in decoder layer l.

    config: the language model's configuration.
    """
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    key_value = head_dim * (getattr(config, "num_key_value_heads", None) or heads)
    return sum(
        layer_macs(n, config.hidden_size, key_value, config.intermediate_size) for n in counts
    )


@dataclass(frozen=True)
class Cost:
    """One side of a report. Times are milliseconds, None where they were not measured.

    layers: visual tokens in each decoder layer, summed over the visual inputs of the batch.
    text: text tokens of the batch. macs: multiply-adds of the visual tokens' prefill alone.
    cache: bytes of keys and values after prefill. memory: peak bytes, on a GPU.
    """

    layers: tuple[int, ...]
    text: int
    macs: int
    cache: int
    vision: float | None = None
    reduce: float | None = None
    plan: float | None = None
    prefill: float | None = None
    decode: float | None = None
    memory: int | None = None

    @property
    def first(self) -> float | None:
        """Milliseconds to the first token: vision, reduce, plan and prefill."""
        if self.vision is None or self.prefill is None:
            return None
        return self.vision + self.prefill + (self.reduce or 0.0) + (self.plan or 0.0)


@dataclass(frozen=True)
class Report:
    """Dense and reduced, side by side; `str(report)` is the table.

    budget: the measured mean number of visual tokens per visual input over the decoder layers.
    """

    method: str
    inputs: int
    budget: float
    dense: Cost
    reduced: Cost

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("", "dense", "reduced")]
        for name, scale, unit, digits in (
            ("macs", 1e-9, "GMAC, visual tokens", 3),
            ("vision", 1, "ms vision", 2),
            ("reduce", 1, "ms reduce", 2),
            ("plan", 1, "ms plan", 2),
            ("prefill", 1, "ms prefill (language model)", 2),
            ("first", 1, "ms to the first token", 2),
            ("decode", 1, "ms a decoded token", 2),
            ("cache", 1 / 1024, "KiB keys and values", 1),
            ("memory", 2**-20, "MiB peak memory", 1),
        ):
            values = [getattr(side, name) for side in (self.dense, self.reduced)]
            if any(value is not None for value in values):
                shown = ("-" if v is None else f"{v * scale:,.{digits}f}" for v in values)
                rows.append((unit, *shown))
        head = (
            f"{self.method}: {self.budget:.2f} visual tokens an input on average over "
            f"{len(self.reduced.layers)} layers, of {self.dense.layers[0] / self.inputs:.0f} "
            f"({self.inputs} inputs, {self.reduced.text} text tokens)"
        )
        lines = [head, f"  tokens a layer, dense    {runs(self.dense.layers)}"]
        lines.append(f"  tokens a layer, reduced  {runs(self.reduced.layers)}")
        lines += [f"  {unit:<28}{a:>14}{b:>14}" for unit, a, b in rows]
        return "\n".join(lines)


def runs(counts: Sequence[int]) -> str:
    """(144, 144, 8) -> '144 x 2, 8 x 1'."""
    runs: list[list[int]] = []
    for count in counts:
        if runs and runs[-1][0] == count:
            runs[-1][1] += 1
        else:
            runs.append([count, 1])
    return ", ".join(f"{count} x {times}" for count, times in runs)


class Clock:
    """Adds up wall time by name; `exact` waits for the device at every start and stop."""

    def __init__(self) -> None:
        self.exact = False
        self.totals: dict[str, float] = {}
        self._began: dict[str, float] = {}

    def _now(self) -> float:
        if self.exact and torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def start(self, name: str) -> None:
        self._began[name] = self._now()

    def stop(self, name: str) -> None:
        spent = self._now() - self._began.pop(name)
        self.totals[name] = self.totals.get(name, 0.0) + spent * 1e3


@dataclass
class Record:
    """What the last prefill under a compression did."""

    adapter: ModelAdapter
    clock: Clock = field(default_factory=Clock)
    grids: list[Grid] = field(default_factory=list)
    _first: list[Reduction] = field(default_factory=list)
    _later: list[tuple[int, list[Reduction]]] = field(default_factory=list)
    _positions: list[torch.Tensor] = field(default_factory=list)
    _report: Report | None = None
    _over: bool = True

    def restart(self) -> None:
        """The vision side runs: times of the reduction are counted from here."""
        if self._over:
            self.clock.totals.update(reduce=0.0, plan=0.0)
            self._over = False

    def end(self, done: Prompt, cache: Any, name: str) -> None:
        """The language model has run a prompt with visual inputs."""
        self._over = True
        self.grids, self._first, self._later = done.grids, done.first, done.stages
        self._positions = done.positions
        config: Any = self.adapter.language_model.config
        depth, each = config.num_hidden_layers, len(done.grids)
        counts = [sum(r.count for r in done.first)] * depth
        for layer, reductions in done.stages:
            counts[layer:] = [sum(r.count for r in reductions)] * (depth - layer)
        cells = sum(t * h * w for t, h, w in done.grids)
        held = cache_bytes(cache)
        text = done.text
        # Every token costs the same in every layer's cache, so the dense size follows.
        tokens = sum(counts) + text * depth
        dense = Cost(
            (cells,) * depth,
            text,
            _macs([cells] * depth, config, each),
            round(held * (cells + text) * depth / max(tokens, 1)),
        )
        reduced = Cost(
            tuple(counts),
            text,
            _macs(counts, config, each),
            held,
            reduce=self.clock.totals.get("reduce"),
            plan=self.clock.totals.get("plan"),
        )
        self._report = Report(name, each, sum(counts) / depth / each, dense, reduced)

    def report(self) -> Report:
        if self._report is None:
            raise RuntimeError(
                "nothing to report: no prompt with visual inputs has run under this compression yet"
            )
        return self._report

    def positions(self) -> list[torch.Tensor]:
        """(M, K, 3) float64 of each visual input's tokens that entered the language model."""
        self.report()
        return self._positions

    def layers(self) -> list[int]:
        """The decoder layers at which there were fewer tokens."""
        return [layer for layer, _ in self._later]

    def stages(self, index: int) -> list[tuple[str, Grid, Reduction]]:
        """Name, grid and reduction of each stage for visual input `index` of the last prefill."""
        self.report()
        if not 0 <= index < len(self.grids):
            raise IndexError(
                f"index is {index}: the last prefill had {len(self.grids)} visual inputs"
            )
        grid = self.grids[index]
        found = [("before the language model", grid, self._first[index])]
        for layer, reductions in self._later:
            found.append((f"from decoder layer {layer}", grid, reductions[index]))
        return found


def _macs(counts: Sequence[int], config: Any, inputs: int) -> int:
    # Attention is within one sequence: the quadratic term counts each input on its own.
    return inputs * prefill_macs([round(count / inputs) for count in counts], config)


def cache_bytes(cache: Any) -> int:
    """Bytes of keys and values that a transformers cache holds."""
    total = 0
    for layer in getattr(cache, "layers", ()):
        for part in (getattr(layer, "keys", None), getattr(layer, "values", None)):
            if isinstance(part, torch.Tensor):
                total += part.numel() * part.element_size()
    return total
