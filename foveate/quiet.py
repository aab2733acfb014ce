"""Warnings that a user can do nothing about are left out of the commands."""

from __future__ import annotations

import logging
import warnings


def quiet() -> None:
    """Silence warnings that concern the libraries' own code, before these are imported.

    Progress bars are the commands' own affair (`vlm.progress`).
    """
    for name in ("deepspeed", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # DeepSpeed's and Triton's notes on a machine without a GPU or a CUDA toolkit.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(deepspeed|triton)\b")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(deepspeed|peft)\b")
