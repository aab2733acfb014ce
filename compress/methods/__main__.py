"""`python -m compress.methods`: every method in one line."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from compress.methods import METHODS, Method

DEPTH = 32  # decoder layers of LLaVA-1.5-7B


def paper(method: type[Method]) -> str:
    """Where a method was published, as its docstring says; "-" for the baselines."""
    text = " ".join((method.__doc__ or "").split(".  ")[0].split())
    published = re.search(r"\(([^()]*(?:arXiv|ICLR|EMNLP|NeurIPS|CVPR|ECCV|code)[^()]*)\)", text)
    if published is None:
        return "this package" if "this package" in text else "-"
    name = re.split(r", section|; |, as ", published.group(1))[0]
    return name.removeprefix("Bolya et al., ").removeprefix("code ")


def row(name: str) -> tuple[str, ...]:
    """Name, stages, fields that are read, cost, whether the question counts, paper."""
    method = METHODS[name]()
    staged = bool(method.own_schedule(DEPTH))
    if method.resizes_input or method.prunes_patches:
        stages = "pre-ViT"
    else:
        names = ("pre-LLM" * (not method.in_llm_only), "in-LLM" * staged)
        stages = " + ".join(stage for stage in names if stage)
    in_llm = method.in_llm_needs if staged else frozenset[str]()
    before = frozenset() if method.in_llm_only else method.needs | method.wants
    reads = sorted(before - {"pre_projector"}) + [f"{field} (LLM)" for field in sorted(in_llm)]
    text = bool({"text_query", "text"} & (before | in_llm)) or "scores" in in_llm
    cost = "N x N" if method.pairwise and not method.in_llm_only else "< N x N"
    return (name, stages, cost, "yes" if text else "no", paper(METHODS[name]), ", ".join(reads))


def table() -> str:
    """One line a method under a heading."""
    rows: list[tuple[str, ...]] = [("method", "where", "cost", "question", "paper", "reads")]
    rows += [row(name) for name in sorted(METHODS)]
    widths = [max(len(line[column]) for line in rows) + 2 for column in range(len(rows[0]))]
    return "\n".join(
        "".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in rows
    )


def main(arguments: Sequence[str] | None = None, prog: str = "python -m compress.methods") -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="List the methods: where they reduce, the order of their cost, whether the "
        "question changes what they keep, the paper, and what they read.",
    )
    parser.parse_args(arguments)
    print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
