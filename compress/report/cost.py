"""The cost of dense and reduced: tokens a layer, multiply-adds, key/value bytes, times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compress.latency import Fit
from compress.report.record import PrefillRecord
from vlm.decoder import layer_kinds, reach


def layer_macs(tokens: int, hidden: int, key_value: int, inner: int) -> int:
    """Multiply-adds of one decoder layer in prefill: 2 n d^2 + 2 n d d_kv + 2 n^2 d + 3 n d m.

    tokens n, hidden d, key/value width d_kv, inner width m of a gated MLP; a multiply-add counts
    one (FastV's formula with SwiGLU's third matrix and grouped keys and values).
    """
    n, d = tokens, hidden
    return 2 * n * d * d + 2 * n * d * key_value + 2 * n * n * d + 3 * n * d * inner


def prefill_macs(counts: Sequence[int], config: Any) -> int:
    """Multiply-adds of a prefill with `counts[l]` tokens in decoder layer l.

    config: the language model's configuration. A local layer attends to its window's tokens; a
    linear one has its projections and, for each token, its state read, decayed and written; one
    that reads an earlier layer's keys projects none; of a mixture of experts those that a token is
    sent to are counted.
    """
    d, total = config.hidden_size, 0
    for n, layer in zip(counts, _layers(config, len(counts)), strict=True):
        kind, width, key_value = layer.kind, layer.reach, layer.key_value
        total += layer_macs(n, d, key_value if layer.own_keys else 0, layer.inner)
        if kind == "linear_attention":
            key = config.linear_num_key_heads * config.linear_key_head_dim
            value = config.linear_num_value_heads * config.linear_value_head_dim
            state = 3 * n * value * config.linear_key_head_dim
            total += n * d * (2 * key + 3 * value) + state - layer_macs(n, d, key_value, 0)
        elif width is not None:
            total -= 2 * n * d * max(n - width, 0)
    return total


def _inner_width(config: Any) -> int:
    """Inner width of the MLP that a token goes through."""
    experts = getattr(config, "num_experts_per_tok", None)
    if not experts:  # Gemma 4 has its experts beside an MLP
        beside = getattr(config, "top_k_experts", None) or 0
        return int(config.intermediate_size + (beside and beside * config.moe_intermediate_size))
    width = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    width = width if isinstance(width, int) else width[0]  # ERNIE: of text, and of visual tokens
    shared = getattr(config, "shared_expert_intermediate_size", None)
    if shared is None:
        names = ("n_shared_experts", "moe_num_shared_experts")
        shared = width * next((n for name in names if (n := getattr(config, name, None))), 0)
    return int(experts * width + shared)


@dataclass(frozen=True)
class _Layer:
    """A decoder layer: its kind, how many tokens it attends to (None for all), the width of its
    keys, whether it makes them, and the inner width of its MLP."""

    kind: str
    reach: int | None
    key_value: int
    own_keys: bool
    inner: int


def _layers(config: Any, depth: int) -> list[_Layer]:
    """What costs in each decoder layer."""
    inner, sharing = _inner_width(config), getattr(config, "kv_sharing_modes", None) or ()
    wide = getattr(config, "use_double_wide_mlp", False)
    layers = []
    for number, kind in enumerate(layer_kinds(config, depth)):
        # Layers whose heads differ have a configuration each.
        own = config.per_layer_config[number] if hasattr(config, "per_layer_config") else config
        heads = own.num_attention_heads
        head_dim = getattr(own, "head_dim", None) or config.hidden_size // heads
        key_value = head_dim * (getattr(own, "num_key_value_heads", None) or heads)
        reads = sharing[number : number + 1] == ["reuse"]
        width = 2 * inner if reads and wide else inner
        layers.append(_Layer(kind, reach(config, kind), key_value, not reads, width))
    return layers


def _cached(counts: Sequence[int], config: Any, inputs: int) -> int:
    """Numbers in the keys of a cache after a prefill with `counts[l]` tokens in layer l."""
    held = 0
    for n, layer in zip(counts, _layers(config, len(counts)), strict=True):
        if layer.kind != "linear_attention" and layer.own_keys:
            tokens = n if layer.reach is None else min(n, inputs * (layer.reach - 1))
            held += tokens * layer.key_value
    return held


@dataclass(frozen=True)
class Cost:
    """One side of a report. Times are milliseconds, None if not measured.

    layers: visual tokens in each decoder layer, summed over the visual inputs of the batch.
    text: text tokens of the batch. macs: multiply-adds of the prefill of visual tokens only.
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
    """Dense and reduced cost. `str(report)` is a table of both.

    budget: the measured mean number of visual tokens per visual input over the decoder layers.
    latency: what a budget in milliseconds became; None for any other. first: milliseconds from
    pixels to the first token, under such a budget.
    """

    method: str
    inputs: int
    budget: float
    dense: Cost
    reduced: Cost
    latency: Fit | None = None
    first: float | None = None

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
        if 0 in self.reduced.layers:
            layer = self.reduced.layers.index(0)
            lines.append(f"  no visual token is left from decoder layer {layer} on")
        if self.latency is not None and self.first is not None:
            lines.append(
                f"  first token: {self.latency.asked:g} ms asked for, "
                f"{self.latency.predicted:.4g} ms predicted, {self.first:.4g} ms measured"
            )
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


def report_of(record: PrefillRecord) -> Report:
    """The report of one prefill. Times that were not measured are None."""
    depth, inputs = record.config.num_hidden_layers, len(record.grids)
    counts = record.counts(depth)
    dense_tokens = sum(t * h * w for t, h, w in record.grids)
    # A token takes as many bytes for each number in its keys: so large is the dense cache.
    held, dense_held = (
        _cached([n + record.text for n in layers], record.config, inputs)
        for layers in (counts, [dense_tokens] * depth)
    )
    dense = Cost(
        (dense_tokens,) * depth,
        record.text,
        _macs([dense_tokens] * depth, record.config, inputs),
        round(record.cache_bytes * dense_held / max(held, 1)),
    )
    reduced = Cost(
        tuple(counts),
        record.text,
        _macs(counts, record.config, inputs),
        record.cache_bytes,
        reduce=record.reduce_ms,
        plan=record.plan_ms,
    )
    return Report(record.method, inputs, sum(counts) / depth / inputs, dense, reduced)


def _macs(counts: Sequence[int], config: Any, inputs: int) -> int:
    # Attention is within one sequence, so the quadratic term is computed by input.
    return inputs * prefill_macs([round(count / inputs) for count in counts], config)
