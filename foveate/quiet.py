"""Progress bars and warnings that a user can do nothing about are left out of the commands."""

from __future__ import annotations

import logging
import os
import sys
import warnings


def quiet() -> None:
    """Silence libraries before they are imported.

    Bars of transformers and huggingface_hub are shown in a terminal alone: a log would get a line
    for every step of them. Warnings that concern the libraries' own code are not shown anywhere.
    """
    if not sys.stderr.isatty():
        # Both read it when they are imported; importing them here would cost seconds.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("deepspeed", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # DeepSpeed's and Triton's notes on a machine without a GPU or a CUDA toolkit.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(deepspeed|triton)\b")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(deepspeed|peft)\b")
