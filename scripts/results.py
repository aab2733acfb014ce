"""`make results`: renders every table and picture of the studies from their JSON.

Nothing is measured. The tables go to docs/results/NAME.md. In docs/results.md, docs/schedules.md
and the pages of docs/studies/, the text between a line `<!-- table: NAME -->` and the next line
`<!-- end -->` is replaced by the table docs/results/NAME.md.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

from scripts import (
    ablate,
    accuracy,
    study_attention,
    study_budgets,
    study_cache,
    study_drift,
    study_experts,
    study_needle,
    study_one_pass,
    study_pixels,
    study_positions,
    study_saliency,
    study_schedule,
    study_scorer,
    study_small,
    study_speed,
    study_stream_cost,
    study_streams,
    study_systems,
    study_trained,
    study_turns,
    study_video,
    tune_foveate,
)
from scripts.common import RESULTS

STUDIES: dict[str, Any] = {
    study.__name__: study
    for study in (
        ablate,
        accuracy,
        study_attention,
        study_budgets,
        study_cache,
        study_drift,
        study_experts,
        study_needle,
        study_one_pass,
        study_pixels,
        study_positions,
        study_saliency,
        study_schedule,
        study_scorer,
        study_small,
        study_speed,
        study_stream_cost,
        study_streams,
        study_systems,
        study_trained,
        study_turns,
        study_video,
        tune_foveate,
    )
}


# The first table of docs/results.md: these budgets of docs/results/methods.json, of the embedded
# model's 144 visual tokens an image.
SUMMARY = "methods"
BUDGETS = {"1/3": "0.3333", "1/9": "0.1111"}
TOKENS = 144


def main(folder: Path = RESULTS) -> int:
    """Render every study that has been run, and fill in the pages that show its tables."""
    for path in sorted(folder.glob("*.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        study = STUDIES[facts["command"].split()[2]]  # python -m scripts.NAME ...
        with contextlib.redirect_stdout(io.StringIO()):
            study.render(facts, path.with_suffix(""))
        if path.stem == SUMMARY:
            table = summary(facts)
            path.with_name("summary.md").write_text(table + "\n", encoding="utf-8")
        print(path)
    for page in pages(folder.parent):
        page.write_text(filled(page.read_text(encoding="utf-8"), folder), encoding="utf-8")
        print(page)
    return 0


def pages(docs: Path) -> list[Path]:
    """The pages that show tables."""
    first = (
        docs / f"{name}.md"
        for name in (
            "results",
            "schedules",
            "streams",
            "positions",
            "eval",
            "compress",
            "calibration",
        )
    )
    return [*first, *sorted((docs / "studies").glob("*.md"))]


def summary(facts: dict[str, Any]) -> str:
    """Methods x budgets as a Markdown table: accuracy, both token counts, share of the prefill.

    All are the measured ones.
    """
    dense, *rows = facts["results"]
    by_title = {row["title"]: row for row in rows}
    head = "| method | budget 1/3: accuracy | entering | average | prefill "
    head += "| budget 1/9: accuracy | entering | average | prefill |"
    dense_columns = f"{dense['accuracy']['mean']:.1%} | {TOKENS}.0 | {TOKENS}.0 | 100%"
    lines = [head, "|---|" + "--:|" * 8, f"| dense | {dense_columns} | {dense_columns} |"]
    names = dict.fromkeys(row["title"].split()[0] for row in rows)
    cells = {
        name: [_cells(by_title[f"{name} {budget}"], dense) for budget in BUDGETS.values()]
        for name in names
    }
    # Best first at the smaller budget; methods that cannot reach it last.
    for name in sorted(cells, key=lambda name: cells[name][::-1], reverse=True):
        lines.append(f"| {name} | " + " | ".join(text for _, text in cells[name]) + " |")
    return "\n".join(lines)


def _cells(row: dict[str, Any], dense: dict[str, Any]) -> tuple[float, str]:
    """Accuracy (0 if the budget was not reached) and the four columns of one configuration."""
    budget = row["title"].split()[1]
    figures, mean = row["figures"], row["accuracy"]["mean"]
    share = figures["tokens"] / dense["figures"]["tokens"]
    if abs(share / float(budget) - 1) > 0.05:
        return 0.0, "- | - | - | -"
    entering = TOKENS * figures["entering"] / dense["figures"]["tokens"]
    prefill = figures["macs"] / figures["dense_macs"]
    return mean, f"{mean:.1%} | {entering:.1f} | {TOKENS * share:.1f} | {prefill:.0%}"


def filled(text: str, folder: Path) -> str:
    """A page filled with the tables that it names. Raises FileNotFoundError if one is missing."""

    def table(marker: re.Match[str]) -> str:
        body = (folder / f"{marker[1]}.md").read_text(encoding="utf-8").strip()
        gap = "\n" if body.startswith("|") else ""  # a Markdown table needs an empty line before it
        return f"<!-- table: {marker[1]} -->\n{gap}{body}\n{gap}<!-- end -->"

    return re.sub(r"<!-- table: ([\w-]+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


if __name__ == "__main__":
    sys.exit(main())
