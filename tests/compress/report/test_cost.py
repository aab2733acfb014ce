"""Cost formulas against the constants of the papers' tables, and the cache that a report counts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from compress import compress
from compress.methods import Duet
from compress.report.cost import layer_macs, prefill_macs
from tests import tiny
from tests.tiny import CASES

LLAMA_7B = SimpleNamespace(hidden_size=4096, intermediate_size=11008, num_attention_heads=32)


@pytest.mark.parametrize(
    ("tokens", "tera"), [(576, 3.817), (192, 1.253), (128, 0.833), (64, 0.416)]
)
def test_macs_of_llava_7b(tokens: int, tera: float) -> None:
    assert round(prefill_macs([tokens] * 32, LLAMA_7B) / 1e12, 3) == tera


def test_grouped_heads_cost_less() -> None:
    assert layer_macs(10, 64, 64, 100) - layer_macs(10, 64, 16, 100) == 2 * 10 * 64 * 48


def test_the_cache_is_counted() -> None:
    model = tiny.llava()
    with compress(model, Duet(variant="released"), budget=16) as c:
        out = model(**tiny.images_and_text(), use_cache=True)
        report = c.report()
    cache_bytes = (
        sum(layer.keys.numel() + layer.values.numel() for layer in out.past_key_values.layers) * 4
    )
    stock = model(**tiny.images_and_text(), use_cache=True).past_key_values
    dense = sum(layer.keys.numel() + layer.values.numel() for layer in stock.layers) * 4
    assert (report.reduced.cache, report.dense.cache) == (cache_bytes, dense)
    assert report.dense.layers == (128,) * 4 and report.reduced.layers == (52, 52, 26, 0)
    assert "16.25 visual tokens" in str(report) and "52 x 2, 26 x 1, 0 x 1" in str(report)
    assert "no visual token is left from decoder layer 3 on" in str(report)


def test_layers_that_differ_cost_what_they_do() -> None:
    """A window bounds the quadratic term and the cache; a linear layer has neither."""
    shape = {"hidden_size": 4, "intermediate_size": 5, "num_attention_heads": 2}
    plain = SimpleNamespace(**shape)
    sliding = SimpleNamespace(**shape, sliding_window=3)
    whole = layer_macs(10, 4, 4, 5)
    assert prefill_macs([10], plain) == whole
    assert prefill_macs([10], sliding) == whole - 2 * 4 * (10 * 10 - 10 * 3)
    assert prefill_macs([2], sliding) == layer_macs(2, 4, 4, 5)
    linear = SimpleNamespace(
        **shape,
        layer_types=["linear_attention"],
        linear_num_key_heads=1,
        linear_key_head_dim=2,
        linear_num_value_heads=2,
        linear_value_head_dim=3,
    )
    assert prefill_macs([10], linear) == 10 * (4 * (2 * 2 + 3 * 6) + 3 * 6 * 2 + 3 * 4 * 5)
    experts = SimpleNamespace(
        **shape, num_experts_per_tok=2, moe_intermediate_size=3, n_shared_experts=1
    )
    assert prefill_macs([10], experts) == layer_macs(10, 4, 4, 9)


def test_the_dense_cache_of_layers_that_differ() -> None:
    """Under keep-all it is the cache that there is; with less it is what the stock model holds."""
    for name in ("gemma3", "qwen3_5"):
        case = next(case for case in CASES if case.name == name)
        model, given = case.model(), case.inputs([case.samples()[0]])
        with compress(model, "divprune", budget=1.0) as c, torch.no_grad():
            model(**given)
            whole = c.report()
            c.set_budget(9)
            model(**given)
            part = c.report()
        assert whole.reduced.cache == whole.dense.cache == part.dense.cache
        assert part.reduced.cache < part.dense.cache
