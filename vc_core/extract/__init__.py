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

__all__ = [
    "BlockVectors",
    "as_sketch",
    "block_vectors",
    "edges",
    "extract_motion",
    "masked_video",
    "rasterise_dense",
    "rasterise_points",
    "read_mask",
    "reencode",
]
