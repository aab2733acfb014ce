"""The processor: placeholders for the kept tokens, and what the model must know of each image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from vllm.logger import init_logger
from vllm.multimodal import inputs as fields
from vllm.multimodal.processing import PromptUpdateDetails

from compress.serving.vllm.families import Served
from compress.serving.vllm.settings import KEEP, ServingSettings

logger = init_logger(__name__)

DENSE = "foveate_dense"
"""Field of an image or video, beside `KEEP` with its count or share: (L,) int64, the ids that stand
for it in the stock prompt, with text in between such as time stamps."""


@dataclass
class ReducedDetails(PromptUpdateDetails):
    """Placeholders of the tokens that are left. dropped: how many are not."""

    dropped: int = 0


_Processor: Any = Any if TYPE_CHECKING else object


class ReducedProcessor(_Processor):
    """Comes before a stock processor among the bases of a class.

    family: of the model. settings: of the engine.
    """

    family: ClassVar[type[Served]]
    settings: ClassVar[ServingSettings]
    _profiling = False

    def get_dummy_mm_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """Inputs that vLLM measures memory with: no request, so that no request is refused."""
        self._profiling = True
        try:
            return super().get_dummy_mm_inputs(*args, **kwargs)
        finally:
            self._profiling = False

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Images are cached by what they are and by how they are reduced."""
        arguments = {**inputs.hf_processor_mm_kwargs, "foveate": self.info.get_hf_config().foveate}
        return super().apply(replace(inputs, hf_processor_mm_kwargs=arguments), timing_ctx)

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        return super()._apply_hf_processor_main(mm_items, _without(hf_kwargs))

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> list[Any]:
        arguments = hf_processor_mm_kwargs
        stock = super()._get_prompt_updates(mm_items, _without(arguments), out_mm_kwargs)
        return [self._reduced(update, arguments, out_mm_kwargs) for update in stock]

    def _reduced(self, update: Any, arguments: Mapping[str, Any], out_mm_kwargs: Any) -> Any:
        token: Any = getattr(self.info.get_hf_config(), f"{update.modality}_token_id", None)
        items = out_mm_kwargs.get(update.modality, [])
        batched = fields.MultiModalBatchedField(keep_on_cpu=True)
        shared = fields.MultiModalSharedField(batch_size=len(items), keep_on_cpu=True)
        contents = []
        for number, item in enumerate(items):
            ids = torch.tensor(update._resolve_content(number).full)
            dense = int(ids.eq(token).sum())
            keep = self.settings.request_keep(arguments, dense)
            if isinstance(keep, int) and keep > dense:
                logger.warning_once(
                    "foveate: keep is %d, and an image has %d tokens: it keeps all", keep, dense
                )
            dropped = dense - self.settings.count(dense, keep)
            contents.append(ReducedDetails([token] * (len(ids) - dropped), None, dropped))
            exact = torch.float64 if isinstance(keep, float) else torch.int64
            kept = torch.tensor(keep, dtype=exact)
            item[KEEP] = fields.MultiModalFieldElem(data=kept, field=shared)
            item[DENSE] = fields.MultiModalFieldElem(data=ids, field=batched)
        return replace(update, replacement=contents.__getitem__)

    def _cached_apply_hf_processor(self, inputs: Any, timing_ctx: Any) -> Any:
        result = super()._cached_apply_hf_processor(inputs, timing_ctx)
        try:
            self._check(result)
        except ValueError:
            # The images are cached here by now, and will never reach the engine's own cache.
            for one in chain(*result.hashes.values()):
                if inputs.cache is not None:
                    inputs.cache.invalidate(one)
            raise
        return result

    def _check(self, result: Any) -> None:
        """Raise ValueError for a prompt that has no room at its original positions."""
        if self._profiling or self.settings.positions != "original":
            return
        config, dense = self.info.get_hf_config(), len(result.prompt_ids)
        for update, *_ in chain(*result.prompt_updates.values()):
            dense += len(update.content.full) + update.content.dropped - len(update.target)
        most = config.get_text_config().max_position_embeddings
        if dense > most:
            raise ValueError(
                f"the prompt has {dense} tokens before the reduction, and the model has positions "
                f"for {most}: with positions='original' both count. Send a shorter prompt or "
                "choose positions='compact'"
            )
        ends = [getattr(config, f"{kind}_token_id") for kind in self.family.kinds]
        if self.family.axes > 1 and result.prompt_ids[-1] in ends:
            raise ValueError(
                "the prompt ends in an image: with positions='original', text has to follow"
            )


def _without(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The stock processor's own arguments."""
    return {k: v for k, v in arguments.items() if k not in (KEEP, "foveate")}


def with_reduction(stock: Any, family: type[Served]) -> Any:
    """A factory of processors: the stock one, which reduces where the configuration says so."""

    def make(info: Any, dummy_inputs: Any) -> Any:
        processor = stock(info, dummy_inputs)
        given = getattr(info.ctx.model_config.hf_config, "foveate", None)
        if given is None:
            return processor
        kind = type(processor)  # the factory of LLaVA chooses it by the configuration
        known = {"family": family, "settings": ServingSettings.parse(given)}
        made = type(f"Reduced{kind.__name__}", (ReducedProcessor, kind), known)
        return made(info, dummy_inputs)

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
