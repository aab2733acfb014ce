"""Rows of training: one picture, and behind it its questions, which do not see each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm.embedded.collage import Question
from vlm.embedded.small import GRID

TEXT = "<|im_start|>user\n<image>\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>"


@dataclass(frozen=True)
class Batch:
    """R rows of length S. A row is prompt, visual tokens, questions with their answers, padding.

    ids: (R, S) int64, 0 at visual tokens. positions: (R, S) int64. mask: (R, 1, S, S) bool.
    visual: (R, S) bool. at: (K, 2) int64, row and column of what predicts each token of an answer.
    wanted: (K,) int64, those tokens. question: (K,) int64, which question they answer.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    visual: Tensor
    at: Tensor
    wanted: Tensor
    question: Tensor


def encode(tokenizer: Any, question: Question) -> tuple[list[int], list[int], int]:
    """Tokens before the picture, tokens after it, and how many of these are the answer."""
    ids = tokenizer(TEXT.format(question=question.text, answer=question.answer)).input_ids
    place = ids.index(tokenizer.convert_tokens_to_ids("<image>"))
    answer = tokenizer(f"{question.answer}<|im_end|>").input_ids
    return ids[:place], ids[place + 1 :], len(answer)


def positions_of(pool: int, generator: torch.Generator) -> Tensor:
    """Positions of pooled tokens: each is at a drawn one of the pool x pool patches it averages.

    Returns (tokens,) int64 in the order of the tokens. So all positions of the patches are trained
    with few tokens.
    """
    side = GRID // pool
    draw = torch.randint(pool, (2, side, side), generator=generator)
    at = torch.arange(side) * pool
    return ((at[:, None] + draw[0]) * GRID + at + draw[1]).flatten()


def collate(
    tokenizer: Any, asked: Sequence[Sequence[Question]], pool: int, generator: torch.Generator
) -> Batch:
    """The rows of several pictures, padded on the right."""
    rows = [[encode(tokenizer, question) for question in questions] for questions in asked]
    count = (GRID // pool) ** 2
    prompt = len(rows[0][0][0])
    start = prompt + count
    length = max(start + sum(len(after) for _, after, _ in row) for row in rows)
    shape = len(rows), length
    ids, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    branch = torch.full(shape, -1)  # 0 for what all see, then one number a question
    visual = torch.zeros(shape, dtype=torch.bool)
    visual[:, prompt:start] = True
    at, wanted, number = [], [], []
    for index, row in enumerate(rows):
        ids[index, :prompt] = torch.tensor(row[0][0])
        positions[index, :prompt] = torch.arange(prompt)
        positions[index, prompt:start] = prompt + positions_of(pool, generator)
        branch[index, :start] = 0
        end = start
        for place, (_, after, answer) in enumerate(row):
            ids[index, end : end + len(after)] = torch.tensor(after)
            first = prompt + GRID * GRID
            positions[index, end : end + len(after)] = torch.arange(first, first + len(after))
            branch[index, end : end + len(after)] = place + 1
            end += len(after)
            at += [(index, column - 1) for column in range(end - answer, end)]
            wanted += after[-answer:]
            number += [sum(map(len, rows[:index])) + place] * answer
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    related = (branch[:, :, None] == branch[:, None]) | (branch[:, None] == 0)
    mask = (related & causal)[:, None]
    return Batch(
        ids, positions, mask, visual, torch.tensor(at), torch.tensor(wanted), torch.tensor(number)
    )
