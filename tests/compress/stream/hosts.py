"""Models with processors that take streams, with random weights, and their direct prefills."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import (
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
)
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

import vlm
from tests.tiny.base import text
from vlm.embedded import mini

SIDE = 32  # pixels of a square frame of the Qwen hosts; patches of 4, 2 x 2 a token: 16 tokens
START, PAD_IMAGE, PAD_VIDEO, END = (
    "<|vision_start|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_end|>",
)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}USER:{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %} {{ part['text'] }}"
    "{% else %}"
    + START
    + "{{ '"
    + PAD_IMAGE
    + "' if part['type'] == 'image' else '"
    + PAD_VIDEO
    + "' }}"
    + END
    + "{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}
HOSTS = ("mini", "mini-1d", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")


@cache
def host(name: str) -> tuple[Any, Any]:
    """A model and its processor."""
    if name == "mini":
        return mini.build()
    if name == "mini-1d":
        return vlm.load("mini-1d")
    words = mini.build_tokenizer()
    words.add_special_tokens({"additional_special_tokens": [START, PAD_IMAGE, PAD_VIDEO, END]})
    words.image_token, words.video_token = PAD_IMAGE, PAD_VIDEO
    config, model_class = _config(name, words)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = model_class(config).eval()
        with torch.no_grad():
            for parameter in model.model.visual.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.25)
    return model, _processor(name, words)


def _config(name: str, words: Any) -> tuple[Any, Any]:
    vision: dict[str, Any] = {"depth": 2, "num_heads": 4, "patch_size": 4, "hidden_size": 32}
    more: dict[str, Any] = {"rope_parameters": dict(ROPE)}
    if name == "qwen2_vl":
        vision |= {"embed_dim": 32, "mlp_ratio": 2}
    elif name == "qwen2_5_vl":
        vision |= {"intermediate_size": 48, "window_size": 16, "fullatt_block_indexes": [1]}
        vision |= {"out_hidden_size": 32, "tokens_per_second": 2}
    else:
        vision |= {"intermediate_size": 48, "out_hidden_size": 32, "num_position_embeddings": 64}
        more["head_dim"] = 8
    if name == "qwen3_vl":
        vision["deepstack_visual_indexes"] = [0, 1]
    if name == "qwen3_5":
        rope = dict(ROPE, partial_rotary_factor=0.5, mrope_section=[2, 1, 1])
        more = {"head_dim": 16, "rope_parameters": rope, "layer_types": None}
        more["layer_types"] = ["linear_attention", "full_attention"] * 2
        more |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
        more |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    stem = {
        "qwen2_vl": "Qwen2VL",
        "qwen2_5_vl": "Qwen2_5_VL",
        "qwen3_vl": "Qwen3VL",
        "qwen3_5": "Qwen3_5",
    }[name]
    config = getattr(transformers, f"{stem}Config")(
        vision_config=vision,
        text_config=text(**more) | {"vocab_size": len(words)},
        image_token_id=words.convert_tokens_to_ids(PAD_IMAGE),
        video_token_id=words.convert_tokens_to_ids(PAD_VIDEO),
        vision_start_token_id=words.convert_tokens_to_ids(START),
        vision_end_token_id=words.convert_tokens_to_ids(END),
    )
    return config, getattr(transformers, f"{stem}ForConditionalGeneration")


def _processor(name: str, words: Any) -> Any:
    patches: dict[str, Any] = {
        "size": {"shortest_edge": 256, "longest_edge": 65536},
        "patch_size": 4,
        "merge_size": 2,
    }
    kind = {"qwen2_vl": Qwen2VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor}
    video = Qwen3VLVideoProcessor if name.startswith("qwen3") else Qwen2VLVideoProcessor
    return kind.get(name, Qwen3VLProcessor)(
        image_processor=Qwen2VLImageProcessor(**patches),
        video_processor=video(**patches),
        tokenizer=words,
        chat_template=TEMPLATE,
    )


def frames(count: int, name: str = "mini", seed: int = 0) -> np.ndarray:
    """(count, H, W, 3) uint8: noise that changes slowly."""
    side = 96 if name.startswith("mini") else SIDE
    rng = np.random.default_rng(seed)
    ground = rng.integers(0, 256, (side, side, 3))
    out = []
    for _ in range(count):
        ground[: side // 2] = rng.integers(0, 256, (side // 2, side, 3))
        out.append(ground.astype(np.uint8))
    return np.stack(out)


@torch.no_grad()
def direct(name: str, shown: np.ndarray, question: str, fps: float = 1.0) -> Tensor:
    """(V,) logits of the stock model's own prefill of the same prompt."""
    model, processor = host(name)
    as_images = name == "mini-1d"
    kind = "image" if as_images else "video"
    parts = [{"type": kind}] * (len(shown) if as_images else 1)
    chat = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
    words = processor.apply_chat_template(chat, add_generation_prompt=True)
    media: dict[str, Any] = {"images": list(shown)} if as_images else {"videos": [list(shown)]}
    if not name.startswith("mini"):
        given = {"fps": fps, "total_num_frames": len(shown), "duration": len(shown) / fps}
        media = {"videos": [torch.from_numpy(shown).permute(0, 3, 1, 2)]}
        media["video_metadata"] = [given | {"frames_indices": list(range(len(shown)))}]
        media["do_sample_frames"] = False
    inputs = processor(text=[words], return_tensors="pt", **media)
    if name == "qwen2_5_vl":
        inputs["second_per_grid_ts"] = torch.tensor([2 / fps])
    return model(**inputs).logits[0, -1]
