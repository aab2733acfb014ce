"""`vlm.load`: a model and its processor, by name or path."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import torch

EMBEDDED = ("mini", "mini-1d")


def load(
    name: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
    strict: bool = True,
) -> tuple[Any, Any]:
    """Load a model and its processor: all of it, or an error.

    Args:
        name: "mini" for the embedded model, "mini-1d" for its sibling with positions on one axis (a
            stock LLaVA), a folder of a checkpoint, or a hub model's name.
        dtype: of the weights.
        device: where the model goes.
        trust_remote_code: run code that lies in the checkpoint; off unless asked for.
        strict: False lets missing weights (left random) and foreign ones (left out) pass.

    Returns:
        The model in evaluation mode, and its processor.

    Raises:
        FileNotFoundError: a folder that is not there or holds no config.json.
        CheckpointError: (a ValueError) a hub name that cannot be had, weights that are not in
            safetensors, that are missing, foreign or of other shapes; code that is not trusted; a
            processor that is missing or broken.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    # This package's model is known to transformers from here on.
    from vlm.model import CheckpointError, FoveateForConditionalGeneration
    from vlm.model.loading import UNREADABLE, load_strictly, model_type

    if name in EMBEDDED:
        path = str(resources.files("vlm.embedded") / "checkpoints" / str(name))
    else:
        path = str(name)
        folder = Path(path)
        if (folder.is_absolute() or folder.parts[:1] in ((".",), ("..",))) and not folder.is_dir():
            raise FileNotFoundError(f"{path!r} is no folder of a checkpoint")
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{path!r} holds no config.json: expected a saved model")
    code = {"trust_remote_code": trust_remote_code}
    options = {"dtype": dtype, "strict": strict, **code}
    if model_type(path) == "foveate":
        model: Any = FoveateForConditionalGeneration.from_pretrained(path, **options)
    else:
        make = AutoModelForImageTextToText.from_pretrained
        model = load_strictly(make, path, (), options, ours=False)
    try:
        processor = AutoProcessor.from_pretrained(path, **code)
    except UNREADABLE as error:
        raise CheckpointError(f"cannot load the processor of {path}: {error}") from error
    return model.to(device).eval(), processor
