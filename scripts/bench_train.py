"""Time and memory of a training step: dense, DUET at 192, 128 and 64 tokens, and PPE's merging.

    python -m scripts.bench_train --processor-time --out out/bench_train   # a small LLaVA on a CPU
    python -m scripts.bench_train --size 7b --lora --batch 8               # LLaVA-1.5-7B on a GPU

Weights are random. Data and seed are the same for all settings, and their steps are interleaved, so
that other work on the machine slows all of them alike. A step is forward, backward and optimizer on
a batch of the recipes' collator, without loading data. `floor` keeps one visual token. What remains
is the vision encoder, the text, and the head, which computes all tokens because of the labels.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from train.parts import add_adapters, freeze, optimizer_groups
from train.recipe import Lora, Recipe
from train.recipe_files import load_recipe
from train.reduction import Reducer, wanted
from vlm.families import adapter_of

IMAGE = 3  # the token id of a visual token
# In "small" the vision encoder and the head have the shares of the 7B in a forward (3% and 2%).
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "small": (
        {"hidden_size": 160, "intermediate_size": 640, "num_hidden_layers": 4,
         "num_attention_heads": 4},
        {"vocab_size": 1024, "hidden_size": 512, "intermediate_size": 1376,
         "num_hidden_layers": 8, "num_attention_heads": 8},
    ),
    "7b": (
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
         "num_attention_heads": 16},
        {"vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 11008,
         "num_hidden_layers": 32, "num_attention_heads": 32},
    ),
}  # fmt: skip
SETTINGS: dict[str, tuple[str, list[str]]] = {
    "dense": ("finetune", []),
    "duet 192": ("duet_192", []),
    "duet 128": ("duet_128", []),
    "duet 64": ("duet_64", []),
    "ppe": ("ppe", []),
    "floor": ("finetune", ["compress={method: random, budget: 1}"]),
}
PUBLISHED = {"duet 192": -26, "duet 128": -31, "duet 64": -36}  # %, arXiv 2602.18846


def build(size: str, depth: int | None, device: torch.device, seed: int) -> Any:
    """A LLaVA with the images of LLaVA-1.5: 336 px in patches of 14, 24 x 24 tokens."""
    vision, text = SIZES[size]
    text = text | ({"num_hidden_layers": depth} if depth else {})
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=336, patch_size=14, **vision),
        text_config=LlamaConfig(max_position_embeddings=4096, **text),
        image_token_index=IMAGE,
        vision_feature_layer=-2,
        image_seq_length=576,
    )
    torch.manual_seed(seed)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device(device):
        model: Any = LlavaForConditionalGeneration(config)
    return model.to(dtype).train()


def draw(args: argparse.Namespace, vocabulary: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """One batch: an image, then `text` tokens in turns of a question and a longer answer."""
    g = torch.Generator().manual_seed(args.seed)
    words = torch.randint(10, vocabulary, (args.batch, args.text), generator=g)
    front = min(35, args.text // 4)  # a system prompt
    pictures = torch.full((args.batch, 576), IMAGE)
    ids = torch.cat([words[:, :front], pictures, words[:, front:]], dim=1)
    labels = torch.full_like(ids, -100)
    spoken = torch.arange(args.text - front) % 64 >= 16
    labels[:, front + 576 :][:, spoken] = words[:, front:][:, spoken]
    pixels = torch.randn(args.batch, 3, 336, 336, generator=g).to(dtype)
    batch = {"input_ids": ids, "labels": labels, "pixel_values": pixels}
    return {name: x.to(args.device) for name, x in batch.items()}


def recipe_of(name: str, args: argparse.Namespace) -> Recipe:
    base, more = SETTINGS[name]
    return load_recipe(base, [*more, f"checkpointing={str(args.checkpointing).lower()}"])


class Memory:
    """Bytes in use now, and at most since the start: of the device, or of the process on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            ctypes.CDLL(None).malloc_trim(0)  # memory that earlier steps freed must not count
            Path("/proc/self/clear_refs").write_text("5")
        self.before = torch.cuda.memory_allocated() if self.gpu else self._read("VmRSS")

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self.gpu else self._read("VmHWM")

    def _read(self, name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def measure(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Run rounds of one step of each setting. The first round warms up."""
    device = torch.device(args.device)
    base = build(args.size, args.depth, device, args.seed)
    recipe = recipe_of("dense", args)
    model = add_adapters(base, Lora()) if args.lora else base
    if args.lora:
        recipe = load_recipe("lora")
    freeze(model, recipe)
    if args.checkpointing:
        base.activation_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(optimizer_groups(model, recipe), foreach=False)
    batch = draw(args, base.config.text_config.vocab_size, base.dtype)
    adapter = adapter_of(base)
    parts: dict[str, Any] = {"vision_encoder": adapter.vision_encoder, "head": base.lm_head}
    clock = time.process_time if args.processor_time else time.perf_counter

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock()

    values_of: dict[str, dict[str, list[float]]] = {name: {} for name in args.settings}
    for turn in range(args.rounds + 1):
        for name in args.settings:
            setting = recipe_of(name, args)
            reducer = Reducer(base, setting, 0) if wanted(setting) else None
            spent_in = dict.fromkeys(parts, 0.0)
            handles = [h for part in parts for h in timed(part, parts[part], spent_in, now)]
            memory, began = Memory(device), now()
            loss = model(**batch, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            row = {"seconds": now() - began, "bytes": memory.peak(), "loss": float(loss.detach())}
            row["step_bytes"] = row["bytes"] - memory.before
            row |= {f"{part}_seconds": spent for part, spent in spent_in.items()}
            for handle in handles:
                handle.remove()
            if reducer is not None:
                row["tokens"] = reducer.compression.report().budget
                reducer.compression.remove()
            for key, value in row.items() if turn else ():
                values_of[name].setdefault(key, []).append(value)
            print(f"{turn}/{args.rounds} {name}: {row['seconds']:.2f} s", flush=True)
    return {name: summary(rows, values_of) for name, rows in values_of.items()}


def timed(part: str, module: Any, spent: dict[str, float], now: Any) -> list[Any]:
    """Hooks that add up the time of the forwards of a module."""

    def before(*_: Any) -> None:
        spent[part] -= now()

    def after(*_: Any) -> None:
        spent[part] += now()

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def summary(
    rows: dict[str, list[float]], every: dict[str, dict[str, list[float]]]
) -> dict[str, Any]:
    middle: dict[str, Any] = {key: statistics.median(values) for key, values in rows.items()}
    middle |= {key: max(rows[key]) for key in ("bytes", "step_bytes")}
    middle["every_seconds"] = rows["seconds"]
    if "dense" in every:
        dense = statistics.median(every["dense"]["seconds"])
        middle["change_percent"] = round(100 * (middle["seconds"] / dense - 1), 1)
    return middle


def plot(rows: dict[str, dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    names = list(rows)
    for axis, key, unit, scale in (
        (axes[0], "seconds", "s a step", 1),
        (axes[1], "step_bytes", "GiB above what is held between steps", 2**30),
    ):
        bars = axis.bar(names, [rows[name][key] / scale for name in names], color="C0")
        axis.set(ylabel=unit)
        axis.tick_params(axis="x", rotation=25)
        for name, bar in zip(names, bars, strict=True):
            if key == "seconds" and "change_percent" in rows[name]:
                said = f"{rows[name]['change_percent']:+.0f}%"
                axis.text(bar.get_x() + bar.get_width() / 2, bar.get_height(), said, ha="center")
            if key == "seconds" and name in PUBLISHED and "dense" in rows:
                height = rows["dense"][key] * (1 + PUBLISHED[name] / 100)
                axis.plot([bar.get_x(), bar.get_x() + bar.get_width()], [height] * 2, "k--")
    axes[0].set_title("dashed: DUET's published cut of training time", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--depth", type=int, help="decoder layers, where all do not fit")
    parser.add_argument("--lora", action="store_true", help="adapters learn, the decoder is frozen")
    parser.add_argument("--settings", type=lambda text: text.split(","), default=list(SETTINGS))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--text", type=int, default=256, help="text tokens of a sample")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-checkpointing", dest="checkpointing", action="store_false")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="one thread, counting its processor time: for a machine that is busy otherwise",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/bench_train"))
    args = parser.parse_args()
    if unknown := [name for name in args.settings if name not in SETTINGS]:
        parser.error(f"--settings {unknown} not among {list(SETTINGS)}")
    if args.processor_time:
        torch.set_num_threads(1)
    rows = measure(args)
    gpu = torch.cuda.get_device_name() if args.device == "cuda" else None
    report = {
        "command": " ".join(["python -m scripts.bench_train", *sys.argv[1:]]),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "hardware": {"device": gpu or platform.machine(), "threads": torch.get_num_threads()},
        "clock": "processor time" if args.processor_time else "wall",
        "shapes": {
            "encoder": SIZES[args.size][0],
            "text": SIZES[args.size][1],
            "depth": args.depth,
        },
        "sample": {"visual": 576, "text": args.text, "batch": args.batch},
        "checkpointing": args.checkpointing,
        "learns": "projector and adapters" if args.lora else "projector and decoder",
        "seed": args.seed,
        "published_percent": PUBLISHED,
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    plot(rows, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
