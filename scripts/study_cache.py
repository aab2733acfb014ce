"""Quantised caches: OCTOPUS' codec beside those of transformers. `python -m scripts.study_cache`.

Keys and values of drawn pictures in the embedded model (heads of 32 channels), and synthetic ones
of 128 channels with a few large ones, as keys of large models have. Error is the mean square
relative to that of the data, bits are per entry, scales in half precision included. Then the
embedded model answers questions with each cache, under a compression: how many answers stay as they
were.

transformers' caches need optimum-quanto and hqq; rows of what is not installed are left out.
Writes `cache.json`, `cache.md` and `cache.png`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import QuantizedCache

import vlm
from compress import compress
from compress.ops.octopus import Octopus
from compress.quantised import OctopusCache
from scripts.common import COLOURS, RESULTS, canvas, facts, write_json, write_table
from vlm.embedded.scenes import draw, make_scene, questions
from vlm.prompts import picture_prompt

GROUP = 64  # of transformers' caches, the default
BITS = {"octopus": (2, 3, 4), "quanto": (2, 4), "hqq": (2, 3, 4)}
ROUND: dict[str, float] = {"octopus": 16 / 128, "quanto": 32 / GROUP, "hqq": 32 / GROUP}
"""Bits of scales for each entry, with heads of 128 channels."""


def cache_of(kind: str, bits: int, config: Any) -> Any:
    """An empty cache; ImportError where its package is missing."""
    if kind == "octopus":
        return OctopusCache(config, bits)
    return QuantizedCache(kind, config, nbits=bits)


def through(kind: str, bits: int, config: Any) -> Callable[[Tensor], Tensor]:
    """A function that quantises (B, H, S, D) and back."""
    if kind == "octopus":
        codec = Octopus(bits)
        return lambda x: codec.decode(codec.encode(x))
    layer = cache_of(kind, bits, config).layers[0]

    def both(x: Tensor) -> Tensor:
        layer.lazy_initialization(x, x)
        return torch.as_tensor(layer._dequantize(layer._quantize(x, 0))).float()

    return both


def data(model: Any, prompts: list[Any]) -> dict[str, Tensor]:
    """What is quantised, by name."""
    keys, values = [], []
    for inputs in prompts:
        cache: Any = DynamicCache(config=model.config)
        with torch.no_grad():
            model(**inputs, past_key_values=cache)
        keys.append(torch.cat([layer.keys[..., :128, :] for layer in cache.layers]))
        values.append(torch.cat([layer.values[..., :128, :] for layer in cache.layers]))
    generator = torch.Generator().manual_seed(0)
    synthetic = torch.randn(1, 4, 512, 128, generator=generator)
    synthetic[..., torch.randperm(128, generator=generator)[:6]] *= 10
    return {"keys": torch.cat(keys), "values": torch.cat(values), "large channels": synthetic}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.study_cache", description=__doc__)
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    model, processor = vlm.load("mini")
    asked = []
    for seed in range(args.scenes):
        scene = make_scene(seed, "test")
        for question in questions(scene, np.random.default_rng(seed))[:4]:
            asked.append(picture_prompt(model, processor, [draw(scene)], question.text))
    samples, rows = data(model, asked[::4]), []
    dense = [answer(model, inputs, None) for inputs in asked]
    for kind, choices in BITS.items():
        for bits in choices:
            try:
                rounded = through(kind, bits, model.config)
            except ImportError:
                continue
            errors = {
                name: float((rounded(x) - x).square().sum() / x.square().sum())
                for name, x in samples.items()
            }
            said = [answer(model, one, cache_of(kind, bits, model.config)) for one in asked]
            same = float(np.mean([a == b for a, b in zip(said, dense, strict=True)]))
            rows.append({"cache": kind, "bits": bits, "errors": errors, "same": same})
    report = facts("study_cache", argv, questions=len(asked), rows=rows)
    path = args.output / "cache"
    render(write_json(path.with_suffix(".json"), report), path)
    return 0


def answer(model: Any, inputs: Any, cache: Any) -> list[int]:
    """The tokens of a greedy answer under a compression."""
    with compress(model, "foveate", 1 / 3):
        out = model.generate(**inputs, past_key_values=cache, max_new_tokens=8, do_sample=False)
    tokens: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
    return tokens


def render(found: dict[str, Any], path: Path) -> None:
    """Errors and unchanged answers as a table, errors as a picture."""
    names = list(found["rows"][0]["errors"])
    lines = [f"{'':<12}{'bits':>6}" + "".join(f"{name:>16}" for name in names) + f"{'answers':>10}"]
    figure, axes = canvas(6, 3.4)
    for row in found["rows"]:
        bits = row["bits"] + ROUND[row["cache"]]
        line = f"{row['cache']:<12}{bits:>6.2f}"
        line += "".join(f"{row['errors'][name]:>16.4f}" for name in names)
        lines.append(line + f"{row['same']:>10.1%}")
    lines.append("bits: scales included, with heads of 128 channels")
    lines.append(
        f"answers: of {found['questions']}, those that are as with the plain cache; their first "
        "token is that of the prompt, which is not rounded"
    )
    for colour, kind in zip(
        COLOURS, dict.fromkeys(r["cache"] for r in found["rows"]), strict=False
    ):
        own = [row for row in found["rows"] if row["cache"] == kind]
        at = [row["bits"] + ROUND[kind] for row in own]
        for name, style in zip(names, ("-", "--", ":"), strict=False):
            values = [row["errors"][name] for row in own]
            axes.plot(at, values, style, marker="o", color=colour, label=f"{kind}, {name}")
    axes.set(yscale="log", xlabel="bits an entry", ylabel="relative squared error")
    axes.legend(fontsize=6, frameon=False, ncols=2)
    write_table(path, "\n".join(lines))
    figure.savefig(path.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    sys.exit(main())
