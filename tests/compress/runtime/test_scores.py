"""Attention of text to visual tokens is computed in parts of bounded size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compress import compress
from compress.methods import Duet, Method, PyramidDrop, SparseVLM
from tests import tiny

BOUND = 2**19
METHODS: dict[str, Method] = {
    "all": Duet(query="all"),
    "salient": SparseVLM(),
    "merged": PyramidDrop(query="all"),
}


class Largest(TorchDispatchMode):
    """The number of elements in the largest floating-point result."""

    elements = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.is_floating_point() and not func.is_view:
                self.elements = max(self.elements, x.numel())
        return out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["salient", "all", "merged"])
def test_many_query_rows_on_many_tokens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some 2,000 rows on 4,000 keys: equal choices, and no map of all of them."""
    model = tiny.llava()
    # 24 images of 64 tokens, then text: the largest tensor of the stock forward has 4,096 x 64.
    given = tiny.batch([tiny.prompt([3] + [1] * 23 + [2500])], tiny.pixels(24))
    results = []
    for bound in (None, BOUND):
        if bound is not None:
            monkeypatch.setattr("compress.runtime.scores.LOGITS", bound)
            monkeypatch.setattr("compress.ops.similarity.PAIRS", bound)
        with compress(model, METHODS[name], budget=16) as c, torch.no_grad(), Largest() as largest:
            logits = model(**given, logits_to_keep=1).logits
        results.append(
            (logits, [entry["anchor"] for entry in c.export()], c.report().reduced.layers)
        )
    assert largest.elements <= BOUND
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))
    assert results[0][2] == results[1][2]
