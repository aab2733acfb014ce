"""A reader of GGUF files: metadata, and the tensors of the types that our parts use.

The format is that of ggml's docs/gguf.md. Tensors are dequantised to float32.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

# Value types of the metadata by their number; 8 is a string and 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_SCALARS[12] = "d"
# Tensor type -> (values in a block, bytes of a block).
_BLOCKS = {0: (1, 4), 3: (32, 20), 8: (32, 34)}


class GGUFError(ValueError):
    """The file is no GGUF file that this reader knows."""


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        self.at += length
        return bytes(self.data[self.at - length : self.at]).decode()

    def value(self, kind: int) -> Any:
        if kind == 8:
            return self.string()
        if kind == 9:
            inner, count = self.scalar("I"), self.scalar("Q")
            return [self.value(inner) for _ in range(count)]
        return self.scalar(_SCALARS[kind])


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The metadata of a file, and its tensors, float32, in the shapes that PyTorch gives them.

    Raises:
        GGUFError: the file is cut off, is no GGUF file of version 3, or holds tensors of types
            other than F32, Q4_1 and Q8_0.
    """
    reader = _Reader(memoryview(path.read_bytes()))
    try:
        if reader.scalar("I") != 0x46554747 or reader.scalar("I") != 3:
            raise GGUFError(f"{path} is no GGUF file of version 3")
        tensors, pairs = reader.scalar("Q"), reader.scalar("Q")
        metadata = {reader.string(): reader.value(reader.scalar("I")) for _ in range(pairs)}
        heads = []
        for _ in range(tensors):
            name, axes = reader.string(), reader.scalar("I")
            shape = [reader.scalar("Q") for _ in range(axes)][::-1]
            heads.append((name, shape, reader.scalar("I"), reader.scalar("Q")))
        alignment = metadata.get("general.alignment", 32)
        start = -(-reader.at // alignment) * alignment
        return metadata, {
            name: _tensor(reader.data[start + offset :], kind, shape)
            for name, shape, kind, offset in heads
        }
    except (struct.error, KeyError, UnicodeDecodeError) as error:
        raise GGUFError(f"{path} cannot be read as GGUF: {error!r}") from error


def _tensor(data: memoryview, kind: int, shape: list[int]) -> np.ndarray:
    if kind not in _BLOCKS:
        raise GGUFError(f"tensor type {kind}: expected F32, Q4_1 or Q8_0")
    values, size = _BLOCKS[kind]
    blocks = int(np.prod(shape)) // values
    if len(data) < blocks * size:
        raise GGUFError("the file ends within a tensor")
    raw = np.frombuffer(data, np.uint8, blocks * size).reshape(blocks, size)
    if kind == 0:
        return raw.view("<f4").reshape(shape).astype(np.float32)
    scale = raw[:, :2].view("<f2").astype(np.float32)
    if kind == 8:
        return (raw[:, 2:].view(np.int8) * scale).reshape(shape)
    minimum, packed = raw[:, 2:4].view("<f2").astype(np.float32), raw[:, 4:]
    nibbles = np.concatenate([packed & 15, packed >> 4], axis=1)
    return (nibbles * scale + minimum).reshape(shape)
