"""Questions asked one after another about the same media, on one cache."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from eval.branches import Branches
from vlm.decoder import CACHE, cache_of

MARK = "(the answer)"


class Talk:
    """A conversation of one row, answered greedily.

    stop: ids that end an answer. reduced: whether a compression is attached. Later turns then see
    what it kept in the first one.
    """

    def __init__(self, model: Any, stop: Collection[int], reduced: bool) -> None:
        self.model, self.stop, self.reduced = model, stop, reduced
        self._branches: Branches | None = None
        self._cache: Any = None
        self._place = 0.0  # of what follows, dense
        self._length = 0  # of the conversation, dense
        self._unread: list[int] = []  # the end of the last answer, if nothing ended it

    @torch.inference_mode()
    def ask(self, inputs: Mapping[str, Any], most: int) -> list[int]:
        """The most likely ids after one more turn, up to `most`.

        inputs: of the first turn what the model takes; of a later one `input_ids` (1, n), which
        begin where the last answer ended.
        """
        ids = inputs["input_ids"]
        ids = torch.cat([ids.new_tensor([self._unread]).long(), ids], 1)
        self._length += ids.shape[1]
        answer = (self._generate if self.reduced else self._read)(
            {**inputs, "input_ids": ids}, most
        )
        self._unread = [] if answer[-1] in self.stop else answer[-1:]
        self._length += len(answer) - 1
        return answer

    def _generate(self, inputs: Mapping[str, Any], most: int) -> list[int]:
        mask = inputs["input_ids"].new_ones(1, self._length)
        out = self.model.generate(
            **(dict(inputs) | {"attention_mask": mask}),
            **{CACHE: self._cache},
            max_new_tokens=most,
            do_sample=False,
            return_dict_in_generate=True,
        )
        self._cache = cache_of(out)
        answer: list[int] = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        return answer

    def _read(self, inputs: Mapping[str, Any], most: int) -> list[int]:
        fresh, answer = inputs["input_ids"][0].cpu(), list[int]()
        while not answer or (answer[-1] not in self.stop and len(answer) < most):
            if self._branches is None:
                self._branches = Branches(self.model, inputs)
                logits, self._place = self._branches.logits, self._branches.start
            else:
                places = self._place + torch.arange(len(fresh))
                hidden = self._branches.read(fresh, torch.zeros_like(fresh), places)
                logits = self._branches.head(hidden[-1])
                self._place += len(fresh)
            answer.append(int(logits.argmax()))
            fresh = fresh.new_tensor(answer[-1:])
        return answer


def follow_up(processor: Any, question: str) -> Tensor:
    """(1, n) ids from the end of an answer to the start of the answer to the next question."""
    talk = [("user", "?"), ("assistant", MARK), ("user", question)]
    chat = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in talk]
    text = processor.apply_chat_template(chat, add_generation_prompt=True).rpartition(MARK)[2]
    ids: Tensor = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    return ids
