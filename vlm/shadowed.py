"""A warning where another module hides a package of this distribution."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

ROOMS = ("positions", "vlm", "compress", "train", "eval")
ROOT = Path(__file__).resolve().parent.parent


def shadowed() -> dict[str, str]:
    """The packages of this distribution that an import would not find, and what it would find."""
    others = {}
    for name in ROOMS:
        try:
            spec = find_spec(name)
        except ValueError:  # a module that was put in sys.modules by hand
            continue
        origin = None if spec is None else spec.origin
        if origin and not Path(origin).resolve().is_relative_to(ROOT / name):
            others[name] = origin
    return others


def warn_of_shadowed() -> None:
    """Give one warning if a module of the user, or of another distribution, hides a package."""
    others = shadowed()
    if not others:
        return
    listed = ", ".join(f"{name!r} is {origin}" for name, origin in others.items())
    warnings.warn(
        f"other modules hide packages of Foveate: {listed}. The command `foveate` is not "
        "concerned; to import these packages, rename the other modules or run from another folder",
        UserWarning,
        stacklevel=3,
    )
