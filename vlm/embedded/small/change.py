"""What was learned, in one small file: a low-rank change of each weight, in 8 bits.

A changed matrix W + U V^T is stored as the int8 rows of U and V with one scale each; vectors and
the projector are stored whole, in float16. `write` chooses the ranks: the largest singular values
of all matrices together, as many as fit in the given size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlm.embedded.small.convert import PartsError

MOST_BYTES = 16_000_000


def write(
    path: Path,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    notes: dict[str, str],
    most: int = MOST_BYTES,
) -> None:
    """Write the difference of two state dicts in at most `most` bytes.

    before: parameters that the prepared model has, by name. after: what they have become; names
    that `before` lacks are stored whole.
    """
    stored: dict[str, Tensor] = {}
    factors = {}
    for name, tensor in after.items():
        if name not in before or tensor.ndim != 2:
            base = before.get(name)
            whole = tensor.float() - (0 if base is None else base.float())
            stored[f"whole.{name}" if base is None else f"added.{name}"] = whole.half()
            continue
        u, s, v = torch.linalg.svd(tensor.float() - before[name].float(), full_matrices=False)
        factors[name] = (u * s.sqrt()).T, s.sqrt()[:, None] * v, s
    room = most - sum(2 * tensor.numel() for tensor in stored.values()) - 400 * len(after) - 10_000
    for name, rank in _ranks({name: s for name, (_, _, s) in factors.items()}, factors, room):
        for side, rows in zip(("u", "v"), factors[name][:2], strict=True):
            scale = rows[:rank].abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
            stored[f"{side}.{name}"] = (rows[:rank] / scale).round().to(torch.int8).contiguous()
            stored[f"{side}-scale.{name}"] = scale.half()
    save_file(stored, path, notes)


def _ranks(
    values: Mapping[str, Tensor], factors: Mapping[str, Any], room: int
) -> list[tuple[str, int]]:
    """The rank of each matrix: singular values in order of energy a byte, while there is room."""
    cost = {name: u.shape[1] + v.shape[1] + 4 for name, (u, v, _) in factors.items()}
    order = [(-(value**2) / cost[name], name) for name, s in values.items() for value in s.tolist()]
    ranks = dict.fromkeys(values, 0)
    for _, name in sorted(order):
        if cost[name] > room:
            break
        room -= cost[name]
        ranks[name] += 1
    return [(name, rank) for name, rank in ranks.items() if rank]


@torch.no_grad()
def apply(path: Path, parameters: Mapping[str, Tensor]) -> None:
    """Lay a file of `write` over parameters, in place.

    Raises PartsError if it names a parameter that is not there or is of another shape.
    """
    stored = load_file(path)
    for key, tensor in stored.items():
        kind, name = key.split(".", 1)
        if kind in ("u-scale", "v-scale", "v"):
            continue
        parameter = parameters.get(name)
        change = tensor.float()
        if kind == "u":
            u, v = (
                stored[f"{side}.{name}"].float() * stored[f"{side}-scale.{name}"].float()
                for side in ("u", "v")
            )
            change = u.T @ v
        if parameter is None or parameter.shape != change.shape:
            raise PartsError(
                f"{path} changes {name} of shape {tuple(change.shape)}, which the parts do not "
                "have: prepare the parts of this version"
            )
        if kind == "whole":
            parameter.copy_(change)
        else:
            parameter.add_(change.to(parameter.dtype))
