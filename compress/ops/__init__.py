"""Pure, batched, deterministic operations on tokens. No model, no host sync.

Shapes: B inputs, N tokens, D channels, M rows kept. Indices are int64. Statistics (similarity,
distance, means) are float32 or better whatever the type of the features. Ties go to the lower
index. Selections that look at one token after another are in `compress.ops.greedy`, long inputs in
`compress.ops.windows`.
"""

from compress.ops.clusters import density_peaks, dpc_knn
from compress.ops.merging import merge, prune, segment_median, segment_sum, to_closest, to_nearest
from compress.ops.selection import by_quota, gather, on_device, others, rank, spread, top
from compress.ops.similarity import (
    batches,
    cosine,
    gram,
    minmax,
    rows_at_once,
    squared_distances,
    unit,
    wide,
)
from compress.ops.text import against_prior, text_raters

__all__ = [
    "against_prior",
    "batches",
    "by_quota",
    "cosine",
    "density_peaks",
    "dpc_knn",
    "gather",
    "gram",
    "merge",
    "minmax",
    "on_device",
    "others",
    "prune",
    "rank",
    "rows_at_once",
    "segment_median",
    "segment_sum",
    "spread",
    "squared_distances",
    "text_raters",
    "to_closest",
    "to_nearest",
    "top",
    "unit",
    "wide",
]
