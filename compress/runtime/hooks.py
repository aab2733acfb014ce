"""Hooks that need nothing but the context of the forward under way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from compress.runtime import forward
from compress.runtime.context import current_context
from positions import PositionTable


def table() -> PositionTable | None:
    """Positions of the new tokens of the forward under way."""
    context = current_context()
    return None if context is None else context.table


@contextmanager
def around_encoding(kind: str) -> Iterator[None]:
    """Under ZeRO-3, blank inputs of the kinds that this process lacks."""
    context = current_context()
    zero3 = None if context is None else context.zero3
    if zero3 is not None:
        zero3.before_encoding(kind)
    yield
    if zero3 is not None:
        zero3.after_encoding(kind)


def words_embedded(module: nn.Module, args: Any, output: Any) -> None:
    context = current_context()
    if context is not None and context.zero3 is not None:
        context.zero3.words_embedded()


def layer_hook(number: int) -> Callable[..., Any]:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        context = current_context()
        if context is None:
            return None
        if context.prefill is not None or context.zero3 is not None:
            hidden_states = forward.enter_layer(context, number, args[0], kwargs)
            return (hidden_states, *forward.along_tokens(context, args[1:], kwargs)), kwargs
        if context.layer_arguments is None:
            return None
        return args, kwargs | forward.arguments_of(context, number, args[0])

    return before


def restore(module: nn.Module, args: tuple[Any, ...]) -> Any:
    context = current_context()
    if context is None or context.prefill is None:
        return None
    return (forward.restore_length(context, args[0]), *args[1:])
