"""What settings must not be together, and what must be there before anything runs."""

import os
from collections.abc import Iterator

from ..errors import UserError, brief
from .settings import DEFAULTS, EITHER, GOES_WITH, MOVES, SERVES, SETTINGS, Label, Settings, as_option

LONGEST_PATH = 300
"""Characters of a path that an error shows: a file of settings may hold any number."""


def check_settings(settings: Settings, label: Label = as_option) -> None:
    """Refuses settings that contradict each other, or that have no effect. Raises `UserError`."""
    for message in _contradictions(settings, label):
        raise UserError(message)


def _contradictions(s: Settings, label: Label) -> Iterator[str]:
    """One sentence on each thing that settings must not be together."""
    # What brings a condition besides the source, in words.
    beside = {"motion": "hand"} if s.moves_by_hand else {}
    for name, own in (("single_image", "image"), ("single_sketch", "sketch"), ("style", "style")):
        if path := getattr(s, own):
            beside[name] = f"{label(own)} {path}"
    idle = sorted({*s.strength, *s.schedule} - {*s.use, *beside})
    changed = [name for name in SETTINGS if getattr(s, name) != DEFAULTS[name]]
    taken = {*s.use, *(["single_sketch"] if s.sketch and s.lines == "none" else [])}
    use, video, init, denoise = map(label, ("use", "video", "init", "denoise"))
    if s.use and not s.video:
        yield f"{use} {','.join(s.use)} needs a source: give {video} FILE."
    if s.video and not s.use:
        yield f"{video} {s.video} is not used: say what to take from it, for instance {use} motion."
    if "mask" in s.use and not (s.mask or s.mask_draw):
        yield (
            f"The condition 'mask' needs a mask file or a drawn one: give {label('mask')} an image or a video, or give "
            f"{label('mask_draw')}."
        )
    for name, by in beside.items():
        if name in s.use:
            yield f"The condition '{name}' was given twice, by {use} and by {by}: give it once."
    if idle:
        yield f"{label('strength')} or {label('schedule')} names {', '.join(idle)}: name conditions that are given."
    if "sketch_method" in changed and s.sketch and s.lines != "none" and "sketch" not in s.use:
        yield (
            f"{label('sketch_lines')} {s.lines} takes the drawing as it is, and {label('sketch_method')} "
            f"{s.sketch_method} looks for lines in it: give one of them."
        )
    for name in changed:
        if name in SERVES and not taken & {*SERVES[name]}:
            yield f"{label(name)} is not used: add {' or '.join(SERVES[name])} to {use}, or leave it out."
    for name, other in GOES_WITH:
        if name in changed and other not in changed:
            yield f"{label(name)} goes with {label(other)}: leave it out, or give {label(other)}."
    for name, other in EITHER:
        if {name, other} <= {*changed}:
            yield f"{label(name)} and {label(other)} exclude each other: give one of them."
    if "easing" in changed and not s.moves_by_hand:
        yield f"{label('easing')} {s.easing} is not used: it goes with {', '.join(map(label, MOVES))}."
    if s.init and s.denoise == 1:
        yield f"{init} {s.init} has no effect at {denoise} 1: give a lower {denoise}."
    if s.denoise < 1 and not s.init:
        yield f"{denoise} {s.denoise:g} needs a video to begin from: give {init} FILE."
    for name in ("start", "rate"):
        if name in changed and not (s.video or s.init):
            yield f"{label(name)} {getattr(s, name)} is not used: it goes with {video} or {init}."
    if s.eta > 0 and not (s.sampler or "").startswith("ddim"):
        yield f"{label('eta')} {s.eta:g} goes with the ddim samplers: leave it out, or choose {label('sampler')} ddim."
    if None not in (s.window, s.overlap) and s.overlap >= s.window:
        window = f"{label('window')} {s.window}"
        yield f"{label('overlap')} {s.overlap} is not possible with {window}: expected fewer frames."


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
        if not os.path.isdir(os.path.expanduser(path)):
            there = brief(str(path), LONGEST_PATH)
            raise UserError(f"There is no folder at {there}, which {label('models')} names: check the path.")
