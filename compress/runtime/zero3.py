"""The same module calls on every process, as ZeRO-3 needs them.

Under ZeRO-3 each call of a module gathers its parameters from all processes. A process whose batch
has no images would skip the vision side and the scoring in decoder layers, and the others would
wait for it, or take its next parameters for theirs. So it runs an empty input through the vision
side, times zero, and scores dummy rows. Elsewhere none of this happens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from compress.runtime.encoded import PIXELS
from compress.runtime.scores import ScoringRows, text_attention
from compress.runtime.settings import Settings
from vlm.families import ModelAdapter


def is_partitioned(adapter: ModelAdapter) -> bool:
    """Whether the model's parameters are partitioned over several processes."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return False
    return hasattr(next(adapter.language_model.parameters()), "ds_id")


class Zero3Symmetry:
    """Keeps one forward alike on all processes.

    encode: calls `get_{kind}_features` with nothing read and nothing merged. missing: kinds of
    visual input that this process lacks.
    """

    def __init__(
        self, settings: Settings, call: Mapping[str, Any], encode: Mapping[str, Callable[..., Any]]
    ) -> None:
        self._settings, self._encode = settings, encode
        kinds = settings.adapter.kinds
        # generate encodes elsewhere, and never goes on without what it was given.
        encodes = call.get("mm_encoder_outputs") is None
        self._missing = [k for k in kinds if encodes and call.get(PIXELS[k]) is None]
        self._zeros: list[Tensor] = []
        self._own: frozenset[int] = frozenset()
        self._scoring: frozenset[int] = frozenset()

    def words_embedded(self) -> None:
        """The words are embedded: what the core encodes would be encoded now."""
        if self._missing == list(self._settings.adapter.kinds):
            self._encode_blanks(list(self._missing))

    def before_encoding(self, kind: str) -> None:
        """Inputs of `kind` are about to be encoded; the missing kinds that come first go first."""
        kinds = self._settings.adapter.kinds
        place = kinds.index(kind)
        self._encode_blanks([one for one in self._missing if kinds.index(one) < place])

    def after_encoding(self, kind: str) -> None:
        """Inputs of `kind` were encoded; if they are the last, the missing kinds after them."""
        kinds = self._settings.adapter.kinds
        if all(later in self._missing for later in kinds[kinds.index(kind) + 1 :]):
            self._encode_blanks(list(self._missing))

    def tie(self, embeds: Tensor) -> Tensor:
        """`embeds` with the blank inputs in its graph, so that backward is the same everywhere."""
        for zero in self._zeros:
            embeds = embeds + zero.to(embeds.device, embeds.dtype)
        self._zeros = []
        return embeds

    def agree(self, layers: frozenset[int], device: torch.device) -> None:
        """Find the decoder layers before which any process scores.

        layers: those before which this one does.
        """
        self._own = layers
        if not self._settings.scores_in_llm:
            return
        marks = torch.zeros(len(self._settings.adapter.layers), dtype=torch.int32, device=device)
        marks[sorted(layers)] = 1
        dist.all_reduce(marks, op=dist.ReduceOp.MAX)
        self._scoring = frozenset(marks.nonzero().flatten().tolist())

    def score_alike(self, layer: int, hidden_states: Tensor, kwargs: Mapping[str, Any]) -> None:
        """Score dummy rows before a decoder layer, if another process scores in earnest there."""
        if layer not in self._scoring or layer in self._own:
            return
        if self._settings.method.scored_by == "previous":
            layer -= 1
        rows, length = hidden_states.shape[:2]
        mask = torch.ones(rows, length, dtype=torch.bool, device=hidden_states.device)
        query = torch.zeros(rows, 1, dtype=torch.int64, device=hidden_states.device)
        scoring = ScoringRows(query, mask[:, :1], mask, mask[:, :0])
        rotary = kwargs["position_embeddings"]
        text_attention(self._settings.adapter, layer, hidden_states, rotary, scoring)

    def _encode_blanks(self, kinds: list[str]) -> None:
        adapter = self._settings.adapter
        weight = next(adapter.vision_encoder.parameters())
        for kind in kinds:
            self._missing.remove(kind)
            blank = _like(adapter.blank(kind), weight)
            output = self._encode[kind](**blank, return_dict=True)
            self._zeros += [x.sum() * 0 for x in adapter.received(output)]


def _like(blank: Mapping[str, Any], weight: Tensor) -> dict[str, Any]:
    """The tensors of a blank input, by expert too, on the device and in the dtype of a weight."""
    return {
        name: _like(x, weight)
        if isinstance(x, Mapping)
        else x.to(weight.device, weight.dtype if x.is_floating_point() else x.dtype)
        for name, x in blank.items()
    }
