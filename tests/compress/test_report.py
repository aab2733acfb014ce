"""Cost formulas against the constants of the papers' tables; reports, measures, pictures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compress import compress
from compress.measure import measure
from compress.report.cost import layer_macs, prefill_macs
from compress.report.overlay import overlay
from compress.tokens import Reduction
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


def given(images: int = 2) -> dict[str, torch.Tensor]:
    prompts = [tiny.prompt([3, 5], seed=k) for k in range(images)]
    return tiny.batch(prompts, tiny.pixels(images))


def test_the_cache_is_counted() -> None:
    model = tiny.llava()
    with compress(model, "duet", budget=16) as c:
        out = model(**given(), use_cache=True)
        report = c.report()
    held = (
        sum(layer.keys.numel() + layer.values.numel() for layer in out.past_key_values.layers) * 4
    )
    stock = model(**given(), use_cache=True).past_key_values
    dense = sum(layer.keys.numel() + layer.values.numel() for layer in stock.layers) * 4
    assert (report.reduced.cache, report.dense.cache) == (held, dense)
    assert report.dense.layers == (128,) * 4 and report.reduced.layers == (52, 52, 26, 0)
    assert "16.25 visual tokens" in str(report) and "52 x 2, 26 x 1, 0 x 1" in str(report)


def test_measure_gives_every_time_and_leaves_no_hook() -> None:
    model = tiny.llava()
    model(**given(1))  # transformers installs hooks of its own at the first forward

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    before = hooks()
    report = measure(model, given(1), "duet", 16, new_tokens=3, repeats=1)
    for side in (report.dense, report.reduced):
        times = (side.vision, side.prefill, side.decode)
        assert all(value is not None and value > 0 for value in times)
    assert report.dense.reduce is None and (report.reduced.plan or 0) > 0
    assert report.reduced.first == pytest.approx(
        sum(getattr(report.reduced, n) for n in ("vision", "reduce", "plan", "prefill"))
    )
    assert hooks() == before


def drawn(assign: list[int], anchor: list[int]) -> np.ndarray:
    """The second panel's pixels, on a 2 x 2 grid over a white picture."""
    rows = torch.tensor([assign])
    size = torch.bincount(rows[rows >= 0], minlength=len(anchor))[None]
    reduction = Reduction(torch.zeros(1, len(anchor), 1), rows, torch.tensor([anchor]), size)
    sheet = overlay(Image.new("RGB", (80, 80), "white"), [("stage", (1, 2, 2), reduction)])
    half = np.asarray(sheet)[:, sheet.width // 2 :]
    return half[-356:-20, 10:-20]


def test_overlay_tells_kept_merged_and_dropped_apart() -> None:
    pixels = drawn([0, -1, 1, 1], [0, 2])
    middle = pixels.shape[0] // 4
    kept, dropped, merged = (
        pixels[middle, middle],
        pixels[middle, -middle],
        pixels[-middle, -middle],
    )
    assert kept.tolist() == [255, 255, 255]
    assert int(dropped.max()) < 80 and np.ptp(dropped) == 0
    assert np.ptp(merged) > 20 and int(merged.max()) > 180


def test_overlay_of_a_compression(tmp_path: Any) -> None:
    model = tiny.llava()
    picture = Image.new("RGB", (64, 48), "red")
    with compress(model, "duet", budget=16) as c:
        with pytest.raises(RuntimeError, match="nothing to report"):
            c.overlay(picture)
        model(**given())
        c.overlay(picture, tmp_path / "kept.png", index=1)
        with pytest.raises(IndexError, match="2 visual inputs"):
            c.overlay(picture, index=2)
    # The picture, what entered, and the two stages that changed something.
    assert Image.open(tmp_path / "kept.png").width == 4 * (336 + 10) + 10


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
