"""Compare methods and budgets on a benchmark, with paired tests, and write a report.

python examples/sweep.py                                   # the embedded model and benchmark
python examples/sweep.py --scenes 200 --methods foveate,duet,divprune,random --budgets 1/3,1/9

The same on a model and a benchmark of your own: docs/eval.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from eval.__main__ import main as evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default="duet,random")
    parser.add_argument("--budgets", default="1/3")
    parser.add_argument("--scenes", default="4", help="each with about six questions")
    parser.add_argument("--output", type=Path, default=Path("sweep"))
    options = parser.parse_args()
    settings = ["--methods", options.methods, "--budgets", options.budgets]
    settings += ["--scenes", options.scenes, "--clips", "0", "--output", str(options.output)]
    if status := evaluate(["embedded", *settings]):
        sys.exit(status)
    (folder,) = options.output.iterdir()  # its name has a digest of the settings
    summary = json.loads((folder / "summary.json").read_text())
    print("in the summary:", ", ".join(summary))
    print(f"{folder / 'report.html'} has the table, {folder / 'accuracy.png'} the picture")


if __name__ == "__main__":
    main()
