"""Features of frozen experts on disk, so that each expert encodes an image only once."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlm.experts.base import Expert, ExpertError, ExpertOutput


class FeatureCache:
    """A folder of safetensors files, one for each expert and image.

        cache = FeatureCache("features")
        output = cache(expert, pixels)      # as expert(pixels), from disk if it is there

    The key of an entry is made of the expert's settings, its weights and the pixels, so another
    checkpoint, resolution or picture never gets these features. Entries are written under another
    name and moved into place, so processes may share a folder. An entry that cannot be read is
    computed again, with a warning.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._marks: dict[int, tuple[tuple[int, ...], str]] = {}

    def __call__(self, expert: Expert, pixels: Tensor, scores: bool = True) -> ExpertOutput:
        """`expert(pixels, scores)`. The encoder only runs for images that are not in the cache.

        pixels: (B, 3, H, W). Raises ExpertError for an expert that is trained.
        """
        if not expert.config.frozen:
            raise ExpertError(
                f"expert {expert.config.name!r} is trained, so its features change: expected a "
                "frozen expert"
            )
        folder = self.folder / f"{expert.config.name}-{self._mark(expert)}"
        files = [folder / f"{_digest([row])}{'-scored' * scores}.safetensors" for row in pixels]
        cached = [_read(file) for file in files]
        missing = [row for row, entry in enumerate(cached) if entry is None]
        if missing:
            output = expert(pixels[missing], scores)
            folder.mkdir(parents=True, exist_ok=True)
            parts = {"features": output.features, "keys": output.keys, "saliency": output.saliency}
            for place, row in enumerate(missing):
                entry = {
                    name: part[place].detach().cpu().contiguous()
                    for name, part in parts.items()
                    if part is not None
                }
                _write(files[row], entry)
                cached[row] = entry
        entries = [entry for entry in cached if entry is not None]
        stacked = {
            name: torch.stack([entry[name] for entry in entries]).to(pixels.device)
            for name in entries[0]
        }
        return ExpertOutput(grid=expert.grid, **stacked)

    def _mark(self, expert: Expert) -> str:
        """A name for the expert's settings and weights, computed again when a weight changes."""
        weights = list(expert.encoder.state_dict().values())
        versions = tuple(part for w in weights for part in (w.data_ptr(), w._version))
        known = self._marks.get(id(expert))
        if known is None or known[0] != versions:
            settings = json.dumps(expert.config.to_dict(), sort_keys=True, default=str)
            known = versions, _digest(weights, settings)
            self._marks[id(expert)] = known
        return known[1]


def _digest(tensors: list[Tensor], text: str = "") -> str:
    whole = hashlib.sha256(text.encode())
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        whole.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
        whole.update(plain.flatten().view(torch.uint8).numpy().data)
    return whole.hexdigest()[:32]


def _read(file: Path) -> dict[str, Tensor] | None:
    if not file.is_file():
        return None
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        warnings.warn(f"feature cache: {file} cannot be read ({error}); made again", stacklevel=4)
        return None


def _write(file: Path, entry: dict[str, Tensor]) -> None:
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as part:
        name = Path(part.name)
    try:
        save_file(entry, name)
        name.replace(file)
    except BaseException:
        name.unlink(missing_ok=True)
        raise
