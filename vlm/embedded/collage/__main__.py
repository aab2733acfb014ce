"""Write collages as files, for training or for another harness.

    python -m vlm.embedded.collage llava --split train --scenes 2000 --output collages
    python -m vlm.embedded.collage mmbench --split val --scenes 60 --output collages

`llava` writes pictures and conversations, `mmbench` one TSV that holds the pictures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vlm.embedded.collage.files import write_llava, write_mmbench
from vlm.embedded.collage.scene import SPLITS, Pictures
from vlm.embedded.small import CACHE


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m vlm.embedded.collage",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("form", choices=("llava", "mmbench"))
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--pictures", type=Path, default=CACHE / "collage", help="their folder")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    if args.scenes < 1:
        parser.error(f"--scenes is {args.scenes}: expected 1 or more")
    try:
        given = (args.output, args.split, args.scenes, Pictures(args.pictures))
        if args.form == "mmbench":
            path = write_mmbench(*given)
        else:
            *_, path = write_llava(*given)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
