"""Keep few of a vision-language model's visual tokens, each at its true place.

from compress import compress

with compress(model, "duet", budget=64) as c:
    out = model.generate(**inputs)
print(c.report())
"""

from compress.attach import Compression, CompressionError, compress
from compress.long_video import LongVideo, stream_video, video_prompt
from compress.methods import Method, get_method, list_methods
from compress.report import Cost, Report
from compress.stream import Kept, Stream
from compress.tokens import Reduction, VisualTokens

__all__ = [
    "Compression",
    "CompressionError",
    "Cost",
    "Kept",
    "LongVideo",
    "Method",
    "Reduction",
    "Report",
    "Stream",
    "VisualTokens",
    "compress",
    "get_method",
    "list_methods",
    "stream_video",
    "video_prompt",
]
