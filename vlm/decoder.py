"""What a language model's configuration says of its decoder layers."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any


def _cache_name() -> str:
    """What transformers calls the cache in arguments and outputs of models."""
    try:
        major, minor, *_ = version("transformers").split(".")
    except PackageNotFoundError:  # tensors are reduced without it
        return "past_key_values"
    return "cache" if (int(major), int(minor)) >= (5, 24) else "past_key_values"


CACHE = _cache_name()

_REACHES = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}


def cache_of(call: Any) -> Any:
    """The cache in keyword arguments or an output of a transformers model, by either name; None
    without one."""
    cache = call.get(CACHE)
    return call.get("past_key_values") if cache is None else cache


def layer_kinds(config: Any, depth: int) -> tuple[str, ...]:
    """The kind of each of `depth` decoder layers, in transformers' names.

    "full_attention" where queries see every earlier key; "sliding_attention", "chunked_attention",
    "linear_attention".
    """
    sliding = getattr(config, "sliding_window", None) is not None
    stock = ("sliding_attention" if sliding else "full_attention",) * depth
    return tuple(getattr(config, "layer_types", None) or stock)


def last_stage(config: Any, depth: int) -> int:
    """The last decoder layer before which tokens can leave.

    Where layers read the keys of earlier ones (Gemma 4), tokens leave before those are made.
    """
    modes = getattr(config, "kv_sharing_modes", None) or ()
    stored = [number for number, mode in enumerate(modes) if mode == "store"]
    return min(stored, default=depth - 1)


def reach(config: Any, kind: str) -> int | None:
    """How many positions a layer of a kind sees: the window of a sliding layer, the chunk of a
    chunked one. None where attention is not local."""
    return int(getattr(config, _REACHES[kind])) if kind in _REACHES else None
