"""What identifies a model's weights."""

from __future__ import annotations

import hashlib

from torch import nn


def fingerprint(model: nn.Module) -> str:
    """16 hexadecimal digits that identify the weights: a hash of 16 values of each tensor.

    A copy in another dtype has a fingerprint of its own. Raises ValueError if weights are on the
    meta device or partitioned over processes (ZeRO-3).
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_meta or hasattr(tensor, "ds_id"):
            raise ValueError(f"weight {name} is not whole on this process: expected all weights")
        flat = tensor.detach().reshape(-1)
        step = max(1, len(flat) // 16)
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(flat[::step][:16].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
