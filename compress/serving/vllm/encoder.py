"""What vLLM's vision encoders tell of an image, and the reduction that follows from it.

A model of vLLM is given to the runtime of `compress` as the core of a transformers model is:
`EncodingFunction` reads the scores and merges in the projector's input here as it does there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from compress.budget import Allocation
from compress.report.clock import Clock
from compress.runtime.encode import EncodingFunction
from compress.runtime.encoded import Encoded
from compress.runtime.reduce_inputs import InputTokens, pooled, reduce_inputs
from compress.runtime.settings import Settings
from compress.serving.vllm.settings import ServingSettings
from vlm.attention import Segments
from vlm.attention.reader import LayerReader, packed_segments
from vlm.families.base import ModelAdapter
from vlm.inputs import VisualInput


class EncoderAttentionReader(LayerReader):
    """Reads the queries and keys that enter vLLM's `MMEncoderAttention`, rotated as they are.

    Of tensor-parallel processes each has some of the heads. All gather those of the others, so
    that all select the same tokens.

    has_class_token: whether the first row of each image is a class token, which is dropped.
    packed: whether images follow one another in one row, each frame attending within itself.
    """

    def __init__(self, attention: Any, has_class_token: bool, packed: bool) -> None:
        super().__init__(attention)
        self.has_class_token, self.prefix = has_class_token, int(has_class_token)
        self._packed = packed

    def attach(self) -> list[Any]:
        """See `AttentionReader.attach`."""
        return [self.attention.register_forward_pre_hook(self._hook, with_kwargs=True)]

    def _hook(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for place, name in enumerate(("query", "key")):
            self.store(name, kwargs[name] if name in kwargs else args[place])

    def segments(self, values: Mapping[Any, Any], inputs: Sequence[VisualInput]) -> list[Segments]:
        """See `LayerReader.segments`."""
        from vllm.distributed import tensor_model_parallel_all_gather

        shape, scale = (self.attention.num_heads, -1), float(self.attention.scale)
        query, key = (
            tensor_model_parallel_all_gather(x if x.ndim == 4 else x.unflatten(-1, shape), dim=2)
            for x in (values["query"], values["key"])
        )
        if self._packed:
            return packed_segments(query.flatten(0, 1), key.flatten(0, 1), scale, inputs)
        return [Segments(query.transpose(1, 2), key.transpose(1, 2), scale)]


class _RuntimeSettings(Settings):
    """Settings of the runtime, where a budget is what enters the language model.

    What they check of a transformers model, `configuration.prepare` checks of vLLM's.
    """

    def __post_init__(self) -> None:
        pass

    def allocation(self, dense: int, budget: int | float | None = None) -> Allocation:
        keep: Any = self.budget if budget is None else budget
        return Allocation(dense, 1, ServingSettings(self.method, keep).count(dense))


class Reducer:
    """The reduction of one model's images, or of its videos.

    served: whose core has `get_{kind}_features`. width: channels of the embeddings that the method
    reads; those behind follow them.
    """

    def __init__(self, served: ModelAdapter, kind: str, settings: ServingSettings, width: int):
        self._width = width
        self._settings: Settings = _RuntimeSettings(served, settings.method, settings.keep)
        # Inputs with a `keep` of their own are encoded on their own, so this changes between calls.
        self._function = EncodingFunction(
            kind, lambda: self._settings, Clock(), lambda kind: nullcontext()
        )
        self._function.attach()

    def __call__(self, keep: int | float, kwargs: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
        """For each input the embeddings (M, D) of its kept tokens, and which they are, (M,) int64.

        keep: of all these inputs. kwargs: what vLLM gives to `embed_multimodal`.
        """
        self._settings = self._settings.with_budget(keep)
        encoded: Any = Encoded.of(self._function(**kwargs))
        features, reductions = encoded.features, encoded.reductions
        if reductions is not None:  # merged before the projector, whose output is in the carriers
            carriers = encoded.carriers or [one.anchor[0] for one in reductions]
            dense = features.split(encoded.counts)
            rows = [part[carrier] for part, carrier in zip(dense, carriers, strict=True)]
        else:
            main, rest = features.tensor_split([self._width], dim=1)
            keeps = [self._settings.allocation(count).keep for count in encoded.counts]
            tokens = InputTokens(encoded.inputs, main, encoded.fields, encoded.attention)
            reductions = reduce_inputs(self._settings, tokens, keeps)
            rows = [one.features[0] for one in reductions]
            if rest.shape[1]:
                size = torch.ones(len(rest), dtype=torch.int64, device=rest.device)
                parts = pooled(rest, reductions, size).split(keeps)
                rows = [torch.cat(pair, 1) for pair in zip(rows, parts, strict=True)]
        return [(row, one.anchor[0]) for row, one in zip(rows, reductions, strict=True)]
