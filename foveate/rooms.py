"""The packages of this distribution are imported from beside this one, whatever lies elsewhere.

Python searches the folder of a script, or the working folder under `python -m`, before installed
packages. A user's own `train.py` there would be imported in the place of the package `train`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

ROOMS = ("positions", "vlm", "compress", "train", "eval")
ROOT = Path(__file__).resolve().parent.parent


class OwnRooms:
    """A finder of `sys.meta_path` that knows the packages in `ROOMS` and nothing else."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of a package in `ROOMS`, None for any other name."""
        if path is not None or name not in ROOMS:
            return None
        return PathFinder.find_spec(name, [str(ROOT)], target)


def prefer_own_rooms() -> None:
    """Import the packages in `ROOMS` from beside this one from now on. Calling it again is fine."""
    if OwnRooms not in sys.meta_path:
        sys.meta_path.insert(0, OwnRooms)
