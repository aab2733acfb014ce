"""What the small judge knows, by category: `python -m scripts.study_small`.

Asks it about collages of a split with all visual tokens, and the same questions without pictures.
`--unseen` adds scenes whose things are drawn in a style that training never showed. The questions
about a picture are answered together, so the picture is read once. Figures have 95% intervals,
clustered by picture; chance is the best constant answer for each form of question. Writes
`<name>.json`, `<name>.md` and `<name>.png`. An interrupted run is resumed by the same command.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import vlm
from eval.answerers import DTYPES, ModelAnswerer
from eval.arms import DENSE
from eval.benchmarks.collage import Collage
from eval.samples import Sample
from scripts.common import (
    COLOURS,
    Asked,
    add_folders,
    canvas,
    facts,
    result_of,
    write_json,
    write_table,
)
from vlm.embedded.collage import CATEGORIES, published
from vlm.embedded.small import CACHE

SPLITS = {"val": "validation", "test": "test", "unseen": "unseen looks"}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.study_small", description=__doc__)
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--unseen", type=int, default=0, help="scenes of the split 'unseen'")
    parser.add_argument("--name", default="small-val", help="of the files that are written")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--seed", type=int, default=0, help="of the intervals")
    add_folders(parser, work="out/small-study")
    args = parser.parse_args(argv)
    model, processor = vlm.load("small", dtype=DTYPES[args.dtype])
    answerer = ModelAnswerer(model, processor, "small", share_prompts=True)
    benchmarks = [Collage(args.split, args.scenes)]
    benchmarks += [Collage("unseen", args.unseen)] if args.unseen else []
    report = facts(
        "study_small",
        argv,
        seed=args.seed,
        dtype=args.dtype,
        published_pictures=published(CACHE / "collage"),
        splits=[known(benchmark, answerer, args.work, args.seed) for benchmark in benchmarks],
    )
    render(write_json(args.output / f"{args.name}.json", report), args.output / args.name)
    return 0


def known(benchmark: Collage, answerer: Any, work: Path, seed: int) -> dict[str, Any]:
    """What the judge knows of one split, with and without pictures."""
    asked = Asked(benchmark, answerer, [DENSE], work, seed)
    blind = Asked(replace(benchmark, blind=True), answerer, [DENSE], work, seed)
    (dense,), (unaided,) = asked.results(), blind.results()
    return {
        "split": benchmark.split,
        "scenes": benchmark.scenes,
        "questions": len(asked.samples),
        "sha256": digest(asked.samples),
        "chance": asked.chance(),
        "dense": asdict(dense),
        "blind": asdict(unaided),
    }


def digest(samples: list[Sample]) -> str:
    """SHA-256 of the questions and their answers, which names the version of a split."""
    rows = [[sample.key, sample.prompt, sample.answer] for sample in samples]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def render(found: dict[str, Any], path: Path) -> None:
    """Write the table and the picture of a report."""
    names = [*CATEGORIES, "all"]
    head = "            questions  right     95% interval  chance   blind"
    lines = []
    figure, axes = canvas(8, 3.6)
    for number, split in enumerate(found["splits"]):
        dense, blind = (result_of(split[side]) for side in ("dense", "blind"))
        title = SPLITS[split["split"]]
        lines += [f"{title}: {split['scenes']} pictures, {split['sha256'][:8]}", head]
        right: list[Any] = [dense.by["category"].get(name, dense.accuracy) for name in names]
        unaided: list[Any] = [blind.by["category"].get(name, blind.accuracy) for name in names]
        for name, one, none in zip(names, right, unaided, strict=True):
            span = f"{one.low:.1%} .. {one.high:.1%}"
            line = f"{name:<12}{one.count:>9}{one.mean:>7.1%}{span:>17}"
            lines.append(f"{line}{split['chance'][name]:>8.1%}{none.mean:>8.1%}")
        lines.append("")
        places = [k + 0.4 * number for k in range(len(names))]
        draw(axes, places, right, (title, COLOURS[1 + number]))
        label = "without the picture" if not number else "_"
        heights = [100 * none.mean for none in unaided]
        axes.hlines(heights, [p - 0.19 for p in places], [p + 0.19 for p in places], "black")
        axes.plot([], [], color="black", label=label)
    write_table(path, "\n".join(lines).rstrip())
    axes.set_xticks([k + 0.2 * (len(found["splits"]) - 1) for k in range(len(names))], names)
    axes.set_ylabel("right answers, % (95% intervals)")
    axes.set_ylim(0, 100)
    axes.legend(ncols=3, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    figure.savefig(path.with_suffix(".png"), dpi=110)


def draw(axes: Any, places: list[float], right: list[Any], style: tuple[str, str]) -> None:
    """Bars of one split with their intervals. style: label and colour."""
    errors = [[100 * (i.mean - i.low) for i in right], [100 * (i.high - i.mean) for i in right]]
    axes.bar(
        places,
        [100 * i.mean for i in right],
        0.38,
        yerr=errors,
        label=style[0],
        color=style[1],
        ecolor="#777777",
        capsize=2,
    )


if __name__ == "__main__":
    sys.exit(main())
