"""The order of samples: batches of like length and one modality, drawn anew in each epoch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

POOL = 8  # batches that are sorted by length together; more make batches more alike


class GroupedSampler(Sampler[int]):
    """Indices, a whole step's batch after another.

    Samples are shuffled, sorted by length within pools of `POOL` batches, and cut into batches,
    which are shuffled: a batch holds samples of like length, and of one modality where `modality`
    is given (LLaVA-1.5's group_by_modality_length). Processes and accumulation share a batch in
    runs of micro-batches, so that the same samples make a step on any number of processes. What is
    left over at the end is filled up with samples from the start.

    lengths, modality: (n,) of the samples; None where they are not to matter.
    The order depends on (seed, epoch) alone.
    """

    def __init__(
        self,
        count: int,
        batch: int,
        seed: int,
        lengths: np.ndarray | None = None,
        modality: np.ndarray | None = None,
    ) -> None:
        self.count, self.batch, self.seed, self.epoch = count, batch, seed, 0
        self.lengths, self.modality = lengths, modality

    def __len__(self) -> int:
        return -(-self.count // self.batch) * self.batch

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self.count)
        whole: list[np.ndarray] = []
        rest: list[np.ndarray] = []
        groups = [order]
        if self.modality is not None:
            groups = [order[self.modality[order] == kind] for kind in np.unique(self.modality)]
        for group in groups:
            usable = len(group) // self.batch * self.batch
            rest.append(group[usable:])
            for first in range(0, usable, POOL * self.batch):
                pool = self._sorted(group[first : min(first + POOL * self.batch, usable)])
                whole += np.split(pool, len(pool) // self.batch)
        left = np.concatenate(rest)
        if len(left):
            left = np.resize(np.concatenate([left, order]), len(self) - len(whole) * self.batch)
            whole += np.split(self._sorted(left), len(left) // self.batch)
        for index in rng.permutation(len(whole)):
            yield from whole[index].tolist()

    def _sorted(self, indices: np.ndarray) -> np.ndarray:
        if self.lengths is None:
            return indices
        return indices[np.argsort(-self.lengths[indices], kind="stable")]
