"""What a composition starts from, for `./vc compose`: a video to change or to extend, keyframes, a dragged image."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..config import Config
from ..errors import UserError
from ..extract.keyframes import Draft, keyframes
from ..extract.motion.drag import camera_paths, drag, tracks_paths
from ..extract.motion.tracks import read_tracks
from ..extract.sources import Extracted, Source, extract_condition
from ..video import FramePlan, plan_frames, read_frames, read_image
from ..video.sequences import media
from ..video.sound import Sound, sound_of
from .conditions import camera_of, probed
from .settings import Settings


@dataclass(frozen=True)
class Beginning:
    """What a composition starts from.

    Attributes:
        init, mask: arguments of `compose`.
        before: frames `(1, 3, N, H, W)` that the output shows first, in place of the first `known` ones.
        known: number of composed frames that `before` ends with.
        conditions: conditions that show the network what is kept, by name.
        sound: for the output.
        notes: sentences for the user.
    """

    init: Tensor | None = None
    mask: Tensor | None = None
    before: Tensor | None = None
    known: int = 0
    conditions: Mapping[str, Extracted] = field(default_factory=dict)
    sound: Sound | None = None
    notes: tuple[str, ...] = ()

    def kept(self, videos: Tensor) -> Tensor:
        """Return videos `(B, 3, F, H, W)` of the size of `init`, with its kept places."""
        return videos if self.mask is None else torch.where(self.mask == 0, self.init, videos)

    def joined(self, videos: Tensor) -> Tensor:
        """Return the frames of the output `(B, 3, F, H, W)`, from those that were composed."""
        if self.before is None:
            return videos
        return torch.cat([self.before.expand(len(videos), -1, -1, -1, -1), videos[:, :, self.known :]], dim=2)


def beginning(settings: Settings, plan: FramePlan | None, config: Config) -> Beginning:
    """Read what the settings start from. The settings must be filled in; `plan` is the source's frame plan.

    Raises:
        UserError: a file is unreadable, or the frames of keyframes do not fit the video.
    """
    if settings.init is not None:
        return _from_video(settings, plan)
    if settings.drag:
        draft = _dragged(settings)
        return Beginning(draft.init, draft.mask)
    images = {index: read_image(path) for path, indices in settings.keyframe.items() for index in indices}
    if settings.extend is None:
        if not images:
            return Beginning()
        draft = keyframes(images, settings.frames, settings.size)
        shown = {
            "mask": Extracted(draft.mask_condition(settings.size, config)),
            **_first_frame(draft, settings, config),
        }
        return Beginning(draft.init, draft.mask, conditions=_supported(shown, config))
    before = read_frames(settings.extend, plan, settings.size)
    kept = settings.keep
    if settings.frames <= kept:
        raise UserError(
            f"--frames {settings.frames} leaves no new frame after the {kept} of --keep. Use more frames, or keep "
            "fewer."
        )
    images |= {number: before[:, :, number - kept] for number in range(kept)}
    draft = keyframes(images, settings.frames, settings.size)
    frames, new = before.shape[2], settings.frames - kept
    note = (
        f"The first {frames} frames are those of {settings.extend.name}, sampled at {float(plan.rate):g} per second "
        f"and scaled to the output's size; the last {new} are new."
    )
    sound, sound_note = _sound(settings, settings.extend, plan, frames)
    # Without the mask condition: with it, the new frames of the bundled checkpoint fit worse, see ./vc bench hold.
    shown = _supported(_first_frame(draft, settings, config), config)
    return Beginning(draft.init, draft.mask, before, kept, shown, sound, (note, *sound_note))


def _from_video(settings: Settings, plan: FramePlan | None) -> Beginning:
    """Read the video to change, at the source's rate if there is one, to keep both in step."""
    if settings.video is not None:
        plan = plan_frames(probed(settings.init), settings.frames, plan.rate, settings.start)
    init = read_frames(settings.init, plan, settings.size)
    sound, note = _sound(settings, settings.init, plan, settings.frames)
    return Beginning(init, sound=sound, notes=note)


def _dragged(settings: Settings) -> Draft:
    frames, size, camera = settings.frames, settings.size, camera_of(settings)
    tracks = () if settings.tracks is None else read_tracks(settings.tracks)

    def paths(points: Tensor) -> Tensor:
        by_tracks = tracks_paths(tracks, frames, size, points, settings.canvas, settings.radius, easing=settings.easing)
        return by_tracks + camera_paths(camera, frames, size, points) - points

    return drag(read_image(settings.image), size, paths, settings.drag_inside, settings.drag_outside)


def _first_frame(draft: Draft, settings: Settings, config: Config) -> dict[str, Extracted]:
    """Return the single image of a draft that keeps the first frame, unless the user sets another one."""
    if settings.image is not None or "single_image" in settings.use or draft.mask[:, :, 0].any():
        return {}
    source = Source(draft.init[:, :, :1], None, settings.size, config.extraction)
    return {"single_image": extract_condition("single_image", source)}


def _supported(conditions: Mapping[str, Extracted], config: Config) -> dict[str, Extracted]:
    return {name: condition for name, condition in conditions.items() if name in config.unet.conditions}


def _sound(settings: Settings, source: Path, plan: FramePlan, frames: int) -> tuple[Sound | None, tuple[str, ...]]:
    """Return the sound of a source's first frames for the output, and notes on why there is none."""
    from ..video.writing import check_format

    with media(source) as video:
        sound = sound_of(video, plan.start, float(frames / plan.rate))
    if sound is None:
        return None, ()
    if not check_format(settings.out).sound:
        return None, (f"The sound of {source.name} is not in the output: only .mp4 and .webm have sound.",)
    if abs(settings.fps / float(plan.rate) - 1) > 1e-3:
        rate = float(plan.rate)
        return None, (
            f"The sound of {source.name} is not in the output, because {settings.fps:g} frames per second play faster "
            f"or slower than the source. For its sound, set --fps {rate:g} or leave it out.",
        )
    return sound, ()
