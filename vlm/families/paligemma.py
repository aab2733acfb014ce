"""PaliGemma: SigLIP, a linear projector, a prompt whose tokens all attend to each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlm.decoder import cache_of
from vlm.families.base import UnknownFamily
from vlm.families.clip import ClipHost
from vlm.inputs import VisualInput


class PaliGemma(ClipHost):
    """`PaliGemmaForConditionalGeneration` with a Gemma or a Gemma 2 decoder (PaliGemma 2).

    With `token_type_ids`, the prompt is one block of two-way attention, and answers are causal. The
    stock model has one block a row, so samples cannot be packed.
    """

    name = "paligemma"
    model_types = frozenset({"paligemma"})
    has_blocks = True
    packs = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        kind = self.config.text_config.model_type
        if kind not in ("gemma", "gemma2"):
            raise UnknownFamily(
                f"a {self.name} model with a decoder of type {kind!r} is not known: expected "
                "'gemma' or 'gemma2'"
            )

    @property
    def side(self) -> int:
        """Patches along each side of an image."""
        vision = self.config.vision_config
        return int(vision.image_size // vision.patch_size)

    @property
    def image_tokens(self) -> int | None:
        return self.side**2

    def projector_input(self, kind: str) -> nn.Module | None:
        return self.core.multi_modal_projector

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        return [VisualInput.plain((1, self.side, self.side))] * len(call["pixel_values"])

    def token_types(self, ids: Tensor, visual: Tensor, said: Tensor) -> dict[str, Tensor]:
        return {"token_type_ids": said.long()}

    def attention_blocks(self, ids: Tensor, media: Mapping[str, Any]) -> Tensor | None:
        types, cache = media.get("token_type_ids"), cache_of(media)
        later = cache is not None and cache.is_initialized and media.get("pixel_values") is None
        if types is None or later:  # as in the stock model
            return None
        return torch.where(types[:, -ids.shape[1] :] == 0, 0, -1)
