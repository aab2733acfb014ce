"""What a person reads: a table as text."""

from __future__ import annotations

from collections.abc import Sequence

from eval.summary import Result


def table(results: Sequence[Result], *, column: str | None = "category") -> str:
    """Results as aligned text, one line a configuration, one column a value of `column`."""
    kinds = sorted({k for r in results for k in r.by.get(column or "", {})})
    head = ["", "tokens", "accuracy", "95% interval", "of dense", "+/-", "p", *kinds, "s each"]
    rows = [head, *(_row(result, column or "", kinds) for result in results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _row(result: Result, column: str, kinds: Sequence[str]) -> list[str]:
    accuracy, against, figures = result.accuracy, result.against, result.figures
    tokens = figures.get("tokens")
    by = result.by.get(column, {})
    return [
        result.title,
        "" if tokens is None else f"{tokens:.1f}",
        "" if accuracy is None else f"{accuracy.mean:.1%}",
        "" if accuracy is None else f"{accuracy.low:.1%} .. {accuracy.high:.1%}",
        "" if result.share is None else f"{result.share:.1%}",
        "" if against is None else f"+{against.gained} -{against.lost}",
        "" if against is None else f"{against.p:.2g}",
        *(f"{by[kind].mean:.1%}" if kind in by else "" for kind in kinds),
        f"{figures['seconds']:.3f}" if "seconds" in figures else "",
    ]
