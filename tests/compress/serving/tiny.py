"""Small models of random weights, with processors, as both environments load them."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_QWEN = "<|vision_start|><|image_pad|><|vision_end|>"
# What stands for an image in a prompt.
PROMPTS = {
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "llava_next": "<image>",
    "internvl": "<IMG_CONTEXT>",
}
_SPECIAL = (
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<image>",
    "<IMG_CONTEXT>",
    "<img>",
    "</img>",
    "<video>",
)
WORDS = 200
_TEXT: dict[str, Any] = {
    "vocab_size": WORDS + len(_SPECIAL),
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
_VISION: dict[str, Any] = {
    "depth": 4,
    "hidden_size": 64,
    "num_heads": 4,
    "patch_size": 8,
    "initializer_range": 0.1,
}


def _tokenizer(**named: Any) -> Any:
    vocabulary = {word: n for n, word in enumerate(_SPECIAL)}
    vocabulary |= {f"w{n}": n + len(_SPECIAL) for n in range(WORDS)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=4096,
        **named,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(_SPECIAL[4:])})
    return tokenizer


def build(name: str) -> tuple[Any, Any]:
    """A model of one family and its processor."""
    torch.manual_seed(0)
    made = {"llava_next": _next, "internvl": _intern}
    model, processor = made[name]() if name in made else _qwen(name)
    model.generation_config.eos_token_id = 2
    return model.float().eval(), processor


def _id(token: str) -> int:
    return _SPECIAL.index(token)


def _qwen(name: str) -> tuple[Any, Any]:
    title = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[name]
    vision = dict(_VISION)
    if name == "qwen2_vl":
        del vision["hidden_size"]
        vision |= {"embed_dim": 64, "hidden_size": 128, "mlp_ratio": 2}
    else:
        vision |= {"intermediate_size": 96, "out_hidden_size": 128}
    if name == "qwen2_5_vl":
        vision |= {"window_size": 32, "fullatt_block_indexes": [1, 3]}
    if name == "qwen3_vl":
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    rope = dict(_MROPE)
    if name == "qwen3_vl":  # transformers always interleaves, vLLM where the checkpoint says so
        rope["mrope_interleaved"] = True
    tokens = {
        "image_token_id": _id("<|image_pad|>"),
        "video_token_id": _id("<|video_pad|>"),
        "vision_start_token_id": _id("<|vision_start|>"),
        "vision_end_token_id": _id("<|vision_end|>"),
    }
    config = getattr(transformers, f"{title}Config")(
        vision_config=vision,
        text_config=_TEXT | {"rope_parameters": rope},
        tie_word_embeddings=False,
        **tokens,
    )
    tokenizer = _tokenizer()
    for token in ("image", "video"):
        setattr(tokenizer, f"{token}_token", f"<|{token}_pad|>")
        setattr(tokenizer, f"{token}_token_id", tokens[f"{token}_token_id"])
    # As in checkpoints, images and videos are normalised alike: vLLM does it for both at once.
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    size = {"shortest_edge": 32 * 32, "longest_edge": 256 * 256}
    pictures = transformers.Qwen2VLImageProcessor(patch_size=8, size=size, **half)
    clips = "Qwen3VLVideoProcessor" if name == "qwen3_vl" else "Qwen2VLVideoProcessor"
    clip_size = {"shortest_edge": 32 * 32, "longest_edge": 4 * 96 * 96}
    processor = getattr(transformers, f"{title}Processor")(
        image_processor=pictures,
        tokenizer=tokenizer,
        video_processor=getattr(transformers, clips)(patch_size=8, size=clip_size, **half),
    )
    return getattr(transformers, f"{title}ForConditionalGeneration")(config), processor


def _next() -> tuple[Any, Any]:
    points = [[32, 64], [64, 32], [64, 64]]
    config = transformers.LlavaNextConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 4,
            "projection_dim": 64,
            "initializer_factor": 3.0,
        },
        text_config=_TEXT | {"model_type": "llama"},
        image_token_index=_id("<image>"),
        image_grid_pinpoints=points,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    pictures = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_grid_pinpoints=points,
    )
    processor = transformers.LlavaNextProcessor(
        image_processor=pictures,
        tokenizer=_tokenizer(),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return transformers.LlavaNextForConditionalGeneration(config), processor


def _intern() -> tuple[Any, Any]:
    config = transformers.InternVLConfig(
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": [32, 32],
            "patch_size": [4, 4],
            "layer_scale_init_value": 1.0,
            "initializer_range": 0.1,
        },
        text_config=_TEXT | {"model_type": "qwen2"},
        image_token_id=_id("<IMG_CONTEXT>"),
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = _tokenizer(extra_special_tokens=names)
    size = {"height": 32, "width": 32}
    processor = transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(size=size, max_patches=3),
        tokenizer=tokenizer,
        video_processor=transformers.InternVLVideoProcessor(size=size),
        image_seq_length=16,
    )
    return transformers.InternVLForConditionalGeneration(config), processor
