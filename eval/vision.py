"""Run the vision tower once for all configurations of a sweep.

The configurations see the same pictures, and what reduces tokens works on what the tower gives. So
the first one runs the tower; for the others its outputs are handed back, and only the modules that
a compression reads inside it run again, on the inputs that they had, so that its hooks see them.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from vlm.families import ModelAdapter


class SharedVision:
    """While its block lasts, gives the tower's outputs of one batch back to the same inputs.

    `next_batch` forgets them; `restart` begins another configuration of the same batch. `saved` is
    the time in seconds, since `restart`, that the tower's calls would have taken and did not.

    A call whose inputs differ from those remembered, or during which the tower has hooks of its
    own beside those of `ModelAdapter.tap`, runs the tower.
    """

    def __init__(self, adapter: ModelAdapter) -> None:
        self.tower: Any = adapter.tower
        self._forward = self.tower.forward
        layers = [layer for kind in adapter.kinds for layer in adapter.vision_layers(kind)]
        handles = [handle for layer in layers for handle in adapter.tap(layer).attach()]
        self._tapped = [module for module in self.tower.modules() if _hooked(module)]
        self._tapped = [module for module in self._tapped if module is not self.tower]
        for handle in handles:
            handle.remove()
        self._calls: list[dict[str, Any]] = []
        self._next = 0
        self.saved = 0.0

    def __enter__(self) -> SharedVision:
        self.tower.forward = self._call
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self.tower.forward

    def next_batch(self) -> None:
        """Forget what the tower gave: other pictures come."""
        self._calls = []
        self.restart()

    def restart(self) -> None:
        """The same pictures come again, for another configuration."""
        self._next, self.saved = 0, 0.0

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        number, self._next = self._next, self._next + 1
        if number < len(self._calls):
            known = self._calls[number]
            if _same((args, kwargs), known["inputs"]) and not self._others():
                begun = time.perf_counter()
                for module, (inputs, options) in known["tapped"].items():
                    if _hooked(module):
                        module(*inputs, **options)
                self.saved += known["seconds"] - (time.perf_counter() - begun)
                return known["output"]
            del self._calls[number:]
        tapped: dict[nn.Module, Any] = {}
        handles = [
            module.register_forward_pre_hook(_keep(tapped), with_kwargs=True)
            for module in self._tapped
        ]
        _wait(self.tower)
        began = time.perf_counter()
        try:
            output = self._forward(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        _wait(self.tower)
        seconds = time.perf_counter() - began
        if number == len(self._calls) and not self._others():
            known = {"inputs": (args, kwargs), "output": output, "tapped": tapped}
            self._calls.append(known | {"seconds": seconds})
        return output

    def _others(self) -> bool:
        """Whether the tower has hooks inside that a tap does not explain."""
        return any(
            _hooked(module)
            for module in self.tower.modules()
            if module is not self.tower and module not in self._tapped
        )


def _hooked(module: nn.Module) -> bool:
    """Whether someone other than transformers, which records outputs by hooks, has hooks on it."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(not getattr(h, "__module__", "").startswith("transformers.") for h in hooks)


def _keep(into: dict[nn.Module, Any]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        into[module] = (args, kwargs)

    return hook


def _same(new: Any, old: Any) -> bool:
    if isinstance(new, Tensor) or isinstance(old, Tensor):
        both = isinstance(new, Tensor) and isinstance(old, Tensor)
        return both and (new is old or (new.shape == old.shape and torch.equal(new, old)))
    if isinstance(new, dict) and isinstance(old, dict):
        return new.keys() == old.keys() and all(_same(v, old[k]) for k, v in new.items())
    if isinstance(new, list | tuple) and isinstance(old, list | tuple):
        return len(new) == len(old) and all(map(_same, new, old))
    return bool(new == old)


def _wait(module: nn.Module) -> None:
    if next(module.parameters()).is_cuda:
        torch.cuda.synchronize()
