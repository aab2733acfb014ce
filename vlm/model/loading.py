"""Loading of complete checkpoints only: missing or unexpected weights are errors."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedConfig

from vlm.experts import Expert
from vlm.experts.hf import UNREADABLE
from vlm.model.configuration import FoveateConfig


class CheckpointError(ValueError):
    """A checkpoint cannot be loaded. The message names it and says what would be right."""


def load_strictly(
    load: Callable[..., Any],
    path: str | os.PathLike[str],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    ours: bool = True,
) -> Any:
    """`load` (transformers' from_pretrained) with every weight in its place, or CheckpointError.

    Never opens pickle files and never runs code of the checkpoint.
    ours: whether it has to be a checkpoint of this package's model.
    """
    strict = kwargs.pop("strict", True)
    wants_info = kwargs.pop("output_loading_info", False)
    if ours and kwargs.pop("trust_remote_code", None):
        raise CheckpointError("trust_remote_code=True: this model comes with no code of its own")
    if not kwargs.pop("use_safetensors", True):
        raise CheckpointError("use_safetensors=False: weights are read from safetensors alone")
    if ours and kwargs.get("config") is None:
        _check_type(path, kwargs)
    any_size = kwargs.pop("ignore_mismatched_sizes", False)
    # Wrong shapes are accepted here and refused below, as transformers only logs them.
    fixed = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, info = load(path, *args, **fixed, **kwargs)
    except UNREADABLE as error:
        raise CheckpointError(f"cannot load {path}: {error}") from error
    odd = sorted(f"{name} {tuple(a)} for {tuple(b)}" for name, a, b in info["mismatched_keys"])
    found = {
        "lacks": sorted(info["missing_keys"]) * strict,
        "holds foreign": sorted(info["unexpected_keys"]) * strict,
        "holds misshapen": odd * (not any_size),
    }
    problems = [
        f"{what} weights ({', '.join(names[:3])}; {len(names)} in all)"
        for what, names in found.items()
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{path} {' and '.join(problems)}: expected the weights of {type(model).__name__} with "
            "this config.json and no others (strict=False lets them pass)"
        )
    for module in model.modules():
        if isinstance(module, Expert):
            module.freeze()
    return (model, info) if wants_info else model


def model_type(path: str | os.PathLike[str], **hub: Any) -> str | None:
    """The kind of model that a checkpoint's config.json names. CheckpointError if it cannot be
    read."""
    try:
        config = PreTrainedConfig.get_config_dict(path, **hub)[0]
        return config.get("model_type")
    except (*UNREADABLE, AttributeError, TypeError) as error:  # JSON, but no object
        raise CheckpointError(f"cannot load {path}: {error}") from error


def _check_type(path: str | os.PathLike[str], kwargs: dict[str, Any]) -> None:
    hub = {k: kwargs[k] for k in ("revision", "token", "subfolder", "cache_dir") if k in kwargs}
    kind = model_type(path, **hub)
    if kind != FoveateConfig.model_type:
        hint = " (vlm.model.from_llava loads a stock LLaVA)" * (kind == "llava")
        raise CheckpointError(
            f"{path} is a checkpoint of model type {kind!r}{hint}: expected "
            f"{FoveateConfig.model_type!r}"
        )
