"""Shards of other programs: tar files in WebDataset's format, as webdataset, img2dataset and video2dataset write them.

A sample is a video or an image and the texts beside it: names that are equal up to the last dot, or, where no text has
the same, up to the first dot of the name, which is WebDataset's rule (`1.video.mp4` and `1.caption.txt`). So both
`clip_0.5.mp4` with `clip_0.5.txt` and WebDataset's own names are understood. Sounds, masks and numbers are left alone.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from training.data.caption_lists import LONGEST, TEXTS, VIDEOS, Entry, beside
from training.data.tars import Member, compression, members_of
from vc_core.errors import UserError, counted, shorten
from vc_core.folders import is_system_file
from vc_core.video import IMAGES


def read_shards(tars: Sequence[Path], folder: Path) -> list[Entry]:
    """The samples of shards in their order, captions read already; what is wrong with one of them is its `fault`.

    Raises:
        UserError: they hold no samples.
    """
    entries: list[Entry] = []
    damaged, empty, beside_samples = [], 0, []
    for tar in tars:
        members, damage = members_of(tar)
        name = tar.relative_to(folder).as_posix()
        if damage:
            damaged.append(f"{name} ({str(damage) or type(damage).__name__})")
        samples, without, aside = grouped(members)
        empty += without
        beside_samples += [f"{name}:{each.name}" for each in aside]
        entries += [_entry(name, member, texts) for member, texts in samples]
    told = []
    if damaged:
        cut_off = counted(len(damaged), "shard is", "shards are")
        told.append(f"{cut_off} cut off or damaged, and what comes before that is taken: {shorten(damaged, 3)}.")
    if empty:
        few = counted(empty, "sample")
        told.append(f"leaves out {few} without a video or an image: as a rule, what could not be downloaded.")
    if beside_samples:
        few = counted(len(beside_samples), "member")
        which = shorten(beside_samples, 3)
        told.append(f"leaves out {few} without texts in samples of which others have some: {which}.")
    for each in told:
        warnings.warn(f"{folder}: {each}", stacklevel=2)
    if not entries:
        raise UserError(
            f"{folder}: its .tar hold neither videos nor images with captions: expected for instance 000.mp4 with "
            "000.txt or 000.json in them."
        )
    return entries


def warn_of_compressed(entries: Iterable[Entry]) -> None:
    """For training as they are, which reads in random order."""
    tars = {entry.member.tar for entry in entries if entry.member is not None}
    if slow := sorted(tar.name for tar in tars if compression(tar) is not None):
        warnings.warn(
            f"{counted(len(slow), 'shard is', 'shards are')} compressed, which makes reading slow: gunzip them, or "
            f"make shards of them by ./vc prepare: {shorten(slow, 3)}.",
            stacklevel=2,
        )


def grouped(members: Iterable[Member]) -> tuple[list[tuple[Member, Mapping[str, Member]]], int, list[Member]]:
    """The videos and images with the texts beside them, by their endings; how many samples have neither; and what else
    shows something, but is of a sample of which another member has the texts."""
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
        there = texts.get(first, {})
        own = {stem: there[stem] for stem in stems if stem in there}
        if not own:  # WebDataset's rule: all that is equal up to the first dot is one sample
            own = {first: {ending: each for of in there.values() for ending, each in of.items()}}
            stems = {first: [each for of in stems.values() for each in of]}
        for stem, shown in stems.items():
            if stem in own:  # of a video and its preview, the video
                video = (each for each in shown if PurePosixPath(each.name).suffix.lower() in VIDEOS)
                samples.append((next(video, shown[0]), own[stem]))
            else:
                aside += shown
    return samples, len(texts.keys() - media.keys()), aside


def _entry(tar: str, member: Member, texts: Mapping[str, Member]) -> Entry:
    file = f"{tar}:{member.name}"
    try:
        read = {ending: each.read() if each.size <= LONGEST else bytes(LONGEST + 1) for ending, each in texts.items()}
    except UserError as error:
        return Entry(file, "", {}, str(error), member)
    if not member.size:
        return Entry(file, "", {}, "is empty: get it anew or leave it out.", member)
    return beside(file, read, member)
