"""`make results`: every table and picture of the studies, made again from their JSON.

Nothing is measured. Where docs/results.md holds a line `<!-- table: NAME -->`, what stands between
it and the line `<!-- end -->` is replaced by the table docs/results/NAME.md.
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
    study_experts,
    study_needle,
    study_positions,
    study_speed,
    study_trained,
    study_video,
    tune_foveate,
)
from scripts.common import RESULTS

STUDIES: dict[str, Any] = {
    study.__name__: study
    for study in (
        ablate,
        accuracy,
        study_experts,
        study_needle,
        study_positions,
        study_speed,
        study_trained,
        study_video,
        tune_foveate,
    )
}


def main(folder: Path = RESULTS) -> int:
    """Render every study that has been run, then the tables in the page."""
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        study = STUDIES[found["command"].split()[2]]  # python -m scripts.NAME ...
        with contextlib.redirect_stdout(io.StringIO()):
            study.render(found, path.with_suffix(""))
        print(path)
    page = folder.parent / "results.md"
    page.write_text(filled(page.read_text(encoding="utf-8"), folder), encoding="utf-8")
    print(page)
    return 0


def filled(text: str, folder: Path) -> str:
    """The page with the tables that it names."""

    def table(found: re.Match[str]) -> str:
        body = (folder / f"{found[1]}.md").read_text(encoding="utf-8").strip()
        return f"<!-- table: {found[1]} -->\n{body}\n<!-- end -->"

    return re.sub(r"<!-- table: ([\w-]+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


if __name__ == "__main__":
    sys.exit(main())
