"""Reading and writing video and images; the frame plan that every extractor of one source shares."""

from .frames import (
    IMAGES,
    FramePlan,
    VideoInfo,
    covering,
    frame_files,
    plan_frames,
    planned_frames,
    probe,
    read_frames,
    read_image,
    resize_crop,
)
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
