"""Time to the first token, decoding and memory, dense and reduced.

    python -m scripts.study_speed

The models have random weights, which do not change speed. Their shapes are those of LLaVA-1.5-7B or
Qwen2.5-VL-7B (`--shapes llava,qwen`, for a GPU), or of a LLaVA with a quarter or half of the widths
and depths (`--shapes quarter,half`, for a CPU). Each round runs everything once, in turn: dense,
each method at each budget, and `eager`. The last is the same reduction as public code does it, with
eager attention that returns all maps of the vision encoder and the language model. The roofline is
the speed-up of the prefill that multiply-adds and bytes allow at the rates that the machine
reaches.

Writes `<out>.json` (raw times, versions, hardware, command), `<out>.md` and `<out>.png`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from compress.measure import measure
from compress.parse import parse_budget, split_list
from compress.report.cost import Report, layer_macs
from scripts.common import canvas, facts, write_json, write_table
from vlm.families import adapter_of

WAYS = ("sdpa", "eager")
TEXT = 40  # tokens after the visual inputs; there are 8 before them


@dataclass(frozen=True)
class Load:
    """One load: `batch` prompts of `images` images, or of a video of `frames` frames."""

    name: str
    batch: int = 1
    images: int = 1
    frames: int = 0


LOADS = {
    load.name: load
    for load in (
        Load("1 image"),
        Load("batch 8", batch=8),
        Load("8 images", images=8),
        Load("video", frames=64),
        Load("16 frames", frames=16),
    )
}


Shape = tuple[Callable[[], Any], Callable[[Load], dict[str, Any]]]


def llava(part: int) -> Shape:
    """A model of LLaVA-1.5-7B's shapes, with widths, heads and depths divided by `part`."""
    vision: Any = CLIPVisionConfig(
        hidden_size=1024 // part,
        intermediate_size=4096 // part,
        num_hidden_layers=24 // part,
        num_attention_heads=16 // part,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=4096 // part,
        intermediate_size=11008 // part,
        num_hidden_layers=32 // part,
        num_attention_heads=32 // part,
        num_key_value_heads=32 // part,
        vocab_size=32064 // part,
        max_position_embeddings=16384,
        pad_token_id=0,
    )
    image = 5
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image)
    cells = (vision.image_size // vision.patch_size) ** 2

    def inputs(load: Load) -> dict[str, Any]:
        images = load.frames or load.images
        ids = [*range(10, 18), *([image] * cells * images), *range(20, 20 + TEXT)]
        pixels = torch.randn(load.batch * images, 3, vision.image_size, vision.image_size)
        return {"input_ids": torch.tensor([ids] * load.batch), "pixel_values": pixels}

    return lambda: LlavaForConditionalGeneration(config), inputs


def qwen() -> Shape:
    """A model of Qwen2.5-VL-7B's shapes; images of 672 x 672 (576 tokens), frames of 336 x 336."""
    config: Any = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [16, 24, 24],
            },
        },
        vision_config={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    )
    patch = 3 * 2 * 14 * 14

    def inputs(load: Load) -> dict[str, Any]:
        video = load.frames > 0
        grid = (load.frames // 2, 24, 24) if video else (1, 48, 48)
        count = load.batch * (1 if video else load.images)
        tokens = grid[0] * grid[1] * grid[2] // 4
        token = config.video_token_id if video else config.image_token_id
        block = [config.vision_start_token_id, *([token] * tokens), config.vision_end_token_id]
        ids = [*range(10, 18), *(block * (1 if video else load.images)), *range(20, 20 + TEXT)]
        pixels = torch.randn(count * tokens * 4, patch)
        grids = torch.tensor([grid] * count)
        batch = torch.tensor([ids] * load.batch)
        kinds = (batch == config.image_token_id) + 2 * (batch == config.video_token_id)
        names = ("pixel_values_videos", "video_grid_thw")
        names = names if video else ("pixel_values", "image_grid_thw")
        return {
            "input_ids": batch,
            "mm_token_type_ids": kinds,
            **dict(zip(names, (pixels, grids), strict=True)),
        }

    return lambda: Qwen2_5_VLForConditionalGeneration(config), inputs


SHAPES: dict[str, Callable[[], Shape]] = {
    "quarter": lambda: llava(4),
    "half": lambda: llava(2),
    "llava": lambda: llava(1),
    "qwen": qwen,
}


# ------------------------------------------------------------------ as public code does it


@contextmanager
def eager(model: Any) -> Iterator[None]:
    """Eager attention that keeps the maps of all layers of the vision encoder and of the LLM."""
    before = model.config._attn_implementation
    handles = []

    def keep(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "output_attentions": True}

    adapter = adapter_of(model)
    model.set_attn_implementation("eager")
    for module in (adapter.vision_encoder, adapter.language_model):
        handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        model.set_attn_implementation(before)


# ------------------------------------------------------------------ roofline


def rates(device: torch.device, dtype: torch.dtype, width: int) -> tuple[float, float]:
    """Multiply-adds a second of a matrix product of the model's width, and bytes a second read."""

    def best(run: Callable[[], Any], times: int = 5) -> float:
        seconds = []
        for _ in range(times):
            if device.type == "cuda":
                torch.cuda.synchronize()
            begin = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
        return min(seconds)

    a = torch.randn(1024, width, device=device, dtype=dtype)
    b = torch.randn(width, 4 * width, device=device, dtype=dtype)
    big = torch.empty(2**27 if device.type == "cpu" else 2**30, dtype=torch.int8, device=device)
    macs = 1024 * width * 4 * width / best(lambda: a @ b)
    # A copy reads and writes every byte.
    return macs, 2 * len(big) / best(lambda: big.clone())


def floor(text: Any, counts: list[int], batch: int, rate: tuple[float, float], size: int) -> float:
    """The least seconds of a prefill; `counts` are all tokens of a sequence by layer."""
    d, inner = text.hidden_size, text.intermediate_size
    head = d // text.num_attention_heads
    kv = text.num_key_value_heads * head
    seconds = 0.0
    for n in counts:
        weights = d * (2 * d + 2 * kv + 3 * inner) * size
        moved = weights + batch * n * size * (4 * d + 2 * kv + 2 * inner)
        seconds += max(batch * layer_macs(n, d, kv, inner) / rate[0], moved / rate[1])
    return seconds


# ------------------------------------------------------------------ the run


@dataclass(frozen=True)
class Row:
    """One measurement. possible: the speed-up of the prefill that the roofline allows."""

    method: str
    budget: str
    way: str
    report: Report
    possible: float

    def figures(self) -> dict[str, Any]:
        """The row as plain numbers: milliseconds, bytes, ratios."""
        dense, reduced = self.report.dense, self.report.reduced
        times = (dense.first, reduced.first, dense.prefill, reduced.prefill)
        first, less, prefill, short = (float(t) for t in times if t is not None)
        own = (reduced.reduce or 0.0) + (reduced.plan or 0.0)
        return {
            "method": self.method,
            "budget": self.budget,
            "way": self.way,
            "tokens": self.report.budget,
            "dense": {**asdict(dense), "first": first},
            "reduced": {**asdict(reduced), "first": less},
            "speedup_first": first / less,
            "speedup_prefill": prefill / short,
            "possible_prefill": self.possible,
            "of_possible": prefill / short / self.possible,
            "own_share": own / less,
        }


def compare(model: Any, inputs: dict[str, Any], args: argparse.Namespace) -> Iterator[Row]:
    """One row for each method and budget, as this package and as public code does it."""
    text = model.config.get_text_config()
    rate = rates(model.device, model.dtype, text.hidden_size)
    batch, size = len(inputs["input_ids"]), model.dtype.itemsize
    for method in split_list(args.methods):
        for budget in map(parse_budget, split_list(args.budgets)):
            for way in split_list(args.ways):
                with eager(model) if way == "eager" else nullcontext():
                    report = measure(
                        model, inputs, method, budget, new_tokens=args.tokens, repeats=args.repeats
                    )
                least = [
                    floor(text, [(n + side.text) // batch for n in side.layers], batch, rate, size)
                    for side in (report.dense, report.reduced)
                ]
                yield Row(method, str(budget), way, report, least[0] / least[1])


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as a table."""
    head = (
        f"{'':<32}{'tokens':>8}{'vision':>9}{'own':>8}{'prefill':>9}{'first':>9}{'decode':>9}"
        f"{'KV MiB':>8}{'first x':>9}{'prefill x':>10}{'possible':>9}{'own':>7}"
    )
    lines = [head + "    (milliseconds)"]
    for row in rows:
        sides = [("dense", row["dense"])] if row["show_dense"] else []
        for name, cost in [*sides, (f"{row['method']} {row['budget']}", row["reduced"])]:
            own = (cost["reduce"] or 0.0) + (cost["plan"] or 0.0)
            tokens = sum(cost["layers"]) / len(cost["layers"])
            line = f"{row['shape']:<8}{row['load']:<10}{name:<14}"[:32].ljust(32)
            line += f"{tokens:>8.0f}{cost['vision']:>9.1f}{own:>8.1f}{cost['prefill']:>9.1f}"
            line += f"{cost['first']:>9.1f}{cost['decode']:>9.2f}{cost['cache'] / 2**20:>8.1f}"
            if name != "dense":
                line += f"{row['speedup_first']:>9.2f}{row['speedup_prefill']:>10.2f}"
                line += f"{row['possible_prefill']:>9.2f}{row['own_share']:>7.1%}"
            lines.append(line + ("" if row["way"] == "sdpa" else "  eager"))
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the parts of the time to the first token, one bar a row."""
    bars = []
    for row in rows:
        way = "" if row["way"] == "sdpa" else ", eager"
        if row["show_dense"]:
            bars.append((f"{row['shape']}, {row['load']}: dense{way}", row["dense"]))
        name = f"{row['method']} {row['budget']}{way}"
        bars.append((f"{row['shape']}, {row['load']}: {name}", row["reduced"]))
    figure, axes = canvas(9, 0.3 * len(bars) + 1.2)
    left = [0.0] * len(bars)
    parts = ("vision", "reduce", "plan", "prefill")
    for part, colour in zip(parts, ("#0072B2", "#D55E00", "#E69F00", "#009E73"), strict=True):
        values = [cost[part] or 0.0 for _, cost in bars]
        axes.barh(range(len(bars)), values, left=left, color=colour, label=part)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds to the first token")
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> int:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m scripts.study_speed", description=__doc__)
    parser.add_argument("--shapes", default="llava" if gpu else "quarter", help=", ".join(SHAPES))
    loads = "1 image,batch 8,8 images,video" if gpu else "1 image,batch 8,8 images"
    parser.add_argument("--loads", default=loads, help=", ".join(LOADS))
    parser.add_argument("--methods", default="duet,foveate")
    parser.add_argument("--budgets", default="192,64", help="tokens a visual input")
    parser.add_argument("--ways", default=",".join(WAYS), help="eager: as public code does it")
    parser.add_argument("--tokens", type=int, default=16, help="decoded")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/results/speed"))
    args = parser.parse_args(argv)
    for option, known in (("shapes", SHAPES), ("loads", LOADS), ("ways", WAYS)):
        for name in split_list(getattr(args, option)):
            if name not in known:
                parser.error(f"--{option}: {name!r} is not one of {', '.join(known)}")
    device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
    rows = []
    for shape in split_list(args.shapes):
        torch.manual_seed(args.seed)
        build, inputs = SHAPES[shape]()
        with torch.device(device):
            model = build().to(dtype).eval()
        model.generation_config.eos_token_id = None
        for name in split_list(args.loads):
            given = {
                k: v.to(device, dtype if v.is_floating_point() else v.dtype)
                for k, v in inputs(LOADS[name]).items()
            }
            shown = set()
            for row in compare(model, given, args):
                figures = {"shape": shape, "load": name, **row.figures()}
                figures["show_dense"] = row.way not in shown
                shown.add(row.way)
                rows.append(figures)
                print(table(rows[-1:]), flush=True)
        del model
    told = facts(
        "study_speed",
        argv,
        seed=args.seed,
        threads=torch.get_num_threads(),
        dtype=str(dtype).removeprefix("torch."),
        rows=rows,
    )
    render(write_json(args.out.with_suffix(".json"), told), args.out)
    return 0


def render(found: dict[str, Any], path: Path) -> None:
    """Write the table and the picture of a report."""
    write_table(path, table(found["rows"]))
    draw(found["rows"], path.with_suffix(".png"))


if __name__ == "__main__":
    sys.exit(main())
