"""Reading and writing video and images; the frame plan that every extractor of one source shares."""

from .frames import (
    FramePlan,
    VideoInfo,
    covering,
    plan_frames,
    planned_frames,
    probe,
    read_frames,
    resize_crop,
)
from .images import IMAGES, frame_files, is_image, read_image
from .opening import Media, VideoSource, media
from .writing import read_metadata, write_contact_sheet, write_video, write_videos

__all__ = [
    "IMAGES",
    "FramePlan",
    "Media",
    "VideoInfo",
    "VideoSource",
    "covering",
    "frame_files",
    "is_image",
    "media",
    "plan_frames",
    "planned_frames",
    "probe",
    "read_frames",
    "read_image",
    "read_metadata",
    "resize_crop",
    "write_contact_sheet",
    "write_video",
    "write_videos",
]
