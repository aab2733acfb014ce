"""The data set: files are scanned once, samples are encoded when they are requested."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from train.encode import Encoder
from train.recipe import Data
from train.records import DataError, Records, read_records
from train.samples import KINDS, SampleError, parse
from vlm.media import MediaError, inside

CHARACTERS_A_TOKEN = 4  # of English, to estimate lengths before anything is tokenized


@dataclass(frozen=True)
class Fault:
    """A sample that was left out: its file and line, and the reason."""

    where: str
    reason: str


@dataclass
class Scan:
    """The result of scanning data files. No image is opened.

    Attributes:
        records: the n good samples.
        lengths: (n,) int64, characters of text.
        media: (n, 2) int64, the number of images and of videos.
        faults: the bad samples.
    """

    records: Records
    lengths: np.ndarray
    media: np.ndarray
    faults: list[Fault] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of media that occur."""
        return frozenset(kind for kind, n in zip(KINDS, self.media.sum(0), strict=True) if n)

    def select(self, indices: np.ndarray) -> Scan:
        """A subset, in this order."""
        return Scan(self.records.select(indices), self.lengths[indices], self.media[indices])

    def tokens(self, an_image: int, a_video: int) -> np.ndarray:
        """Estimated tokens of each sample, (n,) int64, given those of an image and of a video."""
        return self.lengths // CHARACTERS_A_TOKEN + self.media @ np.array([an_image, a_video])


def scan(files: Iterable[str], media: str | None, bad_share: float) -> Scan:
    """Check the form of every sample in data files, and that its media exist.

    Raises DataError if a file cannot be read, or if the share of bad samples exceeds `bad_share`.
    The message lists the first ones.
    """
    records = read_records([Path(file) for file in files])
    folder = None if media is None else Path(media)
    if folder is not None and not folder.is_dir():
        raise DataError(f"data.media: there is no folder {folder}")
    good, lengths, counts, faults = [], [], [], []
    for index in range(len(records)):
        record = records[index]
        try:
            sample = parse(record)
            for _, name in sample.media:
                _check_media(folder, name)
        except SampleError as error:
            name = f" (id {record['id']!r})" if "id" in record else ""
            faults.append(Fault(records.where(index) + name, str(error)))
            continue
        good.append(index)
        lengths.append(len(sample.text))
        counts.append([sum(k == kind for k, _ in sample.media) for kind in KINDS])
    if len(faults) > bad_share * len(records):
        first = "\n".join(f"  {fault.where}: {fault.reason}" for fault in faults[:5])
        raise DataError(
            f"{len(faults)} of {len(records)} samples are bad, and data.bad_share allows "
            f"{bad_share:g}:\n{first}" + "\n  ..." * (len(faults) > 5)
        )
    return Scan(
        records.select(np.array(good, dtype=np.int64)),
        np.array(lengths, dtype=np.int64),
        np.array(counts, dtype=np.int64).reshape(-1, len(KINDS)),
        faults,
    )


def _check_media(folder: Path | None, name: str) -> None:
    if folder is None:
        raise SampleError(f"it names {name!r}, but no folder of media is given (--media)")
    try:
        if not inside(folder, name).exists():
            raise SampleError(f"{folder / name}: no such file")
    except ValueError as error:
        raise SampleError(str(error)) from error


def split(data: Data, seed: int) -> tuple[Scan, Scan | None]:
    """The training samples, and the validation samples if there are any. Raises DataError."""
    if not data.files:
        raise DataError("no data: give the files of samples with --data")
    whole = scan(data.files, data.media, data.bad_share)
    if isinstance(data.validation, str):
        return whole, scan([data.validation], data.media, data.bad_share)
    count = round(data.validation * len(whole))
    if data.validation and not 0 < count < len(whole):
        raise DataError(
            f"data.validation is {data.validation:g}, which of {len(whole)} samples is {count}: "
            f"expected a share that holds out 1 to {len(whole) - 1} of them"
        )
    order = np.random.default_rng(seed).permutation(len(whole))
    training = whole.select(np.sort(order[count:]))
    training.faults = whole.faults
    return training, whole.select(np.sort(order[:count])) if count else None


class Samples(Dataset[dict[str, Any]]):
    """Encoded samples by index.

    A sample that turns out to be bad when it is encoded (a damaged image, too long for the window)
    is replaced by the next good one, and is listed under "faults" of the features.

    Args:
        scanned: the samples.
        encoder: turns them into features.
        strict: raise DataError for a bad sample instead.
    """

    def __init__(self, scanned: Scan, encoder: Encoder, strict: bool = False) -> None:
        self.scan, self.encoder, self.strict = scanned, encoder, strict

    def __len__(self) -> int:
        return len(self.scan)

    def __getitem__(self, index: int) -> dict[str, Any]:
        # There are many workers, and threads do not survive a fork.
        if torch.utils.data.get_worker_info() is not None:
            torch.set_num_threads(1)
        faults: list[Fault] = []
        for step in range(len(self)):
            at = (index + step) % len(self)
            try:
                features = self.encoder(parse(self.scan.records[at]))
            except (SampleError, MediaError) as error:
                faults.append(Fault(self.scan.records.where(at), str(error)))
                if self.strict:
                    raise DataError(f"{faults[0].where}: {error}") from error
                continue
            return features | {"faults": faults}
        raise DataError(f"no sample is good; the first: {faults[0].where}: {faults[0].reason}")
