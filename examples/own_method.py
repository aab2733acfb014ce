"""A method of one's own: keep the tokens that differ most from the mean of the picture.

python examples/own_method.py
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from skimage import data

import vlm
from compress import Reduction, VisualTokens, compress, ops
from compress.methods import Method


@dataclass(frozen=True)
class Outliers(Method):
    """Keep the tokens whose features are farthest from their mean.

    power: of the distance; 1 is the distance itself.
    """

    power: float = 1.0

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        """Called with 1 <= keep < N; returns the tokens that stay, in raster order."""
        features = ops.wide(tokens.features)
        distance = (features - features.mean(1, keepdim=True)).norm(dim=2) ** self.power
        return ops.prune(tokens.features, ops.top(distance, keep))


def main() -> None:
    model, processor = vlm.load("mini-1d")
    inputs = processor(
        images=data.chelsea(), text="USER: <image>\nWhat is it? ASSISTANT:", return_tensors="pt"
    )
    with compress(model, Outliers(), budget=1 / 3) as c:
        model.generate(**inputs, max_new_tokens=4)
        print(c.report())
        c.overlay(vlm.read_image(data.chelsea()), "outliers.png")
        print("outliers.png shows what was kept")


if __name__ == "__main__":
    main()
