"""Measure the clips of files, which takes long, once: the thresholds can then be changed without decoding again."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.data.caption_lists import END, START, Entry
from training.data.cleaning.scenes import Clip, SceneOptions, read_clips
from training.data.sample import BadSample
from training.data.sample_fields import reading
from vc_core.disk import append
from vc_core.errors import UserError
from vc_core.folders import exists
from vc_core.parsing import parse_json


@dataclass(frozen=True)
class Measured:
    """The clips of a file, and if it has not been read completely, why: one of `training.data.cleaning.rules.REASONS`
    and a sentence."""

    clips: tuple[Clip, ...] = ()
    reason: str = ""
    problem: str = ""


def measure(entry: Entry, folder: Path, options: SceneOptions) -> Measured:
    """Split a file and measure its clips."""
    if entry.fault:
        return Measured(reason="caption", problem=entry.fault)
    name = entry.name(folder)
    try:
        with reading(name):
            source = entry.source(folder)
            if not exists(source):
                return Measured((), "missing", f"There is no file at {name}. Correct or remove its caption.")
            if entry.is_image(folder):
                return Measured((), "image", f"{name} is an image. ./vc clean reads only videos.")
    except BadSample as error:
        return Measured((), "unreadable", str(error))
    clips, until, problem = read_clips(source, name, options, entry.span)
    if not clips:
        return Measured((), "unreadable", problem or f"{name} has no frames between {START} and {END}. Fix the list.")
    if problem:
        return Measured(tuple(clips), "damaged", f"Nothing can be read from {until:.2f} s on. {problem}")
    return Measured(tuple(clips))


class Measurements:
    """A file of lines of JSON with the clips of videos that have been measured completely, by `key_of`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clips: dict[str, list[Mapping[str, Any]]] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
                try:
                    row = parse_json(line)
                    self.clips[row["key"]] = row["clips"]
                except (ValueError, KeyError, TypeError):
                    continue  # cut off when a run was killed; its video is measured again

    def get(self, key: str) -> Measured | None:
        """The clips under a key; None if there are none, or if another version wrote them."""
        try:
            clips = [Clip(**{**clip, "hashes": tuple(clip["hashes"])}) for clip in self.clips[key]]
        except (KeyError, TypeError):
            return None
        return Measured(tuple(clips))

    def add(self, key: str, measured: Measured) -> None:
        """Store the clips of a video that could be read completely. The end of line comes first, because the last line
        may be cut off."""
        if key and not measured.reason:
            append(self.path, f"\n{json.dumps({'key': key, 'clips': [asdict(clip) for clip in measured.clips]})}")


def key_of(entry: Entry, folder: Path, options: SceneOptions) -> str:
    """A hash of a file's name, size and time, and of what determines its clips; empty for anything but a file."""
    try:
        status = os.stat(entry.source(folder))
    except (UserError, OSError, ValueError):  # `measure` reports it
        return ""
    if not stat.S_ISREG(status.st_mode):
        return ""
    values = [entry.file, status.st_size, status.st_mtime_ns, entry.span, asdict(options)]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]
