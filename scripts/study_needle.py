"""Finding one image in a stack of images: `python -m scripts.study_needle`.

The 1-D sibling of the embedded model is fine-tuned on stacks of one or two images, only one of
which has a sign and a dot. One model is trained with increment 1 for every visual token, one with a
random increment for each image (V2PE, arXiv 2412.09616). Both see the same data for the same steps.
They are then asked about stacks of up to 16 images, eight times as long as in training. The first
is also tested with positions scaled linearly into the trained range and with an increment that it
was not trained with. The second is tested with several increments.

Writes `needle.json` (raw figures, versions, hardware, command), `needle.md` and `needle.png`. An
interrupted run is resumed by the same command.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

import vlm
from compress.parse import split_list
from eval.answerers import ModelAnswerer
from eval.arms import DENSE, Arm
from eval.samples import Benchmark, Drawing, Loaded, Sample, Score, Unit
from scripts.common import (
    COLOURS,
    Asked,
    add_folders,
    against,
    canvas,
    facts,
    mean,
    write_json,
    write_table,
)
from scripts.tuning import SETTINGS, tune
from vlm.embedded.scenes import Question, Scene, Split, draw, make_scene, questions

LEARNED = 2  # images of the longest training sample
KINDS = ("small", "reading")
FIRST = 200_000  # training scenes that no other study uses
OWN = [
    "learning_rate.projector=2e-4",
    "learning_rate.language_model=5e-4",
    "data.window=2048",
]


def stack(seed: int, count: int, split: Split) -> tuple[list[Scene], list[Question]]:
    """Scenes, only one of which has a sign and a dot, and the questions about these."""
    rng = np.random.default_rng((seed, count, 11))
    first = 16 * seed if split != "train" else FIRST + LEARNED * seed
    scenes = [make_scene(first + k, split) for k in range(count)]
    needle = int(rng.integers(count))
    asked = [q for q in questions(scenes[needle], rng) if q.category in KINDS]
    shown = [s if k == needle else replace(s, sign=None, dot=None) for k, s in enumerate(scenes)]
    return shown, asked


class Exact(Benchmark):
    """Score of answers that must match exactly."""

    def score(self, sample: Sample, text: str) -> Score:
        """Exact match, ignoring surrounding white space."""
        return Score(float(text.strip() == sample.answer), text.strip())


@dataclass(frozen=True)
class Needle(Exact):
    """Questions about the one image of a stack that has a sign and a dot."""

    pictures: int = 1
    stacks: int = 100
    split: Split = "test"

    name: ClassVar[str] = "needle"

    def load(self) -> Loaded:
        """Draw the stacks."""
        samples = []
        for seed in range(self.stacks):
            scenes, asked = stack(seed, self.pictures, self.split)
            media = tuple(Drawing(partial(_drawn, seed, self, k)) for k in range(len(scenes)))
            samples += [
                Sample(
                    key=f"{seed:04d}-{question.category}",
                    prompt=question.text,
                    media=media,
                    answer=question.answer,
                    groups={"category": question.category},
                    cluster=f"{seed:04d}",
                    max_new_tokens=8,
                )
                for question in asked
            ]
        return Loaded(samples)


def _drawn(seed: int, needle: Needle, number: int) -> Image.Image:
    return draw(stack(seed, needle.pictures, needle.split)[0][number])


def write_data(folder: Path, count: int) -> None:
    """Draw training stacks of one and of two images, with one question a sample."""
    if (folder / "data.json").is_file():
        return
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(count):
        scenes, asked = stack(seed, 1 + seed % LEARNED, "train")
        names = [f"{seed}-{k}.png" for k in range(len(scenes))]
        for name, scene in zip(names, scenes, strict=True):
            draw(scene).save(folder / "images" / name)
        question = asked[seed // 2 % len(asked)]
        said = [("user", "<image>\n" * len(names) + question.text), ("assistant", question.answer)]
        messages = [{"role": role, "content": text} for role, text in said]
        rows.append({"id": str(seed), "images": names, "messages": messages})
    (folder / "data.json").write_text(json.dumps(rows), encoding="utf-8")


def scaled(folder: Path, factor: float) -> Any:
    """A trained model with all positions divided by `factor` (linear RoPE scaling)."""
    config = AutoConfig.from_pretrained(folder)
    rope = {**config.text_config.rope_parameters, "rope_type": "linear", "factor": factor}
    config.text_config.rope_parameters = rope
    return AutoModelForImageTextToText.from_pretrained(folder, config=config).eval()


def ask(
    benchmark: Benchmark, asked: dict[str, tuple[Any, dict[str, Arm]]], processor: Any, work: Path
) -> dict[str, list[Unit]]:
    """The units of each arm by its title. `asked`: a model and its arms, by name."""
    units: dict[str, list[Unit]] = {}
    for name, (model, arms) in asked.items():
        answered = Asked(
            benchmark, ModelAnswerer(model, processor, name), list(arms.values()), work
        )
        units |= {title: answered.units(arm) for title, arm in arms.items()}
    return units


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.study_needle", description=__doc__)
    parser.add_argument("--model", default="mini-1d")
    parser.add_argument("--pictures", default="1,2,4,8,16")
    parser.add_argument("--increments", default="1,1/2,1/4,1/8,1/16,1/64")
    parser.add_argument("--untrained", default="1/16", help="increments of the model with 1")
    parser.add_argument("--stacks", type=int, default=100)
    parser.add_argument("--drawn", type=int, default=4000, help="stacks to learn from")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    add_folders(parser, work="out/needle")
    args = parser.parse_args(argv)
    write_data(args.work, args.drawn)
    shared = [*OWN, f"optimizer.steps={args.steps}", f"seed={args.seed}"]
    learned = {
        name: tune(
            args.model,
            args.work,
            args.work / f"{folder}-{args.steps}-{args.seed}",
            [*shared, f"positions={name}"],
        )
        for name, folder in (("original", "original"), ("v2pe:random", "v2pe"))
    }
    plain, various = (Path(learned[name]["folder"]) for name in ("original", "v2pe:random"))
    at_home, processor = vlm.load(plain)
    learned_various, _ = vlm.load(various)

    def stepping(steps: str, title: str) -> dict[str, Arm]:
        """All tokens kept, with an increment for the visual ones."""
        return {title.format(s): Arm("random", 1.0, f"v2pe:{s}") for s in split_list(steps)}

    fixed = {"increment 1": DENSE, **stepping(args.untrained, "untrained {}")}
    small = stepping(args.increments, "v2pe {}")
    rows = []
    for pictures in (int(text) for text in split_list(args.pictures)):
        benchmark = Needle(pictures=pictures, stacks=args.stacks)
        factor = max(1.0, pictures / LEARNED)
        asked = {
            "plain": (at_home, fixed),
            f"linear {factor:g}": (scaled(plain, factor), {"linear": DENSE}),
            "v2pe": (learned_various, small),
        }
        units = ask(benchmark, asked, processor, args.work / "answers")
        for title, own in units.items():
            kinds = {kind: [u for u in own if u.groups["category"] == kind] for kind in KINDS}
            rows.append(
                {
                    "pictures": pictures,
                    "positions": title,
                    "accuracy": mean(own),
                    "by": {kind: mean(v) for kind, v in kinds.items()},
                    "against": against(units["increment 1"], own),
                    "questions": len(own),
                }
            )
    settings = [*SETTINGS, *shared]
    report = facts(
        "study_needle", argv, seed=args.seed, settings=settings, training=learned, rows=rows
    )
    render(write_json(args.output / "needle.json", report), args.output / "needle")
    return 0


def render(found: dict[str, Any], path: Path) -> None:
    """Write the table and the picture of a report."""
    label = "pictures of 144 tokens in the stack (dotted: the longest it learned from)"
    curves(found["rows"], "pictures", LEARNED, "v2pe", label, path)


def curves(
    rows: list[dict[str, Any]], across: str, learned: int, faded: str, label: str, path: Path
) -> None:
    """Table and picture of accuracy over the length `across`, one line a way of counting positions.

    Each is compared with the first. Those whose names start with `faded` share a colour that
    becomes paler.
    """
    sizes = list(dict.fromkeys(row[across] for row in rows))
    names = list(dict.fromkeys(row["positions"] for row in rows))
    at = {(row["positions"], row[across]): row for row in rows}
    lines = [f"{across:14}" + "".join(f"{size:>17}" for size in sizes)]
    for name in names:
        line = f"{name:14}"
        for size in sizes:
            row = at[name, size]
            mark = f"(p {row['against']['p']:.2g})" if name != names[0] else ""
            line += f"{row['accuracy']:>7.1%}{mark:>10}"
        lines.append(line)
    write_table(path, "\n".join(lines))
    figure, axes = canvas(6.5, 4)
    small = [name for name in names[1:] if name.startswith(faded)]
    others = [name for name in names if name not in small]
    looks = dict(zip(others, ((hue, 1.0) for hue in COLOURS[0:2] + COLOURS[3:]), strict=False))
    looks |= {name: (COLOURS[2], 1 - 0.8 * k / len(small)) for k, name in enumerate(small)}
    for name in names:
        values = [100 * at[name, size]["accuracy"] for size in sizes]
        hue, fade = looks[name]
        axes.plot(sizes, values, "o-", color=hue, alpha=fade, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.axvline(learned, color="#999999", linestyle=":")
    axes.set_xlabel(label)
    axes.set_ylabel("right answers, %")
    axes.set_ylim(0, 100)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    sys.exit(main())
