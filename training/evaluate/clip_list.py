"""The clips of an evaluation as a list with hashes, so that another person evaluates exactly the same clips."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from training.data.caption_lists import printable
from training.data.folder import FolderClips, clip_of
from training.data.order import draw_below, generator_for
from training.data.sample import BadSample
from training.data.shards import ShardClips
from vc_core.checkpoint.files import sha256
from vc_core.errors import UserError, brief, reason
from vc_core.parsing import parse_json, read_text

NAME = "clips.json"
FIELDS = {"sha256": str, "text": str, "start": (int, float), "frames": int, "rate": (int, float)}
"""What must be equal, and its type in JSON. `start` is in seconds, `rate` in frames per second."""


@dataclass(frozen=True)
class ClipList:
    """Clips to evaluate, see `clip_record`, and the settings that they were read with."""

    path: Path
    clips: list[dict[str, Any]]
    rate: float | None = None
    nominal_height: int | None = None


def write_clip_list(
    path: Path, clips: Sequence[dict[str, Any]], rate: float | None, nominal_height: int | None
) -> None:
    """Write a list for `read_clip_list`."""
    content = {"rate": rate, "nominal_height": nominal_height, "clips": list(clips)}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_clip_list(path: Path) -> ClipList:
    """Read the list of an earlier evaluation.

    Raises:
        UserError: the file is missing or is not such a list.
    """
    try:
        content = parse_json(read_text(path, "utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a list of clips ({reason(error)}). Pass a {NAME}.") from error
    types = {"file": str, "number": int, **FIELDS}
    clips = content.get("clips") if isinstance(content, dict) else None
    is_list = isinstance(clips, list) and all(
        isinstance(clip, dict) and all(isinstance(clip.get(key), kind) for key, kind in types.items()) for clip in clips
    )
    if not is_list or len(clips) < 2:
        raise UserError(
            f"{path} is not a list of at least 2 clips. Pass the {NAME} of an evaluation with --data; synthetic scenes "
            "are always the same."
        )
    return ClipList(path, clips, content.get("rate"), content.get("nominal_height"))


def clip_record(data: FolderClips | ShardClips, index: int, number: int) -> dict[str, Any]:
    """Return file, hash, text and frames of a clip, and for shards the video that it is from. Its random start depends
    on `number`, its place in the list that it was first chosen from.

    Raises:
        BadSample: the clip cannot be read.
    """
    generator, frames, origin = generator_for("evaluate", number), data.form.frames, {}
    if isinstance(data, FolderClips):
        entry = data.entries[index]
        try:
            source, plan, _ = clip_of(
                entry, data.folder, frames, data.rate, generator, data.form.extraction.sampling_rate
            )
        except UserError as error:
            raise BadSample(str(error)) from error
        digest = sha256(source) if isinstance(source, Path) else hashlib.sha256(source.file().read()).hexdigest()
        start, rate = (0.0, Fraction(1)) if plan is None else (plan.start, plan.rate)
        text = entry.caption
    else:
        settings = data.shards.settings
        _, members = data.shards.read(index, ["json", settings["picture"]])
        about = parse_json(members["json"])
        rate, text = Fraction(about.get("plan", {}).get("rate", 1)), about["caption"]
        start = draw_below(settings["frames"] - frames + 1, generator) / rate
        digest = hashlib.sha256(members[settings["picture"]]).hexdigest()
        match about:
            case {"file": str(file), "plan": {"start": float(first) | int(first)}}:
                origin = {"source": printable(f"{file} at {first + float(start):.1f} s")}
    record = {"sha256": digest, "text": text, "start": round(float(start), 6), "frames": frames, "rate": float(rate)}
    return {"file": file_name(data, index), "number": number, **record, **origin}


def file_name(data: FolderClips | ShardClips, index: int) -> str:
    """Return the name of a clip, relative to the data's folder."""
    if isinstance(data, FolderClips):
        return data.entries[index].file
    shard, key, _ = data.shards.find(index)
    return f"{shard.relative_to(data.shards.folder).as_posix()}:{key}"


def listed_indices(data: FolderClips | ShardClips, listed: ClipList, folder: Path) -> list[int]:
    """Return the index of each clip of a list in the data.

    Raises:
        UserError: a clip is missing.
    """
    indices = {file_name(data, index): index for index in range(len(data))}
    for clip in listed.clips:
        if clip["file"] not in indices:
            raise UserError(f"{folder} does not contain {clip['file']} of {listed.path}. Add the file.")
    return [indices[clip["file"]] for clip in listed.clips]


def check_clips(data: FolderClips | ShardClips, listed: ClipList, folder: Path) -> None:
    """Check that the data contains exactly the clips of a list.

    Raises:
        UserError: a clip is missing, cannot be read, or differs.
    """
    for index, clip in zip(listed_indices(data, listed, folder), listed.clips, strict=True):
        try:
            record = clip_record(data, index, clip["number"])
        except BadSample as error:
            raise UserError(f"{error} The clip is required by {listed.path}.") from error
        for field in FIELDS:
            if record[field] != clip[field]:
                raise UserError(
                    f"{clip['file']} in {folder} differs from {listed.path} in its {field}: expected "
                    f"{brief(str(clip[field]))}, got {brief(str(record[field]))}. Use the same file, caption and "
                    "checkpoint."
                )
