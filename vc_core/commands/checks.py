"""Which settings exclude each other, and which files must exist before a run."""

import os
from collections.abc import Iterator

from ..diffusion.noise import WARPED
from ..errors import UserError, brief
from .settings import AFFECTS, DEFAULTS, EXCLUSIVE, MOVES, REQUIRES, SETTINGS, Label, Settings, as_option

LONGEST_PATH = 300
"""Characters of a path that an error shows: a settings file may contain a path of any length."""


def check_settings(settings: Settings, label: Label = as_option) -> None:
    """Refuse settings that contradict each other or have no effect. Raises `UserError`."""
    for message in _contradictions(settings, label):
        raise UserError(message)


def _contradictions(s: Settings, label: Label) -> Iterator[str]:
    """Yield a message for each contradiction and for each setting without effect."""
    # Conditions that do not come from the source -> what they come from, in words.
    moves = " and ".join(label(name) for name in MOVES if getattr(s, name) != DEFAULTS[name])
    separate = {"motion": moves} if s.moves_by_hand else {}
    for name, own in (("single_image", "image"), ("single_sketch", "sketch"), ("style", "style")):
        if path := getattr(s, own):
            separate[name] = f"{label(own)} {path}"
    changed = [name for name in SETTINGS if getattr(s, name) != DEFAULTS[name]]
    extracted = {*s.use, *(["single_sketch"] if s.sketch and s.lines == "none" else [])}
    use, video, init, denoise = map(label, ("use", "video", "init", "denoise"))
    if s.use and not s.video:
        yield f"{use} {','.join(s.use)} requires a source. Add {video} FILE."
    if s.video and not s.use:
        yield f"{video} {s.video} is not used. Choose the conditions to extract from it, for example {use} motion."
    if "mask" in s.use and not (s.mask or s.mask_draw):
        yield (
            f"The condition 'mask' requires a mask. Set {label('mask')} to an image or a video, or set "
            f"{label('mask_draw')}."
        )
    for name, by in separate.items():
        if name in s.use:
            yield f"The condition '{name}' is set twice, by {use} and by {by}. Set it once."
    for name in ("strength", "schedule"):
        if idle := sorted({*getattr(s, name)} - {*s.use, *separate}):
            yield (
                f"{label(name)} names conditions that are not used: {', '.join(idle)}. Remove them there, or add these "
                "conditions."
            )
    if "sketch_method" in changed and s.sketch and s.lines != "none" and "sketch" not in s.use:
        yield (
            f"{label('sketch_lines')} {s.lines} means that the image is a drawing, but {label('sketch_method')} "
            f"{s.sketch_method} searches for lines in a photo. Set only one of them."
        )
    for name in changed:
        if name in AFFECTS and not extracted & {*AFFECTS[name]}:
            yield f"{label(name)} has no effect. Add {' or '.join(AFFECTS[name])} to {use}, or remove it."
    for name, other in REQUIRES:
        if name in changed and other not in changed:
            yield f"{label(name)} requires {label(other)}. Add {label(other)}, or remove {label(name)}."
    for name, other in EXCLUSIVE:
        if {name, other} <= {*changed}:
            yield f"{label(name)} and {label(other)} exclude each other. Set only one of them."
    if "easing" in changed and not s.moves_by_hand:
        moves = ", ".join(map(label, MOVES))
        yield f"{label('easing')} {s.easing} has no effect. It works only with one of {moves}."
    if s.drag and not s.moves_by_hand:
        yield f"{label('drag')} requires a motion. Add {', '.join(map(label, MOVES))}, or remove {label('drag')}."
    if "mask" in s.use and s.keyframe:
        yield f"{label('keyframe')} sets the condition 'mask' itself. Remove 'mask' from {use}."
    if s.init and s.denoise == 1:
        yield f"{init} {s.init} has no effect at {denoise} 1. Choose a lower {denoise}."
    if s.denoise < 1 and not s.init:
        yield f"{denoise} {s.denoise:g} requires a video to start from. Add {init} FILE."
    for name in ("start", "rate"):
        if name in changed and not (s.video or s.init or s.extend):
            yield f"{label(name)} {getattr(s, name)} has no effect. It requires {video}, {init} or {label('extend')}."
    if s.eta > 0 and not (s.sampler or "").startswith("ddim"):
        yield f"{label('eta')} {s.eta:g} works only with the ddim samplers. Remove it, or add {label('sampler')} ddim."
    if s.noise in WARPED and not (s.moves_by_hand or "motion" in s.use):
        yield (
            f"{label('noise')} {s.noise} requires the condition 'motion'. Add motion to {use}, or one of "
            f"{', '.join(map(label, MOVES))}."
        )
    if s.frames and (late := [frame for frame in s.text_at if frame >= s.frames]):
        yield (
            f"{label('text_at')} has a text for frame {late[0]}, but the last of {s.frames} frames is frame "
            f"{s.frames - 1}. Choose an earlier frame."
        )
    if None not in (s.window, s.overlap) and s.overlap >= s.window:
        yield f"{label('overlap')} must be smaller than {label('window')} {s.window}, got {s.overlap}."


FOLDERS = ("checkpoint", "parts", "video", "init", "extend", "mask", "depth_model", "depth_maps")
"""Inputs that may be folders: of images, or of networks."""


def check_inputs(settings: Settings, label: Label) -> None:
    """Refuse inputs that do not exist, and folders where a file is expected. Raises `UserError`."""
    for name, paths in settings.inputs().items():
        for path in paths:
            if os.path.isdir(path) and name not in FOLDERS:
                raise UserError(f"{label(name)} expects a file, but {path} is a folder. Pass a file.")
            if not os.path.exists(path):  # pathlib raises for names that are too long
                advice = (
                    "A strength is a number: FILE=0.8." if name == "lora" and "=" in str(path) else "Check the path."
                )
                raise UserError(f"{label(name)}: There is no file {brief(str(path), LONGEST_PATH)}. {advice}")
    for path in settings.models:
        if not os.path.isdir(os.path.expanduser(path)):
            raise UserError(f"{label('models')}: There is no folder {brief(str(path), LONGEST_PATH)}. Check the path.")
