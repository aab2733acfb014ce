"""What `compress` raises."""

from __future__ import annotations


class CompressionError(ValueError):
    """A model or an input that this compression cannot serve; the message says what would work."""


class UnprobedWarning(UserWarning):
    """Tokens are pruned in a language model of a kind that no probe has measured."""
