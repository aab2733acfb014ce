"""What the tests of the attachment share."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from compress.methods import Duet
from compress.runtime.encoded import Encoded

NEW = 4
CLOSE = {"rtol": 1e-4, "atol": 3e-5}


def duet(**options: Any) -> Duet:
    """DUET in a form that conserves sums and keeps the tokens in order, as schemes ask for."""
    released = {"variant": "released", "merge": "mean", "query": "last", "order": "raster"}
    return Duet(**(released | options))


def answer(model: Any, given: dict[str, Any], **options: Any) -> Any:
    """Greedy, `NEW` tokens, with the logits of each."""
    defaults = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True}
    return model.generate(**given, **(defaults | {"output_logits": True} | options))


def logits_of(model: Any, given: dict[str, Any], **options: Any) -> Tensor:
    """(B, NEW, V): the logits of a greedy answer."""
    return torch.stack(answer(model, given, **options).logits, 1)


def fingerprint(model: Any) -> list[Any]:
    """Everything that an attachment could leave behind."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks")
    state: list[Any] = [model.config.to_dict(), copy.deepcopy(model.generation_config.to_dict())]
    for name, module in model.named_modules():
        state.append(
            (name, id(module), sorted(vars(module)), [len(vars(module)[h]) for h in hooks])
        )
        state.append(module.forward.__func__ is type(module).forward)
    return state


@contextmanager
def encodings(model: Any) -> Iterator[dict[str, Encoded]]:
    """What the encoding functions of a compressed model hand on, by kind."""
    core, seen = getattr(model, "model", model), {}
    functions = {
        kind: getattr(core, f"get_{kind}_features")
        for kind in ("image", "video")
        if hasattr(core, f"get_{kind}_features")
    }

    def noting(kind: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            output = functions[kind](*args, **kwargs)
            seen[kind] = Encoded.of(output)
            return output

        return call

    own = dict(vars(core))
    for kind in functions:
        setattr(core, f"get_{kind}_features", noting(kind))
    try:
        yield seen
    finally:
        for kind, function in functions.items():
            name = f"get_{kind}_features"
            setattr(core, name, function) if name in own else delattr(core, name)
