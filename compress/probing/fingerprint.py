"""What identifies a model for a probe: its configuration and its weights."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from vlm.families import ModelAdapter
from vlm.fingerprint import fingerprint

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


def key_of(adapter: ModelAdapter) -> str:
    """16 hexadecimal digits that differ between models, and between stages of a training.

    Raises ValueError if weights are not whole on this process (see `vlm.fingerprint`).
    """
    config = json.dumps(_plain(adapter.config.to_dict()), sort_keys=True)
    return hashlib.sha256((config + fingerprint(adapter.core)).encode()).hexdigest()[:16]


def family_of(adapter: ModelAdapter) -> str:
    """Type, layers and width of the language model, such as "llama-32x4096"."""
    config = adapter.language_model.config
    return f"{config.model_type}-{len(adapter.layers)}x{config.hidden_size}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if k not in _VOLATILE}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
