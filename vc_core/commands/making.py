"""From settings to conditions: what `./vc compose` and `./vc extract` share."""

import dataclasses
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ..conditions import drawing_size
from ..config import Config
from ..errors import UserError
from ..progress import Progress
from ..video import FramePlan, VideoInfo, plan_frames, probe
from .settings import Settings

if TYPE_CHECKING:
    from ..extract.sources import Extracted, Source


def frame_plan(settings: Settings, frames: int) -> FramePlan | None:
    """The frame plan of the source, the video or else the one to begin from; None where there is neither.

    Where the source's first frame is all that is taken, the plan is of that frame alone, the first of the `frames` that
    a sequence would have; a clip may be too short for the sequence then.

    Raises:
        UserError: a source that is unreadable or too short.
    """
    source = settings.video or settings.init
    if source is None:
        return None
    info = probed(source)
    if settings.takes_frames:
        return plan_frames(info, frames, settings.rate, settings.start)
    there = 1 if settings.rate else max(1, info.frames - math.ceil(settings.start * info.rate))
    plan = plan_frames(info, min(frames, there), settings.rate, settings.start)
    return dataclasses.replace(plan, frames=1)


def probed(path: Path) -> VideoInfo:
    """`probe`, which warns of what is decided for the user, such as HDR's light."""
    info = probe(path)
    if info.note:
        warnings.warn(info.note, stacklevel=2)
    return info


def source_of(settings: Settings, plan: FramePlan | None, config: Config) -> "Source":
    """The source that the settings name, a video with its frame plan or a drawing without one, and how it is used.

    `settings.size` is filled in. Raises `UserError` for a device that is not there.
    """
    from ..composer import choose_device
    from ..extract.sources import Source

    return Source(
        settings.video or settings.sketch,
        plan,
        settings.size,
        config.extraction,
        mask=settings.mask,
        mask_white=settings.mask_white,
        mask_draw=settings.mask_draw,
        mask_seed=settings.mask_seed,
        motion_mode=settings.motion_mode,
        nominal_height=settings.nominal_height,
        sketch_method=settings.sketch_method,
        depth_model=settings.depth_model,
        depth_maps=settings.depth_maps,
        depth_near=settings.depth_near,
        depth_scale=settings.depth_scale,
        models=settings.models or None,
        device=str(choose_device(settings.device)),
    )


def make_conditions(
    settings: Settings, plan: FramePlan | None, config: Config, progress: Progress | None = None
) -> "dict[str, Extracted]":
    """The conditions by name, made from the source, by hand, and from the images.

    Args:
        settings: with `frames` and `size` filled in.
        plan: of the source, see `frame_plan`.
        config: of the checkpoint whose kind of conditions they are.

    Raises:
        UserError: a file that is unreadable, or a network whose files are missing.
    """
    from ..extract.sources import Extracted, extract_condition
    from ..video import read_image, resize_crop

    source = source_of(settings, plan, config)
    made = {name: extract_condition(name, source, progress) for name in settings.use}
    if settings.moves_by_hand:
        made["motion"] = _motion_by_hand(settings, config)
    if settings.image is not None:
        image = resize_crop(read_image(settings.image), drawing_size("single_image", settings.size))
        made["single_image"] = Extracted(source.fitted("single_image", image[:, :, None]))
    if settings.sketch is not None:
        made["single_sketch"] = _drawing(settings, source, progress)
    return made


def _motion_by_hand(settings: Settings, config: Config) -> "Extracted":
    """The motion of tracks and of a camera, summed, in the layout that the checkpoint was trained on."""
    from ..extract.camera import CameraMove, camera_field
    from ..extract.fields import add_fields, condition_from_field
    from ..extract.sources import Extracted
    from ..extract.tracks import read_tracks, tracks_field

    move = CameraMove(settings.pan, settings.zoom, settings.roll, easing=settings.easing)
    field = camera_field(move, settings.frames, settings.size)
    if settings.tracks is not None:
        tracks = read_tracks(settings.tracks)
        drawn = tracks_field(
            tracks, settings.frames, settings.size, settings.canvas, settings.radius, easing=settings.easing
        )
        if not drawn.any():
            raise UserError(
                f"No track of {settings.tracks} moves anything in the video: give --canvas WIDTHxHEIGHT, the size of "
                "what they were drawn on."
            )
        field = add_fields(field, drawn)
    return Extracted(condition_from_field(field, config.extraction, settings.size), {"method": "by hand"})


def _drawing(settings: Settings, source: "Source", progress: Progress | None) -> "Extracted":
    """The single sketch of an image: a drawing as it is, or the lines that the sketch method finds in a picture."""
    from ..extract.sketch import as_sketch
    from ..extract.sources import Extracted, sketch_of
    from ..video import read_image, resize_crop

    picture, lines = read_image(settings.sketch), settings.lines
    size = drawing_size("single_sketch", settings.size)
    if lines == "none":
        return sketch_of("single_sketch", resize_crop(picture, size)[:, :, None], source, progress)
    note = ""
    if settings.sketch_lines is None:
        note = (
            f"single_sketch: {settings.sketch.name} is taken as a drawing with dark lines; --sketch-lines says "
            "otherwise."
        )
    drawn = source.fitted("single_sketch", resize_crop(as_sketch(picture, lines), size)[:, :, None])
    return Extracted(drawn, {"method": "as it is", "lines": lines}, note)
