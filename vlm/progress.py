"""Progress in a terminal is a bar; in a log it is a line from time to time."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_SECONDS = 30.0  # between two lines of a log


class _Lines:
    """A file for tqdm that ends each state of a bar with a line break instead of redrawing it."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stderr.write(text.strip() + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(items: Iterable[Any], *, disable: bool = False, **options: Any) -> Any:
    """tqdm(items, **options) on standard error; where that is no terminal, a line in 30 seconds."""
    if not sys.stderr.isatty():
        options |= {"file": _Lines(), "mininterval": _SECONDS, "maxinterval": _SECONDS, "ncols": 80}
    return tqdm(items, disable=disable, **options)


def quiet_logs() -> None:
    """Leave out bars of transformers and huggingface_hub where standard error is no terminal.

    A log would get a line for every step of them. Called by commands, not by the library.
    """
    if sys.stderr.isatty():
        return
    import transformers
    from huggingface_hub.utils import disable_progress_bars

    transformers.utils.logging.disable_progress_bar()
    disable_progress_bars()
