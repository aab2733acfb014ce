"""Time and multiply-adds of a vision encoder against the share of patches that PixelPrune keeps.

    python -m scripts.study_pixels

Drawn pages (blank, with little text, full of text), a screen with a photograph in it, and a
photograph, 560 x 560, go through the image processor of Qwen2-VL and an encoder of its design with
random weights. Writes `<out>.json` (raw times, versions, hardware, command) and `<out>.png`.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessor

from compress import compress
from compress.methods import PixelPrune
from scripts.common import canvas, facts, write_json, write_table

SIDE, DEPTH, WIDTH, HEADS = 560, 6, 320, 4
THRESHOLDS = (0.0, 0.3)


def page(lines: int, draw: random.Random) -> Image.Image:
    """A white page with lines of text."""
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for line in range(lines):
        words = ("".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(11))
        pen.text((28, 28 + 17 * line), " ".join(words), "black", font)
    return picture


def photograph(draw: random.Random) -> Image.Image:
    """Smooth noise at several scales: no two patches alike."""
    numbers = np.random.default_rng(draw.randrange(2**31))
    picture = np.zeros((SIDE, SIDE, 3))
    for size in (5, 20, 80, SIDE):
        coarse = Image.fromarray(numbers.integers(0, 255, (size, size, 3), dtype=np.uint8))
        picture += np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 4
    return Image.fromarray(picture.astype(np.uint8))


def pictures(seed: int) -> dict[str, Image.Image]:
    """The drawn pictures, by name."""
    draw = random.Random(seed)
    screen = page(8, draw)
    screen.paste(photograph(draw).crop((0, 0, 252, 252)), (252, 252))
    return {
        "blank": page(0, draw),
        "some text": page(8, draw),
        "full of text": page(29, draw),
        "screen": screen,
        "photograph": photograph(draw),
    }


def build() -> Any:
    """Qwen2-VL with a small encoder, in evaluation."""
    vision = {"depth": DEPTH, "embed_dim": WIDTH, "hidden_size": 64, "num_heads": HEADS}
    text = {
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [4, 6, 6],
        },
    }
    config = Qwen2VLConfig(
        vision_config=vision, text_config=text, image_token_id=5, video_token_id=4
    )
    return Qwen2VLForConditionalGeneration(config).eval()


def macs(patches: int) -> int:
    """Multiply-adds of the encoder's layers: projections, MLP of four widths, attention."""
    return DEPTH * (12 * patches * WIDTH**2 + 2 * patches**2 * WIDTH)


@torch.no_grad()
def encode(model: Any, call: dict[str, Any], repeats: int) -> float:
    """Processor milliseconds of the encoding function, with the look at pixels: the median of some
    runs. The machine does other work at the same time, which this leaves out."""
    times = []
    for _ in range(repeats + 1):
        began = time.process_time()
        model.model.get_image_features(**call)
        times.append(1e3 * (time.process_time() - began))
    return statistics.median(times[1:])


def measured(seed: int, repeats: int) -> list[dict[str, Any]]:
    """A row for each picture and threshold."""
    model, processor = build(), Qwen2VLImageProcessor()
    rows = []
    for name, picture in pictures(seed).items():
        given = processor(picture, return_tensors="pt")
        call = {key: given[key] for key in ("pixel_values", "image_grid_thw")}
        tokens = len(call["pixel_values"]) // 4
        dense = encode(model, call, repeats)
        for threshold in THRESHOLDS:
            method = PixelPrune(threshold)
            (kept,) = method.counts(call["pixel_values"], call["image_grid_thw"], merge=2)
            with compress(model, method, 1.0):
                took = encode(model, call, repeats)
            share = kept / tokens
            rows.append(
                {
                    "picture": name,
                    "threshold": threshold,
                    "tokens": tokens,
                    "share": share,
                    "macs": macs(4 * kept) / macs(4 * tokens),
                    "dense_ms": dense,
                    "ms": took,
                }
            )
            print(f"{name:14}{threshold:5}{share:8.1%}{took:9.1f} of {dense:.1f} ms", flush=True)
    return rows


def render(found: dict[str, Any], path: Path) -> None:
    """The table and the picture of a report."""
    lines = [f"{'picture':<14}{'threshold':>9}{'patches kept':>14}{'multiply-adds':>15}{'time':>7}"]
    lines += [
        f"{row['picture']:<14}{row['threshold']:>9}{row['share']:>14.1%}{row['macs']:>15.0%}"
        f"{row['ms'] / row['dense_ms']:>7.0%}"
        for row in found["rows"]
    ]
    write_table(path, "\n".join(lines))
    figure, axes = canvas(5.6, 4)
    rows = sorted(found["rows"], key=lambda row: row["share"])
    shares = [100 * row["share"] for row in rows]
    axes.plot(shares, [100 * row["macs"] for row in rows], "-", label="multiply-adds")
    axes.plot(shares, [100 * row["ms"] / row["dense_ms"] for row in rows], "o", label="time")
    axes.set(xlabel="patches kept (%)", ylabel="vision encoder, % of dense", ylim=0)
    axes.legend(frameon=False)
    figure.savefig(path.with_suffix(".png"), dpi=150)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/results/pixels"))
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    rows = measured(args.seed, args.repeats)
    given = None if argv is None else list(argv)
    found = write_json(
        args.out.with_suffix(".json"), facts("study_pixels", given, seed=args.seed, rows=rows)
    )
    render(found, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
