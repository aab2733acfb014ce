"""Tiny random models of stock classes, and prompts for them. No network, no files.

To add a family: one module like the others, one line in `CASES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.tiny.base import FIRST_WORD, IMAGE_TOKEN, PAD, VIDEO_TOKEN, WORDS, Case, Sample
from tests.tiny.cohere2_vision import AyaVision, Cohere2Vision
from tests.tiny.deepseek_vl import DeepseekVL
from tests.tiny.ernie4_5_vl_moe import Ernie45VLMoe
from tests.tiny.fast_vlm import FastVLM
from tests.tiny.foveate import Foveate
from tests.tiny.gemma3 import Gemma3
from tests.tiny.gemma4 import Gemma4, Gemma4Small
from tests.tiny.glm4v import Glm4v, Glm4vMoe, Glm46V, GlmOcr
from tests.tiny.granite4_vision import Granite4Vision
from tests.tiny.internvl import InternVL
from tests.tiny.lfm2_vl import Lfm2VL
from tests.tiny.lighton_ocr import LightOnOcr
from tests.tiny.llama4 import Llama4
from tests.tiny.llava import Llava
from tests.tiny.llava_next import LlavaNext
from tests.tiny.llava_next_video import LlavaNextVideo
from tests.tiny.llava_onevision import LlavaOnevision
from tests.tiny.minicpmv4_6 import MiniCPMV46
from tests.tiny.mistral3 import Mistral3
from tests.tiny.molmo2 import Molmo2
from tests.tiny.ovis2 import Ovis2
from tests.tiny.paddleocr_vl import PaddleOcrVL
from tests.tiny.paligemma import PaliGemma, PaliGemma2
from tests.tiny.perception_lm import PerceptionLM
from tests.tiny.qwen2_5_omni import Qwen2_5Omni, Qwen3Omni
from tests.tiny.qwen2_5_vl import Qwen2_5VL
from tests.tiny.qwen2_vl import Qwen2VL
from tests.tiny.qwen3_5 import Qwen3_5, Qwen3_5Moe
from tests.tiny.qwen3_vl import Qwen3VL, Qwen3VLMoe
from tests.tiny.smolvlm import Idefics3, SmolVLM
from tests.tiny.video_llama_3 import VideoLlama3
from tests.tiny.video_llava import VideoLlava
from tests.tiny.vipllava import VipLlava

CASES: tuple[Case, ...] = (
    Llava(),
    LlavaNext(),
    Qwen2VL(),
    Qwen2_5VL(),
    Qwen3VL(),
    LlavaOnevision(),
    InternVL(),
    SmolVLM(),
    VideoLlava(),
    Mistral3(),
    Foveate(),
    Gemma3(),
    Qwen3_5(),
    Qwen3_5Moe(),
    Qwen3VLMoe(),
    Glm4v(),
    Glm46V(),
    Glm4vMoe(),
    GlmOcr(),
    Cohere2Vision(),
    AyaVision(),
    PaliGemma(),
    PaliGemma2(),
    LlavaNextVideo(),
    VipLlava(),
    Idefics3(),
    LightOnOcr(),
    Gemma4(),
    Gemma4Small(),
    Lfm2VL(),
    DeepseekVL(),
    Ovis2(),
    VideoLlama3(),
    PaddleOcrVL(),
    Ernie45VLMoe(),
    Qwen2_5Omni(),
    Qwen3Omni(),
    FastVLM(),
    PerceptionLM(),
    MiniCPMV46(),
    Llama4(),
    Molmo2(),
    Granite4Vision(),
)  # fmt: skip

__all__ = ["CASES", "FIRST_WORD", "IMAGE_TOKEN", "PAD", "VIDEO_TOKEN", "WORDS", "Case", "Sample"]


def llava(attention: str = "sdpa", depth: int = 4) -> Any:
    """A LLaVA of one's own, with 8 x 8 tokens an image."""
    return Llava().fresh(attention, depth)


def prompt(lengths: Sequence[int], tokens: int = 64, seed: int = 0) -> Tensor:
    """(S,) ids: text runs of the given lengths with an image between each two."""
    draw = torch.Generator().manual_seed(seed)
    parts = []
    for number, length in enumerate(lengths):
        if number:
            parts.append(torch.full((tokens,), IMAGE_TOKEN))
        parts.append(torch.randint(FIRST_WORD, WORDS, (length,), generator=draw))
    return torch.cat(parts)


def pixels(count: int, seed: int = 0, size: int = 32) -> Tensor:
    """(count, 3, size, size) float32."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def batch(
    prompts: Sequence[Tensor], images: Tensor | None, side: str = "left"
) -> dict[str, Tensor]:
    """Pad prompts on one side; images (n, 3, s, s) in the order of the prompts."""
    out = Llava().inputs([Sample(ids) for ids in prompts], side)
    return out if images is None else out | {"pixel_values": images}


def images_and_text(images: int = 2) -> dict[str, Tensor]:
    """Inputs of `llava`: one image and two texts a row."""
    prompts = [prompt([3, 5], seed=k) for k in range(images)]
    return batch(prompts, pixels(images))
