"""The memory policies of streams, each a dataclass in a file of its own; by name through
`get_memory`."""

from __future__ import annotations

from compress.errors import StreamError
from compress.methods import METHODS, get_method
from compress.stream.memories.base import MemoryPolicy, Older
from compress.stream.memories.change import Change
from compress.stream.memories.coverage import Coverage
from compress.stream.memories.random import Random
from compress.stream.memories.recent import Recent
from compress.stream.memories.reduced import Reduced
from compress.stream.memories.scored import Scored
from compress.stream.memories.uniform import Uniform

MEMORIES: dict[str, type[MemoryPolicy]] = {
    "recent": Recent,
    "uniform": Uniform,
    "random": Random,
    "change": Change,
    "scored": Scored,
    "foveate": Coverage,
}


def get_memory(memory: str | MemoryPolicy) -> MemoryPolicy:
    """A memory policy by name with its defaults, or the instance given. The name of a method gives
    `Reduced` with it.

    Raises StreamError for an unknown name, listing the known ones.
    """
    if isinstance(memory, MemoryPolicy):
        return memory
    if memory in MEMORIES:
        return MEMORIES[memory]()
    if memory in METHODS:
        return Reduced(get_method(memory))
    raise StreamError(
        f"memory is {memory!r}; known: {', '.join(MEMORIES)}, or the name of a method"
    )


__all__ = ["MEMORIES", "MemoryPolicy", "Older", "Reduced", "get_memory"]
__all__ += [cls.__name__ for cls in MEMORIES.values()]
