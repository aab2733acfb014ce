"""The methods, each a dataclass in a file of its own; by name through `get_method`."""

from __future__ import annotations

from compress.methods.base import Method
from compress.methods.duet import Duet
from compress.methods.random import Random

METHODS: dict[str, type[Method]] = {
    "duet": Duet,
    "random": Random,
}


def list_methods() -> list[str]:
    """Names that `get_method` knows, sorted."""
    return sorted(METHODS)


def get_method(method: str | Method) -> Method:
    """A method by name with its default configuration, or the instance given.

    Raises ValueError for an unknown name (listing the known ones), TypeError for anything else.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        raise TypeError(f"method must be a name or a Method instance, got {method!r}")
    if method not in METHODS:
        known = ", ".join(list_methods())
        raise ValueError(f"method is {method!r}; known methods: {known}")
    return METHODS[method]()


__all__ = ["METHODS", "Duet", "Method", "Random", "get_method", "list_methods"]
