"""No method builds a table larger than tokens x window, however long the video."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from compress.methods import get_method, list_methods
from compress.ops import similarity, windows
from compress.tokens import LayerTokens, VisualTokens
from tests.compress.methods.cases import inputs
from tests.compress.methods.test_contracts import PRE_LLM
from tests.marks import later

GRID, TOKENS, WINDOW = (64, 4, 4), 1024, 64
MOST = TOKENS * WINDOW  # entries: a table of all tokens by all tokens would have 16 times as many


class Largest(TorchDispatchMode):
    """The most entries of any tensor that an operation made (its storage: a view costs nothing)."""

    def __init__(self) -> None:
        super().__init__()
        self.entries, self.made_by = 0, ""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for x in tree_iter(out):
            if isinstance(x, torch.Tensor):
                entries = x.untyped_storage().nbytes() // x.element_size()
                if entries > self.entries:
                    self.entries, self.made_by = entries, f"{function} {tuple(x.shape)}"
        return out


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(windows, "WINDOW", WINDOW)
    monkeypatch.setattr(similarity, "PAIRS", MOST // 4)
    monkeypatch.setattr(similarity, "TABLES", MOST // 4)


def video(still: bool) -> VisualTokens:
    """A video of noise, or one whose frames are all but alike (a single event)."""
    tokens = replace(inputs(b=1, grid=GRID), attention=None)
    if not still:
        return tokens
    frame = tokens.features[:, :16]
    return replace(tokens, features=frame.repeat(1, 64, 1) + 1e-3 * tokens.features)


@pytest.mark.parametrize("still", [False, *later(True)])
@pytest.mark.parametrize("name", PRE_LLM)
def test_pre_llm(name, still):
    tokens = video(still)
    with Largest() as largest, FlopCounterMode(display=False) as flops:
        get_method(name).reduce(tokens, TOKENS // 9)
    assert largest.entries <= MOST, largest.made_by
    # products of all pairs within windows, a few times over, never of all pairs
    assert flops.get_total_flops() <= 6 * 2 * MOST * 11


@pytest.mark.parametrize("name", list_methods())
def test_in_llm(name):
    full = video(still=True)
    g = torch.Generator().manual_seed(0)
    state = LayerTokens(
        full.features, torch.ones(1, TOKENS).long(), torch.arange(TOKENS)[None], GRID,
        scores=torch.rand(1, TOKENS, generator=g), keys=full.keys, text=full.text_query,
        text_keys=torch.randn(1, 4, 5, generator=g), text_mask=torch.ones(1, 4).bool(),
    )  # fmt: skip
    with Largest() as largest:
        get_method(name).reduce_in_llm(state, TOKENS // 9)
    assert largest.entries <= MOST, largest.made_by


def test_the_probe_sees_a_full_table(monkeypatch):
    tokens = replace(video(still=False), grid=(1, 32, 32))
    monkeypatch.setattr(windows, "WINDOW", TOKENS)
    with Largest() as largest:
        get_method("divprune").reduce(tokens, 9)
    assert largest.entries == TOKENS**2
