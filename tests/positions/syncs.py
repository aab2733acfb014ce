"""A mode under which an operation that would wait for the device is an error, on CPU tensors."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "bincount"}


class NoSync(TorchDispatchMode):
    """Raises AssertionError where a tensor's values decide a shape or a Python value."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in WAITING, f"{name} waits for the device"
        if name in ("index", "index_put_"):
            masks = [x for x in args[1] if isinstance(x, Tensor) and x.dtype == torch.bool]
            assert not masks, f"{name} with a mask waits for the device"
        return func(*args, **(kwargs or {}))
