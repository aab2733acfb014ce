"""Counts what a program would ask of an accelerator, on a machine that has none.

    with DeviceCounter() as counter:
        model, inputs = to_device(model), to_device(inputs)
        model(**inputs)
        print(counter.take().syncs)       # {"compress/ops/core.py:41 top": 1, ...}

Tensors "on the device" are a subclass (`DeviceTensor`) that reports the device `DEVICE` and
computes on the CPU. They follow the rules of a CUDA device: host tensors of one or more dimensions
do not mix with them, the result of an operator on them is on the device, and the host waits where
it needs their values.

Counted by line of the innermost frame outside PyTorch:

    syncs     the host waits: `item`, `bool`, `tolist`, `cpu`, copies to the host, `nonzero`,
              `masked_select`, `unique`, `equal`, `bincount`, indexing by a boolean mask,
              `repeat_interleave` by a tensor without `output_size`
    copies    host tensors sent to the device: `to`, `torch.tensor(data, device=...)`, `copy_`, a
              host index into a device tensor; empty tensors count nothing
    launches  operators on device tensors that are no views; each counts once, so that a fused
              kernel and an operator that starts several kernels look alike

Limits: operators are counted and not kernels; `scaled_dot_product_attention` counts as one launch;
allocation counts nothing; pinned memory and streams are not modelled; no backward pass; operators
that compute on the host by design (`torch.Generator` draws) count where their result is sent.
Models are compared by these counts, and never by time.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# The label makes PyTorch's composite operators take the ways that they take on a GPU.
DEVICE = torch.device("cuda", 0)

aten: Any = torch.ops.aten
_ROOT = Path(__file__).resolve().parent.parent
_TORCH = str(Path(torch.__file__).parent)

# Operators whose result, or its shape, depends on values: the host waits for them.
_WAIT = {
    "aten::_local_scalar_dense",
    "aten::bincount",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
    "aten::_unique",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::unique_dim",
    "aten::unique_dim_consecutive",
}
# Operators that start no kernel, beside views.
_FREE = {
    "aten::_local_scalar_dense",
    "aten::_unsafe_view",
    "aten::detach",
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::lift_fresh",
    "aten::new_empty",
    "aten::new_empty_strided",
}
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


@dataclass
class Counts:
    """Numbers of host synchronisations, host-to-device copies and launches, each by source line."""

    syncs: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)

    def totals(self) -> dict[str, int]:
        """The three sums."""
        parts = {"syncs": self.syncs, "copies": self.copies, "launches": self.launches}
        return {name: part.total() for name, part in parts.items()}


class DeviceTensor(Tensor):
    """A tensor on `DEVICE`, whose values are held by the CPU tensor `host_values`."""

    host_values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> DeviceTensor:
        made: DeviceTensor = Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        made.host_values = values.detach()
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.host_values!r})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(Counts(), func, args, kwargs or {})  # outside a counter


class DeviceCounter(TorchDispatchMode):
    """Counts while it is entered; `take` hands over what was counted since the last `take`."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()
        self._functions = _Functions(self)
        self._lazy_init: Any = None

    def __enter__(self) -> DeviceCounter:
        if not torch.cuda.is_available():
            # As FakeTensorMode does: device guards that do nothing, and no driver to look for.
            torch._C._ensureCUDADeviceGuardSet()
            self._lazy_init, torch.cuda._lazy_init = torch.cuda._lazy_init, lambda: None
        super().__enter__()
        self._functions.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._functions.__exit__(*error)
        super().__exit__(*error)
        if self._lazy_init is not None:
            torch.cuda._lazy_init, self._lazy_init = self._lazy_init, None

    def take(self) -> Counts:
        """The counts so far; begins again from zero."""
        counts, self.counts = self.counts, Counts()
        return counts

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return _run(self.counts, func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Functions that have to be seen before they become operators."""

    def __init__(self, counter: DeviceCounter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and _is_device(
            kwargs.get("device")
        ):
            # PyTorch would fill the tensor below the level that modes see.
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is Tensor.new_tensor and isinstance(args[0], DeviceTensor):
            kwargs.setdefault("dtype", args[0].dtype)
            return torch.tensor(*args[1:], **kwargs).to(DEVICE)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], DeviceTensor):
            # The same holds for a list of indices.
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(x) if isinstance(x, list) else x for x in index)
            args = (args[0], index, *args[2:])
        if func is Tensor.pin_memory and not torch.cuda.is_available():
            return args[0]
        if func is Tensor.tolist and isinstance(args[0], DeviceTensor):
            self.counter.counts.syncs[_line()] += 1
            return args[0].host_values.tolist()
        if func is nn.functional.scaled_dot_product_attention:
            leaves = tree_leaves((args, kwargs))
            if any(isinstance(x, DeviceTensor) for x in leaves):
                _check_mixed(func, leaves)
                self.counter.counts.launches[_line()] += 1
                return DeviceTensor(func(*tree_map(_values, args), **tree_map(_values, kwargs)))
        return func(*args, **kwargs)


def to_device(x: Any) -> Any:
    """A tensor, a mapping of tensors, or a module (its parameters, in place) on `DEVICE`."""
    if isinstance(x, Tensor):
        return x if isinstance(x, DeviceTensor) else DeviceTensor(x.detach())
    if isinstance(x, nn.Module):
        for module in x.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(to_device(parameter), False)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = to_device(buffer)
        return x
    if isinstance(x, Mapping):
        return {name: to_device(value) for name, value in x.items()}
    return x


def _is_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def _values(x: Any) -> Any:
    return x.host_values if isinstance(x, DeviceTensor) else x


def _line() -> str:
    """`file:line function` of the innermost frame outside PyTorch and this file."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not (file.startswith((_TORCH, "<")) or file == __file__):
            path = Path(file)
            inside = path.is_relative_to(_ROOT) and ".venv" not in path.parts
            parts = path.relative_to(_ROOT).parts if inside else path.parts[-3:]
            return f"{'/'.join(parts)}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "?"


def _check_mixed(func: Any, leaves: list[Any]) -> None:
    host = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, DeviceTensor)]
    if any(x.ndim for x in host):
        raise RuntimeError(
            f"{func}: host tensors of shapes {[tuple(x.shape) for x in host]} meet tensors on "
            f"{DEVICE}; expected all of them on one device"
        )


def _run(counts: Counts, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run one operator on the values, count it, and put its results where they would be."""
    leaves = tree_leaves((args, kwargs))
    on_device = any(isinstance(x, DeviceTensor) for x in leaves)
    target = kwargs.get("device")
    if target is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
        result_on_device = _is_device(target)
    else:
        result_on_device = on_device
    if not on_device and not result_on_device:
        return func(*args, **kwargs)
    name = func._schema.name
    _count(counts, name, func, args, kwargs, on_device, result_on_device)
    result = func(*tree_map(_values, args), **tree_map(_values, kwargs))
    if name.endswith("_") and isinstance(args[0], Tensor):  # in place
        return args[0]
    if not result_on_device:
        return result
    return tree_map(lambda x: DeviceTensor(x) if isinstance(x, Tensor) else x, result)


def _count(
    counts: Counts,
    name: str,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    on_device: bool,
    result_on_device: bool,
) -> None:
    if name in ("aten::_to_copy", "aten::copy_"):
        _count_copy(counts, name, args, on_device, result_on_device)
        return
    if name in _WAIT or (name == "aten::repeat_interleave" and kwargs.get("output_size") is None):
        counts.syncs[_line()] += 1
    if name in _INDEXING:
        _count_indexing(counts, name, args)
    elif on_device:
        _check_mixed(func, tree_leaves((args, kwargs)))
    if name not in _FREE and not func.is_view:
        counts.launches[_line()] += 1


def _count_copy(
    counts: Counts, name: str, args: tuple[Any, ...], on_device: bool, result_on_device: bool
) -> None:
    """Conversions are launches; across devices they are copies, and to the host the host waits."""
    if name == "aten::copy_":
        source, result_on_device = args[1], isinstance(args[0], DeviceTensor)
    else:
        source = args[0]
    from_device = isinstance(source, DeviceTensor)
    if not source.numel():
        return
    if from_device and result_on_device:
        counts.launches[_line()] += 1
    elif from_device:
        counts.syncs[_line()] += 1
    elif name == "aten::copy_" and source.ndim == 0:  # passed as an argument of a kernel
        counts.launches[_line()] += 1
    else:
        counts.copies[_line()] += 1


def _count_indexing(counts: Counts, name: str, args: tuple[Any, ...]) -> None:
    indices = [index for index in args[1] if index is not None]
    masks = [index for index in indices if index.dtype in (torch.bool, torch.uint8)]
    # One mask and one number are filled in without the places being listed.
    fills = name != "aten::index" and len(indices) == 1 and args[2].numel() == 1
    if masks and not fills:
        counts.syncs[_line()] += len(masks)
    for index in indices:
        if not isinstance(index, DeviceTensor):
            counts.copies[_line()] += 1
    if name != "aten::index" and args[2].ndim and not isinstance(args[2], DeviceTensor):
        raise RuntimeError(f"{name}: host values are written into a tensor on {DEVICE}")
