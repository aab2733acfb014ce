"""`python -m compress photo.jpg --budget 64 --method all --out sheet.png`.

`python -m compress reduce features.safetensors` is in compress/reduce_file.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

import vlm
from compress import Cost, Report, compress, get_method, list_methods
from compress.defaults import BUDGET, METHOD
from compress.parse import (
    SCHEDULES,
    parse_any_budget,
    parse_calibration,
    parse_method,
    parse_schedule,
    split_list,
)
from compress.report.cost import runs
from compress.report.overlay import legend, overlay, panel, sheet, stack
from vlm.families import adapter_of
from vlm.progress import quiet_logs
from vlm.prompts import picture_prompt

PROMPT = "Describe the picture."


def main(argv: Sequence[str] | None = None, prog: str = "python -m compress") -> int:
    """Draw what methods keep of pictures or of a video's frames, and print what it costs."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["reduce"]:
        from compress.reduce_file import main as reduce_file

        return reduce_file(argv[1:], prog)
    parser = argparse.ArgumentParser(
        prog=prog, description="Draw what methods keep of a picture or a video."
    )
    parser.add_argument("media", type=Path, help="a picture, or a video")
    parser.add_argument("--method", default=METHOD, help="a name, several with commas, or 'all'")
    parser.add_argument("--budget", default=str(BUDGET), help="64, 1/9, coverage:0.95")
    parser.add_argument(
        "--schedule", choices=SCHEDULES, default="own", help="in-LLM pruning schedule"
    )
    parser.add_argument(
        "--calibrate", default="own", help="own, none, or size+first_layer+distance"
    )
    parser.add_argument(
        "--keep-phase", type=float, default=0.0, help="share kept for its positions, such as 0.05"
    )
    parser.add_argument("--prompt", default=PROMPT, help="the question that comes with it")
    parser.add_argument("--frames", type=int, default=6, help="frames of a video")
    parser.add_argument("--model", default="mini", help="'mini', a folder, or a hub model's name")
    parser.add_argument("--out", type=Path, default=Path("out/compress.png"))
    args = parser.parse_args(argv)
    quiet_logs()
    try:
        names = list_methods() if args.method == "all" else split_list(args.method)
        budget = parse_any_budget(args.budget)
        more: dict[str, Any] = {
            "schedule": parse_schedule(args.schedule),
            "calibrate": parse_calibration(args.calibrate),
            "keep_phase": args.keep_phase,
        }
        frames = read_frames(args.media, args.frames)
        model, processor = vlm.load(args.model)
        if args.method == "all" and not adapter_of(model).prunes_patches:
            names = [name for name in names if not get_method(name).prunes_patches]
        methods = [get_method(parse_method(name)) for name in names]
        reports, rows = [], []
        for name, method in zip(names, methods, strict=True):
            with compress(model, method, budget, **more) as attached:
                ask(model, processor, frames, args.prompt)
                reports.append(attached.report())
                steps = [attached.steps(index) for index in range(len(frames))]
            if len(methods) > 1:
                rows += [_telling(name, *both) for both in zip(frames, steps, strict=True)]
            else:
                rows += [overlay(*both, title=name) for both in zip(frames, steps, strict=True)]
    except (ValueError, TypeError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    if len(methods) > 1:
        print(compare(names, reports))
        several = len(frames) if len(frames) > 1 else 6
        drawn = sheet(rows, columns=min(several, len(rows)))
    else:
        print(reports[0])
        drawn = stack(rows)
    title = f"{args.media.name}, budget {args.budget}"
    write(stack([legend(drawn.width, title), drawn]), args.out)
    return 0


def _telling(name: str, frame: Image.Image, steps: list[Any]) -> Image.Image:
    """The first step that takes tokens away, under the method's name."""
    reduced = (s for s in steps if s[2].count < s[1][0] * s[1][1] * s[1][2])
    words, grid, reduction = next(reduced, steps[-1])
    where = "" if words.startswith("before") else f", {words}"
    return panel(frame, name + where, grid, reduction)


def compare(names: list[str], reports: list[Report]) -> str:
    """One line a method: measured budget, tokens a layer, cost."""
    lines = [
        f"{'method':13}{'mean':>8}{'GMAC':>9}{'KiB cache':>11}{'ms reduce':>11}  tokens a layer"
    ]
    dense = reports[0].dense
    lines.append(f"{'dense':13}{dense.layers[0] / reports[0].inputs:8.2f}{_costs(dense)}")
    lines += [
        f"{n:13}{r.budget:8.2f}{_costs(r.reduced)}" for n, r in zip(names, reports, strict=True)
    ]
    return "\n".join(lines)


def _costs(cost: Cost) -> str:
    spent = "-" if cost.reduce is None else f"{cost.reduce:.2f}"
    return f"{cost.macs / 1e9:9.3f}{cost.cache / 1024:11.1f}{spent:>11}  {runs(cost.layers)}"


def read_frames(path: Path, frames: int) -> list[Image.Image]:
    """A picture as one frame, or evenly spaced frames of a video."""
    try:
        return [vlm.read_image(path)]
    except vlm.MediaError as no_picture:
        try:
            video = vlm.read_video(path, frames=frames)
        except vlm.MediaError as no_video:
            raise no_video from no_picture
    return [Image.fromarray(frame) for frame in video.frames]


def ask(model: Any, processor: Any, frames: list[Image.Image], prompt: str, new: int = 12) -> str:
    """Ask about some pictures in one prompt; returns the answer."""
    inputs = picture_prompt(model, processor, frames, prompt)
    out = model.generate(**inputs, max_new_tokens=new, do_sample=False)
    answer = out[0, inputs["input_ids"].shape[1] :]
    return str(processor.tokenizer.decode(answer, skip_special_tokens=True)).strip()


def write(picture: Image.Image, path: Path) -> None:
    """Save a picture; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
