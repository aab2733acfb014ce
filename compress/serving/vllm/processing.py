"""The processor: placeholders for the kept tokens, and what the model must know of each image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from vllm.logger import init_logger
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalSharedField,
)
from vllm.multimodal.parse import EmbeddingItems
from vllm.multimodal.processing import PromptUpdateDetails

from compress.serving.vllm.families import Served
from compress.serving.vllm.placing import shortened
from compress.serving.vllm.settings import KEEP_ARGUMENT, ServingSettings

logger = init_logger(__name__)

KEEP, SPAN = "foveate_keep", "foveate_span"
"""Fields of an image: (2,) float64, its `keep` and whether that is a count; () int64, the positions
that it takes when dense."""


@dataclass
class ReducedDetails(PromptUpdateDetails):
    """Placeholders of the kept tokens. dense: how many there were before."""

    dense: int = 0


_Processor: Any = Any if TYPE_CHECKING else object


class ReducedProcessor(_Processor):
    """Comes before a stock processor among the bases of a class. family: of the model."""

    family: ClassVar[type[Served]]
    _profiling = False

    @property
    def _config(self) -> Any:
        return self.info.ctx.model_config.hf_config

    def get_dummy_mm_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """Inputs that vLLM measures memory with: no request, so that no request is refused."""
        self._profiling = True
        try:
            return super().get_dummy_mm_inputs(*args, **kwargs)
        finally:
            self._profiling = False

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        try:
            return super().apply(inputs, timing_ctx)
        except ValueError:
            # By now the images may be cached here, and will never reach the engine's own cache.
            if inputs.cache is not None:
                for hashes in self._get_mm_hashes(inputs).values():
                    for one in hashes:
                        inputs.cache.invalidate(one)
            raise

    def _call_hf_processor(self, hf_data: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        return super()._call_hf_processor(hf_data, _without(hf_kwargs))

    def _get_mm_fields_config(self, hf_inputs: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        return super()._get_mm_fields_config(hf_inputs, _without(hf_kwargs))

    def _get_mm_hashes(self, inputs: Any) -> Any:
        """Images are cached by what they are and how they are reduced."""
        arguments = {**inputs.hf_processor_mm_kwargs, "foveate": self._config.foveate}
        return super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=arguments))

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> list[Any]:
        arguments = hf_processor_mm_kwargs
        for modality, items in mm_items.items():
            if len(items) and modality != "image":
                raise ValueError(f"foveate reduces images, and got input of kind {modality!r}")
            if isinstance(items, EmbeddingItems):
                raise ValueError("foveate reduces images, and got embeddings of one")
        stock = super()._get_prompt_updates(mm_items, _without(arguments), out_mm_kwargs)
        return [self._reduced(update, arguments, out_mm_kwargs) for update in stock]

    def _reduced(self, update: Any, arguments: Mapping[str, Any], out_mm_kwargs: Any) -> Any:
        if update.modality != "image":
            return update
        settings = ServingSettings.parse(self._config.foveate)
        items = out_mm_kwargs.get("image", [])
        contents = []
        for number, item in enumerate(items):
            details = update._resolve_content(number)
            mask = details.is_embed(details.full).tolist() if details.is_embed else None
            placeholders = mask or [True] * len(details.full)
            dense = sum(placeholders)
            keep = settings.request_keep(arguments, dense)
            if isinstance(keep, int) and keep > dense:
                logger.warning_once(
                    "foveate: keep is %d, and an image has %d tokens: it keeps all", keep, dense
                )
            full = shortened(details.full, placeholders, settings.count(dense, keep))
            contents.append(ReducedDetails(full, details.is_embed, dense))
            span = self.family.span(item.get_data(), dense, self._config)
            value = torch.tensor([keep, isinstance(keep, int)], dtype=torch.float64)
            shared = MultiModalSharedField(batch_size=len(items), keep_on_cpu=True)
            batched = MultiModalBatchedField(keep_on_cpu=True)
            item[KEEP] = MultiModalFieldElem(data=value, field=shared)
            item[SPAN] = MultiModalFieldElem(data=torch.tensor(span), field=batched)
        return replace(update, replacement=contents.__getitem__)

    def _apply_prompt_updates(self, token_ids: list[int], mm_prompt_updates: Any) -> Any:
        ids, placeholders = super()._apply_prompt_updates(token_ids, mm_prompt_updates)
        positions = ServingSettings.parse(self._config.foveate).positions
        if positions == "original" and not self._profiling:
            dropped = sum(
                content.dense - _embedded(content)
                for updates in mm_prompt_updates.get("image", [])
                for content in [updates[0].content]
            )
            _check_length(len(ids) + dropped, self._config)
            if self.family.axes > 1 and ids[-1] == self._config.image_token_id:
                raise ValueError(
                    "the prompt ends in an image: with positions='original', text has to follow"
                )
        return ids, placeholders


def _embedded(content: ReducedDetails) -> int:
    return int(content.is_embed(content.full).sum()) if content.is_embed else len(content.full)


def _check_length(dense: int, config: Any) -> None:
    most = config.get_text_config().max_position_embeddings
    if dense > most:
        raise ValueError(
            f"the prompt has {dense} tokens before the reduction, and the model has positions for "
            f"{most}: with positions='original' both count. Send a shorter prompt or choose "
            "positions='compact'"
        )


def _without(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name != KEEP_ARGUMENT}


def with_reduction(stock: Any, family: type[Served]) -> Any:
    """A factory of processors: the stock one, which reduces where the configuration says so."""

    def make(info: Any, dummy_inputs: Any, **options: Any) -> Any:
        processor = stock(info, dummy_inputs, **options)
        if getattr(info.ctx.model_config.hf_config, "foveate", None) is None:
            return processor
        kind = type(processor)  # the factory of LLaVA chooses it by the configuration
        bases = (ReducedProcessor, kind)
        made = type(f"Reduced{kind.__name__}", bases, {"family": family})
        return made(info, dummy_inputs, **options)

    return make


def within_budget(stock: Any) -> Any:
    """A factory of what vLLM asks of a model's inputs: the most tokens of an image are the kept."""

    def make(ctx: Any) -> Any:
        info = stock(ctx)
        given = getattr(ctx.model_config.hf_config, "foveate", None)
        if given is None:
            return info
        settings, most = ServingSettings.parse(given), info.get_mm_max_tokens_per_item

        def kept(seq_len: int, mm_counts: Mapping[str, int]) -> Any:
            dense = most(seq_len, mm_counts)
            return None if dense is None else {"image": settings.count(dense["image"])}

        info.get_mm_max_tokens_per_item = kept
        return info

    return make
