"""The order of samples."""

from __future__ import annotations

import numpy as np

from train.sampler import GroupedSampler


def test_every_sample_comes_once_an_epoch_in_another_order() -> None:
    lengths = np.random.default_rng(0).integers(10, 500, 103)
    sampler = GroupedSampler(103, 8, seed=1, lengths=lengths, modality=lengths > 100)
    first = list(sampler)
    assert len(first) == len(sampler) == 104
    assert sorted(set(first)) == list(range(103))
    assert first == list(GroupedSampler(103, 8, seed=1, lengths=lengths, modality=lengths > 100))
    sampler.epoch = 1
    assert list(sampler) != first


def test_batches_are_of_one_modality_and_like_length() -> None:
    rng = np.random.default_rng(0)
    lengths, media = rng.integers(10, 500, 160), rng.random(160) < 0.3
    batches = np.array(list(GroupedSampler(160, 8, 0, lengths, media))).reshape(-1, 8)
    mixed = [b for b in batches if len(set(media[b])) > 1]
    assert len(mixed) <= 1  # what is left over
    spread = np.mean([np.ptp(lengths[b]) for b in batches])
    loose = np.array(list(GroupedSampler(160, 8, 0))).reshape(-1, 8)
    assert spread < 0.5 * np.mean([np.ptp(lengths[b]) for b in loose])


def test_fewer_samples_than_a_batch_are_repeated() -> None:
    order = list(GroupedSampler(3, 8, 0))
    assert len(order) == 8 and set(order) == {0, 1, 2}
