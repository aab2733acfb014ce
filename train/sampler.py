"""The order of samples: batches of similar length and one modality, drawn in each epoch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

POOL = 8  # batches sorted by length together; with more, lengths in a batch are more similar


class GroupedSampler(Sampler[int]):
    """Indices of samples, one step's batch after another.

    Samples are shuffled, sorted by length within pools of `POOL` batches, and cut into batches,
    which are shuffled again. So the samples of a batch have similar lengths, and one modality if
    `modality` is given (as LLaVA-1.5's group_by_modality_length). Processes and accumulation share
    a batch in consecutive micro-batches, so a step consists of the same samples on any number of
    processes. The last batch is filled up with samples from the start. The order depends on the
    seed and the epoch only.

    Args:
        count: the number of samples.
        batch: samples a step.
        lengths: (n,) lengths of the samples, or None to ignore them.
        modality: (n,) the kind of each sample, or None to ignore it.
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
