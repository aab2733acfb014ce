"""`python -m vlm.families`: every model family in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vlm.families import ADAPTERS


def main(arguments: Sequence[str] | None = None, prog: str = "python -m vlm.families") -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description="List the model families.")
    parser.parse_args(arguments)
    print(f"{'family':18}{'model_type':34}inputs")
    for family in ADAPTERS:
        video = family.frames_are_images or "video" in family.kinds
        kinds = "images, videos" if video else "images"
        print(f"{family.name:18}{', '.join(sorted(family.model_types)):34}{kinds}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
