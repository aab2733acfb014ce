"""A question about pictures as a model takes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image


def picture_prompt(
    model: Any, processor: Any, pictures: Sequence[Image.Image], question: str
) -> Any:
    """The inputs of one prompt, pictures first, on the model's device.

    processor: the model's, with a chat template.
    """
    content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": question}]
    chat = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    return processor(text=text, images=list(pictures), return_tensors="pt").to(model.device)
