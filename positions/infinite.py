"""LM-Infinite for one prompt: sinks, a window, and a cap on distances (arXiv 2308.16137)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from positions.errors import PositionError


@dataclass(frozen=True)
class LMInfinite:
    """Attention for a prompt that passes the positions that a model was trained for.

    Tokens stand at original positions. Each attends to the first `sinks` tokens of its sequence
    and to those less than `window` positions before it (on the time axis, of three). Towards sinks,
    a query beyond `window` is rotated as if it stood there, on each axis, so that no distance is
    larger than any that the model knows. Within the window nothing changes. What lies between the
    sinks and the window is not seen.

    The released code has all sinks at one distance; here they keep their places.

    window: None is the model's `max_position_embeddings`. sinks: 10 in the paper.
    """

    window: int | None = None
    sinks: int = 10

    def __post_init__(self) -> None:
        if self.sinks < 1 or not (self.window is None or self.window > self.sinks):
            raise PositionError(
                f"LMInfinite(window={self.window}, sinks={self.sinks}): expected at least one sink "
                "and a window of more tokens than that, or None"
            )

    def capped(self, positions: Tensor, trained: int) -> Tensor:
        """Positions (..., 3) of queries towards sinks. trained: the positions the model knows."""
        return positions.clamp(max=float(self.reach(trained)))

    def reach(self, trained: int) -> int:
        """The window, for a model trained with that many positions."""
        return trained if self.window is None else self.window
