"""What each method itself takes of the time to the first token, at the shapes of LLaVA-1.5-7B.

    python -m scripts.bench_share --processor-time

A LLaVA of the real widths with an eighth of the layers (3 and 4), random weights and float32, is
asked about pictures of 576 tokens at a budget of 64 on average over decoder layers. What is not
the method's own (selection, merging, scores, planning), nor the projector's, counts eight times.

Writes docs/bench/share.json: by method and batch, the share and milliseconds of a run (the median
of several), with versions, hardware and command; and a picture of the shares, share.png.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from compress import CompressionError, compress, list_methods
from compress.parse import split_list
from compress.report.clock import Clock
from scripts.common import COLOURS, canvas, facts, write_json

PART = 8  # of the layers
IMAGE, TEXT = 5, 48
OUT = Path("docs/bench/share.json")


def build(device: str) -> Any:
    """The model, in evaluation."""
    vision: Any = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24 // PART + 1,  # the last one is not used
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(num_hidden_layers=32 // PART, vocab_size=1000, pad_token_id=0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    with torch.device(device):
        return LlavaForConditionalGeneration(config).eval()


def prompt(batch: int, device: str) -> dict[str, torch.Tensor]:
    """A picture and a question, `batch` times."""
    ids = [*range(10, 18), *[IMAGE] * 576, *range(20, 20 + TEXT - 8)]
    made = {
        "input_ids": torch.tensor([ids] * batch),
        "pixel_values": torch.randn(batch, 3, 336, 336),
    }
    return {name: x.to(device) for name, x in made.items()}


@contextmanager
def timed(module: torch.nn.Module, clock: Clock, name: str) -> Iterator[None]:
    """Add the time of a module's calls to a clock."""
    handles = [
        module.register_forward_pre_hook(lambda *_: clock.start(name)),
        module.register_forward_hook(lambda *_: clock.stop(name)),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run(
    model: Any, method: str, inputs: dict[str, torch.Tensor], processor: bool
) -> dict[str, float]:
    """Milliseconds of the method's own part, and to the first token of the whole model."""
    with compress(model, method, 64) as attached:
        clock = attached.clock
        clock.exact = True
        clock.tick = time.process_time if processor else time.perf_counter
        with timed(model.model.multi_modal_projector, clock, "projector"):
            model(**inputs, logits_to_keep=1)
        report = attached.report().reduced
        own = (report.reduce or 0.0) + (report.plan or 0.0)
        projector = clock.totals["projector"]
    whole = PART * (clock.first - own - projector) + projector + own
    return {"own": own, "first": whole, "share": own / whole}


def main(argv: Sequence[str] | None = None) -> int:
    """Time methods in turn and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--methods", default=",".join(list_methods()))
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count one thread's processor time: for a machine that is busy otherwise",
    )
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = build(args.device)
    rows: dict[str, dict[str, Any]] = {}
    for batch in map(int, args.batches.split(",")):
        inputs = prompt(batch, args.device)
        for method in split_list(args.methods):
            try:
                runs = [
                    run(model, method, inputs, args.processor_time) for _ in range(args.repeats)
                ]
            except CompressionError as error:  # a method for other families
                print(method, error, file=sys.stderr)
                continue
            middle = {name: statistics.median(one[name] for one in runs) for name in runs[0]}
            rows.setdefault(method, {})[str(batch)] = middle
            print(
                f"{method:14}{batch:3}  {middle['share']:6.2%}  {middle['own']:8.1f} ms", flush=True
            )
    given = None if argv is None else list(argv)
    clock = "processor time" if args.processor_time else "wall"
    how = {"seed": 0, "device": args.device, "clock": clock, "load": os.getloadavg()}
    found = write_json(args.out, facts("bench_share", given, **how, rows=rows))
    draw(found["rows"], args.out.with_suffix(".png"))
    return 0


def draw(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw the shares of all methods, one mark a batch size."""
    order = sorted(rows, key=lambda name: max(one["share"] for one in rows[name].values()))
    figure, axes = canvas(7, 0.24 * len(order) + 1.2)
    for batch, hue in zip(("1", "8"), COLOURS[1:], strict=False):
        places = [k for k, name in enumerate(order) if batch in rows[name]]
        if not places:
            continue
        shares = [100 * rows[order[k]][batch]["share"] for k in places]
        axes.plot(shares, places, "o", color=hue, label=f"batch {batch}")
    axes.axvline(5, color="black", linestyle=":")
    axes.set_yticks(range(len(order)), order)
    axes.set_xlabel("share of the time to the first token that the method itself takes, %")
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
