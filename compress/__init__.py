"""Keep few of a vision-language model's visual tokens, each at its original position.

from compress import compress

with compress(model, "duet", budget=64) as c:
    out = model.generate(**inputs)
print(c.report())
"""

from compress.errors import UnprobedWarning
from compress.methods import Method, get_method, list_methods
from compress.probing.measure import probe
from compress.probing.verdict import Probe
from compress.reduce import reduce
from compress.report.cost import Cost, Report
from compress.runtime.attach import Compression, CompressionError, compress
from compress.tokens import Reduction, VisualTokens
from compress.video.long_video import LongVideo, stream_video, video_prompt
from compress.video.stream import Kept, Stream

__all__ = [
    "Compression",
    "CompressionError",
    "Cost",
    "Kept",
    "LongVideo",
    "Method",
    "Probe",
    "Reduction",
    "Report",
    "Stream",
    "UnprobedWarning",
    "VisualTokens",
    "compress",
    "get_method",
    "list_methods",
    "probe",
    "reduce",
    "stream_video",
    "video_prompt",
]
