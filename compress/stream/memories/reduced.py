"""Any pre-LLM method of this package as a memory policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.methods import Method
from compress.stream.memories.base import MemoryPolicy, Older
from compress.tokens import VisualTokens


@dataclass(frozen=True)
class Reduced(MemoryPolicy):
    """The anchors that a method keeps of all tokens that are held.

    Keys and values cannot be merged after the fact, so what a method merges is dropped. The tokens
    are in no grid. method: one that reads features or saliency.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"features", "saliency"})
    method: Method

    def __post_init__(self) -> None:
        missing = self.method.needs - {"features", "saliency"}
        good = not missing and not self.method.in_llm_only
        expected = "a pre-LLM method that reads features or saliency"
        self.check("method", good, self.method, expected)

    def keep(self, older: Older, count: int) -> Tensor:
        fields = {name: x[None] for name, x in older.fields.items() if name in self.needs}
        tokens = VisualTokens(grid=(1, 1, len(older)), **fields)
        generator = torch.Generator(tokens.features.device).manual_seed(older.steps)
        return self.method.reduce(tokens, count, generator).anchor[0].unique().cpu()
