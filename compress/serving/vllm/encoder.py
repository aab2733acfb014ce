"""What vLLM's vision encoders tell of an image, and the reduction that follows from it.

A model of vLLM is presented to the runtime of `compress` as the core of a transformers model is:
`EncodingFunction` reads the scores and merges in the projector's input here as it does there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
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
from compress.tokens import Reduction
from vlm.attention import Heads, SegmentHeads, Segments
from vlm.attention.reader import LayerReader
from vlm.families.base import ModelAdapter
from vlm.inputs import VisualInput


class EncoderAttentionReader(LayerReader):
    """Reads the queries and keys that enter vLLM's `MMEncoderAttention`, rotated as they are.

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
        heads, scale = self.attention.num_heads, float(self.attention.scale)
        parts = [
            x if x.ndim == 4 else x.unflatten(-1, (heads, -1))
            for x in (values["query"], values["key"])
        ]
        if not self._packed:
            query, key = (x.transpose(1, 2) for x in parts)
            return [Segments(query, key, scale)]
        rows = [item.rows for item in inputs]
        segments = []
        for item, query, key in zip(
            inputs, *(x.flatten(0, 1).split(rows) for x in parts), strict=True
        ):
            run = (item.grid[0], -1)
            query, key = (x.unflatten(0, run).transpose(1, 2) for x in (query, key))
            segments.append(Segments(query, key, scale))
        return segments

    def read(self, values: Mapping[Any, Any], inputs: Sequence[VisualInput]) -> Heads:
        """See `AttentionReader.read`."""
        heads = super().read(values, inputs)
        assert isinstance(heads, SegmentHeads)
        return ShardedHeads(heads.segments, heads.has_class_token, heads.prefix)


class ShardedHeads(SegmentHeads):
    """`SegmentHeads` of which each tensor-parallel process has some of the heads.

    The means over heads are averaged over the processes, so that all select the same tokens.
    """

    def keys(self) -> Tensor:
        return _average(super().keys())

    def saliency(self, rule: str) -> Tensor:
        return _average(super().saliency(rule))

    def attention(self) -> list[Tensor]:
        return [_average(part) for part in super().attention()]


def _average(x: Tensor) -> Tensor:
    from vllm.distributed import (
        get_tensor_model_parallel_world_size,
        tensor_model_parallel_all_reduce,
    )

    count = get_tensor_model_parallel_world_size()
    return x if count == 1 else tensor_model_parallel_all_reduce(x) / count


class Core:
    """A model of vLLM in the role of a transformers model's core."""

    def __init__(self, model: Any, embed: Callable[..., Sequence[Tensor]]) -> None:
        self._model, self._embed = model, embed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def get_image_features(self, **kwargs: Any) -> _Output:
        """The stock model's embeddings of images."""
        return _Output(list(self._embed(**kwargs)))


class _Output:
    def __init__(self, pooler_output: list[Tensor]) -> None:
        self.pooler_output = pooler_output


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
    """The reduction of one model's images.

    width: channels of the embeddings that the method reads; those behind follow them.
    """

    def __init__(self, served: ModelAdapter, settings: ServingSettings, width: int) -> None:
        self._width = width
        self._served = served
        self._settings = _RuntimeSettings(served, settings.method, settings.keep)
        # Images with a `keep` of their own are encoded on their own, so this changes between calls.
        self._current = self._settings
        self._function = EncodingFunction(
            "image", lambda: self._current, Clock(), lambda kind: nullcontext()
        )
        self._function.attach()

    def __call__(self, keep: int | float, kwargs: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
        """For each image the embeddings (M, D) of its kept tokens, and which they are, (M,) int64.

        keep: of all these images. kwargs: what vLLM gives to `embed_multimodal`.
        """
        self._current = self._settings.with_budget(keep)  # type: ignore[assignment]
        encoded = Encoded.of(self._function(**kwargs))
        if encoded is None or encoded.features is None:
            raise RuntimeError("the vision encoder returned no embeddings")
        if encoded.reductions is None:
            return self._reduce(encoded, encoded.features)
        carriers = encoded.carriers or [one.anchor[0] for one in encoded.reductions]
        dense = encoded.features.split(encoded.counts)
        return [
            (features[carrier], reduction.anchor[0])
            for features, carrier, reduction in zip(
                dense, carriers, encoded.reductions, strict=True
            )
        ]

    def _reduce(self, encoded: Encoded, features: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The reduction of post-projector features, (T, D) of all images."""
        main, rest = features[:, : self._width], features[:, self._width :]
        keeps = [encoded.settings.allocation(count).keep for count in encoded.counts]
        tokens = InputTokens(encoded.inputs, main, encoded.fields, encoded.attention)
        reductions: list[Reduction] = reduce_inputs(encoded.settings, tokens, keeps)
        rows = [reduction.features[0] for reduction in reductions]
        if rest.shape[1]:
            size = torch.ones(len(rest), dtype=torch.int64, device=rest.device)
            parts = pooled(rest, reductions, size).split(keeps)
            rows = [torch.cat(pair, 1) for pair in zip(rows, parts, strict=True)]
        return [(row, one.anchor[0]) for row, one in zip(rows, reductions, strict=True)]


def as_model(model: Any, embed: Callable[..., Sequence[Tensor]]) -> Any:
    """What a `ModelAdapter` takes for a model of vLLM."""
    return SimpleNamespace(model=Core(model, embed))
