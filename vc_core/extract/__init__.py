"""Conditions out of a video, made by hand, and from elsewhere; pictures of them.

Every extractor of one source takes its one frame plan. The annotators, sketch and depth, are in modules of these names.
"""

from ..conditions import condition_size
from .camera import CameraMove, camera_field
from .depth_maps import depth_from_maps, read_depth_maps
from .drawing import Rectangle, Stroke, draw_shapes, half
from .fields import add_fields, condition_from_field, fit_field
from .mask import as_mask, drawn_mask, masked_video, random_mask, read_mask
from .motion import (
    BlockVectors,
    Motion,
    block_vectors,
    extract_motion,
    rasterise_dense,
    rasterise_points,
    read_motion,
    reencode,
)
from .pictures import arrows_picture, flow_picture
from .sketch import as_sketch, edges
from .sources import EXTRACTORS, Extracted, Source, extract, extract_condition
from .tracks import Track, box_field, parse_tracks, read_tracks, tracks_field

__all__ = [
    "EXTRACTORS",
    "BlockVectors",
    "CameraMove",
    "Extracted",
    "Motion",
    "Rectangle",
    "Source",
    "Stroke",
    "Track",
    "add_fields",
    "arrows_picture",
    "as_mask",
    "as_sketch",
    "block_vectors",
    "box_field",
    "camera_field",
    "condition_from_field",
    "condition_size",
    "depth_from_maps",
    "draw_shapes",
    "drawn_mask",
    "edges",
    "extract",
    "extract_condition",
    "extract_motion",
    "fit_field",
    "flow_picture",
    "half",
    "masked_video",
    "parse_tracks",
    "random_mask",
    "rasterise_dense",
    "rasterise_points",
    "read_depth_maps",
    "read_mask",
    "read_motion",
    "read_tracks",
    "reencode",
    "tracks_field",
]
