"""Budgets that look at the pictures, against a fixed one: `python -m scripts.study_budgets`.

`Shared` gives the tokens of a batch of questions to the pictures where a further token covers most;
it is compared with the same budget fixed, on the same questions and at the same mean. `Coverage`
has a mean of its own, which stands beside its accuracy. p is the paired test's, after Holm's
correction over the table.

The picture shows what one call gives a blank page, two photographs and four pictures of the
benchmark. Writes `<name>.json` (raw figures, versions, hardware, command), `.md` and `.png`. An
interrupted run is resumed by the same command.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import vlm
from compress import Coverage, Shared, compress
from compress.parse import parse_budget, split_list
from compress.report.overlay import panel, sheet
from eval.__main__ import DTYPES
from eval.answerers import ModelAnswerer
from eval.arms import DENSE, Arm
from scripts.common import (
    Asked,
    add_folders,
    against,
    facts,
    questions_for,
    result_of,
    with_holm,
    write_json,
    write_table,
)
from scripts.demo import packaged
from vlm.prompts import picture_prompt


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.study_budgets", description=__doc__)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--name", default="budgets", help="of the files that are written")
    parser.add_argument("--split", default="test")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--clips", type=int, default=0)
    parser.add_argument("--methods", default="foveate,divprune")
    parser.add_argument("--budgets", default="1/9,1/18", help="share of the tokens")
    parser.add_argument("--coverage", default="0.9,0.95", help="share of the weight")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--seed", type=int, default=0)
    add_folders(parser, work="out/budgets")
    args = parser.parse_args(argv)
    methods = split_list(args.methods)
    budgets = [parse_budget(text) for text in split_list(args.budgets)]
    shares = [float(text) for text in split_list(args.coverage)]
    pairs = [
        (Arm(method, budget), Arm(method, Shared(budget)))
        for budget in budgets
        for method in methods
    ]
    covered = [Arm(method, Coverage(share)) for share in shares for method in methods]
    arms = [DENSE, *(arm for pair in pairs for arm in pair), *covered]
    model, processor = vlm.load(args.model, dtype=DTYPES[args.dtype])
    benchmark = questions_for(args.model, args.split, args.scenes, args.clips)
    answerer = ModelAnswerer(model, processor, args.model)
    asked = Asked(benchmark, answerer, arms, args.work, args.seed)
    duels = with_holm(
        [
            {"method": fixed.method, "budget": fixed.budget}
            | against(asked.units(fixed), asked.units(shared))
            for fixed, shared in pairs
        ]
    )
    results = [asdict(result) for result in asked.results()]
    questions = len(asked.samples)
    report = facts(
        "study_budgets", argv, split=args.split, questions=questions, results=results, duels=duels
    )
    path = args.output / args.name
    render(write_json(path.with_suffix(".json"), report), path)
    pictures = dict.fromkeys(sample.media[0] for sample in asked.samples)
    some = [media.load() for media in list(pictures)[:4]]
    draw(model, processor, some, budgets[0], shares[0]).save(path.with_suffix(".png"))
    return 0


def render(found: dict[str, Any], path: Path) -> None:
    """Accuracy and mean tokens of every row, and `Shared` against fixed."""
    lines = [f"{'':28}tokens  accuracy"]
    for row in found["results"]:
        result = result_of(row)
        accuracy: Any = result.accuracy
        lines.append(f"{result.title:28}{result.figures['tokens']:6.1f}{accuracy.mean:10.1%}")
    lines += ["", "shared against fixed  budget  won  lost  difference  p (Holm)"]
    for row in found["duels"]:
        lines.append(
            f"{row['method']:<20}{row['budget']:>8.3f}{row['gained']:>5}{row['lost']:>6}"
            f"{100 * row['difference']:>+12.1f}  {row['holm']:.2g}"
        )
    write_table(path, "\n".join(lines))


def draw(
    model: Any, processor: Any, pictures: list[Image.Image], budget: float, share: float
) -> Image.Image:
    """What each of several pictures in one prompt keeps: one row a budget."""
    blank = Image.new("RGB", pictures[0].size, "white")
    photographs = [
        Image.open(packaged("skimage", f"data/{name}")).convert("RGB")
        for name in ("coffee.png", "chelsea.png")
    ]
    pictures = [blank, *photographs, *pictures]
    prompt = picture_prompt(model, processor, pictures, "What do you see?")
    panels = []
    for chosen in (Shared(budget), Coverage(share)):
        with compress(model, "divprune", chosen) as c, torch.no_grad():
            model(**prompt)
            steps = [c.steps(number)[0] for number in range(len(pictures))]
        for picture, (_, grid, reduction) in zip(pictures, steps, strict=True):
            name = f"{chosen.kind} {chosen.amount:.2g}"
            panels.append(panel(picture, name, grid, reduction))
    return sheet(panels, columns=len(pictures))


if __name__ == "__main__":
    sys.exit(main())
