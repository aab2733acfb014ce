"""Reads from the tables of an MP4 or QuickTime file whether its groups of pictures are closed.

ISO/IEC 14496-12, sections 8.6.1 (stts, ctts) and 8.6.2 (stss). Nothing is decoded. An invalid
table gives "not known".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

MAX_TABLES = 64 << 20  # bytes of the box that holds all tables
MAX_FRAMES = 5_000_000


def groups_are_closed(path: Path) -> bool:
    """Whether no frame that follows a key frame in decoding order is shown before it.

    In an open group some frames are. A decoder that seeks to the key frame decodes these first and
    counts them, and decord then returns wrong frames. False if it is not known: for other
    containers, fragmented files, and missing or broken tables.
    """
    try:
        tables = _tables(path)
        return tables is not None and _closed(tables)
    except (OSError, ValueError, LookupError, OverflowError, struct.error):
        return False


def _tables(path: Path) -> memoryview | None:
    """The payload of the file's moov box."""
    with path.open("rb") as file:
        at, end = 0, path.stat().st_size
        while at + 8 <= end:
            file.seek(at)
            size, kind = struct.unpack(">I4s", file.read(8))
            head = 8
            if size == 1:
                (size,), head = struct.unpack(">Q", file.read(8)), 16
            size = size or end - at
            if size < head:
                return None
            if kind == b"moov":
                return None if size > MAX_TABLES else memoryview(file.read(size - head))
            at += size
    return None


def _boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        head = 8
        if size == 1:
            (size,), head = struct.unpack(">Q", data[at + 8 : at + 16]), 16
        size = size or len(data) - at
        if size < head or at + size > len(data):
            raise ValueError("a box that is longer than what holds it")
        yield kind, data[at + head : at + size]
        at += size


def _closed(moov: memoryview) -> bool:
    tracks = []
    for kind, box in _boxes(moov):
        if kind == b"mvex":  # frames follow in fragments with tables of their own
            return False
        if kind == b"trak":
            media = dict(_boxes(dict(_boxes(box))[b"mdia"]))
            if bytes(media[b"hdlr"][8:12]) == b"vide":
                tracks.append(dict(_boxes(dict(_boxes(media[b"minf"]))[b"stbl"])))
    return bool(tracks) and all(_track_is_closed(track) for track in tracks)


def _track_is_closed(stbl: dict[bytes, memoryview]) -> bool:
    if b"ctts" not in stbl or b"stss" not in stbl:  # shown in decoding order, or key frames only
        return True
    steps, shifts = _runs(stbl[b"stts"]), _runs(stbl[b"ctts"])
    keys = _numbers(stbl[b"stss"], ">u4", 1).astype(np.int64) - 1
    count = len(shifts)
    if len(steps) != count or not len(keys) or keys[0] != 0 or keys[-1] >= count:
        return False
    if (np.diff(keys) <= 0).any():
        return False
    shown = np.concatenate([[0], np.cumsum(steps)[:-1]]) + shifts
    return bool((np.minimum.reduceat(shown, keys) >= shown[keys]).all())


def _numbers(box: memoryview, kind: str, columns: int) -> np.ndarray:
    """The entries of a table: version and flags, their number, then the entries."""
    (count,) = struct.unpack(">I", box[4:8])
    if 8 + 4 * columns * count > len(box):
        raise ValueError("a table with fewer entries than it says")
    return np.frombuffer(box[8 : 8 + 4 * columns * count], kind)


def _runs(box: memoryview) -> np.ndarray:
    """Run lengths and values, one value a frame: int64 (frames,)."""
    pairs = _numbers(box, ">i4", 2).reshape(-1, 2).astype(np.int64)
    if (pairs[:, 0] < 0).any() or pairs[:, 0].sum() > MAX_FRAMES:
        raise ValueError("more frames than one reads")
    return pairs[:, 1].repeat(pairs[:, 0])
