"""Attention of one vision layer, read while the vision encoder runs: saliency, keys and maps."""

from vlm.attention.heads import Heads, SaliencyRule, SegmentHeads, Segments
from vlm.attention.reader import (
    AttentionReader,
    Call,
    Capture,
    FusedReader,
    LayerReader,
    PackedReader,
    PaddedReader,
    ProjectionReader,
    cut_to_pictures,
    split_heads,
    watching,
)

__all__ = [
    "AttentionReader",
    "Call",
    "Capture",
    "FusedReader",
    "Heads",
    "LayerReader",
    "PackedReader",
    "PaddedReader",
    "ProjectionReader",
    "SaliencyRule",
    "SegmentHeads",
    "Segments",
    "cut_to_pictures",
    "split_heads",
    "watching",
]
