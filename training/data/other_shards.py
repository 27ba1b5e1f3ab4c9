"""Shards of other programs: tar files in WebDataset's format, as webdataset, img2dataset and video2dataset write them.

A sample is a video or an image and its texts. Their names are equal up to the last dot or, if no text matches that, up
to the first dot, which is WebDataset's rule (`1.video.mp4` and `1.caption.txt`). So both `clip_0.5.mp4` with
`clip_0.5.txt` and WebDataset's own names work. Sounds, masks and numbers are ignored.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from training.data.caption_lists import LONGEST, TEXTS, VIDEOS, Entry, entry_with_texts
from training.data.tars import Member, compression, members_of
from vc_core.errors import UserError, counted, shorten
from vc_core.folders import is_system_file
from vc_core.video import IMAGES


def read_shards(tars: Sequence[Path], folder: Path) -> list[Entry]:
    """The samples of shards in their order, with captions. A sample that cannot be used has a `fault`.

    Raises:
        UserError: the shards contain no samples.
    """
    entries: list[Entry] = []
    damaged, empty, extra = [], 0, []
    for tar in tars:
        members, damage = members_of(tar)
        name = tar.relative_to(folder).as_posix()
        if damage:
            damaged.append(f"{name} ({str(damage) or type(damage).__name__})")
        samples, without, aside = grouped(members)
        empty += without
        extra += [f"{name}:{member.name}" for member in aside]
        entries += [_entry(name, member, texts) for member, texts in samples]
    notes = []
    if damaged:
        cut_off = counted(len(damaged), "shard is", "shards are")
        notes.append(f"{cut_off} cut off or damaged. The samples before the damage are used: {shorten(damaged, 3)}.")
    if empty:
        few = counted(empty, "sample")
        notes.append(f"Skipped {few} without a video or an image. Usually these could not be downloaded.")
    if extra:
        few = counted(len(extra), "member")
        notes.append(f"Skipped {few} without a text, although others of the same sample have one: {shorten(extra, 3)}.")
    for note in notes:
        warnings.warn(f"{folder}: {note}", stacklevel=2)
    if not entries:
        raise UserError(
            f"The .tar files in {folder} contain no videos or images with captions. Expected, for example, 000.mp4 "
            "with 000.txt or 000.json in them."
        )
    return entries


def warn_of_compressed(entries: Iterable[Entry]) -> None:
    """Warn before training on compressed shards, because training reads in random order."""
    tars = {entry.member.tar for entry in entries if entry.member is not None}
    if slow := sorted(tar.name for tar in tars if compression(tar) is not None):
        warnings.warn(
            f"{counted(len(slow), 'shard is', 'shards are')} compressed, which makes reading slow: {shorten(slow, 3)}. "
            "Decompress them, or convert them with ./vc prepare.",
            stacklevel=2,
        )


def grouped(members: Iterable[Member]) -> tuple[list[tuple[Member, Mapping[str, Member]]], int, list[Member]]:
    """The videos and images with their texts by extension; the number of samples without a video or an image; and the
    videos and images without texts in samples where another member has the texts."""
    media: dict[str, dict[str, list[Member]]] = defaultdict(lambda: defaultdict(list))
    texts: dict[str, dict[str, dict[str, Member]]] = defaultdict(lambda: defaultdict(dict))
    for member in members:
        path = PurePosixPath(member.name)
        if not path.name or any(part.startswith((".", "__")) or is_system_file(part) for part in path.parts):
            continue
        stem, ending = str(path.with_suffix("")), path.suffix.lower()
        first = str(path.with_name(path.name.partition(".")[0]))
        if ending in TEXTS:
            texts[first][stem][ending] = member
        elif ending in VIDEOS or ending in IMAGES:
            media[first][stem].append(member)
    samples, aside = [], []
    for first, stems in media.items():
        by_stem = texts.get(first, {})
        own = {stem: by_stem[stem] for stem in stems if stem in by_stem}
        if not own:  # WebDataset's rule: all names that are equal up to the first dot are one sample
            own = {first: {ending: text for by_ending in by_stem.values() for ending, text in by_ending.items()}}
            stems = {first: [member for candidates in stems.values() for member in candidates]}
        for stem, candidates in stems.items():
            if stem in own:  # prefer the video to its preview image
                video = (member for member in candidates if PurePosixPath(member.name).suffix.lower() in VIDEOS)
                samples.append((next(video, candidates[0]), own[stem]))
            else:
                aside += candidates
    return samples, len(texts.keys() - media.keys()), aside


def _entry(tar: str, member: Member, texts: Mapping[str, Member]) -> Entry:
    file = f"{tar}:{member.name}"
    try:
        data = {ending: text.read() if text.size <= LONGEST else bytes(LONGEST + 1) for ending, text in texts.items()}
    except UserError as error:
        return Entry(file, "", {}, str(error), member)
    if not member.size:
        return Entry(file, "", {}, "It is empty. Download it again or remove it.", member)
    return entry_with_texts(file, data, member)
