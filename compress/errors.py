"""What `compress` raises."""

from __future__ import annotations


class CompressionError(ValueError):
    """A model or an input that this compression cannot serve; the message says what would work."""


class UnprobedWarning(UserWarning):
    """Tokens are pruned in a language model of a kind that no probe has measured."""


class StreamError(ValueError):
    """A stream that cannot be watched as asked, or input that does not go on from the last."""
