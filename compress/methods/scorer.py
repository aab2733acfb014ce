"""A learned scorer of visual tokens, and its files."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WEIGHTS, SETTINGS = "scorer.safetensors", "scorer.json"
LARGEST = 2**28  # bytes of a file


class Scorer(nn.Module):
    """A score for each visual token after the projector, from its features and their mean.

    Two layers; scores of an input have mean 0 and variance 1. What VisionSelector (arXiv
    2510.16598) does with attention between tokens, the mean does here.

    width: D of the features. hidden: of the layer between.
    """

    def __init__(self, width: int, hidden: int = 256) -> None:
        super().__init__()
        self.width, self.hidden = width, hidden
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(
            nn.Linear(2 * width, hidden), nn.GELU(), nn.Linear(hidden, 1, bias=False)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, N, D) -> (B, N) float32."""
        x = self.norm(features.to(self.norm.weight.dtype))
        scores = self.layers(torch.cat([x, x.mean(1, keepdim=True).expand_as(x)], 2))[..., 0]
        scores = scores.float()
        scores = scores - scores.mean(1, keepdim=True)
        return scores / scores.square().mean(1, keepdim=True).clamp(min=1e-12).sqrt()


def save_scorer(scorer: Scorer, folder: str | Path) -> None:
    """Write `scorer.safetensors` and `scorer.json` into a folder, which is made."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    weights = {
        name: x.detach().float().cpu().contiguous() for name, x in scorer.state_dict().items()
    }
    save_file(weights, place / WEIGHTS)
    settings = {"width": scorer.width, "hidden": scorer.hidden}
    (place / SETTINGS).write_text(json.dumps(settings) + "\n", encoding="utf-8")


def load_scorer(folder: str | Path) -> Scorer:
    """The scorer that `save_scorer` wrote, in evaluation. It is read once as long as its files do
    not change.

    Raises ValueError for a folder without one, for a pickle, and for files that do not fit.
    """
    place = Path(folder)
    if place.suffix in (".pt", ".pth", ".bin", ".pkl", ".ckpt"):
        raise ValueError(
            f"scorer is {str(place)!r}, a pickle, which can run code when it is read: expected a "
            f"folder with {WEIGHTS}"
        )
    files = [place / SETTINGS, place / WEIGHTS]
    if not all(file.is_file() for file in files):
        raise ValueError(f"scorer is {str(place)!r}: expected a folder with {WEIGHTS}, {SETTINGS}")
    stamps = tuple(file.stat().st_mtime_ns for file in files)
    if max(file.stat().st_size for file in files) > LARGEST:
        raise ValueError(f"scorer {place}: a file is larger than {LARGEST >> 20} MiB")
    return _read(place.resolve(), stamps)


@lru_cache(maxsize=16)
def _read(place: Path, stamps: tuple[int, ...]) -> Scorer:
    try:
        settings = json.loads((place / SETTINGS).read_text(encoding="utf-8"))
        sizes = [settings[name] for name in ("width", "hidden")]
        if not all(type(size) is int and 0 < size <= 2**16 for size in sizes):
            raise ValueError(f"width and hidden are {sizes}")
        scorer = Scorer(*sizes)
        scorer.load_state_dict(load_file(place / WEIGHTS))
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"scorer {place}: {error}") from error
    return scorer.eval().requires_grad_(False)
