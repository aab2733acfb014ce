"""vLLM's models with a reduction between the vision encoder and the language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.platforms import current_platform

from compress.serving.vllm import families, placing
from compress.serving.vllm.encoder import Reducer
from compress.serving.vllm.processing import DENSE, KEEP, PLACES, with_limits, with_reduction
from compress.serving.vllm.settings import ServingSettings

_Model: Any = Any if TYPE_CHECKING else object


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
    made = type(name, (Reduced, stock), {"family": family, "__module__": __name__})
    return globals().setdefault(name, register(made))


class Reduced(_Model):
    """Comes before a stock model among the bases of a class.

    Without settings in the model's configuration, all methods are the stock model's.

    family: what the plugin knows of the model's family.
    """

    family: ClassVar[type[families.Served]]
    # Flags of vLLM's interfaces, whose protocols have constructors that would come in between.
    supports_mrope: ClassVar[bool] = True
    supports_multimodal_pruning: ClassVar[bool] = True
    _settings: ServingSettings | None = None
    _placed = False

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        given = getattr(vllm_config.model_config.hf_config, "foveate", None)
        if given is None:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            return
        _check(vllm_config)
        with _longer_table(vllm_config.model_config):
            super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._settings = settings = ServingSettings.parse(given)
        self._placed = settings.positions == "original"
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
        if self._settings is None:
            return super().embed_multimodal(**kwargs)
        kind = "video" if "pixel_values_videos" in kwargs else "image"
        keep, dense, places = (kwargs.pop(name) for name in (KEEP, DENSE, PLACES))
        reduced = self._reducers[kind](keep.item(), kwargs)
        embeddings = []
        for (features, anchor), ids, own in zip(reduced, dense, places, strict=True):
            is_visual, text = ids == self._tokens[kind], features[:0, : self._width]
            if not is_visual.all():
                text = self.get_language_model().embed_input_ids(ids[~is_visual].to(text.device))
            rows, where = placing.standing(is_visual, anchor, text, features, own)
            if self._placed:
                rows = torch.cat([rows, placing.to_columns(where, rows.dtype)], 1)
            embeddings.append(rows)
        return embeddings

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
            position, span = feature.mm_position, int(feature.data[PLACES].data.max()) + 1
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


def _check(vllm_config: Any) -> None:
    """Raise ValueError where the vision encoder's hooks would not run, or see some images only."""
    for name in ("compile_mm_encoder", "cudagraph_mm_encoder"):
        if getattr(vllm_config.compilation_config, name, False):
            raise ValueError(
                f"foveate reads the vision encoder as it runs, which {name} does not allow: turn "
                "it off"
            )
    multimodal = vllm_config.model_config.multimodal_config
    several = vllm_config.parallel_config.tensor_parallel_size > 1
    if several and multimodal.mm_encoder_tp_mode == "data":
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
        model = getattr(runner, "model", None)
        return isinstance(model, Reduced) and model._placed

    flag: Any = property(enabled, lambda runner, value: None)
    CPUModelRunner.is_multimodal_pruning_enabled = flag
