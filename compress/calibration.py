"""What is added to attention logits so that fewer visual tokens draw the attention of all."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Calibration:
    """Terms added to the attention logits of visual keys, with any method (RESTORE, arXiv
    2606.01711).

    size: log of the number of dense tokens that were merged in a key, in every decoder layer
        (proportional attention; ToMe, arXiv 2210.09461, section 3).
    first_layer: in decoder layer 0 log(N / n) instead, the same for each of the n tokens of a
        visual input that are left of its N. Off: it cost most methods 4 to 13 points on the
        validation questions of the embedded model (docs/calibration.md).
    distance: log(2 - mean_c cos(delta theta_c)), delta the distance of query and key in positions,
        theta_c the frequencies of the rotary embedding, in every layer. It gives back to far keys
        what rotation takes from them, and acts among the tokens of one prompt only: decoding and
        later turns do not add it.

    `size` and `first_layer` depend on the key alone. With sdpa and eager attention they are part of
    the mask; FlashAttention, whose masks hold no numbers, gets them as channels of keys and
    queries. `distance` depends on pairs and needs sdpa or eager attention.

    Raises TypeError for a field that is no bool.
    """

    size: bool = True
    first_layer: bool = False
    distance: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, bool):
                raise TypeError(f"Calibration: {name} is {value!r}; expected True or False")

    @property
    def by_key(self) -> bool:
        """Whether any term depends on the key alone."""
        return self.size or self.first_layer
