"""The one kind of error that this package raises for layouts, schemes and tables."""

from __future__ import annotations


class PositionError(ValueError):
    """A layout, scheme, reduction or table that cannot be planned; the message says what would."""
