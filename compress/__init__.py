"""Keep few of a vision-language model's visual tokens, each at its original position.

from compress import compress

with compress(model, "duet", budget=64) as c:
    out = model.generate(**inputs)
print(c.report())

Methods, `reduce` and `Stream` are functions of tensors and need PyTorch alone. `compress` and long
videos are attached to a transformers model: these names are imported when they are first used, and
raise ImportError if transformers is missing or too old.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

from compress.adaptive import Coverage, Shared
from compress.calibration import Calibration
from compress.errors import StreamError, UnprobedWarning
from compress.latency import Latency
from compress.methods import Method, get_method, list_methods
from compress.reduce import reduce
from compress.report.cost import Cost, Report
from compress.report.export import load_export, picture_hash, save_export
from compress.tokens import Reduction, VisualTokens
from compress.video.stream import Kept, Stream

if TYPE_CHECKING:
    from compress.probing.measure import probe
    from compress.probing.verdict import Probe
    from compress.runtime.attach import Compression, CompressionError, compress
    from compress.stream.watch import Watch, watch
    from compress.video.long_video import LongVideo, stream_video, video_prompt

TRANSFORMERS = (5, 20)
"""The oldest transformers to whose models a compression can be attached."""
TRANSFORMERS_END = (5, 24)
"""The first transformers whose models changed since: it is refused, as is what follows."""

_NEEDS_TRANSFORMERS = {
    "Compression": "compress.runtime.attach",
    "CompressionError": "compress.runtime.attach",
    "LongVideo": "compress.video.long_video",
    "Probe": "compress.probing.verdict",
    "compress": "compress.runtime.attach",
    "probe": "compress.probing.measure",
    "stream_video": "compress.video.long_video",
    "Watch": "compress.stream.watch",
    "watch": "compress.stream.watch",
    "video_prompt": "compress.video.long_video",
}

__all__ = [
    "Calibration",
    "Compression",
    "CompressionError",
    "Cost",
    "Coverage",
    "Kept",
    "Latency",
    "LongVideo",
    "Method",
    "Probe",
    "Reduction",
    "Report",
    "Shared",
    "Stream",
    "StreamError",
    "UnprobedWarning",
    "VisualTokens",
    "Watch",
    "compress",
    "get_method",
    "list_methods",
    "load_export",
    "picture_hash",
    "probe",
    "reduce",
    "save_export",
    "stream_video",
    "video_prompt",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_TRANSFORMERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _check_transformers(name)
    value = getattr(import_module(_NEEDS_TRANSFORMERS[name]), name)
    globals()[name] = value
    return value


def _check_transformers(name: str) -> None:
    """Raise ImportError unless transformers is there, new enough, and not newer than is known."""
    oldest, end = (".".join(map(str, version)) for version in (TRANSFORMERS, TRANSFORMERS_END))
    wanted = f"transformers >= {oldest}, < {end}"
    try:
        found = metadata.version("transformers")
    except metadata.PackageNotFoundError:
        raise ImportError(f"compress.{name} needs {wanted}, which is not installed") from None
    if not TRANSFORMERS <= tuple(int(part) for part in found.split(".")[:2]) < TRANSFORMERS_END:
        raise ImportError(
            f"compress.{name} needs {wanted}, and {found} is installed. Methods, "
            "compress.reduce and the vLLM plugin run without it"
        )
