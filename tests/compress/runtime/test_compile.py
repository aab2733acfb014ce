"""torch.compile of the language model under a compression: decoding is one graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import DynamicCache

from compress import compress
from positions import V2PE
from tests.compress.common import CLOSE
from tests.tiny import CASES

LLAVA = CASES[0]


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Any:
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
        yield
    torch._dynamo.reset()


def decode(model: Any, cache: Any, length: int, rows: int, mask: torch.Tensor | None) -> Any:
    """Logits of three decoded tokens."""
    outputs = []
    for step in range(3):
        if mask is not None:
            mask = torch.cat([mask, torch.ones(rows, 1, dtype=torch.int64)], dim=1)
        positions = torch.full((rows, 1), length + step)
        out = model(
            input_ids=torch.full((rows, 1), 9),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
        )
        outputs.append(out.logits)
    return torch.cat(outputs, dim=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "positions", "padded"),
    [
        ("duet", "original", False),
        ("duet", "original", True),
        ("duet", "compact", False),
        ("foveate", "original", False),
        ("foveate", V2PE(1 / 4), True),
    ],
)
def test_decoding_is_one_graph(method: str, positions: Any, padded: bool) -> None:
    model = LLAVA.fresh()
    samples = LLAVA.samples() if padded else LLAVA.samples()[:1]
    given = LLAVA.inputs(samples)
    rows, length = given["input_ids"].shape
    mask = given["attention_mask"] if padded else None
    logits = []
    with torch.no_grad(), compress(model, method, budget=16, positions=positions):
        for compiled in (False, True):
            cache = DynamicCache(config=model.config.text_config)
            model(**given, past_key_values=cache)
            if compiled:
                model.model.language_model.compile(backend="eager", fullgraph=True, dynamic=True)
            logits.append(decode(model, cache, length, rows, mask))
    torch.testing.assert_close(*logits, **CLOSE)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] <= 2


@pytest.mark.slow
def test_prefill_may_break_the_graph() -> None:
    model, given = LLAVA.fresh(), LLAVA.inputs(LLAVA.samples())
    with torch.no_grad(), compress(model, "duet", budget=16):
        plain = model(**given).logits
        model.model.language_model.compile(backend="eager")
        torch.testing.assert_close(model(**given).logits, plain, **CLOSE)
