"""Published configurations (`published.py`) on what the families' own image processors make of odd
pictures."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from compress import compress
from tests.compress.common import answer
from tests.tiny import FIRST_WORD, WORDS
from tests.vlm.families.published import IMAGE, PIXELS, PUBLISHED, SQUARE, Published
from vlm.families import adapter_of
from vlm.inputs import VisualInput

PICTURES = {
    "portrait": (60, 90),
    "panorama": (320, 40),
    "tiny": (20, 30),
    "square": (64, 64),
}
EACH = pytest.mark.parametrize("published", PUBLISHED, ids=lambda one: one.name)


def core_of(model: Any) -> Any:
    return adapter_of(model).core


def picture(name: str, mode: str = "RGB") -> Any:
    size = PICTURES[name]
    draw = torch.Generator().manual_seed(len(name))
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=draw, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).convert(mode)


def encoded(published: Published, model: Any, pictures: list[Any]) -> dict[str, Tensor]:
    """What the processor makes of pictures of one prompt, as far as the model takes it."""
    processor = getattr(transformers, published.processor)(**published.options)
    made = processor(images=[pictures], return_tensors="pt")
    takes = inspect.signature(type(core_of(model)).get_image_features).parameters
    call = {name: torch.as_tensor(x) for name, x in made.items() if name in takes}
    # Llama 4's processor makes bfloat16, which its checkpoints are.
    return {name: x.float() if x.is_floating_point() else x for name, x in call.items()}


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
        output = core_of(model).get_image_features(**call, return_dict=True)
    features = adapter_of(model).features_of(output)
    assert features is not None
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


# The video processor of a family, and what of it is scaled down.
VIDEOS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_vl": ("Qwen2VLVideoProcessor", PIXELS),
    "qwen2_5_vl": ("Qwen2VLVideoProcessor", PIXELS),
    "qwen3_vl": ("Qwen3VLVideoProcessor", PIXELS | {"patch_size": 14}),
    "qwen3_5": ("Qwen3VLVideoProcessor", PIXELS | {"patch_size": 14}),
    "video_llama_3": ("VideoLlama3VideoProcessor", PIXELS | {"use_token_compression": False}),
    "llava_onevision": ("LlavaOnevisionVideoProcessor", {"size": SQUARE}),
    "llava_next_video": (
        "LlavaNextVideoVideoProcessor",
        {"size": {"shortest_edge": 112}, "crop_size": SQUARE},
    ),
    "gemma4": ("Gemma4VideoProcessor", {"max_soft_tokens": 70}),
}
BY_NAME = {published.name: published for published in PUBLISHED}


@pytest.mark.slow
@pytest.mark.parametrize("frames", [3, 5])
@pytest.mark.parametrize("name", VIDEOS)
def test_odd_frame_counts(name: str, frames: int) -> None:
    """A video has as many tokens as the stock model makes of it."""
    model, (kind, options) = BY_NAME[name].build(), VIDEOS[name]
    draw = torch.Generator().manual_seed(frames)
    video = torch.randint(0, 256, (frames, 3, 60, 90), generator=draw, dtype=torch.uint8)
    processor = getattr(transformers, kind)(do_sample_frames=False, **options)
    made = processor(videos=[video], return_tensors="pt")
    takes = inspect.signature(type(model.model).get_video_features).parameters
    call = {name: torch.as_tensor(x) for name, x in made.items() if name in takes}
    (item,) = adapter_of(model).inputs("video", call)
    with torch.no_grad():
        features = model.model.get_video_features(**call, return_dict=True).pooler_output
    assert item.count == sum(x.shape[:-1].numel() for x in features)
    rows = torch.arange(float(item.rows))[:, None]
    assert adapter_of(model).pool([item], rows).shape == (item.count, 1)
