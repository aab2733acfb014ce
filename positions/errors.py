"""The error that this package raises."""

from __future__ import annotations


class PositionError(ValueError):
    """A layout, scheme, reduction or position table is not valid, or does not fit the model."""
