"""vLLM's models with a reduction between the vision encoder and the language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.platforms import current_platform

from compress.serving.vllm import families, placing
from compress.serving.vllm.encoder import Reducer
from compress.serving.vllm.processing import DENSE, with_limits, with_reduction
from compress.serving.vllm.settings import KEEP, ServingSettings

_Model: Any = Any if TYPE_CHECKING else object
# Fields of an image or video that vLLM places its tokens by.
PLACED_BY = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")


def __getattr__(name: str) -> Any:
    """The class that serves a family, such as ReducedLlava, made of vLLM's on first use."""
    family = getattr(families, name.replace("Reduced", "Served"), None)
    if family is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, stock_name = family.stock.partition(":")
    stock = getattr(import_module(f"vllm.model_executor.models.{module}"), stock_name)
    factories = stock._processor_factory
    register = MULTIMODAL_REGISTRY.register_processor(
        with_reduction(factories.processor, family),
        info=with_limits(factories.info, family),
        dummy_inputs=factories.dummy_inputs,
    )
    known = {"family": family, "stock": stock, "__module__": __name__}
    made = type(name, (Reduced, stock), known)
    return globals().setdefault(name, register(made))


class Reduced(_Model):
    """Comes before a stock model among the bases of a class.

    Without settings in the model's configuration, the stock model is made instead.

    family: what the plugin knows of the model's family. stock: the other base.
    """

    family: ClassVar[type[families.Served]]
    stock: ClassVar[Any]
    # Flags of vLLM's interfaces, whose protocols have constructors that would come in between.
    supports_mrope: ClassVar[bool] = True
    supports_multimodal_pruning: ClassVar[bool] = True

    def __new__(cls, *, vllm_config: Any, prefix: str = "") -> Any:
        if getattr(vllm_config.model_config.hf_config, "foveate", None) is None:
            return cls.stock(vllm_config=vllm_config, prefix=prefix)
        return super().__new__(cls)

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        settings = ServingSettings.parse(vllm_config.model_config.hf_config.foveate)
        placed, text = settings.positions == "original", vllm_config.model_config.hf_text_config
        before = text.max_position_embeddings
        # `max_model_len` counts what is left of a prompt that may fill the model's positions, so
        # generated text can pass them. The table of M-RoPE is longer anyhow.
        if placed and self.family.axes == 1:
            text.max_position_embeddings += vllm_config.model_config.max_model_len
        try:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
        finally:
            text.max_position_embeddings = before
        self._placed = placed
        self.is_multimodal_pruning_enabled = False  # vLLM's own pruning of videos
        self._width = width = self.config.get_text_config().hidden_size
        self._served = served = self.family(self)
        self._reducers = {kind: Reducer(served, kind, settings, width) for kind in served.kinds}
        self._tokens = {kind: served.placeholder(kind) for kind in served.kinds}
        if current_platform.is_cpu():
            _enable_on_cpu()

    def get_image_features(self, **kwargs: Any) -> Any:
        """The stock model's embeddings of images or videos, as the runtime asks for them."""
        return self._served.encoder_output(super().embed_multimodal(**kwargs))

    get_video_features = get_image_features

    def embed_multimodal(self, **kwargs: Any) -> Any:
        kind = "video" if "pixel_values_videos" in kwargs else "image"
        keep, dense = (kwargs.pop(name) for name in (KEEP, DENSE))
        reduced = self._reducers[kind](keep.item(), kwargs)
        embeddings = []
        for number, ((features, anchor), ids) in enumerate(zip(reduced, dense, strict=True)):
            is_visual, text = ids == self._tokens[kind], features[:0, : self._width]
            if not is_visual.all():
                text = self.get_language_model().embed_input_ids(ids[~is_visual].to(text.device))
            fields = {name: kwargs[name][number] for name in PLACED_BY if name in kwargs}
            places = self._places(kind, ids, fields)
            rows, where = placing.standing(is_visual, anchor, text, features, places)
            if self._placed:
                rows = torch.cat([rows, placing.to_columns(where, rows.dtype)], 1)
            embeddings.append(rows)
        return embeddings

    def _places(self, kind: str, ids: Tensor, fields: Mapping[str, Tensor]) -> Tensor:
        """(L, axes) int64: where vLLM places the dense tokens of an image or video, from its start.

        ids: (L,) int64, of the dense tokens and the text within them. fields: those of `PLACED_BY`.
        """
        if self.family.axes == 1:
            return torch.arange(len(ids))[:, None]
        data = {name: SimpleNamespace(data=value) for name, value in fields.items()}
        alone = SimpleNamespace(modality=kind, data=data, mm_position=SimpleNamespace(offset=0))
        return super().get_mrope_input_positions(ids.tolist(), [alone])[0].mT

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: Sequence[Any]
    ) -> tuple[Tensor, int]:
        images = []
        features = mm_features if self._placed else ()
        for feature in sorted(features, key=lambda one: one.mm_position.offset):
            position = feature.mm_position
            fields = {name: item.data for name, item in feature.data.items()}
            places = self._places(feature.modality, fields[DENSE], fields)
            images.append((position.offset, position.length, int(places.max()) + 1))
        return placing.dense_positions(len(input_tokens), images, self.family.axes)

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | Tensor,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        if not (self._placed and multimodal_embeddings):  # every step of decoding comes by here
            return multimodal_embeddings, mrope_positions, placing.delta(mrope_positions)
        positions, ids = mrope_positions.clone(), torch.as_tensor(input_ids)
        is_visual = torch.isin(ids, torch.tensor(list(self._tokens.values()), device=ids.device))
        embeddings = placing.complete(
            positions, is_visual, num_computed_tokens, multimodal_embeddings, self.family.axes
        )
        return embeddings, positions, placing.delta(positions)

    def forward(self, input_ids: Any, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.family.axes == 1 and positions.ndim == 2:
            positions = positions[0]
        return super().forward(input_ids, positions, *args, **kwargs)


def _enable_on_cpu() -> None:
    """Let vLLM's runner on CPU ask for positions, as the one for GPUs does.

    Its `load_model` does not set the flag that the other one sets.
    """
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    def enabled(runner: Any) -> bool:
        return getattr(getattr(runner, "model", None), "_placed", False)

    flag: Any = property(enabled, lambda runner, value: None)
    CPUModelRunner.is_multimodal_pruning_enabled = flag
