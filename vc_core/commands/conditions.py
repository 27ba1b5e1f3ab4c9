"""From settings to conditions: what `./vc compose` and `./vc extract` share."""

import dataclasses
import math
import warnings
from pathlib import Path
from typing import Any

from ..composer import choose_device
from ..config import Config
from ..errors import UserError
from ..extract.motion.camera import CameraMove, camera_field, condition_from_field
from ..extract.motion.tracks import read_tracks, tracks_field
from ..extract.sources import Extracted, Options, Source, extract_condition
from ..progress import Progress
from ..video import FramePlan, VideoInfo, plan_frames, probe, read_image
from .settings import Settings


def fill_in(settings: Settings, config: Config) -> tuple[Settings, FramePlan | None]:
    """The settings with all that the checkpoint or the source decides, and the source's frame plan where there is one.

    Raises:
        UserError: a source that is unreadable or too short.
    """
    frames = settings.frames or config.frames
    height, width = size = settings.size or (config.height, config.width)
    plan = _frame_plan(settings, frames, config.extraction.sampling_rate)
    window = settings.window or (config.frames if frames > config.frames else None)
    full = dataclasses.replace(
        settings,
        frames=frames,
        size=size,
        fps=settings.fps or float(plan.rate if settings.takes_frames else config.rate),
        scale=settings.scale or max(1, 256 // min(height, width)),
        sampler=settings.sampler or config.sampler,
        steps=settings.steps or config.steps,
        guidance=config.guidance if settings.guidance is None else settings.guidance,
        window=window,
        overlap=None if window is None else window // 2 if settings.overlap is None else settings.overlap,
    )
    return full, plan


def _frame_plan(settings: Settings, frames: int, usual: float) -> FramePlan | None:
    """The frame plan of the source, the video or else the one to begin from; None where there is neither.

    Where the source's first frame is all that is taken, the plan is of that frame alone, the first of the `frames` that
    a sequence would have; a clip may be too short for the sequence then.
    """
    source = settings.video or settings.init
    if source is None:
        return None
    info = probed(source)
    if settings.takes_frames:
        return plan_frames(info, frames, settings.rate, settings.start, usual)
    there = 1 if settings.rate else max(1, info.frames - math.ceil(settings.start * info.rate))
    plan = plan_frames(info, min(frames, there), settings.rate, settings.start, usual)
    return dataclasses.replace(plan, frames=1)


def probed(path: Path) -> VideoInfo:
    """`probe`, which warns of what is decided for the user, such as HDR's light."""
    info = probe(path)
    if info.note:
        warnings.warn(info.note, stacklevel=2)
    return info


def options_of(settings: Settings) -> Options:
    """How conditions are made, by the settings of these names. Raises `UserError` for a device that is not there."""
    named = named_as(Options, settings)
    return Options(**{**named, "models": settings.models or None, "device": str(choose_device(settings.device))})


def named_as(kind: type, settings: Settings) -> dict[str, Any]:
    """The settings that have the names of a dataclass's fields, where they mean the same."""
    return {f.name: getattr(settings, f.name) for f in dataclasses.fields(kind) if hasattr(settings, f.name)}


def make_conditions(
    settings: Settings, plan: FramePlan | None, config: Config, progress: Progress | None = None
) -> dict[str, Extracted]:
    """The conditions by name, made from the source, by hand, and from the images.

    Args:
        settings: with `frames` and `size` filled in.
        plan: of the source, see `fill_in`.
        config: of the checkpoint whose kind of conditions they are.

    Raises:
        UserError: a file that is unreadable, a network whose files are missing, or a condition that the
            checkpoint does not take.
    """
    given = {"motion": settings.moves_by_hand, "single_image": settings.image, "single_sketch": settings.sketch}
    for name in (*settings.use, *filter(given.get, given)):
        config.unet.check_supports(name)
    plain = options_of(settings)

    def make(name: str, clip: Any, options: Options = plain) -> Extracted:
        return extract_condition(name, Source(clip, plan, settings.size, config.extraction), options, progress)

    made = {name: make(name, settings.video) for name in settings.use}
    if settings.moves_by_hand:
        made["motion"] = _motion_by_hand(settings, config)
    if settings.image is not None:
        made["single_image"] = make("single_image", read_image(settings.image)[:, :, None])
    if settings.sketch is not None:
        lines = None if settings.lines == "none" else settings.lines
        options = dataclasses.replace(plain, drawing=lines)
        drawn = make("single_sketch", read_image(settings.sketch)[:, :, None], options)
        if lines and settings.sketch_lines is None:
            note = (
                f"single_sketch: {settings.sketch.name} is taken as a drawing with dark lines; --sketch-lines says "
                "otherwise."
            )
            drawn = dataclasses.replace(drawn, note=note)
        made["single_sketch"] = drawn
    return made


def _motion_by_hand(settings: Settings, config: Config) -> Extracted:
    """The motion of tracks and of a camera, summed, in the layout that the checkpoint was trained on."""
    move = CameraMove(settings.pan, settings.zoom, settings.roll, settings.easing)
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
        field = field + drawn
    return Extracted(condition_from_field(field, config.extraction, settings.size), {"method": "by hand"})
