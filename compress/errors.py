"""What `compress` raises."""

from __future__ import annotations


class CompressionError(ValueError):
    """A model or an input that this compression cannot serve; the message says what would work."""
