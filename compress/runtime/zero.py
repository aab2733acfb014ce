"""The same module calls on every process, as ZeRO-3 needs them.

Under ZeRO-3 each call of a module gathers its parameters from all processes. A process whose batch
has no images would skip the vision side and the scoring in decoder layers, and the others would
wait for it, or take its next parameters for theirs. So it runs an empty input through the vision
side, times zero, and scores for nothing. Elsewhere none of this happens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

from compress.runtime.rows import padded
from compress.runtime.scores import Asked, text_attention
from compress.runtime.state import length_of
from vlm.families import ModelAdapter

if TYPE_CHECKING:
    from compress.runtime.attach import Compression


class Symmetry:
    """Keeps account of one forward: what was encoded, and where other processes score."""

    def __init__(self, adapter: ModelAdapter) -> None:
        self.adapter = adapter
        self._missing: list[str] = []
        self._blank: list[Tensor] = []
        self._layers: frozenset[int] = frozenset()

    @property
    def needed(self) -> bool:
        """Whether parameters are partitioned over several processes."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return False
        return any(hasattr(p, "ds_id") for p in self.adapter.language_model.parameters())

    def begin(self, kwargs: dict[str, Any]) -> None:
        """The core is called: which kinds of input does this process lack?"""
        self.over()
        cache = kwargs.get("past_key_values")
        # generate encodes elsewhere, and never goes on without what it was given.
        later = kwargs.get("mm_encoder_outputs") is not None
        if later or (cache is not None and length_of(cache)) or not self.needed:
            return
        pixels = {"image": "pixel_values", "video": "pixel_values_videos"}
        self._missing = [k for k in self.adapter.kinds if kwargs.get(pixels[k]) is None]

    def embedded(self, owner: Compression) -> None:
        """Words are embedded, and what the core encodes would be encoded now."""
        if self._missing == list(self.adapter.kinds):
            self._encode(owner, list(self._missing))

    def before(self, owner: Compression, kind: str) -> None:
        """Inputs of `kind` are about to be encoded; the kinds that come first, before them."""
        place = self.adapter.kinds.index(kind)
        self._encode(owner, [k for k in self._missing if self.adapter.kinds.index(k) < place])

    def after(self, owner: Compression, kind: str) -> None:
        """Inputs of `kind` were encoded; the kinds that come after the last one."""
        place = self.adapter.kinds.index(kind)
        if all(later in self._missing for later in self.adapter.kinds[place + 1 :]):
            self._encode(owner, list(self._missing))

    def _encode(self, owner: Compression, kinds: list[str]) -> None:
        weight = next(self.adapter.vision_encoder.parameters())
        for kind in kinds:
            self._missing.remove(kind)
            given = _like(self.adapter.blank(kind), weight)
            output = owner.encoders[kind].unseen(**given, return_dict=True)
            every = [output.pooler_output, *(getattr(output, "deepstack_features", None) or [])]
            self._blank += [x.sum() * 0 for features in every for x in features]

    def tie(self, embeds: Tensor) -> Tensor:
        """`embeds` with what was encoded for nothing in its graph, for backward to be the same."""
        for zero in self._blank:
            embeds = embeds + zero.to(embeds.device, embeds.dtype)
        self._blank = []
        return embeds

    def agree(self, owner: Compression, layers: frozenset[int], device: torch.device) -> None:
        """Find the decoder layers at which any process scores."""
        if not (self.needed and owner.method.in_llm_needs & {"scores", "keys", "text_keys"}):
            return
        marks = torch.zeros(len(self.adapter.layers), dtype=torch.int32, device=device)
        marks[sorted(layers)] = 1
        dist.all_reduce(marks, op=dist.ReduceOp.MAX)
        self._layers = frozenset(marks.nonzero().flatten().tolist())

    def score(
        self, owner: Compression, number: int, hidden: Tensor, kwargs: dict[str, Any]
    ) -> None:
        """Score for nothing in decoder layer `number`, if another process does so in earnest."""
        if number not in self._layers:
            return
        layer = number - 1 if owner.method.scored_by == "previous" else number
        rows, length = hidden.shape[:2]
        where, real = padded([torch.zeros(1, dtype=torch.int64)] * rows)
        mask = torch.ones(rows, length, dtype=torch.bool)
        asked = Asked(where, real, mask, mask[:, :0])
        rotary = kwargs["position_embeddings"]
        text_attention(self.adapter.layers[layer], hidden, rotary, asked)

    def over(self) -> None:
        """The language model is through."""
        self._missing, self._blank, self._layers = [], [], frozenset()


def _like(blank: dict[str, Any], weight: Tensor) -> dict[str, Any]:
    """The tensors of a blank input, by expert too, on the device and in the dtype of a weight."""
    return {
        name: _like(x, weight)
        if isinstance(x, dict)
        else x.to(weight.device, weight.dtype if x.is_floating_point() else x.dtype)
        for name, x in blank.items()
    }
