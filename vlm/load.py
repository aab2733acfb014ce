"""`vlm.load` loads a model and its processor by name or path."""

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
    """Load a model and its processor completely, or raise an error.

    Args:
        name: "mini" for the embedded model, "mini-1d" for its sibling with positions on one axis (a
            stock LLaVA), "small" for the judge of pretrained parts (once `python -m vlm prepare
            small` has fetched them), a folder of a checkpoint, or a hub model's name.
        dtype: of the weights.
        device: the device of the model.
        trust_remote_code: run code from the checkpoint; off by default.
        strict: False accepts missing weights, which stay random, and ignores unexpected ones.

    Returns:
        The model in evaluation mode, and its processor.

    Raises:
        FileNotFoundError: the folder does not exist or has no config.json.
        CheckpointError: (a ValueError) a hub name cannot be loaded; weights are not in safetensors,
            are missing, unexpected or of other shapes; code is not trusted; or the processor is
            missing or broken.
        PartsError: (a ValueError) the parts of "small" are not prepared.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    # This import registers the model of this package with transformers.
    from vlm.model import CheckpointError, FoveateForConditionalGeneration
    from vlm.model.loading import UNREADABLE, load_strictly, model_type

    model: Any
    if name == "small":
        from vlm.embedded import small

        model, processor = small.load()
        return model.to(dtype).to(device).eval(), processor
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
        model = FoveateForConditionalGeneration.from_pretrained(path, **options)
    else:
        make = AutoModelForImageTextToText.from_pretrained
        model = load_strictly(make, path, (), options, ours=False)
    try:
        processor = AutoProcessor.from_pretrained(path, **code)
    except UNREADABLE as error:
        raise CheckpointError(f"cannot load the processor of {path}: {error}") from error
    return model.to(device).eval(), processor
