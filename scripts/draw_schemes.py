"""Draw the pictures of docs/positions.md: python -m scripts.draw_schemes [folder]"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from positions import (
    PPE,
    V2PE,
    Compact,
    Image,
    MRoPE,
    Plan,
    Randomised,
    Scheme,
    Segment,
    Sequential,
    Text,
    Video,
    plan,
)
from positions.__main__ import Windows
from positions.draw import draw

LAYOUT: list[Segment] = [Text(6), Image((4, 6)), Text(4), Video((4, 2, 3), times=1.0), Text(4)]
SCHEMES: dict[str, Scheme] = {
    "sequential": Sequential(),
    "v2pe": V2PE(1 / 4),
    "mrope": MRoPE(),
    "mrope-seconds": MRoPE(tokens_per_second=4),
    "mrope-scaled": MRoPE(tokens_per_second=4, time_scale=0.25),
    "compact-row": Compact("row"),
    "compact-all": Compact("all"),
    "compact-row-col": Compact("row_col"),
    "randomised": Randomised((12, 12, 12)),
}


def plans() -> dict[str, Plan]:
    """Every picture's plan by name."""
    made = {
        name: plan(LAYOUT, scheme, generator=torch.Generator().manual_seed(1))
        for name, scheme in SCHEMES.items()
    }
    merged = {1: Windows.of(Image((4, 6)), 2, 3), 3: Windows.of(Video((4, 2, 3)), 2, 3)}
    made["ppe"] = made["mrope"].after(merged, PPE(4))
    made["kept"] = made["mrope"].after(merged)
    made["renumbered"] = made["mrope"].after(merged, renumber=True)
    streams: list[Segment] = [Text(6), Video((6, 1, 2)), Text(12, stream="answer")]
    made["streams"] = plan(streams, MRoPE(), streams={"answer": 0.0})
    return made


def main() -> None:
    """Write one PNG a plan."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/img")
    folder.mkdir(parents=True, exist_ok=True)
    for name, made in plans().items():
        draw(made, folder / f"positions-{name}.png", name.replace("-", " "))


if __name__ == "__main__":
    main()
