"""Parts are converted exactly, from tiny files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from tests.vlm.embedded.small.files import llama_file, write_gguf, write_onnx
from vlm.embedded.small.convert import PartsError, dinov2_from_onnx, llama_from_gguf
from vlm.embedded.small.gguf import GGUFError, read_gguf
from vlm.embedded.small.onnx import ONNXError, read_onnx


def test_blocks_are_dequantised(tmp_path: Path) -> None:
    """Q8_0: scale * int8. Q4_1: scale * nibble + minimum, low nibbles first."""
    half = np.array([0.5, -2.0], np.float16)
    eight = half[:1].tobytes() + np.arange(-16, 16, dtype=np.int8).tobytes()
    four = half.tobytes() + bytes(range(16))
    tensors = {"a": (8, ((1, 32), eight)), "b": (3, ((2, 16), four))}
    write_gguf(tmp_path / "x.gguf", {"n": 3, "s": "text", "l": ["x", "y"]}, tensors)
    metadata, read = read_gguf(tmp_path / "x.gguf")
    assert metadata == {"n": 3, "s": "text", "l": ["x", "y"]}
    assert np.array_equal(read["a"], np.arange(-16, 16, dtype=np.float32)[None] / 2)
    low = np.arange(16) * 0.5 - 2
    assert np.array_equal(read["b"], np.stack([low, np.full(16, -2.0)]))


def test_llama_has_the_weights_of_the_file(tmp_path: Path) -> None:
    arrays = llama_file(tmp_path / "x.gguf")
    model, tokenizer = llama_from_gguf(tmp_path / "x.gguf")
    state = model.state_dict()
    assert np.array_equal(state["model.embed_tokens.weight"], arrays["token_embd.weight"])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    # Row 2 i + k of a rotary head of 8 is row i + 4 k in transformers.
    rows = state["model.layers.0.self_attn.q_proj.weight"][8:16]
    stored = arrays["blk.0.attn_q.weight"][8:16]
    assert np.array_equal(rows, stored[[0, 2, 4, 6, 1, 3, 5, 7]])
    assert tokenizer("<|im_start|>ab a12").input_ids == [1, 6, 7, 8, 9]
    assert tokenizer.eos_token == "<|im_end|>"


def test_llama_with_too_few_tensors_is_refused(tmp_path: Path) -> None:
    llama_file(tmp_path / "x.gguf")
    data = (tmp_path / "x.gguf").read_bytes()
    (tmp_path / "y.gguf").write_bytes(data.replace(b"blk.0.ffn_up.weight", b"blk.0.ffn_no.weight"))
    with pytest.raises(PartsError, match="does not fit LlamaForCausalLM"):
        llama_from_gguf(tmp_path / "y.gguf")


@pytest.mark.parametrize("length", [3, 100, -40])
def test_files_that_are_cut_off_are_refused(tmp_path: Path, length: int) -> None:
    llama_file(tmp_path / "x.gguf")
    (tmp_path / "y.gguf").write_bytes((tmp_path / "x.gguf").read_bytes()[:length])
    with pytest.raises(GGUFError):
        read_gguf(tmp_path / "y.gguf")
    write_onnx(tmp_path / "x.onnx", {"a": np.zeros((9, 9), np.float32)}, [])
    (tmp_path / "y.onnx").write_bytes((tmp_path / "x.onnx").read_bytes()[:length])
    with pytest.raises(ONNXError):
        read_onnx(tmp_path / "y.onnx")


def tiny_encoder() -> Dinov2Model:
    config = Dinov2Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=1, image_size=28, patch_size=14
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Dinov2Model._from_config(config).eval()


def test_dinov2_is_rebuilt_from_an_export(tmp_path: Path) -> None:
    """Linear weights have no name in an export: each belongs to the bias added to its product."""
    encoder = tiny_encoder()
    tensors, nodes = {}, []
    theirs = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}
    theirs["o_proj"] = "output.dense"
    for name, tensor in reversed(encoder.state_dict().items()):
        array = tensor.numpy()
        for ours, other in theirs.items():
            name = name.replace(f".{ours}.", f".{other}.")
        if name.endswith("position_embeddings"):
            tensors |= {"onnx::Concat_1": array[:, :1], "onnx::Reshape_2": array[:, 1:]}
        elif array.ndim == 2 and name.endswith(".weight"):
            number = f"onnx::MatMul_{len(nodes)}"
            tensors[number] = np.ascontiguousarray(array.T)
            nodes += [("MatMul", ("x", number), f"y{number}")]
            nodes += [("Add", (f"backbone.{name[:-6]}bias", f"y{number}"), f"z{number}")]
        elif not name.endswith("mask_token"):
            tensors[f"backbone.{name}"] = array
    tensors["decoder.weight"] = np.zeros((2, 2), np.float32)
    write_onnx(tmp_path / "x.onnx", tensors, nodes)
    rebuilt = dinov2_from_onnx(tmp_path / "x.onnx")
    pixels = torch.linspace(-1, 1, 3 * 28 * 28).view(1, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(rebuilt(pixels)[0], encoder(pixels)[0])
