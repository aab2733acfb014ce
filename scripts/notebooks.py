"""The examples as notebooks: python -m scripts.notebooks writes examples/notebooks/*.ipynb.

A notebook has the docstring as text, the program as one cell, and a call with its arguments as the
last, where a reader changes them.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parent.parent / "examples"


def notebook(path: Path) -> dict[str, Any]:
    """The notebook of one example, in nbformat 4.5. It holds no output."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    text = str(ast.get_docstring(tree)).split("\n")
    title, about = text[0], "\n".join(text[1:]).strip()
    lines = source.splitlines()
    first, last = (tree.body[0].end_lineno or 0), tree.body[-1].lineno - 1
    program = "\n".join(lines[first:last]).strip()
    call = f'sys.argv = ["{path.name}"]  # further words are arguments\nmain()'
    if "import sys\n" not in program:
        call = "import sys\n\n" + call
    cells: list[dict[str, Any]] = [
        {"cell_type": "markdown", "source": f"# {title}\n\n```\n{about}\n```"},
        *(
            {"cell_type": "code", "source": code, "execution_count": None, "outputs": []}
            for code in (program, call)
        ),
    ]
    for number, cell in enumerate(cells):
        cell |= {"id": f"cell-{number}", "metadata": {}}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def written(path: Path) -> str:
    """The file of an example's notebook."""
    return json.dumps(notebook(path), indent=1, sort_keys=True) + "\n"


def main() -> None:
    """Write the notebook of every example."""
    folder = EXAMPLES / "notebooks"
    folder.mkdir(exist_ok=True)
    for path in sorted(EXAMPLES.glob("*.py")):
        (folder / f"{path.stem}.ipynb").write_text(written(path), encoding="utf-8")


if __name__ == "__main__":
    main()
