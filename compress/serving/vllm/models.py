"""vLLM's models with a reduction between the vision encoder and the language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from vllm.model_executor.models.llava import LlavaForConditionalGeneration
from vllm.model_executor.models.llava_next import LlavaNextForConditionalGeneration
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from vllm.model_executor.models.qwen2_vl import Qwen2VLForConditionalGeneration
from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.platforms import current_platform

from compress.serving.vllm import placing
from compress.serving.vllm.encoder import Reducer, as_model
from compress.serving.vllm.families import (
    Served,
    ServedLlava,
    ServedLlavaNext,
    ServedQwen,
    ServedQwen3,
    ServedQwen25,
)
from compress.serving.vllm.processing import KEEP, SPAN, with_reduction, within_budget
from compress.serving.vllm.settings import ServingSettings

_Model: Any = Any if TYPE_CHECKING else object


class Reduced(_Model):
    """Comes before a stock model among the bases of a class.

    Without settings in the model's configuration, all methods are the stock model's.

    family: what the plugin knows of the model's family.
    """

    family: ClassVar[type[Served]]
    # Flags of vLLM's interfaces, whose protocols have constructors that would come in between.
    supports_mrope: ClassVar[bool] = True
    supports_multimodal_pruning: ClassVar[bool] = True

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        given = getattr(vllm_config.model_config.hf_config, "foveate", None)
        self._settings = None
        if given is None:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            return
        _check(vllm_config)
        with _longer_table(vllm_config.model_config):
            super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._settings = ServingSettings.parse(given)
        self.is_multimodal_pruning_enabled = False  # vLLM's own pruning of videos
        self._served = self.family(as_model(self, super().embed_multimodal))
        width = self.config.get_text_config().hidden_size
        self._reducer = Reducer(self._served, self._settings, width)
        if current_platform.is_cpu():
            _enable_on_cpu()

    @property
    def _placed(self) -> bool:
        return self._settings is not None and self._settings.positions == "original"

    def embed_multimodal(self, **kwargs: Any) -> Any:
        if self._settings is None:
            return super().embed_multimodal(**kwargs)
        value, is_count = kwargs.pop(KEEP).tolist()
        kwargs.pop(SPAN)
        images = self._reducer(int(value) if is_count else value, kwargs)
        if not self._placed:
            return [features for features, _ in images]
        inputs = self._served.inputs("image", {"kwargs": kwargs})
        rows = []
        for item, (features, anchor) in zip(inputs, images, strict=True):
            places = self._served.places(item).to(anchor.device)[anchor]
            rows.append(torch.cat([features, placing.to_columns(places, features.dtype)], 1))
        return rows

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: Sequence[Any]
    ) -> tuple[Tensor, int]:
        if self._settings is None:
            return super().get_mrope_input_positions(input_tokens, mm_features)
        length = len(input_tokens)
        if not self._placed:
            return torch.arange(length).expand(3, -1).clone(), 0
        images = []
        for feature in sorted(mm_features, key=lambda one: one.mm_position.offset):
            position = feature.mm_position
            span = int(feature.data[SPAN].data)
            images.append((position.offset, position.length, span))
        return placing.dense_positions(length, images, self.family.axes)

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | Tensor,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        if self._settings is None:
            parent = super().recompute_mrope_positions
            return parent(input_ids, multimodal_embeddings, mrope_positions, num_computed_tokens)
        if not (self._placed and multimodal_embeddings):  # every step of decoding comes by here
            return multimodal_embeddings, mrope_positions, placing.delta(mrope_positions)
        positions = mrope_positions.clone()
        visual = torch.as_tensor(input_ids) == self._served.placeholder("image")
        embeddings = placing.complete(
            positions, visual, num_computed_tokens, multimodal_embeddings, self.family.axes
        )
        return embeddings, positions, placing.delta(positions)

    def forward(self, input_ids: Any, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.family.axes == 1 and positions.ndim == 2:
            positions = positions[0]
        return super().forward(input_ids, positions, *args, **kwargs)


def _check(vllm_config: Any) -> None:
    """Raise ValueError where the vision encoder's hooks would not run, or see some images only."""
    compilation, multimodal = vllm_config.compilation_config, vllm_config.model_config
    for name in ("compile_mm_encoder", "cudagraph_mm_encoder"):
        if getattr(compilation, name, False):
            raise ValueError(
                f"foveate reads the vision encoder as it runs, which {name} does not allow: turn "
                "it off"
            )
    data_parallel = multimodal.multimodal_config.mm_encoder_tp_mode == "data"
    if data_parallel and vllm_config.parallel_config.tensor_parallel_size > 1:
        raise ValueError(
            "foveate needs all images in each process: expected --mm-encoder-tp-mode weights"
        )
    if vllm_config.speculative_config is not None:
        raise ValueError("foveate has not been tried with speculative decoding: turn it off")


@contextmanager
def _longer_table(model_config: Any) -> Iterator[None]:
    """Have the rotary embedding made for the positions that generated text can reach.

    A prompt may fill the model's positions before the reduction, and `max_model_len` counts what
    is left after it.
    """
    config = model_config.hf_config.get_text_config()
    before = config.max_position_embeddings
    if getattr(model_config.hf_config, "mrope_section", None) == [1, 1, 1]:
        config.max_position_embeddings = before + model_config.max_model_len
    try:
        yield
    finally:
        config.max_position_embeddings = before


def _enable_on_cpu() -> None:
    """Let vLLM's runner on CPU ask for positions, as the one for GPUs does.

    Its `load_model` does not set the flag that the other one sets.
    """
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    def enabled(runner: Any) -> bool:
        multimodal = runner.model_config.multimodal_config
        model = getattr(runner, "model", None)
        return (
            getattr(model, "supports_multimodal_pruning", False)
            and multimodal is not None
            and multimodal.is_multimodal_pruning_enabled()
        )

    flag: Any = property(enabled, lambda runner, value: None)
    CPUModelRunner.is_multimodal_pruning_enabled = flag


def _processor(stock: Any, family: type[Served]) -> Any:
    factories = stock._processor_factory
    return MULTIMODAL_REGISTRY.register_processor(
        with_reduction(factories.processor, family),
        info=within_budget(factories.info),
        dummy_inputs=factories.dummy_inputs,
    )


@_processor(LlavaForConditionalGeneration, ServedLlava)
class ReducedLlava(Reduced, LlavaForConditionalGeneration):
    """LLaVA-1.5."""

    family = ServedLlava


@_processor(LlavaNextForConditionalGeneration, ServedLlavaNext)
class ReducedLlavaNext(Reduced, LlavaNextForConditionalGeneration):
    """LLaVA-NeXT: a base view and tiles, each reduced to its share."""

    family = ServedLlavaNext
    merge_tiles = staticmethod(LlavaNextForConditionalGeneration._merge_image_patch_embeddings)


@_processor(Qwen2VLForConditionalGeneration, ServedQwen)
class ReducedQwen2VL(Reduced, Qwen2VLForConditionalGeneration):
    """Qwen2-VL."""

    family = ServedQwen


@_processor(Qwen2_5_VLForConditionalGeneration, ServedQwen25)
class ReducedQwen25VL(Reduced, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL."""

    family = ServedQwen25


@_processor(Qwen3VLForConditionalGeneration, ServedQwen3)
class ReducedQwen3VL(Reduced, Qwen3VLForConditionalGeneration):
    """Qwen3-VL."""

    family = ServedQwen3
