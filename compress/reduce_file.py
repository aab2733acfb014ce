"""`python -m compress reduce features.safetensors --method divprune --budget 64`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from compress.parse import parse_budget, parse_method
from compress.reduce import reduce

FIELDS = (
    "keys",
    "saliency",
    "text_query",
    "text_query_mask",
    "pre_projector",
    "shallow_saliency",
    "attention",
)


def main(arguments: Sequence[str] | None = None, prog: str = "python -m compress") -> int:
    """Reduce the features in a file and write the reduction; returns the exit status."""
    args = _parser(prog).parse_args(arguments)
    try:
        grid = _grid(args.grid)
        given = _read(args.file)
        generator = torch.Generator().manual_seed(args.seed)
        reduction = reduce(
            given.pop("features"),
            parse_method(args.method),
            parse_budget(args.budget),
            grid=grid,
            generator=generator,
            **{name: given[name] for name in FIELDS if name in given},
        )
        out = args.out or args.file.with_name(f"{args.file.stem}-reduced.safetensors")
        out.parent.mkdir(parents=True, exist_ok=True)
        names = ("features", "assign", "anchor", "size")
        save_file({name: getattr(reduction, name).contiguous() for name in names}, out)
    except (ValueError, TypeError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(f"{reduction.assign.shape[1]} tokens -> {reduction.count}")
    print(f"wrote {out}")
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{prog} reduce",
        description="Reduce visual features by the pre-LLM part of a method. The file holds "
        f"`features` (B, N, D) and, if the method reads them, {', '.join(FIELDS)}. Written are "
        "`features` (B, M, D), `assign` (B, N), `anchor` (B, M) and `size` (B, M).",
    )
    add = parser.add_argument
    add("file", type=Path, help="a safetensors file")
    add("--method", default="divprune", help="a name, or one with options (divprune)")
    add("--budget", default="1/4", help="tokens (64) or a share (0.11, 1/9)")
    add("--grid", help="HxW or TxHxW of the tokens; one row by default")
    add("--seed", type=int, default=0, help="of methods that draw")
    add("--out", type=Path, help="by default NAME-reduced.safetensors beside the file")
    return parser


def _grid(text: str | None) -> tuple[int, int] | tuple[int, int, int] | None:
    if text is None:
        return None
    sides = text.split("x")
    if len(sides) not in (2, 3) or not all(side.isdecimal() for side in sides):
        raise ValueError(f"--grid is {text!r}: expected HxW or TxHxW, such as 24x24")
    return tuple(int(side) for side in sides)  # type: ignore[return-value]


def _read(path: Path) -> dict[str, Tensor]:
    try:
        given = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error})") from error
    if "features" not in given:
        raise ValueError(f"{path} holds {', '.join(sorted(given)) or 'nothing'}: no `features`")
    return given
