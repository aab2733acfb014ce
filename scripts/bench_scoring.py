"""Time of vision encoding with scoring, without it, and with attention maps of all layers.

    python -m scripts.bench_scoring --out docs/bench/scoring --rounds 5 --processor-time
    python -m scripts.bench_scoring --encoders clip_l_14_336 --device cuda --dtype bfloat16

Weights are random, shapes are real. The language model is tiny and does not run. Three ways are
timed in turn, in an order drawn for each round:

    plain    images are encoded as the stock model does it
    scored   the same, and the saliency and keys of each token are read off the scoring layer, as
             any method of this package gets them
    maps     the same saliency from `output_attentions=True`, for which all layers run eager; an
             encoder that returns no maps (Qwen2.5-VL) only runs eager

Ratios are taken within a round, so that other work on the machine disturbs both sides alike.
`read_ms` is the part of `scored` after the vision encoder. The hooks before it only keep two
references.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from vlm.families import ModelAdapter, adapter_of

hf: Any = transformers  # its configurations take more than their types say
WAYS = ("plain", "scored", "maps")
LANGUAGE: dict[str, Any] = {
    "vocab_size": 8,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
}
Call = dict[str, Tensor]


def clip_l_14_336(batch: int, draw: torch.Generator) -> tuple[Any, Call]:
    """LLaVA-1.5's vision encoder: 577 tokens, 24 layers, a class token."""
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
            image_size=336, patch_size=14,
        ),
        text_config=hf.LlamaConfig(**LANGUAGE),
        image_token_id=1,
    )  # fmt: skip
    pixels = torch.randn(batch, 3, 336, 336, generator=draw)
    return hf.LlavaForConditionalGeneration(config), {"pixel_values": pixels}


def qwen2_5_vl(batch: int, draw: torch.Generator) -> tuple[Any, Call]:
    """Qwen2.5-VL's vision encoder at 24 x 24 patches: 32 layers, four with full attention."""
    config = hf.Qwen2_5_VLConfig(
        # As the checkpoints have it; the default is wider.
        vision_config={"hidden_size": 1280, "out_hidden_size": LANGUAGE["hidden_size"]},
        text_config={
            **LANGUAGE, "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6]}
        },
    )  # fmt: skip
    vision: Any = config.vision_config
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(batch * 24 * 24, width, generator=draw)
    grids = torch.tensor([[1, 24, 24]] * batch)
    model = hf.Qwen2_5_VLForConditionalGeneration(config)
    return model, {"pixel_values": pixels, "image_grid_thw": grids}


ENCODERS: dict[str, Callable[[int, torch.Generator], tuple[Any, Call]]] = {
    "clip_l_14_336": clip_l_14_336,
    "qwen2_5_vl": qwen2_5_vl,
}


class Ways:
    """The three ways of one model on one call of `get_image_features`."""

    def __init__(self, adapter: ModelAdapter, call: Call, clock: Callable[[], float]) -> None:
        self.adapter, self.call, self.clock = adapter, call, clock
        self.layer = adapter.scoring_layer("image", None)
        self.inputs = adapter.inputs("image", call)
        self.read = 0.0
        self.reader = adapter.reader(adapter.vision_layers("image")[self.layer])

    def encode(self, **more: Any) -> Any:
        return self.adapter.core.get_image_features(**self.call, return_dict=True, **more)

    def plain(self) -> None:
        self.encode()

    def scored(self) -> Tensor:
        """Saliency (T,) of the tokens of all inputs; the time after the encoder is in `read`."""
        handles = self.reader.attach()
        try:
            with self.reader.capture() as capture:
                self.encode()
        finally:
            for handle in handles:
                handle.remove()
        start = self.clock()
        heads = capture.heads(self.inputs)
        saliency = self.adapter.pool(self.inputs, heads.saliency("auto"))
        self.adapter.pool(self.inputs, heads.keys())
        self.read = self.clock() - start
        return saliency

    def maps(self) -> Tensor | None:
        """The same saliency, from maps of all layers; None if the encoder gives none."""
        encoder: Any = self.adapter.vision_encoder
        before = encoder.config._attn_implementation
        encoder.set_attn_implementation("eager")
        try:
            maps = self.encode(output_attentions=True).attentions
        finally:
            encoder.set_attn_implementation(before)
        if not maps or maps[self.layer].ndim != 4:
            return None
        mean = maps[self.layer].float().mean(1)  # (n, S, S)
        values = mean[:, 0, 1:] if self.reader.has_class_token else mean.mean(1)
        return self.adapter.pool(self.inputs, values.flatten())


def compare(
    model: Any, call: Call, rounds: int, seed: int, processor: bool = False
) -> dict[str, Any]:
    """Milliseconds of each way, and ratios to `plain` within rounds: median and quartiles."""
    device = model.device

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if processor else time.perf_counter()

    ways = Ways(adapter_of(model), call, clock)
    spent: dict[str, list[float]] = {way: [] for way in (*WAYS, "read")}
    peak: dict[str, int] = {}
    draw = random.Random(seed)
    with torch.no_grad():
        ours, stock = ways.scored(), ways.maps()
        apart = None if stock is None else float((ours - stock).abs().max() / stock.abs().max())
        for _ in range(rounds):
            for way in draw.sample(WAYS, len(WAYS)):
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                start = clock()
                getattr(ways, way)()
                spent[way].append(clock() - start)
                if way == "scored":
                    spent["read"].append(ways.read)
                if device.type == "cuda":
                    peak[way] = torch.cuda.max_memory_allocated() // 2**20
    row: dict[str, Any] = {"rounds": rounds, "scores_apart": apart}
    for way, times in spent.items():
        row[f"{way}_ms"] = round(1e3 * statistics.median(times), 3)
        row[f"{way}_each_ms"] = [round(1e3 * value, 3) for value in times]
    for way in ("scored", "maps", "read"):
        ratios = [a / b for a, b in zip(spent[way], spent["plain"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        row[f"{way}_ratio"] = {"quartiles": [round(low, 4), round(high, 4)]}
        row[f"{way}_ratio"]["median"] = round(middle, 4)
    return row | ({"peak_mib": peak} if peak else {})


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 1 + 0.9 * len(rows)))
    labels = {"maps": "output_attentions=True", "scored": "scoring"}
    for way, shift, colour in (("maps", 0.2, "C1"), ("scored", -0.2, "C0")):
        places = [at + shift for at in range(len(rows))]
        added = [100 * (row[f"{way}_ratio"]["median"] - 1) for row in rows]
        ends = [[100 * (x - 1) for x in row[f"{way}_ratio"]["quartiles"]] for row in rows]
        spread = [
            [x - low for x, (low, _) in zip(added, ends, strict=True)],
            [high - x for x, (_, high) in zip(added, ends, strict=True)],
        ]
        axis.barh(places, added, 0.36, xerr=spread, color=colour, label=labels[way],
                  error_kw={"elinewidth": 1})  # fmt: skip
        for place, row in zip(places, rows, strict=True):
            if way == "scored":
                text = f"reading alone {100 * row['read_ratio']['median']:.2f}%"
                axis.annotate(text, (4, place), va="center", fontsize=8)
    axis.axvline(3, color="grey", linestyle=":", linewidth=1)
    axis.set_yticks(range(len(rows)), [f"{r['encoder']}, batch {r['batch']}" for r in rows])
    axis.set(xlabel="added to the time of the vision side, %; median, quartiles (dotted: 3%)")
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--encoders", type=lambda text: text.split(","), default=list(ENCODERS))
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--batches", type=numbers, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="one thread, counting its processor time: for a machine that is busy otherwise",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/bench_scoring"))
    args = parser.parse_args()
    unknown = [name for name in args.encoders if name not in ENCODERS]
    if unknown or args.rounds < 2:
        parser.error(f"--encoders {unknown} not among {list(ENCODERS)}, or --rounds below 2")
    if args.processor_time:
        torch.set_num_threads(1)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    rows = []
    for name in args.encoders:
        for batch in args.batches:
            torch.manual_seed(args.seed)
            model, call = ENCODERS[name](batch, torch.Generator().manual_seed(args.seed))
            call = {k: x.to(device, dtype if x.is_floating_point() else None)
                    for k, x in call.items()}  # fmt: skip
            model = model.eval().to(device, dtype)
            timings = compare(model, call, args.rounds, args.seed, args.processor_time)
            rows.append({"encoder": name, "batch": batch} | timings)
            print(json.dumps(rows[-1]), flush=True)
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    report = {
        "command": " ".join(["python -m scripts.bench_scoring", *sys.argv[1:]]),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "hardware": {
            "device": hardware or platform.machine(), "threads": torch.get_num_threads()
        },
        "clock": "processor time" if args.processor_time else "wall",
        "dtype": args.dtype,
        "seed": args.seed,
        "rows": rows,
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    plot(rows, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
