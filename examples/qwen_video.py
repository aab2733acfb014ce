"""Reduce a video in Qwen2.5-VL.

python examples/qwen_video.py                       # a tiny random model, no download
python examples/qwen_video.py --model Qwen/Qwen2.5-VL-7B-Instruct --video clip.mp4
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2_5_VLConfig
from transformers import Qwen2_5_VLForConditionalGeneration as Qwen

from compress import compress


def tiny() -> tuple[Any, dict[str, torch.Tensor]]:
    """A random model of two layers, and the inputs of a video of 32 tokens."""
    rope = dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 2])
    size = dict(hidden_size=32, intermediate_size=48)
    text = dict(vocab_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    vision = dict(out_hidden_size=32, depth=2, num_heads=2, fullatt_block_indexes=[1])
    config = Qwen2_5_VLConfig(
        text_config=text | size | {"rope_parameters": rope}, vision_config=vision | size,
        image_token_id=5, video_token_id=4, vision_start_token_id=6,
    )  # fmt: skip
    ids = torch.tensor([[7, 6, *[4] * 32, 8, 9]])
    inputs = dict(input_ids=ids, mm_token_type_ids=2 * (ids == 4).long())
    inputs |= dict(pixel_values_videos=torch.randn(128, 1176))
    return Qwen(config).eval(), inputs | dict(video_grid_thw=torch.tensor([[2, 8, 8]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a folder or a hub name; a tiny random model by default")
    parser.add_argument("--video", help="a file; with --model")
    options = parser.parse_args()
    if options.model is None:
        model, inputs = tiny()
    else:
        model = AutoModelForImageTextToText.from_pretrained(options.model, device_map="auto")
        content = [
            {"type": "video", "path": options.video},
            {"type": "text", "text": "What happens?"},
        ]
        inputs = AutoProcessor.from_pretrained(options.model).apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True,
            return_dict=True, return_tensors="pt",
        ).to(model.device)  # fmt: skip
    with compress(model, "divprune", budget=0.25) as c:
        print("new ids:", model.generate(**inputs, max_new_tokens=8)[0, -8:].tolist())
        print(c.report())


if __name__ == "__main__":
    main()
