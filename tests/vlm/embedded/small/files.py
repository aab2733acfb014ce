"""Tiny GGUF and ONNX files of random weights, written by hand."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlm.embedded.small import change

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "Ġ", "ab", "Ġa", "1", "2"]


def write_gguf(path: Path, metadata: dict[str, Any], tensors: dict[str, tuple[int, Any]]) -> None:
    """tensors: (type, array) by name; type 0 is F32, 8 is Q8_0 of arrays (blocks, 34) uint8."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def typed(value: Any) -> bytes:
        if isinstance(value, str):
            return struct.pack("<I", 8) + text(value)
        if isinstance(value, list):
            inner = [typed(item) for item in value]
            head = inner[0][:4] + struct.pack("<Q", len(value))
            return struct.pack("<I", 9) + head + b"".join(item[4:] for item in inner)
        code = (6, "f") if isinstance(value, float) else (4, "I")
        return struct.pack("<I" + code[1], code[0], value)

    head = struct.pack("<IIQQ", 0x46554747, 3, len(tensors), len(metadata))
    head += b"".join(text(name) + typed(value) for name, value in metadata.items())
    body = b""
    for name, (kind, (shape, data)) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        head += struct.pack("<IQ", kind, len(body))
        body += data + bytes(-len(data) % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + body)


def llama_file(path: Path, layers: int = 1) -> dict[str, np.ndarray]:
    """A Llama of 32 x 4 heads; returns its tensors."""
    rng = np.random.default_rng(0)
    shapes = {"token_embd.weight": (len(TOKENS), 32), "output_norm.weight": (32,)}
    sizes = {"attn_norm": (32,), "attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32)}
    sizes |= {"attn_output": (32, 32), "ffn_norm": (32,), "ffn_gate": (64, 32)}
    sizes |= {"ffn_up": (64, 32), "ffn_down": (32, 64)}
    for layer in range(layers):
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in sizes.items()}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 64,
        "llama.block_count": layers,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.context_length": 64,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.merges": ["a b", "Ġ a"],
        "tokenizer.ggml.token_type": [3, 3, 3, *[1] * (len(TOKENS) - 3)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    tensors = {name: (0, (array.shape, array.tobytes())) for name, array in arrays.items()}
    write_gguf(path, metadata, tensors)
    return arrays


def field(number: int, data: bytes | int) -> bytes:
    """One field of a protobuf message."""

    def varint(value: int) -> bytes:
        rest = value >> 7
        return bytes([value & 127 | 128 * (rest > 0)]) + (varint(rest) if rest else b"")

    if isinstance(data, int):
        return varint(number << 3) + varint(data)
    return varint(number << 3 | 2) + varint(len(data)) + data


def write_onnx(
    path: Path, tensors: dict[str, np.ndarray], nodes: list[tuple[str, Any, str]]
) -> None:
    """nodes: (kind, inputs, output)."""
    graph = b""
    for name, array in tensors.items():
        kind = {"float32": 1, "int64": 7}[str(array.dtype)]
        tensor = b"".join(field(1, size) for size in array.shape) + field(2, kind)
        graph += field(5, tensor + field(8, name.encode()) + field(9, array.tobytes()))
    for kind_of, inputs, output in nodes:
        node = b"".join(field(1, name.encode()) for name in inputs)
        graph += field(1, node + field(2, output.encode()) + field(4, kind_of.encode()))
    path.write_bytes(field(1, 8) + field(7, graph))


def even(before: dict[str, torch.Tensor]) -> change.Sensitivity:
    """All inputs and outputs matter as much."""
    return {
        n: (torch.ones(t.shape[1]), torch.ones(t.shape[0])) for n, t in before.items() if t.ndim > 1
    }
