"""`python -m compress.probing --model ./llava --out probe.png`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import vlm
from compress.probing.measure import Prompt, drawn_prompts, probe
from vlm.progress import quiet_logs

QUESTION = "What is shown in the picture?"


def main(argv: list[str] | None = None) -> int:
    """Probe a model, print the verdict and draw it; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m compress.probing",
        description="Measure which decoder layers of a model still read its visual tokens.",
    )
    parser.add_argument("--model", default="mini", help="'mini', a folder, or a hub model's name")
    parser.add_argument("--images", type=Path, help="a folder of pictures; default: drawn ones")
    parser.add_argument("--question", default=QUESTION, help="asked about each of --images")
    parser.add_argument("--samples", type=int, default=32, help="prompts")
    parser.add_argument("--max-new-tokens", type=int, default=8, help="length of the answers")
    parser.add_argument("--folder", type=Path, help="where it is saved (default: the hub's cache)")
    parser.add_argument("--out", type=Path, default=Path("out/probe.png"))
    args = parser.parse_args(argv)
    quiet_logs()
    try:
        if args.samples < 1:
            raise ValueError(f"--samples is {args.samples}: expected at least 1")
        prompts = prompts_of(args.images, args.question, args.samples)
        model, processor = vlm.load(args.model)
        options = {"max_new_tokens": args.max_new_tokens, "folder": args.folder}
        verdict = probe(model, processor, prompts, **options)
        verdict.draw(args.out)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(verdict)
    return 0


def prompts_of(folder: Path | None, question: str, count: int) -> list[Prompt]:
    """The first `count` pictures of a folder, each with the question; or drawn prompts."""
    if folder is None:
        return drawn_prompts(count)
    paths = [path for path in sorted(folder.iterdir()) if path.is_file()][:count]
    if not paths:
        raise ValueError(f"--images {folder} holds no file")
    return [(vlm.read_image(path), question) for path in paths]


if __name__ == "__main__":
    raise SystemExit(main())
