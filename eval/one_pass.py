"""All options of a multiple-choice question in one forward (Uni-Encoder, arXiv 2106.01263).

Each option is a branch of the prompt (`eval.branches`), which is read once.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from compress.runtime.cache_state import CacheState
from eval.branches import Branches
from vlm.decoder import CACHE
from vlm.model.positions import remembered


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
    branches = Branches(model, inputs)
    first = branches.logits.double().log_softmax(-1)
    shortened = CacheState.of(branches.cache) is not None
    if together and shortened:
        raise ValueError(
            "together=True with a prompt that a compression has shortened: expected False or None"
        )
    ids = [torch.as_tensor(one, device=first.device) for one in options]
    if shortened or together is False:
        rest = [_alone(branches, inputs, one) for one in ids]
    else:
        rest = _together(branches, ids)
    return torch.stack([first[one[0]] + own for one, own in zip(ids, rest, strict=True)])


def option_ids(
    model: Any, processor: Any, content: Sequence[Mapping[str, Any]], options: Sequence[str]
) -> list[list[int]]:
    """Token ids of each option as the chat template has the model say it after a prompt.

    content: the user's message, as chat templates take it. An option ends with the end token, so
    that one that another begins with is told apart; where each is one token, that token decides.
    """
    tokenizer = processor.tokenizer
    ends = model.generation_config.eos_token_id
    ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id}

    def ids_of(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        return ids

    asked = {"role": "user", "content": list(content)}
    prompt = processor.apply_chat_template([asked], add_generation_prompt=True)
    before, found, last = ids_of(prompt), [], tokenizer.eos_token_id
    for option in options:
        said = {"role": "assistant", "content": [{"type": "text", "text": option}]}
        ids = ids_of(processor.apply_chat_template([asked, said]).rstrip())
        # A template may put something else, such as thoughts, before an answer.
        ids = ids[len(before) :] if ids[: len(before)] == before else ids_of(option)
        stop = next((n for n, token in enumerate(ids) if token in ends), len(ids))
        last = ids[stop] if stop < len(ids) else last
        found.append(ids[:stop])
    return found if all(len(ids) == 1 for ids in found) else [[*ids, last] for ids in found]


def _alone(branches: Branches, inputs: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    """() what the tokens after the first add, on a copy of the prompt's cache."""
    if len(ids) == 1:
        return torch.zeros((), dtype=torch.float64, device=ids.device)
    mask = inputs["input_ids"].new_ones(1, inputs["input_ids"].shape[1] + len(ids) - 1)
    more = {CACHE: copy.deepcopy(branches.cache), "attention_mask": mask}
    if remembered(branches.cache) is None:  # a model that plans positions goes on by itself
        places = branches.start + torch.arange(len(ids) - 1)
        more["position_ids"] = branches.position_ids(places)
    logits = branches.model(input_ids=ids[None, :-1], **more).logits[0]
    return logits.double().log_softmax(-1).gather(1, ids[1:, None]).sum()


def _together(branches: Branches, options: Sequence[Tensor]) -> list[Tensor]:
    """The same for all options: one forward, their tokens after one another."""
    read = [one[:-1] for one in options]
    lengths = [len(one) for one in read]
    owners = torch.arange(len(read)).repeat_interleave(torch.tensor(lengths))
    if not len(owners):
        return [torch.zeros((), dtype=torch.float64, device=options[0].device) for _ in options]
    places = torch.cat([branches.start + torch.arange(n) for n in lengths])
    hidden = branches.read(torch.cat(read), owners, places)
    logits = branches.head(hidden).double().log_softmax(-1)
    after = torch.cat([one[1:] for one in options])
    return [part.sum() for part in logits.gather(1, after[:, None])[:, 0].split(lengths)]
