"""Attention functions of transformers that take more than the stock ones, while a compression
needs them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

Attention = Callable[..., Any]
Changed = tuple[Tensor, Tensor, Tensor]

_LOCK = threading.Lock()
# The stock function and the number of compressions that need another in its place.
_USERS: dict[str, tuple[Attention, int]] = {}


def install(implementation: str, extended: Callable[[Attention], Attention]) -> Callable[[], None]:
    """Let an attention implementation take more arguments; returns the function that undoes it.

    extended: from the stock function to the one in its place, the same for all users of an
    implementation. Layers that bring no such arguments run as they did. The last user puts the
    stock function back.
    """
    with _LOCK:
        stock, users = _USERS.get(implementation, (ALL_ATTENTION_FUNCTIONS[implementation], 0))
        if not users:
            ALL_ATTENTION_FUNCTIONS[implementation] = extended(stock)
        _USERS[implementation] = (stock, users + 1)

    def undo() -> None:
        with _LOCK:
            stock, users = _USERS.pop(implementation)
            if users > 1:
                _USERS[implementation] = (stock, users - 1)
                return
            del ALL_ATTENTION_FUNCTIONS[implementation]
            if ALL_ATTENTION_FUNCTIONS.get(implementation) is not stock:  # it was local, too
                ALL_ATTENTION_FUNCTIONS[implementation] = stock

    return undo


def taking(
    argument: str, change: Callable[[Any, Tensor, Tensor, Tensor, float], Changed]
) -> Callable[[Attention], Attention]:
    """What `install` is given: from a stock function to one for layers that bring an argument.

    change: from the argument, queries, keys, values and the scaling of their products to the
    queries, keys and values that the stock function gets. Values may be wider: the output is cut.
    """

    def extended(stock: Attention) -> Attention:
        def attention(
            module: Any,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Any,
            **kwargs: Any,
        ) -> Any:
            brought = kwargs.pop(argument, None)
            if brought is None:
                return stock(module, query, key, value, attention_mask, **kwargs)
            scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
            changed = change(brought, query, key, value, scaling)
            kwargs["scaling"] = scaling
            output, weights = stock(module, *changed, attention_mask, **kwargs)
            return output[..., : value.shape[-1]], weights

        return attention

    return extended
