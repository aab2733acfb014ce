"""A tiny Qwen2.5-VL with its processor on disk: M-RoPE, videos as videos."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from vlm.embedded import mini

VIDEO = "<video>"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}USER:"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %} {{ part['text'] }}"
    "{% else %}{{ '<image>' if part['type'] == 'image' else '" + VIDEO + "' }}{% endif %}"
    "{% endfor %}{% else %} ASSISTANT:{% for part in message['content'] %} {{ part['text'] }}"
    "{% endfor %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def write_base(folder: Path) -> Path:
    """Random weights, four decoder layers."""
    words = mini.build_tokenizer()
    patches = {
        "size": {"shortest_edge": 256, "longest_edge": 4096},
        "patch_size": 4,
        "merge_size": 2,
    }
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 4,
            "patch_size": 4,
            "window_size": 16,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
        text_config={
            "vocab_size": len(words),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]},
            "pad_token_id": words.pad_token_id,
            "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id,
        },
        image_token_id=words.convert_tokens_to_ids("<image>"),
        video_token_id=words.convert_tokens_to_ids(VIDEO),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**patches),
        video_processor=Qwen2VLVideoProcessor(**patches, cap_pixels_per_frame=False),
        tokenizer=words,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder


def give_a_video(data: Path, media: Path) -> None:
    """Put a clip in the place of the second sample's picture."""
    clip = media / "clip"
    clip.mkdir()
    for n in range(6):
        Image.new("RGB", (40, 32), (40 * n, 0, 0)).save(clip / f"{n}.png")
    records = json.loads(data.read_text())
    del records[1]["image"]
    records[1]["video"] = "clip"
    records[1]["conversations"][0]["value"] = "<video>\nWhat is it?"
    data.write_text(json.dumps(records))
