"""What a run of `scripts.reproduce` would cost: tokens, multiply-adds and hours."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

import vlm
from compress import get_method
from compress.report.cost import prefill_macs
from compress.runtime.settings import Settings
from eval.answerers import DTYPES
from eval.arms import Arm
from eval.benchmarks import BENCHMARKS, parse_benchmark
from eval.report import aligned
from vlm.families import ModelAdapter, adapter_of
from vlm.load import EMBEDDED

# Prompts of the official files: MMBench dev EN with its rotations, Video-MME, the validation split
# of TextVQA, the three kinds of POPE, GQA testdev-balanced, MME, ScienceQA test with pictures.
OFFICIAL = {
    "mmbench": 4329,
    "videomme": 2700,
    "textvqa": 5000,
    "pope": 8910,
    "gqa": 12578,
    "mme": 2374,
    "scienceqa": 2017,
}


def expected_cost(args: argparse.Namespace, arms: Sequence[Arm]) -> str:
    """The table that a dry run prints.

    Hours are those of a device that reaches the given rates: multiply-adds of the vision encoder
    (once for all configurations) and of prefills, and the weights of the language model read once
    for each batch of decoded tokens. Reading media and the reduction itself are not in it.

    Raises ValueError where the number of questions, or of visual tokens, is not known.
    """
    model, processor = skeleton(args.model)
    adapter = adapter_of(model)
    tokens = args.tokens or image_tokens(adapter, processor)
    questions = {name: count for text in args.benchmark for name, count in [_questions(text, args)]}
    tflops, bandwidth = _rates(args)
    config = adapter.language_model.config
    total = sum(questions.values())
    lm_bytes = _count(adapter.language_model) * torch.empty((), dtype=_dtype(args)).element_size()
    vision = 2 * tokens * _count(adapter.vision_encoder) / (tflops * 1e12)
    decode = args.answer_tokens * lm_bytes / (bandwidth * 1e9) / args.batch_size
    rows = [("configuration", "average", "entering", "GMAC a prompt", "hours")]
    hours = total * vision / 3600
    for arm in arms:
        counts = _counts(adapter, arm, tokens)
        macs = prefill_macs([args.text_tokens + n for n in counts], config)
        own = total * (2 * macs / (tflops * 1e12) + decode) / 3600
        hours += own
        average = sum(counts) / len(counts)
        cells = (f"{average:.1f}", str(counts[0]), f"{macs / 1e9:,.1f}", f"{own:.2f}")
        rows.append((arm.title, *cells))
    asked = ", ".join(f"{name} {count:,}" for name, count in questions.items())
    return "\n".join(
        [
            f"{type(model).__name__}, {_count(model) / 1e9:.2f} B parameters, {tokens} visual "
            f"tokens an image, {args.text_tokens} text tokens",
            f"questions: {asked}",
            aligned(rows),
            f"{hours:.2f} hours in all at {tflops:.3g} TFLOPS and {bandwidth:.3g} GB/s, batches "
            f"of {args.batch_size}, {args.answer_tokens} tokens an answer; without reading media",
        ]
    )


def skeleton(name: str) -> tuple[Any, Any]:
    """The model without weights, on the meta device, and its processor or None."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    if name in EMBEDDED:
        return vlm.load(name)
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"--model: no configuration of {name!r}: {error}") from error
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    try:
        return model, AutoProcessor.from_pretrained(name)
    except (OSError, ValueError):
        return model, None


def image_tokens(adapter: ModelAdapter, processor: Any) -> int:
    """Visual tokens of a square picture of 336 pixels.

    Raises ValueError where neither a processor nor the configuration tells.
    """
    if processor is not None:
        content = [{"type": "image"}, {"type": "text", "text": "?"}]
        text = processor.apply_chat_template([{"role": "user", "content": content}])
        blank = Image.new("RGB", (336, 336))
        ids = processor(images=[blank], text=[text], return_tensors="pt")["input_ids"]
        return int((ids == adapter.placeholder("image")).sum())
    known = getattr(adapter.config, "image_seq_length", None)
    if known is None:
        raise ValueError(
            "--tokens: there is no processor beside the configuration that tells how many visual "
            "tokens an image has; give the number"
        )
    return int(known)


def _questions(text: str, args: argparse.Namespace) -> tuple[str, int]:
    name, _, options = text.partition(":")
    if name in BENCHMARKS and not options and name in OFFICIAL:
        count = OFFICIAL[name]
    else:
        benchmark = parse_benchmark(text)
        name, count = benchmark.name, len(benchmark.load().samples)
    return name, min(count, args.limit or count)


def _counts(adapter: ModelAdapter, arm: Arm, tokens: int) -> tuple[int, ...]:
    if arm.method is None:
        return (tokens,) * len(adapter.layers)
    return Settings(adapter, get_method(arm.method), arm.budget).allocation(tokens).counts


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _dtype(args: argparse.Namespace) -> torch.dtype:
    return DTYPES[args.dtype]


def _rates(args: argparse.Namespace) -> tuple[float, float]:
    """TFLOPS and GB/s, as given or measured."""
    device, dtype = torch.device(args.device), _dtype(args)
    tflops, bandwidth = args.tflops, args.bandwidth
    if tflops is None:
        n = 4096 if device.type == "cuda" else 1024
        x = torch.ones(n, n, device=device, dtype=dtype)
        tflops = 2 * n**3 / _seconds(lambda: x @ x, device) / 1e12
    if bandwidth is None:
        y = torch.ones(2**26, device=device)
        bandwidth = 4 * 2**26 / _seconds(lambda: y.sum(), device) / 1e9
    return tflops, bandwidth


def _seconds(work: Callable[[], Any], device: torch.device, repeats: int = 5) -> float:
    """The shortest of several runs."""
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return best
