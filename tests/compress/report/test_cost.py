"""Cost formulas against the constants of the papers' tables, and the cache that a report counts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from compress import compress
from compress.methods import Duet
from compress.report.cost import layer_macs, prefill_macs
from tests import tiny

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
