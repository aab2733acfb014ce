"""What was learned, in one small file: a low-rank change of each weight, in 4 bits.

A changed matrix W + U^T V is stored as the rows of U and V, 4 bits a value and one scale a row; a
matrix that the parts lack (the projector) in 8 bits; vectors in float16. `write` chooses the ranks:
the singular values that matter most a byte, of all matrices together, as many as fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlm.embedded.small.convert import PartsError

MOST_BYTES = 16_000_000
HEADER = 400  # bytes of the file's header a tensor, at most
FLOOR = 1e-2  # of the mean; a channel that was silent in the measured batches may still speak

Sensitivity = Mapping[str, tuple[Tensor, Tensor]]


def write(
    path: Path,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    sensitivity: Sensitivity,
    notes: dict[str, str],
    most: int = MOST_BYTES,
) -> None:
    """Write the difference of two state dicts in at most `most` bytes.

    before: parameters that the prepared model has, by name. after: what they have become; names
    that `before` lacks are stored whole. sensitivity: for each changed matrix, root mean squares of
    its inputs and of the loss's gradient at its outputs. An error of the matrix counts by their
    product, which is the diagonal of its Kronecker-factored Fisher information.
    """
    stored: dict[str, Tensor] = {}
    factors = {}
    for name, tensor in after.items():
        value = tensor.float()
        if name in before and tensor.ndim == 2:
            factors[name] = _factors(value - before[name].float(), *sensitivity[name])
        elif name in before:
            stored[f"added.{name}"] = (value - before[name].float()).half()
        elif tensor.ndim == 2:
            stored |= _rows("whole", name, value, 127)
        else:
            stored[f"whole.{name}"] = value.half()
    room = most - sum(t.nbytes + HEADER for t in stored.values())
    for name, rank in _ranks(factors, room).items():
        u, v, _ = factors[name]
        stored |= _rows("u", name, u[:rank], 7) | _rows("v", name, v[:rank], 7)
    save_file(stored, path, notes)


def _factors(change: Tensor, inputs: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (k, rows), V (k, columns) with U^T V the change, and what each of the k is worth (k,)."""
    a, g = (x.float().clamp(min=FLOOR * float(x.mean())) for x in (inputs, gradients))
    u, s, v = torch.linalg.svd(g[:, None] * change * a, full_matrices=False)
    return (u * s.sqrt() / g[:, None]).T, s.sqrt()[:, None] * v / a, s


def _rows(kind: str, name: str, rows: Tensor, levels: int) -> dict[str, Tensor]:
    """A matrix as whole numbers up to +-`levels` with a scale a row; up to 7, two in a byte."""
    scale = (rows.abs().amax(1, keepdim=True) / levels).clamp(min=1e-7).half()
    numbers = (rows / scale.float()).round().clamp(-levels, levels).to(torch.int8)
    if levels == 7:
        numbers = torch.nn.functional.pad(numbers, (0, numbers.shape[1] % 2)) + 8
        numbers = numbers.to(torch.uint8)
        numbers = numbers[:, ::2] * 16 + numbers[:, 1::2]
    return {f"{kind}.{name}": numbers.contiguous(), f"{kind}-scale.{name}": scale}


def _read(stored: Mapping[str, Tensor], kind: str, name: str) -> Tensor:
    """The matrix of `_rows`, float32; it may have one column of padding."""
    numbers, scale = stored[f"{kind}.{name}"], stored[f"{kind}-scale.{name}"]
    if numbers.dtype == torch.uint8:
        numbers = torch.stack([numbers // 16, numbers % 16], -1).flatten(1).to(torch.int8) - 8
    return numbers.float() * scale.float()


def _ranks(factors: Mapping[str, tuple[Tensor, Tensor, Tensor]], room: int) -> dict[str, int]:
    """The rank of each matrix: singular values in order of worth a byte, while there is room."""
    cost = {n: (u.shape[1] + v.shape[1] + 1) // 2 + 4 for n, (u, v, _) in factors.items()}
    order = [(-(x**2) / cost[n], n) for n, (_, _, s) in factors.items() for x in s.tolist()]
    room -= 4 * HEADER * len(factors)
    ranks = dict.fromkeys(factors, 0)
    for _, name in sorted(order):
        if cost[name] > room:
            break
        room -= cost[name]
        ranks[name] += 1
    return {name: rank for name, rank in ranks.items() if rank}


@torch.no_grad()
def apply(path: Path, parameters: Mapping[str, Tensor]) -> None:
    """Lay a file of `write` over parameters, in place.

    Raises PartsError if it names a parameter that is not there or is of another shape.
    """
    stored = load_file(path)
    for key, tensor in stored.items():
        kind, name = key.split(".", 1)
        if kind == "v" or kind.endswith("-scale"):
            continue
        parameter = parameters.get(name)
        change = tensor.float() if tensor.is_floating_point() else _read(stored, kind, name)
        if kind == "u":
            change = change.T @ _read(stored, "v", name)
        odd = 2 if kind == "u" else 1  # two numbers in a byte: sizes were made even
        if parameter is None or change.shape != tuple(n + n % odd for n in parameter.shape):
            raise PartsError(
                f"{path} changes {name} of shape {tuple(change.shape)}, which the parts do not "
                "have: prepare the parts of this version"
            )
        change = change[tuple(slice(n) for n in parameter.shape)]
        if kind == "whole":
            parameter.copy_(change)
        else:
            parameter.add_(change.to(parameter.dtype))
