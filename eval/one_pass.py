"""All options of a multiple-choice question in one forward (Uni-Encoder, arXiv 2106.01263).

Each option starts at the position after the prompt and sees the prompt and itself alone, so it gets
what it would get by itself, and the prompt is read once.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from compress.runtime.cache_state import CacheState
from positions import ChannelTable
from vlm.families import adapter_of


@torch.inference_mode()
def option_scores(
    model: Any,
    inputs: Mapping[str, Tensor],
    options: Sequence[Sequence[int]],
    together: bool | None = None,
) -> Tensor:
    """(n,) float64: the log-likelihood of each option after a prompt.

    inputs: of one prompt without padding. options: ids of each, the end token included. together:
    all in one forward; by default unless a compression has shortened the prompt, whose layers may
    hold different tokens: then each continues on a copy of its cache.

    Raises ValueError for several rows, an empty option, or `together` on a shortened prompt.
    """
    rows = inputs["input_ids"].shape[0]
    if rows != 1 or not options or not all(len(ids) for ids in options):
        raise ValueError(
            f"{rows} rows and options of {[len(ids) for ids in options]} tokens: expected one "
            "prompt, and options that are not empty"
        )
    cache, seen = DynamicCache(config=model.config), list[Tensor]()
    rotary = adapter_of(model).rotary
    hook = rotary.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("position_ids", args[-1])),
        with_kwargs=True,
    )
    try:
        out = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    finally:
        hook.remove()
    first = out.logits[0, -1].double().log_softmax(-1)
    shortened = CacheState.of(cache) is not None
    if together and shortened:
        raise ValueError(
            "together=True with a prompt that a compression has shortened: expected False or None"
        )
    ids = [torch.as_tensor(one, device=first.device) for one in options]
    start = float(seen[0].max()) + 1
    if shortened or together is False:
        rest = [_alone(model, inputs, cache, (start, one)) for one in ids]
    else:
        rest = _together(model, cache, start, ids)
    return torch.stack([first[one[0]] + own for one, own in zip(ids, rest, strict=True)])


def _alone(
    model: Any, inputs: Mapping[str, Tensor], cache: Any, option: tuple[float, Tensor]
) -> Tensor:
    """() what the tokens after the first add, on a copy of the prompt's cache. option: where it
    starts, and its ids."""
    start, ids = option
    if len(ids) == 1:
        return torch.zeros((), dtype=torch.float64, device=ids.device)
    mask = inputs["input_ids"].new_ones(1, inputs["input_ids"].shape[1] + len(ids) - 1)
    more = {"past_key_values": copy.deepcopy(cache), "attention_mask": mask}
    more["position_ids"] = _placed(model, start + torch.arange(len(ids) - 1)).to(ids.device)
    logits = model(input_ids=ids[None, :-1], **more).logits[0]
    return logits.double().log_softmax(-1).gather(1, ids[1:, None]).sum()


def _together(model: Any, cache: Any, start: float, options: Sequence[Tensor]) -> list[Tensor]:
    """The same for all options: one forward, their tokens after one another."""
    read = [one[:-1] for one in options]
    lengths = [len(one) for one in read]
    own = torch.arange(len(read)).repeat_interleave(torch.tensor(lengths))
    if not len(own):
        return [torch.zeros((), dtype=torch.float64, device=options[0].device) for _ in options]
    adapter, words = adapter_of(model), model.get_input_embeddings()
    places = torch.cat([start + torch.arange(n) for n in lengths])
    count, past = len(own), cache.get_seq_length()
    order = torch.arange(count)
    sees = (own[:, None] == own) & (order <= order[:, None])
    sees = torch.cat([torch.ones(count, past, dtype=torch.bool), sees], 1)
    dtype, device = words.weight.dtype, words.weight.device
    least = torch.finfo(dtype).min
    mask = torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, least)
    hidden = adapter.language_model(
        inputs_embeds=words(torch.cat(read).to(device))[None],
        attention_mask=mask[None, None].to(device),
        position_ids=_placed(model, places).to(device),
        past_key_values=cache,
    ).last_hidden_state
    logits = model.get_output_embeddings()(hidden)[0].double().log_softmax(-1)
    after = torch.cat([one[1:] for one in options])
    return [part.sum() for part in logits.gather(1, after[:, None])[:, 0].split(lengths)]


def _placed(model: Any, places: Tensor) -> Tensor:
    """(1, n), or (3, 1, n) where the model has three axes: position ids at `places` (n,)."""
    one_axis = ChannelTable.of(adapter_of(model).rotary).axes == 1
    places = places.long()
    return places[None] if one_axis else places.expand(3, 1, -1)
