"""Smaller pictures for an encoder that interpolates its position embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn import functional


@contextmanager
def smaller_pictures(
    encoder: nn.Module, size: tuple[int, int], outer: nn.Module, spread: Callable[[Any], Any]
) -> Iterator[None]:
    """While it lasts, a CLIP or SigLIP encoder of transformers sees pictures of `size` pixels.

    spread: makes, of the output of `outer` (the encoder, or what holds it), one with a row for each
    token of the dense grid.
    """

    def smaller(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        kwargs = {**kwargs, "interpolate_pos_encoding": True}
        pixels = args[0] if args else kwargs.pop("pixel_values")
        small = functional.interpolate(pixels.float(), size, mode="bicubic", antialias=True)
        return (small.to(pixels.dtype), *args[1:]), kwargs

    handles = [
        encoder.register_forward_pre_hook(smaller, with_kwargs=True),
        outer.register_forward_hook(lambda module, args, output: spread(output)),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
