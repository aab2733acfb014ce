"""Continuations of one prompt in one row: the prompt is read once (Uni-Encoder, arXiv 2106.01263).

Each branch starts at the position after the prompt and sees the prompt and itself alone, so it gets
what it would get by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from positions import ChannelTable
from vlm.decoder import CACHE
from vlm.families import adapter_of
from vlm.model.positions import remembered


class Branches:
    """A prompt that was read, and the branches that continue it.

    inputs: of one prompt without padding. Afterwards `cache` holds its keys and values, `start` is
    the position of what follows, and `logits` (vocabulary,) predict its first token.
    """

    def __init__(self, model: Any, inputs: Mapping[str, Tensor]) -> None:
        self.model, self.cache = model, DynamicCache(config=model.config)
        adapter = adapter_of(model)
        self._decoder, seen = adapter.language_model, list[Tensor]()
        self._one_axis = ChannelTable.of(adapter.rotary).axes == 1
        hook = adapter.rotary.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs.get("position_ids", args[-1])),
            with_kwargs=True,
        )
        try:
            given = {CACHE: self.cache, "use_cache": True, "logits_to_keep": 1}
            out = model(**inputs, **given)
        finally:
            hook.remove()
        self.logits: Tensor = out.logits[0, -1]
        self.start = float(seen[0].max()) + 1
        if (table := remembered(self.cache)) is not None:  # what was seen are places in it
            self.start = float(table.lookup(torch.tensor([[int(self.start)]]))[0, 0, 0].max())
        self._owners = torch.zeros(0, dtype=torch.long)

    def read(self, ids: Tensor, owners: Tensor, places: Tensor) -> Tensor:
        """Hidden states (n, D) of n more tokens, for `head`; ids, owners and places are (n,).

        owners: the number of each token's branch. places: its position.
        """
        words = self.model.get_input_embeddings()
        dtype, device = words.weight.dtype, words.weight.device
        before, past = len(self._owners), self.cache.get_seq_length()
        self._owners = torch.cat([self._owners, owners])
        order = torch.arange(len(self._owners))
        sees = (owners[:, None] == self._owners) & (order <= order[before:, None])
        sees = torch.cat([torch.ones(len(ids), past - before, dtype=torch.bool), sees], 1)
        least = torch.finfo(dtype).min
        mask = torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, least)
        hidden: Tensor = self._decoder(
            inputs_embeds=words(ids.to(device))[None],
            attention_mask=mask[None, None].to(device),
            position_ids=self.position_ids(places),
            **{CACHE: self.cache},
        ).last_hidden_state[0]
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (n, vocabulary) of hidden states (n, D)."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        return logits

    def position_ids(self, places: Tensor) -> Tensor:
        """(1, n), or (3, 1, n) where the model has three axes: position ids at `places` (n,)."""
        places = places.long().to(self.model.device)
        return places[None] if self._one_axis else places.expand(3, 1, -1)


@torch.inference_mode()
def greedy_answers(
    model: Any,
    inputs: Mapping[str, Tensor],
    endings: Sequence[Tensor],
    limits: Sequence[int],
    stop: Collection[int],
) -> list[list[int]]:
    """The most likely ids after each ending of a prompt, one list an ending.

    inputs: of the beginning that the prompts share, without padding. endings: (n,) ids of what
    follows in each, at least one. limits: the longest answer to each. stop: ids that end an answer;
    they are its last. Penalties of the model's generation configuration are not applied.
    """
    branches = Branches(model, inputs)
    answers: list[list[int]] = [[] for _ in endings]
    fresh = [ending.cpu() for ending in endings]
    reached, going = [branches.start] * len(fresh), list(range(len(fresh)))
    while going:
        owners = torch.cat([torch.full((len(fresh[k]),), k) for k in going])
        places = torch.cat([reached[k] + torch.arange(len(fresh[k])) for k in going])
        hidden = branches.read(torch.cat([fresh[k] for k in going]), owners, places)
        last = torch.tensor([len(fresh[k]) for k in going]).cumsum(0) - 1
        for k, word in zip(going, branches.head(hidden[last]).argmax(-1).tolist(), strict=True):
            reached[k] += len(fresh[k])
            fresh[k] = torch.tensor([word])
            answers[k].append(word)
        going = [k for k in going if answers[k][-1] not in stop and len(answers[k]) < limits[k]]
    return answers


def shared_length(rows: Sequence[Tensor]) -> int:
    """The number of ids with which all rows (n,) begin, short of the end of the shortest."""
    most = min(map(len, rows)) - 1
    same = torch.stack([row[:most] == rows[0][:most] for row in rows]).all(0)
    return most if same.all() else int(same.int().argmin())
