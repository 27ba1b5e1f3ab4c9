"""Read and write videos and images, and plan which frames of a source all its extractors use."""

from .frames import (  # noqa: F401
    FramePlan,
    VideoInfo,
    every_frame,
    plan_frames,
    planned_frames,
    probe,
    read_frames,
    resize_crop,
)
from .grid import labelled_grid  # noqa: F401
from .images import IMAGES, frame_files, is_image, read_image  # noqa: F401
from .opening import Media  # noqa: F401
from .writing import write_contact_sheet, write_video, write_videos  # noqa: F401
