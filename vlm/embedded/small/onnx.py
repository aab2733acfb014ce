"""A reader of ONNX files: initializers and nodes, as far as our parts need them.

The fields are those of ModelProto, GraphProto, NodeProto and TensorProto in onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_DTYPES = {1: "<f4", 7: "<i8"}
Field = tuple[int, int | memoryview]


class ONNXError(ValueError):
    """The file is no ONNX model that this reader knows."""


@dataclass(frozen=True)
class Node:
    """One operator: its kind, and the names of the tensors that it reads and writes."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_onnx(path: Path) -> tuple[dict[str, np.ndarray], list[Node]]:
    """The float32 and int64 initializers of a model by name, and its nodes in order.

    Raises ONNXError if the file cannot be parsed or has no graph.
    """
    try:
        graph = next(_messages(_fields(memoryview(path.read_bytes())), 7))
        fields = list(_fields(graph))
        tensors = dict(_tensor(tensor) for tensor in _messages(fields, 5))
        return tensors, [_node(node) for node in _messages(fields, 1)]
    except (IndexError, StopIteration, ValueError, KeyError) as error:
        raise ONNXError(f"{path} cannot be read as an ONNX model: {error!r}") from error


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def _fields(data: memoryview) -> Iterator[Field]:
    """(field number, varint or bytes) of a message; fixed-width fields are bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        length = {1: 8, 5: 4}.get(wire)
        if length is None:
            length, at = _varint(data, at)
        if at + length > len(data):
            raise ValueError("the file ends within a field")
        yield key >> 3, data[at : at + length]
        at += length


def _messages(fields: object, number: int) -> Iterator[memoryview]:
    for field, value in fields:  # type: ignore[attr-defined]
        if field == number and isinstance(value, memoryview):
            yield value


def _text(value: memoryview) -> str:
    return bytes(value).decode()


def _node(data: memoryview) -> Node:
    fields = list(_fields(data))
    inputs = tuple(map(_text, _messages(fields, 1)))
    return Node(_text(next(_messages(fields, 4))), inputs, tuple(map(_text, _messages(fields, 2))))


def _tensor(data: memoryview) -> tuple[str, np.ndarray]:
    shape: list[int] = []
    kind, raw, name = 0, memoryview(b""), ""
    for field, value in _fields(data):
        if field == 1 and isinstance(value, int):
            shape.append(value)
        elif field == 1 and isinstance(value, memoryview):  # packed
            at = 0
            while at < len(value):
                size, at = _varint(value, at)
                shape.append(size)
        elif field == 2 and isinstance(value, int):
            kind = value
        elif field == 8 and isinstance(value, memoryview):
            name = _text(value)
        elif field == 9 and isinstance(value, memoryview):
            raw = value
    return name, np.frombuffer(raw, _DTYPES[kind]).reshape(shape)
