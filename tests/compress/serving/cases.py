"""What served models are asked, in both environments: that of transformers and that of vLLM."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FOLDER = Path("out/serving")
"""Where the reference answers are, with the models and images that they belong to."""
TOKENS = 8
SCENES = 50
KEEP = 48

# For each method the options under which both run alike: no part in the language model, no text.
METHODS: dict[str, dict[str, Any]] = {
    "duet": {"layers": [], "ratios": []},
    "divprune": {},
    "cascade": {"in_llm": False},
    "foveate": {
        "layers": [],
        "ratios": [],
        "relevant": 0.0,
        "proportional_attention": False,
    },
    "random": {},
}


@dataclass
class Served:
    """One configuration of one model, and the requests that it answers.

    pairs: requests about two images, after those about one. chunks: whether prompts are cut into
    chunks, and asked twice. video: whether videos take the place of the images.
    """

    model: str
    method: str
    keep: int | float
    positions: str = "original"
    requests: int = SCENES
    pairs: int = 0
    chunks: bool = False
    video: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        kind = "-video" if self.video else ""
        return f"{self.model}-{self.method}-{self.keep}-{self.positions}{kind}"

    @property
    def settings(self) -> dict[str, Any]:
        """The value of the key `foveate`."""
        options = METHODS[self.method] | self.options
        return {"method": self.method, "keep": self.keep, "positions": self.positions, **options}


CASES = [
    *(Served("mini-1d", method, KEEP, pairs=10, chunks=method == "duet") for method in METHODS),
    Served("mini-1d", "duet", KEEP, "compact", requests=20, pairs=4, chunks=True),
    Served("mini-1d", "duet", KEEP // 2, requests=10),
    Served("mini-1d", "duet", 1.0, requests=10, pairs=2),
    *(
        Served(model, method, 0.25, requests=12, pairs=6, chunks=method == "foveate")
        for model in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_next", "internvl")
        for method in ("foveate", "duet")
    ),
    *(
        Served(model, method, 0.25, requests=4, pairs=2)
        for model in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_next", "internvl")
        for method in ("divprune", "cascade", "random")
    ),
    *(
        Served(model, method, 0.25, requests=6, pairs=2, chunks=method == "foveate", video=True)
        for model in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
        for method in ("foveate", "duet")
    ),
    *(Served("qwen3_vl", "duet", 1.0, requests=4, video=video) for video in (False, True)),
]


def load(name: str) -> Any:
    """A picture, or the frames (F, H, W, 3) of a video."""
    path = FOLDER / name
    return np.load(path) if path.suffix == ".npy" else Image.open(path).convert("RGB")


def metadata(frames: Any) -> dict[str, Any]:
    """What processors want to know of a video: two frames a second."""
    return {
        "fps": 2.0,
        "duration": len(frames) / 2,
        "total_num_frames": len(frames),
        "frames_indices": list(range(len(frames))),
        "video_backend": "opencv",
    }
