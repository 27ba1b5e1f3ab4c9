"""What settings must not be together, and what must be there before anything runs."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..disk import check_place
from ..errors import UserError, brief
from .settings import DEFAULTS, EITHER, GOES_WITH, MOVES, SERVES, SETTINGS, Label, Settings, as_option

if TYPE_CHECKING:
    from ..video.formats import Format

LONGEST_PATH = 300
"""Characters of a path that an error shows: a file of settings may hold any number."""


def check_settings(settings: Settings, label: Label = as_option) -> None:
    """Refuses settings that contradict each other, or that have no effect. Raises `UserError`."""
    for wrong, message in _contradictions(settings, label):
        if wrong:
            raise UserError(message)


def _contradictions(s: Settings, label: Label) -> Iterable[tuple[bool, str]]:
    """What settings must not be together: whether it is so, and one sentence on it. The first that is so is to tell."""
    given = {*s.use, *(["single_image"] if s.image else []), *(["single_sketch"] if s.sketch else [])}
    given |= {"style"} if s.style else set()
    given |= {"motion"} if s.moves_by_hand else set()
    idle = sorted({*s.strength, *s.schedule} - given)
    timed = next((name for name in ("start", "rate") if getattr(s, name) != DEFAULTS[name]), "")
    changed = [name for name in SETTINGS if getattr(s, name) != DEFAULTS[name]]
    taken = {*s.use, *(["single_sketch"] if s.sketch and s.lines == "none" else [])}
    use, video, init, denoise = map(label, ("use", "video", "init", "denoise"))
    yield bool(s.use) and not s.video, f"{use} {','.join(s.use)} needs a source: give {video} FILE."
    yield (
        bool(s.video) and not s.use,
        f"{video} {s.video} is not used: say what to take from it, for instance {use} motion.",
    )
    yield (
        "mask" in s.use and not (s.mask or s.mask_draw),
        f"The condition 'mask' needs a mask file or a drawn one: give {label('mask')} an image or a video, or give "
        f"{label('mask_draw')}.",
    )
    for name, own in (("single_image", "image"), ("single_sketch", "sketch")):
        path = getattr(s, own)
        yield (
            bool(path) and name in s.use,
            f"The condition '{name}' was given twice, by {use} and by {label(own)} {path}: give it once.",
        )
    yield (
        bool(idle),
        f"{label('strength')} or {label('schedule')} names {', '.join(idle)}: name conditions that are given.",
    )
    yield (
        s.moves_by_hand and "motion" in s.use,
        f"The condition 'motion' was given twice, by {use} and by hand: give it once.",
    )
    yield (
        "sketch_method" in changed and s.sketch is not None and s.lines != "none" and "sketch" not in s.use,
        f"{label('sketch_lines')} {s.lines} takes the drawing as it is, and {label('sketch_method')} "
        f"{s.sketch_method} looks for lines in it: give one of them.",
    )
    for name in changed:
        serves = SERVES.get(name, ())
        yield (
            bool(serves) and not taken & {*serves},
            f"{label(name)} is not used: add {' or '.join(serves)} to {use}, or leave it out.",
        )
    for name, other in GOES_WITH:
        yield (
            name in changed and other not in changed,
            f"{label(name)} goes with {label(other)}: leave it out, or give {label(other)}.",
        )
    for name, other in EITHER:
        yield {name, other} <= {*changed}, f"{label(name)} and {label(other)} exclude each other: give one of them."
    yield (
        "easing" in changed and not s.moves_by_hand,
        f"{label('easing')} {s.easing} is not used: it goes with {', '.join(map(label, MOVES))}.",
    )
    yield bool(s.init) and s.denoise == 1, f"{init} {s.init} has no effect at {denoise} 1: give a lower {denoise}."
    yield s.denoise < 1 and not s.init, f"{denoise} {s.denoise:g} needs a video to begin from: give {init} FILE."
    yield (
        bool(timed) and not (s.video or s.init),
        f"{label(timed)} {getattr(s, timed or 'start')} is not used: it goes with {video} or {init}.",
    )
    yield (
        s.eta > 0 and not s.sampler.startswith("ddim"),
        f"{label('eta')} {s.eta:g} goes with the ddim samplers: leave it out, or choose {label('sampler')} ddim.",
    )
    yield (
        None not in (s.window, s.overlap) and s.overlap >= s.window,
        f"{label('overlap')} {s.overlap} is not possible with {label('window')} {s.window}: expected fewer frames.",
    )


FOLDERS = ("checkpoint", "parts", "video", "init", "mask", "depth_model", "depth_maps")
"""Inputs that may be folders: of pictures, or of networks."""


def check_inputs(settings: Settings, label: Label) -> None:
    """Refuses inputs that are missing, and folders where files are read. Raises `UserError`."""
    for name, paths in settings.inputs().items():
        for path in paths:
            if os.path.isdir(path) and name not in FOLDERS:
                raise UserError(f"{path} is a folder, and {label(name)} takes a file: name the file in it.")
            if not os.path.exists(path):  # pathlib raises for names that are too long
                raise UserError(
                    f"There is no file at {brief(str(path), LONGEST_PATH)}, which {label(name)} names: check the path."
                )
    for path in settings.models:
        there = brief(str(path), LONGEST_PATH)
        if not os.path.isdir(os.path.expanduser(path)):
            raise UserError(f"There is no folder at {there}, which {label('models')} names: check the path.")


def check_video_place(path: Path, form: "Format") -> None:
    """Refuses where no video of this format can be written: a device, a folder of other files. Raises `UserError`."""
    from ..video.formats import FOLDER, FORMATS, check_replaceable

    (check_replaceable if form is FORMATS[FOLDER] else check_place)(path)
