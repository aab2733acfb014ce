"""Attention of one vision layer, read while the vision encoder runs: saliency, keys and maps."""

from vlm.attention.heads import Heads, SaliencyRule, SegmentHeads, Segments
from vlm.attention.reader import (
    AttentionReader,
    Call,
    Capture,
    FusedReader,
    PackedReader,
    ProjectionReader,
    split_heads,
    watching,
)

__all__ = [
    "AttentionReader",
    "Call",
    "Capture",
    "FusedReader",
    "Heads",
    "PackedReader",
    "ProjectionReader",
    "SaliencyRule",
    "SegmentHeads",
    "Segments",
    "split_heads",
    "watching",
]
