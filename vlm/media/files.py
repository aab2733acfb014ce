"""The error that readers of media raise, and the check of untrusted paths."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath


class MediaError(ValueError):
    """An image or video cannot be read. The message names the file and the reason."""

    def __init__(self, source: object, reason: str) -> None:
        super().__init__(f"cannot read {source}: {reason}")
        self.source = str(source)
        self.reason = reason

    def __reduce__(self) -> tuple[type[MediaError], tuple[str, str]]:
        # The default would call MediaError(message) when an error crosses processes.
        return type(self), (self.source, self.reason)


def existing_file(path: str | os.PathLike[str]) -> Path:
    """The absolute path of a regular, non-empty file. Raises MediaError, never OSError.

    With an absolute path, decoders do not take a file name for a protocol such as "http:" or
    "concat:".
    """
    if "\0" in os.fspath(path):
        raise MediaError(repr(os.fspath(path)), "the path holds a null character")
    try:
        full = Path(path).absolute()
        if full.is_dir():
            raise MediaError(path, "it is a folder, not a file")
        if not full.is_file():
            reason = "it is not a regular file" if full.exists() else "no such file"
            raise MediaError(path, reason)
        if full.stat().st_size == 0:
            raise MediaError(path, "the file is empty")
    except OSError as error:
        raise MediaError(path, error.strerror or type(error).__name__) from error
    return full


def sniff(path: Path) -> str | None:
    """ "video", "image", or None, by the file's first bytes.

    Only containers with their own data count as video. FFmpeg would also read playlists (HLS, DASH,
    ffconcat, SDP), which make it open other files and addresses.
    """
    try:
        with path.open("rb") as file:
            head = file.read(400)
    except OSError as error:
        raise MediaError(path, error.strerror or type(error).__name__) from error
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"):
        return "image"
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"):
        return "video"  # MP4, QuickTime, 3GP
    if head[:4] == b"RIFF":
        return {b"WEBP": "image", b"AVI ": "video"}.get(head[8:12])
    starts = {
        b"\x1aE\xdf\xa3": "video",  # Matroska, WebM
        b"FLV\x01": "video",
        b"OggS": "video",
        b"\x30\x26\xb2\x75": "video",  # ASF, WMV
        b"\0\0\x01\xba": "video",  # MPEG program stream
        b"\0\0\x01\xb3": "video",  # MPEG video
        b"\x89PNG": "image",
        b"\xff\xd8\xff": "image",
        b"GIF8": "image",
        b"BM": "image",
        b"II*\0": "image",
        b"MM\0*": "image",
    }
    for start, kind in starts.items():
        if head.startswith(start):
            return kind
    for period, offset in ((188, 0), (192, 4)):  # MPEG transport stream, M2TS
        if len(head) > period + offset and head[offset] == head[offset + period] == 0x47:
            return "video"
    return None


def inside(folder: str | os.PathLike[str], relative: str | os.PathLike[str]) -> Path:
    """The path of `relative` under `folder`, for file names that come from a data set.

    Symbolic links are resolved first. Those that lead out of the folder are refused, those within
    it are not. The file need not exist.

    Raises:
        ValueError: `relative` is empty, absolute (POSIX or Windows), contains ".." or a null
            character, or leads out of the folder through a symbolic link.
    """
    name = os.fspath(relative)
    if not name or "\0" in name:
        raise ValueError(f"relative={name!r}: expected the name of a file under {folder}")
    windows = PureWindowsPath(name)  # splits at both "/" and "\\", knows drives
    if PurePosixPath(name).is_absolute() or windows.drive or windows.root:
        raise ValueError(f"relative={name!r} is absolute: expected a path relative to {folder}")
    if ".." in windows.parts:
        raise ValueError(f"relative={name!r} holds '..': expected a path that stays in {folder}")
    try:
        root = Path(folder).resolve()
        full = (root / name).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise ValueError(f"relative={name!r} cannot be resolved in {folder}: {error}") from error
    if not full.is_relative_to(root):
        raise ValueError(f"relative={name!r} is a link that leads out of {folder}")
    return full
