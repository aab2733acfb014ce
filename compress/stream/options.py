"""What a stream was asked to do."""

from __future__ import annotations

from dataclasses import dataclass

from compress.errors import StreamError
from compress.stream.memories import MemoryPolicy
from positions import StreamPositions


@dataclass(frozen=True)
class Options:
    """The arguments of `compress.watch`, with policies in place of their names.

    Raises StreamError for values out of range.
    """

    memory: MemoryPolicy
    budget: int
    recent: int
    positions: StreamPositions
    instant: bool = False
    fallback: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("budget", "recent"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise StreamError(f"{name} is {value!r}: expected a whole number from 1 on")
        if self.fallback is not None and not self.fallback >= 0:
            raise StreamError(
                f"fallback is {self.fallback!r}: expected an entropy in nats from 0 on, or None"
            )
