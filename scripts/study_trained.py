"""Fine-tuning with the reduction on: `python -m scripts.study_trained`.

An embedded model is fine-tuned on questions about new training scenes, dense and with each
reduction, on the same data in the same order. Each model answers the embedded benchmark with the
reduction that it was trained with. It is compared with the dense model that was trained as long,
and with that model under the same reduction (training-free). A method with slots (PPE) is compared
with itself at one slot, K = 1.

Writes `<name>.json` (raw figures, versions, hardware, command), `<name>.md` and `<name>.png`. An
interrupted run is resumed by the same command.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import vlm
from compress.parse import parse_budget, split_list
from eval.answerers import ModelAnswerer
from eval.arms import DENSE, Arm
from eval.benchmarks.embedded import Embedded
from positions.channels import SlotLayout
from scripts.common import (
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
from vlm.embedded.scenes import draw, make_scene, questions

FIRST = 100_000  # the embedded model was trained on the scenes before it
OWN = ["learning_rate.projector=1e-4", "learning_rate.language_model=1e-4", "log.every=10"]


@dataclass(frozen=True)
class Tuned:
    """How one model is trained; method None is dense."""

    method: str | None = None
    budget: float = 1.0
    slots: int = 1
    layout: SlotLayout = "contiguous"

    @property
    def arm(self) -> Arm:
        """The arm that the model is asked with."""
        if self.method is None:
            return DENSE
        return Arm(self.method, self.budget, "original", self.slots, self.layout)

    @property
    def name(self) -> str:
        """The name of the folder."""
        layout = "" if self.layout == "contiguous" else f"-{self.layout}"
        return f"{self.method or 'dense'}-{self.budget:.3f}-{self.slots}{layout}"

    def settings(self) -> list[str]:
        """The overrides of the recipe."""
        if self.method is None:
            return []
        chosen = [f"compress.method={self.method}", f"compress.budget={self.budget}"]
        return [*chosen, f"slots={self.slots}", f"slot_layout={self.layout}"]


def write_data(folder: Path, scenes: int) -> None:
    """Draw the scenes, and write one sample for each question about each scene."""
    images, rows = folder / "images", []
    if (folder / "data.json").is_file():
        return
    images.mkdir(parents=True, exist_ok=True)
    for seed in range(FIRST, FIRST + scenes):
        scene = make_scene(seed)
        draw(scene).save(images / f"{seed}.png")
        for number, question in enumerate(questions(scene, np.random.default_rng(seed))):
            said = [("human", f"<image>\n{question.text}"), ("gpt", question.answer)]
            talk = [{"from": who, "value": text} for who, text in said]
            rows.append({"id": f"{seed}-{number}", "image": f"{seed}.png", "conversations": talk})
    (folder / "data.json").write_text(json.dumps(rows), encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.study_trained", description=__doc__)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--methods", default="duet,foveate", help="or ''")
    parser.add_argument("--budgets", default="1/3,2/9,1/9", help="share of the tokens")
    parser.add_argument("--merging", default="pool", help="methods for the slots, or ''")
    parser.add_argument("--slots", default="1,4", help="positions of a merged token")
    parser.add_argument("--layouts", default="contiguous", help="of more slots than one")
    parser.add_argument("--merged-budgets", default="1/4")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--drawn", type=int, default=800, help="scenes to learn from")
    parser.add_argument("--scenes", type=int, default=300, help="scenes of the test split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="trained", help="of the files that are written")
    add_folders(parser, work="out/trained")
    args = parser.parse_args(argv)
    write_data(args.work, args.drawn)
    given = {name: split_list(getattr(args, name)) for name in ("budgets", "merged_budgets")}
    budgets = {name: [float(parse_budget(b)) for b in texts] for name, texts in given.items()}
    wanted = [Tuned()]
    methods, merging = ([m for m in split_list(t) if m] for t in (args.methods, args.merging))
    wanted += [Tuned(m, b) for m in methods for b in budgets["budgets"]]
    slots = sorted(int(k) for k in split_list(args.slots))
    layouts: Any = split_list(args.layouts)
    wanted += [
        Tuned(m, b, k, layout)
        for m in merging
        for b in budgets["merged_budgets"]
        for k in slots
        for layout in (layouts if k > 1 else [Tuned.layout])
    ]
    shared = [*OWN, f"optimizer.steps={args.steps}", f"seed={args.seed}"]
    reports = {
        tuned: tune(
            args.model,
            args.work,
            args.work / f"{tuned.name}-{args.steps}-{args.seed}",
            [*shared, *tuned.settings()],
        )
        for tuned in wanted
    }
    benchmark = Embedded("test", args.scenes, clips=0)

    def ask(tuned: Tuned, arms: list[Arm]) -> Asked:
        folder = reports[tuned]["folder"]
        model, processor = vlm.load(folder)
        answerer = ModelAnswerer(model, processor, folder)
        return Asked(benchmark, answerer, arms, args.work / "answers", args.seed)

    free = ask(Tuned(), [tuned.arm for tuned in wanted])
    dense, rows = free.units(DENSE), []
    units = {Tuned(): dense}
    for tuned in wanted:
        own = units[tuned] = ask(tuned, [tuned.arm]).units(tuned.arm)
        control = Tuned(tuned.method, tuned.budget)
        beside = control if tuned.slots > 1 and control in units else Tuned()
        row = {
            "method": tuned.method,
            "budget": tuned.budget,
            "slots": tuned.slots,
            "layout": tuned.layout,
            "dense": mean(dense),
            "free": mean(free.units(tuned.arm)),
            "trained": mean(own),
            "beside": beside.name,
            "against": against(units[beside], own),
            "against_free": against(free.units(tuned.arm), own),
            "training": reports[tuned],
        }
        rows.append(row)
    settings = [*SETTINGS, *shared]
    report = facts(
        "study_trained", argv, questions=len(dense), seed=args.seed, settings=settings, rows=rows
    )
    render(write_json(args.output / f"{args.name}.json", report), args.output / args.name)
    return 0


def several(row: dict[str, Any]) -> str:
    """The slots of a row, if there is more than one."""
    return f" K={row['slots']} {row['layout']}" if row["slots"] > 1 else ""


def render(found: dict[str, Any], path: Path) -> None:
    """Write the table and the picture of a report."""
    lines = [
        f"{'':22}{'tokens':>7}{'free':>8}{'trained':>9}{'of dense':>10}{'+/- free':>10}{'p':>8}"
        f"{'+/- beside':>12}{'p':>8}  beside"
    ]
    for row in found["rows"]:
        name = (row["method"] or "dense") + several(row)
        line = f"{name:22}{row['budget']:>7.3f}{row['free']:>8.1%}{row['trained']:>9.1%}"
        line += f"{row['trained'] / row['dense']:>10.1%}"
        line += f"{100 * row['against_free']['difference']:>+10.1f}{row['against_free']['p']:>8.2g}"
        line += f"{100 * row['against']['difference']:>+12.1f}{row['against']['p']:>8.2g}"
        lines.append(f"{line}  {row['beside']}")
    write_table(path, "\n".join(lines))
    figure, axes = canvas(7, 0.35 * len(found["rows"]) + 1.2)
    for place, row in enumerate(found["rows"]):
        axes.plot([100 * row["free"], 100 * row["trained"]], [place, place], color="#bbbbbb")
        for key, mark, hue in (("free", "o", "#E69F00"), ("trained", "s", "#0072B2")):
            label = key if place == 0 else "_"
            axes.plot(100 * row[key], place, mark, color=hue, label=label)
    axes.axvline(100 * found["rows"][0]["dense"], color="black", linestyle=":", label="dense")
    names = [
        f"{row['method'] or 'dense'} {row['budget']:.0%}{several(row)}" for row in found["rows"]
    ]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("right answers, %: without and with training under the reduction")
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.12))
    figure.savefig(path.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    sys.exit(main())
