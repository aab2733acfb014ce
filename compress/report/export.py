"""The reductions of the visual inputs of a prompt as plain values, and files of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from compress.report.record import PrefillRecord
from compress.tokens import Reduction

FORMAT = "foveate export 1"


def export(record: PrefillRecord, pictures: Sequence[Any] | None = None) -> list[dict[str, Any]]:
    """One flat dictionary a visual input, on the host, as `Compression.export` describes it."""
    count = len(record.grids)
    if pictures is not None and len(pictures) != count:
        raise ValueError(
            f"pictures are {len(pictures)}: expected one for each of the {count} visual inputs"
        )
    exported = []
    for index in range(count):
        (_, grid, first), *later = record.steps(index)
        entry: dict[str, Any] = _tensors("", first)
        entry |= {
            "grid": torch.tensor(grid),
            "keep_index": entry["anchor"].unique(),
            "features": _on_host(record.features_of(index)),
            "positions": _on_host(record.positions_of(index)),
            "next_position": torch.tensor(record.next_position(index), dtype=torch.float64),
            "method": record.method,
            "question_dependent": record.reads_question,
        }
        for layer, (_, _, reduction) in zip(record.layers, later, strict=True):
            entry |= _tensors(f"layers.{layer}.", reduction)
        if pictures is not None:
            entry["source_hash"] = picture_hash(pictures[index])
        exported.append(entry)
    return exported


def picture_hash(picture: Any) -> str:
    """SHA-256 of the shape and the RGB values of a picture, whatever file it came from.

    picture: a PIL image, or uint8 values of shape (H, W, 3) or, of a video, (F, H, W, 3).

    Raises ValueError for values of another type or shape.
    """
    values = np.asarray(picture.convert("RGB") if hasattr(picture, "convert") else picture)
    if values.dtype != np.uint8 or values.ndim not in (3, 4) or values.shape[-1] != 3:
        raise ValueError(
            f"picture has values of type {values.dtype} and shape {values.shape}: expected uint8 "
            "of shape (H, W, 3) or (F, H, W, 3)"
        )
    shape = np.array(values.shape, dtype="<i8").tobytes()
    return hashlib.sha256(shape + np.ascontiguousarray(values).tobytes()).hexdigest()


def save_export(path: str | Path, exported: Sequence[dict[str, Any]], **more: str) -> None:
    """Write what `Compression.export` returned to a safetensors file.

    Tensors are named `{number of the input}.{key}`; the other values are JSON in the file's
    metadata. more: further entries of the metadata, such as the prompt.
    """
    tensors, values = {}, []
    for number, entry in enumerate(exported):
        for key, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"{number}.{key}"] = value
        values.append({k: v for k, v in entry.items() if not isinstance(v, Tensor)})
    metadata = {"format": FORMAT, "inputs": json.dumps(values), **more}
    save_file(tensors, path, metadata=metadata)


def load_export(path: str | Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """What `save_export` wrote: the visual inputs, and the further metadata.

    Needs neither the model nor transformers. Raises ValueError for any other file.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    if metadata.pop("format", None) != FORMAT:
        raise ValueError(f"{path} does not hold an export: expected format {FORMAT!r}")
    entries = json.loads(metadata.pop("inputs"))
    for name, tensor in tensors.items():
        number, _, key = name.partition(".")
        entries[int(number)][key] = tensor
    return entries, metadata


def _tensors(prefix: str, reduction: Reduction) -> dict[str, Any]:
    return {
        f"{prefix}{name}": _on_host(getattr(reduction, name)[0])
        for name in ("assign", "anchor", "size")
    }


def _on_host(x: Tensor) -> Tensor:
    return x.detach().cpu().contiguous().clone()
