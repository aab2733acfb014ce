"""What a stream holds and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from compress.stream.options import Options


@dataclass(frozen=True)
class StreamReport:
    """The state of a stream, as plain numbers.

    steps: seen so far. seen, kept, recent, evicted: visual tokens (of the first group of layers,
    where groups hold different ones); recent ones are among those kept. text: tokens of text held.
    most: the most tokens held at one time. cache_bytes: of keys, values and recurrent states.
    position: where the next text would start. remembered: the steps of which tokens are held.
    push_ms: mean time of the last steps (at most 64).
    """

    steps: int
    seen: int
    kept: int
    recent: int
    evicted: int
    text: int
    most: int
    cache_bytes: int
    position: float
    remembered: tuple[int, ...]
    push_ms: float
    options: Options

    def __str__(self) -> str:
        held = self.kept + self.text
        mib = self.cache_bytes / 2**20
        oldest = f"; the oldest is step {self.remembered[0]}" if self.remembered else ""
        return "\n".join(
            [
                f"memory     {self.options.memory}",
                f"positions  {self.options.positions}; the next text starts at {self.position:g}",
                f"steps      {self.steps}, of which {len(self.remembered)} are remembered{oldest}",
                f"tokens     {held} of {self.options.budget} held: {self.text} text, {self.recent} "
                f"recent, {self.kept - self.recent} older; {self.evicted} of {self.seen} evicted",
                f"cache      {mib:.2f} MiB, at most {self.most} tokens at one time",
                f"step       {self.push_ms:.1f} ms",
            ]
        )
