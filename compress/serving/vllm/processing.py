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
from compress.serving.vllm.settings import KEEP_ARGUMENT, ServingSettings

logger = init_logger(__name__)

KEEP, DENSE, PLACES = "foveate_keep", "foveate_dense", "foveate_places"
"""Fields of an image or video. KEEP: () int64 or float64, a count or a share. DENSE:
(L,) int64, the ids that stand for it in the stock prompt, with text in between such as time stamps.
PLACES: (L, axes) int64, their positions from its start."""


@dataclass
class ReducedDetails(PromptUpdateDetails):
    """Placeholders of the tokens that are left. dropped: how many are not."""

    dropped: int = 0


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
        """Images are cached by what they are and by how they are reduced."""
        arguments = {**inputs.hf_processor_mm_kwargs, "foveate": self._config.foveate}
        inputs = replace(inputs, hf_processor_mm_kwargs=arguments)
        try:
            return super().apply(inputs, timing_ctx)
        except ValueError:
            if inputs.cache is not None:
                # By now the images may be cached here, and will never reach the engine's own cache.
                for hashes in self._hashes(inputs).values():
                    for one in hashes:
                        inputs.cache.invalidate(one)
            raise

    def _hashes(self, inputs: Any) -> Any:
        if hasattr(self, "_get_mm_hashes"):  # from vLLM 0.32 on
            return self._get_mm_hashes(inputs)
        algorithm = self.info.ctx.get_mm_config().mm_hasher_algorithm
        return inputs.get_mm_hashes(self.info.model_id, algorithm)

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        return super()._apply_hf_processor_main(mm_items, _without(hf_kwargs))

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> list[Any]:
        if any(isinstance(items, EmbeddingItems) for items in mm_items.values()):
            raise ValueError("foveate reduces images as they are encoded, and got embeddings")
        arguments = hf_processor_mm_kwargs
        stock = super()._get_prompt_updates(mm_items, _without(arguments), out_mm_kwargs)
        return [self._reduced(update, arguments, out_mm_kwargs) for update in stock]

    def _reduced(self, update: Any, arguments: Mapping[str, Any], out_mm_kwargs: Any) -> Any:
        settings = ServingSettings.parse(self._config.foveate)
        token: Any = getattr(self._config, f"{update.modality}_token_id", None)
        items = out_mm_kwargs.get(update.modality, [])
        contents = []
        for number, item in enumerate(items):
            ids = torch.tensor(update._resolve_content(number).full)
            is_visual = ids.eq(token)
            dense = int(is_visual.sum())
            keep = settings.request_keep(arguments, dense)
            if isinstance(keep, int) and keep > dense:
                logger.warning_once(
                    "foveate: keep is %d, and an image has %d tokens: it keeps all", keep, dense
                )
            dropped = dense - settings.count(dense, keep)
            contents.append(ReducedDetails([token] * (len(ids) - dropped), None, dropped))
            value = torch.tensor(
                keep, dtype=torch.int64 if isinstance(keep, int) else torch.float64
            )
            shared = MultiModalSharedField(batch_size=len(items), keep_on_cpu=True)
            batched = MultiModalBatchedField(keep_on_cpu=True)
            places = self.family.places(is_visual, item.get_data(), self._config)
            item[KEEP] = MultiModalFieldElem(data=value, field=shared)
            item[DENSE] = MultiModalFieldElem(data=ids, field=batched)
            item[PLACES] = MultiModalFieldElem(data=places, field=batched)
        return replace(update, replacement=contents.__getitem__)

    def _apply_prompt_updates(self, token_ids: list[int], mm_prompt_updates: Any) -> Any:
        ids, placeholders = super()._apply_prompt_updates(token_ids, mm_prompt_updates)
        if ServingSettings.parse(self._config.foveate).positions == "original":
            updates = [one for kind in mm_prompt_updates.values() for one in kind]
            dropped = sum(one[0].content.dropped for one in updates)
            if not self._profiling:
                self._check(ids, len(ids) + dropped)
        return ids, placeholders

    def _check(self, ids: list[int], dense: int) -> None:
        """Raise ValueError for a prompt that has no room at its original positions."""
        most = self._config.get_text_config().max_position_embeddings
        if dense > most:
            raise ValueError(
                f"the prompt has {dense} tokens before the reduction, and the model has positions "
                f"for {most}: with positions='original' both count. Send a shorter prompt or "
                "choose positions='compact'"
            )
        ends = [getattr(self._config, f"{kind}_token_id") for kind in self.family.kinds]
        if self.family.axes > 1 and ids[-1] in ends:
            raise ValueError(
                "the prompt ends in an image: with positions='original', text has to follow"
            )


def _without(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The stock processor's own arguments."""
    return {k: v for k, v in arguments.items() if k not in (KEEP_ARGUMENT, "foveate")}


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


def with_limits(stock: Any, family: type[Served]) -> Any:
    """A factory of what vLLM asks of a model's inputs: which kinds, and the most tokens of each,
    by which it decides how many are encoded at one time."""

    def make(ctx: Any) -> Any:
        info = stock(ctx)
        given = getattr(ctx.model_config.hf_config, "foveate", None)
        if given is None:
            return info
        settings, most = ServingSettings.parse(given), info.get_mm_max_tokens_per_item
        limits = {k: v for k, v in info.get_supported_mm_limits().items() if k in family.kinds}

        def kept(seq_len: int, mm_counts: Mapping[str, int]) -> Any:
            dense = most(seq_len, mm_counts)
            # Of a video all: text within it is embedded too, and comes on top of its tokens.
            return dense and {k: n if k == "video" else settings.count(n) for k, n in dense.items()}

        info.get_supported_mm_limits = lambda: limits
        info.get_mm_max_tokens_per_item = kept
        return info

    return make
