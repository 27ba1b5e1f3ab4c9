"""Conditions out of a video: every extractor takes the source and its one frame plan."""

from .mask import masked_video, read_mask
from .motion import (
    BlockVectors,
    block_vectors,
    extract_motion,
    rasterise_dense,
    rasterise_points,
    reencode,
)
from .sketch import as_sketch, edges
from .sources import EXTRACTORS, Extracted, Source, condition_size, extract, extract_condition

__all__ = [
    "EXTRACTORS",
    "BlockVectors",
    "Extracted",
    "Source",
    "as_sketch",
    "block_vectors",
    "condition_size",
    "edges",
    "extract",
    "extract_condition",
    "extract_motion",
    "masked_video",
    "rasterise_dense",
    "rasterise_points",
    "read_mask",
    "reencode",
]
