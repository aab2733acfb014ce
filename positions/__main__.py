"""Print and draw a plan: python -m positions --text 30 --image 24x24 --scheme v2pe:1/16

`python -m positions diagnose --model DIR ...` adds how often rotation reverses the order of keys.
With `--picture FILE --ask QUESTION` it runs the model, and says where the attention of the prompt's
last token goes: by segment, and by place among visual tokens, dense and reduced.

Segments are planned in the order of the arguments. A visual input may name its own scheme after an
@ (--image 64x64@compact:row).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from positions.diagnose import diagnose
from positions.draw import draw
from positions.errors import PositionError
from positions.layout import Image, Scheme, Segment, Text, Video
from positions.plan import Plan, plan
from positions.schemes import V2PE, Compact, MRoPE, Randomised, Sequential, Traversal
from positions.slots import PPE

SCHEMES = (
    "sequential; v2pe:STEP, such as v2pe:1/16; v2pe:random; v2pe:auto:WINDOW; mrope; "
    "mrope:POSITIONS_A_SECOND; mrope:xFACTOR of the time axis, such as mrope:x1/8; compact:row, "
    "all, row_col or original; traversal:row, column or snake; randomised:SPAN, "
    "such as randomised:2048 or randomised:8x64x64"
)


def parse_scheme(text: str) -> Scheme:
    """A scheme from its short name (see --help). Raises PositionError on any other."""
    name, _, rest = text.partition(":")
    try:
        if name == "sequential" and not rest:
            return Sequential()
        if name == "v2pe" and rest.startswith("auto:"):
            return V2PE("auto", window=int(rest.removeprefix("auto:")))
        if name == "v2pe":
            return V2PE("random") if rest == "random" else V2PE(float(Fraction(rest or "1/4")))
        if name == "mrope" and rest.startswith("x"):
            return MRoPE(time_scale=float(Fraction(rest.removeprefix("x"))))
        if name == "mrope":
            return MRoPE(tokens_per_second=float(Fraction(rest)) if rest else None)
        if name == "compact":
            return Compact(rest or "row")  # type: ignore[arg-type]
        if name == "traversal":
            return Traversal(rest or "column")  # type: ignore[arg-type]
        if name == "randomised":
            span = _sides(rest)
            return Randomised(span[0] if len(span) == 1 else span)  # type: ignore[arg-type]
    except PositionError:
        raise
    except (ValueError, ZeroDivisionError):
        pass
    raise PositionError(f"scheme {text!r}: expected one of {SCHEMES}")


@dataclass
class Windows:
    """A reduction for demonstration: each window of the grid is merged into its middle token."""

    assign: Tensor
    anchor: Tensor

    @classmethod
    def of(cls, item: Image | Video, rows: int, columns: int) -> Windows:
        """Windows of rows x columns grid cells in each step of `item`."""
        t, h, w = item.shape
        wide = -(-w // columns)
        row = torch.arange(h) // rows * wide
        window = row[:, None] + torch.arange(w) // columns
        count = -(-h // rows) * wide
        assign = (torch.arange(t)[:, None, None] * count + window).flatten()
        order = assign.argsort(stable=True)
        sizes = torch.bincount(assign)
        anchor = order[sizes.cumsum(0) - sizes + sizes // 2]
        ascending = anchor.argsort()
        return cls(ascending.argsort()[assign], anchor[ascending])


def main(arguments: Sequence[str] | None = None, prog: str = "python -m positions") -> int:
    """Run the command; returns the exit status."""
    parser = _parser(prog)
    given = list(sys.argv[1:] if arguments is None else arguments)
    diagnosing = given[:1] == ["diagnose"]
    options = parser.parse_args(given[diagnosing:])
    if diagnosing and not options.config:
        parser.error("diagnose needs the model's frequencies: name it with --model")
    if options.picture and not diagnosing:
        parser.error("--picture is measured by `diagnose`")
    if options.picture:
        return _attention(options)
    try:
        scheme = parse_scheme(options.scheme)
        segments = [_segment(kind, value, options) for kind, value in options.segments or []]
        if not segments:
            parser.error("nothing to plan: name segments with --text, --image or --video")
        generator = torch.Generator().manual_seed(options.seed)
        made = plan(segments, scheme, start=options.start, generator=generator)
        if options.merge:
            rows, columns = _sides(options.merge, 2)
            merged = {
                index: Windows.of(item, rows, columns)
                for index, item in enumerate(segments)
                if not isinstance(item, Text)
            }
            slots = PPE(options.slots, options.slot_layout) if options.slots > 1 else None
            made = made.after(merged, slots, options.renumber)
        _print(made)
        if options.config:
            from transformers import AutoConfig

            config = AutoConfig.from_pretrained(options.config, local_files_only=True)
            for line in made.check(config, getattr(torch, options.dtype)) or ["nothing to warn of"]:
                print("check:", line)
            if diagnosing:
                _print_rates(made, config)
        if options.out:
            draw(made, options.out, options.scheme)
            print("drawn:", options.out)
    except PositionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog, description=__doc__)
    add = parser.add_argument
    for name, form in (("text", "N"), ("image", "HxW[@SCHEME]"), ("video", "TxHxW[@SCHEME]")):
        add(f"--{name}", action=_Append, dest="segments", metavar=form, help=f"a {name} segment")
    add("--scheme", default="sequential", help=SCHEMES)
    add("--times", type=float, help="seconds between the steps of videos")
    add("--start", type=float, default=0.0, help="position of the first token")
    add("--merge", metavar="RxC", help="merge windows of R x C grid cells, to show a reduction")
    add("--slots", type=int, default=1, help="positions that a merged token keeps (PPE)")
    add("--slot-layout", default="contiguous", choices=("contiguous", "strided"))
    add("--renumber", action="store_true", help="number the kept tokens without gaps")
    add("--seed", type=int, default=0, help="of random schemes")
    add("--config", "--model", help="folder or config.json of a model to check the plan against")
    add("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    add("--picture", action="append", metavar="FILE", help="measure attention to this; repeatable")
    add("--ask", default="What is shown?", metavar="QUESTION", help="what is asked about pictures")
    add("--method", default="foveate", help="how visual tokens are reduced")
    add("--budget", default="1/9", help="tokens (64) or a share (0.11, 1/9)")
    add("--out", help="draw to this file")
    return parser


class _Append(argparse.Action):
    """Keep segments of all kinds in the order of the arguments."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        namespace.segments = [*(namespace.segments or []), (option.removeprefix("--"), values)]


def _segment(kind: str, value: str, options: argparse.Namespace) -> Segment:
    form, _, own = value.partition("@")
    scheme = parse_scheme(own) if own else None
    if kind == "text":
        (length,) = _sides(form, 1)
        return Text(length)
    if kind == "image":
        rows, columns = _sides(form, 2)
        return Image((rows, columns), scheme)
    steps, rows, columns = _sides(form, 3)
    return Video((steps, rows, columns), options.times, scheme)


def _sides(text: str, count: int | None = None) -> tuple[int, ...]:
    parts = text.split("x")
    if not all(part.isdecimal() for part in parts) or count not in (None, len(parts)):
        wanted = "numbers joined by x" if count is None else f"{count} numbers joined by x"
        raise PositionError(f"{text!r}: expected {wanted}")
    return tuple(int(part) for part in parts)


def _print(made: Plan) -> None:
    print(f"{'segment':<24}{'tokens':>8}  first (t, h, w)         last (t, h, w)")
    for index, item in enumerate(made.segments):
        rows = made.rows(index)
        shape = item.length if isinstance(item, Text) else "x".join(map(str, item.grid))
        line = f"{index} {type(item).__name__.lower()} {shape}"
        ends = [_format(made.positions[rows[end], 0]) for end in (0, -1)] if len(rows) else ["", ""]
        print(f"{line:<24}{len(rows):>8}  {ends[0]:<24}{ends[1]}")
    dense = len(made.dense_positions)
    print(f"{len(made)} tokens ({dense} dense), {made.positions.shape[1]} slots, next token at "
          f"{made.next_position:g}")  # fmt: skip


def _print_rates(made: Plan, config: Any) -> None:
    """What rotation does to scores at the planned distances, see `positions.diagnose`."""
    for one in diagnose(made, config):
        print(
            f"segment {one.segment}: at distances {one.nearest:g} to {one.farthest:g}, rotation "
            f"reverses which of two keys scores higher in {one.flips:.1%} of pairs, and the "
            f"farther of two equal keys scores higher in {one.inversions:.1%}"
        )


def _attention(options: argparse.Namespace) -> int:
    """Measure, print and draw where the attention of a prompt's last token goes."""
    import vlm
    from compress.parse import parse_budget, parse_method
    from compress.probing.attention_mass import attention_mass
    from compress.probing.mass_picture import draw_mass
    from vlm.prompts import picture_prompt

    try:
        model, processor = vlm.load(options.config)
        model.set_attn_implementation("eager")
        pictures = [vlm.read_image(path) for path in options.picture]
        inputs = picture_prompt(model, processor, pictures, options.ask)
        reduced = parse_method(options.method), parse_budget(options.budget)
        arms: dict[str, Any] = {
            "dense": ("uniform", 1.0),
            f"{options.method} {options.budget}": reduced,
        }
        found = {name: attention_mass(model, inputs, *arm).facts() for name, arm in arms.items()}
    except (ValueError, TypeError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    for name, one in found.items():
        print(name)
        for part, shares in one["parts"].items():
            layers = "".join(f"{share:7.1%}" for share in shares[:-1])
            print(f"  {part:<12}layers{layers}   rollout{shares[-1]:7.1%}")
        print(f"  {'by place':<12}rollout" + "".join(f"{x:7.1%}" for x in one["places"][-1]))
    if options.out:
        draw_mass(found, options.out)
        print("drawn:", options.out)
    return 0


def _format(position: Tensor) -> str:
    values = [f"{value:.10g}" for value in position.tolist()]
    return values[0] if len(set(values)) == 1 else f"({', '.join(values)})"


if __name__ == "__main__":
    sys.exit(main())
