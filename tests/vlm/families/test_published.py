"""Published configurations, scaled down, on what the families' own image processors make of odd
pictures.

Sizes (widths, depths, windows, resolutions) are small; everything else is what the configuration
classes of transformers have by default, which are those of the checkpoints that their
documentation names: patterns of layers, kinds of rotary embedding, shares of a head that turn,
grouped heads, feature layers, pinpoints, factors of pooling.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from compress import compress
from tests.compress.common import answer
from tests.tiny import FIRST_WORD, WORDS
from tests.tiny.base import text
from vlm.families import adapter_of
from vlm.inputs import VisualInput

IMAGE = 5
PICTURES = {
    "portrait": (60, 90),
    "panorama": (320, 40),
    "tiny": (20, 30),
    "square": (64, 64),
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 112,
    "patch_size": 14,
}
CLIP = VISION | {"model_type": "clip_vision_model"}
SIGLIP = VISION | {"vision_use_head": False, "model_type": "siglip_vision_model"}
PACKED = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "out_hidden_size": 64,
}
SQUARE = {"height": 112, "width": 112}
PIXELS = {"size": {"shortest_edge": 28 * 28, "longest_edge": 112 * 112}}


@dataclass(frozen=True)
class Published:
    """checkpoint: whose configuration it is. text, vision, more: what of it is scaled down."""

    name: str
    checkpoint: str
    model: str
    processor: str
    text: Callable[[], dict[str, Any]]
    vision: dict[str, Any]
    options: dict[str, Any]
    more: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Any:
        """The model, with random weights."""
        kind = self.model.removesuffix("ForConditionalGeneration")
        make = getattr(transformers, f"{kind}Config")
        config = make(
            text_config=self.text(),
            vision_config=dict(self.vision),
            image_token_id=IMAGE,
            **self.more,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = getattr(transformers, self.model)(config).eval()
        model.generation_config.eos_token_id = None
        return model


def decoder(kind: str, **more: Any) -> Callable[[], dict[str, Any]]:
    """A text configuration of a model type: 8 layers, four query heads to a key head."""

    def make() -> dict[str, Any]:
        sizes = text(64, 8, 4, num_key_value_heads=1, initializer_range=0.1)
        return sizes | {"model_type": kind} | more

    return make


PUBLISHED = (
    Published(
        "gemma3", "google/gemma-3-4b", "Gemma3ForConditionalGeneration", "Gemma3ImageProcessor",
        decoder("gemma3_text", head_dim=32, sliding_window=32, num_hidden_layers=7,
                query_pre_attn_scalar=32),
        SIGLIP, {"size": SQUARE}, {"mm_tokens_per_image": 16},
    ),
    Published(
        "qwen3_5", "Qwen/Qwen3.5-9B", "Qwen3_5ForConditionalGeneration", "Qwen2VLImageProcessor",
        decoder("qwen3_5_text", head_dim=64, linear_num_key_heads=2, linear_num_value_heads=4,
                linear_key_head_dim=8, linear_value_head_dim=8,
                rope_parameters={"rope_type": "default", "rope_theta": 1e7,
                                 "mrope_section": [3, 3, 2], "mrope_interleaved": True,
                                 "partial_rotary_factor": 0.25}),
        PACKED | {"patch_size": 14, "num_position_embeddings": 64}, PIXELS,
    ),
    Published(
        "glm4v", "zai-org/GLM-4.1V-9B-Thinking", "Glm4vForConditionalGeneration",
        "Glm4vImageProcessor",
        decoder("glm4v_text",
                rope_parameters={"rope_type": "default", "rope_theta": 1e4,
                                 "mrope_section": [1, 2, 1], "partial_rotary_factor": 0.5}),
        PACKED | {"patch_size": 14, "image_size": 112}, PIXELS,
    ),
    Published(
        "cohere2_vision", "CohereLabs/command-a-vision", "Cohere2VisionForConditionalGeneration",
        "Cohere2VisionImageProcessor", decoder("cohere2", sliding_window=32),
        SIGLIP, {"size": SQUARE, "max_patches": 4}, {"alignment_intermediate_size": 64},
    ),
    Published(
        "aya_vision", "CohereForAI/aya-vision-8b", "AyaVisionForConditionalGeneration",
        "GotOcr2ImageProcessor", decoder("cohere2", sliding_window=32),
        SIGLIP, {"size": SQUARE, "max_patches": 4},
    ),
    Published(
        "paligemma", "google/paligemma-3b", "PaliGemmaForConditionalGeneration",
        "SiglipImageProcessor", decoder("gemma", head_dim=16),
        SIGLIP, {"size": SQUARE}, {"projection_dim": 64, "hidden_size": 64},
    ),
    Published(
        "llava_next_video", "llava-hf/LLaVA-NeXT-Video-7B",
        "LlavaNextVideoForConditionalGeneration",
        "LlavaNextImageProcessor", decoder("llama"), CLIP,
        {"size": {"shortest_edge": 112}, "crop_size": SQUARE,
         "image_grid_pinpoints": [[112, 224], [224, 112], [224, 224], [336, 112], [112, 336]]},
        {"image_grid_pinpoints": [[112, 224], [224, 112], [224, 224], [336, 112], [112, 336]]},
    ),
    Published(
        "vipllava", "llava-hf/vip-llava-7b-hf", "VipLlavaForConditionalGeneration",
        "CLIPImageProcessor", decoder("llama"), CLIP | {"num_hidden_layers": 12},
        {"size": {"shortest_edge": 112}, "crop_size": SQUARE},
    ),
    Published(
        "idefics3", "HuggingFaceM4/Idefics3-8B-Llama3", "Idefics3ForConditionalGeneration",
        "Idefics3ImageProcessor", decoder("llama"), VISION,
        {"size": {"longest_edge": 224}, "max_image_size": {"longest_edge": 112}},
    ),
    Published(
        "lighton_ocr", "lightonai/LightOnOCR-1B", "LightOnOcrForConditionalGeneration",
        "PixtralImageProcessor", decoder("qwen3", head_dim=16),
        VISION | {"model_type": "pixtral"},
        {"size": {"longest_edge": 112}, "patch_size": {"height": 28, "width": 28}},
    ),
)  # fmt: skip
EACH = pytest.mark.parametrize("published", PUBLISHED, ids=lambda one: one.name)


def picture(name: str, mode: str = "RGB") -> Any:
    size = PICTURES[name]
    draw = torch.Generator().manual_seed(len(name))
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=draw, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).convert(mode)


def encoded(published: Published, model: Any, pictures: list[Any]) -> dict[str, Tensor]:
    """What the processor makes of pictures of one prompt, as far as the model takes it."""
    processor = getattr(transformers, published.processor)(**published.options)
    made = processor(images=[pictures], return_tensors="pt")
    takes = inspect.signature(type(model.model).get_image_features).parameters
    return {name: torch.as_tensor(x) for name, x in made.items() if name in takes}


def prompt(model: Any, call: dict[str, Tensor], inputs: list[VisualInput]) -> dict[str, Tensor]:
    """Model inputs that show all visual inputs, with words around each."""
    draw = torch.Generator().manual_seed(0)
    parts = []
    for item in inputs:
        parts.append(torch.randint(FIRST_WORD, WORDS, (2,), generator=draw))
        parts.append(torch.full((item.count,), IMAGE))
    parts.append(torch.randint(FIRST_WORD, WORDS, (4,), generator=draw))
    ids = torch.cat(parts)[None]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **call}
    takes = inspect.signature(type(model).forward).parameters
    types = (ids == IMAGE).long()
    if "token_type_ids" in takes:
        given["token_type_ids"] = torch.zeros_like(ids) if "Pali" in type(model).__name__ else types
    if "mm_token_type_ids" in takes:
        given["mm_token_type_ids"] = types
    return given


SHOWN = {
    "portrait": ["portrait"],
    "panorama": ["panorama"],
    "tiny": ["tiny"],
    "two sizes": ["portrait", "panorama"],
}


@pytest.mark.slow
@EACH
@pytest.mark.parametrize("shown", SHOWN)
def test_odd_pictures(published: Published, shown: str) -> None:
    """Inputs have as many tokens as the stock model makes; keep-all is the stock model, bit for
    bit; each input keeps its share, in prefill and in the answer."""
    model = published.build()
    call = encoded(published, model, [picture(name) for name in SHOWN[shown]])
    inputs = adapter_of(model).inputs("image", call)
    with torch.no_grad():
        features = model.model.get_image_features(**call, return_dict=True).pooler_output
    assert sum(item.count for item in inputs) == sum(x.shape[:-1].numel() for x in features)
    given = prompt(model, call, inputs)
    stock = answer(model, given)
    with compress(model, "duet", budget=1.0):
        kept = answer(model, given)
    assert torch.equal(kept.sequences, stock.sequences)
    assert all(torch.equal(a, b) for a, b in zip(kept.logits, stock.logits, strict=True))
    for method in ("divprune", "duet", "pyramiddrop"):
        with compress(model, method, budget=0.5) as c:
            out = answer(model, given)
        assert out.sequences.shape == stock.sequences.shape
        if method == "divprune":
            mean = sum(item.count for item in inputs) / len(inputs)
            assert c.report().budget == pytest.approx(mean / 2, abs=0.51)
        assert torch.isfinite(torch.stack(out.logits)).all()


@pytest.mark.slow
@EACH
def test_a_grayscale_picture_is_as_its_rgb(published: Published) -> None:
    model = published.build()
    gray, rgb = picture("square", "L"), picture("square", "L").convert("RGB")
    for name, x in encoded(published, model, [gray]).items():
        torch.testing.assert_close(x, encoded(published, model, [rgb])[name])
