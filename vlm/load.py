"""`vlm.load`: a model and its processor, by name or path."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

EMBEDDED = ("mini",)


def load(
    name: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """Load a model and its processor.

    Args:
        name: "mini" for the embedded model, a folder of a checkpoint, or a hub model's name.
        dtype: of the weights.
        device: where the model goes.
        trust_remote_code: run code that lies in the checkpoint; off unless asked for.

    Returns:
        The model in evaluation mode, and its processor.

    Raises:
        FileNotFoundError: a folder that is not there or holds no config.json.
        OSError: a hub name that cannot be had, or a checkpoint without safetensors weights.
    """
    if name in EMBEDDED:
        path = str(resources.files("vlm") / "checkpoints" / str(name))
    else:
        path = str(name)
        folder = Path(path)
        if (folder.is_absolute() or folder.parts[:1] in ((".",), ("..",))) and not folder.is_dir():
            raise FileNotFoundError(f"{path!r} is no folder of a checkpoint")
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{path!r} holds no config.json: expected a saved model")
    options = {"trust_remote_code": trust_remote_code}
    model: Any = AutoModelForImageTextToText.from_pretrained(
        path, dtype=dtype, use_safetensors=True, **options
    )
    processor = AutoProcessor.from_pretrained(path, **options)
    return model.to(device).eval(), processor
