"""What identifies a model: its configuration, and a few values of every parameter."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

# Entries of a configuration that do not change what a model computes.
_VOLATILE = {
    "_attn_implementation",
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
_VALUES = 16


def fingerprint(model: nn.Module, config: Any) -> str:
    """16 hexadecimal digits that differ between models, and between stages of a training.

    The first 16 values of every parameter go in as float32, so a copy in another dtype has a
    fingerprint of its own. config: of the whole model.

    Raises ValueError if parameters are on the meta device or partitioned.
    """
    digest = hashlib.sha256(json.dumps(_plain(config.to_dict()), sort_keys=True).encode())
    firsts: dict[torch.device, list[torch.Tensor]] = {}
    for name, parameter in sorted(model.named_parameters()):
        if parameter.is_meta or hasattr(parameter, "ds_id"):
            raise ValueError(
                f"parameter {name} is not on this process whole: a probe needs the model's weights"
            )
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        first = parameter.detach().flatten()[:_VALUES].float()
        firsts.setdefault(parameter.device, []).append(first)
    for values in firsts.values():  # one copy to the host a device
        digest.update(torch.cat(values).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def family_of(config: Any) -> str:
    """Type, layers and width of a language model, such as "llama-32x4096"."""
    return f"{config.model_type}-{config.num_hidden_layers}x{config.hidden_size}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if k not in _VOLATILE}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
