"""From settings to conditions, for `./vc compose` and `./vc extract`."""

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
    """Fill in the settings that depend on the checkpoint or the source. Returns them with the source's frame plan.

    Raises:
        UserError: the source is unreadable or too short.
    """
    frames = settings.frames or config.frames
    size = settings.size or (config.height, config.width)
    plan = _frame_plan(settings, frames, config.extraction.sampling_rate)
    window = settings.window or (config.frames if frames > config.frames else None)
    full = dataclasses.replace(
        settings,
        frames=frames,
        size=size,
        fps=settings.fps or float(plan.rate if settings.reads_sequence else config.rate),
        scale=settings.scale or max(1, 256 // min(output_size(size, settings.upscale))),
        sampler=settings.sampler or config.sampler,
        steps=settings.steps or config.steps,
        guidance=config.guidance if settings.guidance is None else settings.guidance,
        window=window,
        overlap=None if window is None else window // 2 if settings.overlap is None else settings.overlap,
    )
    return full, plan


def output_size(size: tuple[int, int], upscale: float | None) -> tuple[int, int]:
    """Return the (height, width) after the second pass, multiples of 8."""
    return tuple(round(side * (upscale or 1) / 8) * 8 for side in size)


def _frame_plan(settings: Settings, frames: int, usual: float) -> FramePlan | None:
    """Plan the frames of the source: the video, or else the video to start from. None if there is neither.

    If only the source's first frame is used, the plan contains only that frame: the first of the `frames` frames of a
    sequence. The clip may then be too short for the sequence.
    """
    source = settings.video or settings.init or settings.extend
    if source is None:
        return None
    info = probed(source)
    if settings.extend is not None:
        return _complete(info, settings, usual)
    if settings.reads_sequence:
        return plan_frames(info, frames, settings.rate, settings.start, usual)
    available = 1 if settings.rate else max(1, info.frames - math.ceil(settings.start * info.rate))
    plan = plan_frames(info, min(frames, available), settings.rate, settings.start, usual)
    return dataclasses.replace(plan, frames=1)


def _complete(info: VideoInfo, settings: Settings, usual: float) -> FramePlan:
    """Plan all frames of a video to extend. Raises `UserError` if it has fewer than --keep."""
    plan = plan_frames(info, settings.keep, settings.rate, settings.start, usual)
    return dataclasses.replace(plan, frames=max(plan.frames, round((info.duration - plan.start) * plan.rate)))


def probed(path: Path) -> VideoInfo:
    """Probe a video, and warn of decisions made for the user, such as the brightness of HDR."""
    info = probe(path)
    if info.note:
        warnings.warn(info.note, stacklevel=2)
    return info


def options_of(settings: Settings) -> Options:
    """Return the extraction options among the settings. Raises `UserError` if the device does not exist."""
    named = named_as(Options, settings)
    return Options(**{**named, "models": settings.models or None, "device": str(choose_device(settings.device))})


def named_as(kind: type, settings: Settings) -> dict[str, Any]:
    """Return the settings that have the names of a dataclass's fields. They must have the same meaning."""
    return {f.name: getattr(settings, f.name) for f in dataclasses.fields(kind) if hasattr(settings, f.name)}


def make_conditions(
    settings: Settings, plan: FramePlan | None, config: Config, progress: Progress | None = None
) -> dict[str, Extracted]:
    """Create the conditions from the source, by hand, and from the images. Returns them by name.

    Args:
        settings: with `frames` and `size` filled in.
        plan: the source's frame plan, see `fill_in`.
        config: the checkpoint's, which decides how the conditions look.

    Raises:
        UserError: a file is unreadable, a network's files are missing, or the checkpoint does not support a condition.
    """
    separate = {"motion": settings.moves_by_hand, "single_image": settings.image, "single_sketch": settings.sketch}
    if settings.drag and "motion" not in config.unet.conditions:
        separate["motion"] = False  # the dragged image shows it
    for name in (*settings.use, *filter(separate.get, separate)):
        config.unet.check_supports(name)
    plain = options_of(settings)

    def make(name: str, clip: Any, options: Options = plain) -> Extracted:
        return extract_condition(name, Source(clip, plan, settings.size, config.extraction), options, progress)

    conditions = {name: make(name, settings.video) for name in settings.use}
    if separate["motion"]:
        conditions["motion"] = _motion_by_hand(settings, config)
    if settings.image is not None:
        conditions["single_image"] = make("single_image", read_image(settings.image)[:, :, None])
    if settings.sketch is not None:
        lines = None if settings.lines == "none" else settings.lines
        options = dataclasses.replace(plain, drawing=lines)
        sketch = make("single_sketch", read_image(settings.sketch)[:, :, None], options)
        if lines and settings.sketch_lines is None:
            note = f"{settings.sketch.name} is read as a drawing with dark lines. If that is wrong, set --sketch-lines."
            sketch = dataclasses.replace(sketch, note=note)
        conditions["single_sketch"] = sketch
    return conditions


def camera_of(settings: Settings) -> CameraMove:
    return CameraMove(settings.pan, settings.zoom, settings.roll, settings.easing)


def _motion_by_hand(settings: Settings, config: Config) -> Extracted:
    """Compute the motion of tracks plus camera, in the layout that the checkpoint was trained on."""
    move = camera_of(settings)
    field = camera_field(move, settings.frames, settings.size)
    if settings.tracks is not None:
        tracks = read_tracks(settings.tracks)
        from_tracks = tracks_field(
            tracks, settings.frames, settings.size, settings.canvas, settings.radius, easing=settings.easing
        )
        if not from_tracks.any():
            raise UserError(
                f"The tracks in {settings.tracks} move nothing in the video. Set --canvas WIDTHxHEIGHT to the size of "
                "the canvas that they were drawn on."
            )
        field = field + from_tracks
    return Extracted(condition_from_field(field, config.extraction, settings.size), {"method": "by hand"})
