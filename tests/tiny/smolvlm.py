"""SmolVLM: tiles of 4 x 4 tokens, each an input of its own; one is half padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn
from transformers import LlamaConfig

from tests.tiny.base import IMAGE_TOKEN, Case, View, noise, text


class SmolVLM(Case):
    name = "smolvlm"
    model_class = "SmolVLMForConditionalGeneration"
    config_class = "SmolVLMConfig"
    vision = ("vision_model",)
    projector = "connector"
    pools = 4
    frames: ClassVar[dict[str, int]] = {"v": 2, "one": 1}
    budget = 9
    layouts = (*Case.layouts, (2, ("video", "v"), 3))

    def config(self, depth: int) -> Any:
        return getattr(transformers, self.config_class)(
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "image_size": 32,
                "patch_size": 4,
            },
            text_config=LlamaConfig(**text(depth=depth)).to_dict(),
            image_token_id=IMAGE_TOKEN,
            scale_factor=2,
        )

    def tokens(self, kind: str, variant: str) -> Tensor:
        return torch.cat([torch.tensor([3]), torch.full((16,), IMAGE_TOKEN)])

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        pixels = torch.stack([noise(3, 32, 32, seed=seed) for _, seed in shown])
        mask = torch.ones(len(shown), 32, 32, dtype=torch.int64)
        for number, (variant, _) in enumerate(shown):
            if variant == "b":
                pixels[number, :, 16:], mask[number, 16:] = 0, 0
        return {"pixel_values": pixels[None], "pixel_attention_mask": mask[None]}

    def rows_of_media(self, kind: str, shown: Sequence[Any]) -> dict[str, Tensor]:
        most = max(len(row) for row in shown)
        pixels = torch.zeros(len(shown), most, 3, 32, 32)
        mask = torch.zeros(len(shown), most, 32, 32, dtype=torch.int64)
        for number, row in enumerate(shown):
            if row:
                visual_input = self.media(kind, row)
                pixels[number, : len(row)] = visual_input["pixel_values"][0]
                mask[number, : len(row)] = visual_input["pixel_attention_mask"][0]
        return {"pixel_values": pixels, "pixel_attention_mask": mask}

    def views(self, kind: str, variant: str) -> list[View]:
        return [((1, 4, 4), list(range(16)))]

    def pooled(self, values: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(values.reshape(-1, 1, 8, 8), 2).flatten()


class Idefics3(SmolVLM):
    name = "idefics3"
    model_class = "Idefics3ForConditionalGeneration"
    config_class = "Idefics3Config"
    quick = False
