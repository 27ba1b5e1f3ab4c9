"""Clips of videos or images made into the samples of shards, by several processes, as far as they are not there yet."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from training.data.caches import Cache, depth_cache, latents_cache, sketch_cache
from training.data.folder import pictures_of, plan_of
from training.data.lists import Entry, printable
from training.data.making import Form, fit, reading
from training.data.members import pack_image, pack_vectors, pack_video
from training.data.sample import BadSample
from training.data.sampler import generator_for
from training.data.shards import read_header, shard_files, write_shard
from training.lock import held
from vc_core.atomic import written_beside
from vc_core.disk import make_folder
from vc_core.errors import UserError
from vc_core.extract.motion import block_vectors
from vc_core.extract.reencode import REENCODE
from vc_core.parsing import parse_json
from vc_core.progress import Progress

PLAN, SUMMARY = "prepare.json", "summary.json"
"""In the folder of shards: what is being prepared, and what became of it."""

AHEAD = 4
"""Clips that each process may be ahead of the one that is written next."""


@dataclass(frozen=True)
class Options:
    """What is to be prepared, in plain values that other processes can be sent.

    Attributes:
        folder: of the videos or images.
        size: (height, width) of the training.
        rate: frames a second; None for the released rule.
        clips: of each video.
        layout, nominal_height: of the motion, see `vc_core.extract.motion.read_motion`.
        latents: checkpoint whose autoencoder makes them; depth: file or folder of a network; sketch: a method.
    """

    folder: Path
    frames: int = 16
    size: tuple[int, int] = (256, 256)
    rate: float | None = None
    clips: int = 1
    seed: int = 0
    layout: str = "points"
    nominal_height: int | None = None
    latents: Path | None = None
    depth: Path | None = None
    sketch: str | None = None
    device: str = "cpu"

    def caches(self) -> list[Cache]:
        """With their networks. Raises `UserError` where files are missing."""
        made = [
            self.latents and latents_cache(self.latents, self.size, self.device),
            self.depth and depth_cache(self.depth, self.device),
            self.sketch and sketch_cache(self.sketch, self.device),
        ]
        return [cache for cache in made if cache]

    def settings(self, caches: Sequence[Cache]) -> dict[str, Any]:
        """What all samples have in common, in values that JSON holds: of equal ones the samples are of one kind."""
        import av

        codec = REENCODE[self.layout].codec
        motion = {"layout": self.layout, "codec": codec, "nominal_height": self.nominal_height, "av": av.__version__}
        settings = {
            "frames": self.frames,
            "size": [*self.size],
            "rate": self.rate,
            "picture": "webp" if self.frames == 1 else "mp4",
            "motion": None if self.frames == 1 else motion,
            **{cache.name: cache.settings() for cache in caches},
        }
        return json.loads(json.dumps(settings))


@dataclass(frozen=True)
class Clip:
    """One clip to be made: the number `part` of those of its file."""

    entry: Entry
    number: int
    part: int

    @property
    def key(self) -> str:
        return f"{self.number:09d}"


# --- One clip -------------------------------------------------------------------------------------------------------


def make_members(clip: Clip, options: Options, caches: Sequence[Cache]) -> dict[str, bytes]:
    """The members of a clip's sample, by their endings.

    Raises:
        BadSample: its file cannot be read or is too short.
    """
    entry, name = clip.entry, clip.entry.name(options.folder)
    with reading(name):
        source = entry.source(options.folder)
        still = entry.is_image(options.folder)
        if still and options.frames > 1:
            raise UserError(f"{name}: is an image, and clips of {options.frames} frames are prepared")
        generator = generator_for(options.seed, entry.file, clip.part)
        large = Form(options.size).large  # for networks that take conditions of any size, see `training.data.shards`
        plan, note = (None, "") if still else plan_of(source, options.frames, options.rate, generator)
        frames = torch.stack([fit(picture, large) for picture in pictures_of(source, plan)], dim=2)
        about: dict[str, Any] = {
            "caption": entry.caption,
            "file": printable(entry.file),
            "frames": options.frames,
            "size": [*large],
            "others": dict(entry.others),
        }
        members = {}
        if note:
            about["note"] = note
        if plan is not None:
            about |= {"fps": float(plan.rate), "plan": {"start": plan.start, "rate": str(plan.rate)}}
        if options.frames == 1:
            members["webp"] = pack_image(frames[:, :, 0])
        else:
            members["mp4"] = pack_video(frames, plan.rate)
            vectors = block_vectors(source, plan, options.layout, options.nominal_height)
            members["motion.npz"] = pack_vectors(vectors)
            about["motion"] = {"height": vectors.height, "width": vectors.width}
        for cache in caches:
            members[cache.ending], told = cache.make(frames)
            if told is not None:
                about[cache.name] = told
    told = json.dumps(about, sort_keys=True, ensure_ascii=False)
    # Halves of characters in `others` become JSON's own escapes.
    return {"json": told.encode("utf-8", "backslashreplace"), **members}


# --- Many clips -----------------------------------------------------------------------------------------------------

Outcome = dict[str, bytes] | str
"""The members of a clip, or why there are none."""


def _outcome(clip: Clip, options: Options, caches: Sequence[Cache]) -> Outcome:
    try:
        return make_members(clip, options, caches)
    except BadSample as error:
        return str(error)


class _Worker:
    """What a process keeps from one clip to the next: the networks."""

    options: Options
    caches: Sequence[Cache]

    @classmethod
    def start(cls, options: Options) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process ends the others
        threading.Thread(target=_end_with_parent, daemon=True).start()
        torch.set_num_threads(1)  # the processes are as many as cores; and sums are the same on every machine
        cls.options, cls.caches = options, options.caches()

    @classmethod
    def make(cls, clip: Clip) -> Outcome:
        return _outcome(clip, cls.options, cls.caches)


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for clips for ever."""
    wait([parent_process().sentinel])
    os._exit(1)


def outcomes_here(clips: Iterable[Clip], options: Options, caches: Sequence[Cache]) -> Iterator[Outcome]:
    """What became of each clip, in their order, made by this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes of `outcomes`
    try:
        for clip in clips:
            yield _outcome(clip, options, caches)
    finally:
        torch.set_num_threads(threads)


def outcomes(clips: Iterable[Clip], options: Options, jobs: int) -> Iterator[Outcome]:
    """What became of each clip, in their order; a few are made ahead, by so many other processes.

    Raises:
        UserError: one of the processes was killed.
    """
    # Not forked: the libraries' threads would be missing in the copies.
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), _Worker.start, (options,))
    running: deque[Future[Outcome]] = deque()
    try:
        for clip in clips:
            running.append(pool.submit(_Worker.make, clip))
            if len(running) > AHEAD * jobs:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            f"One of the {jobs} processes that prepare clips was killed, as a rule for want of memory: give fewer "
            "--jobs to go on after the last finished shard."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def prepare(
    options: Options,
    entries: Sequence[Entry],
    out: Path,
    per_shard: int = 256,
    jobs: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Makes the shards that are not there yet; returns the summary, which `SUMMARY` in the folder says too.

    Args:
        per_shard: clips of each shard.
        jobs: processes.
        progress: called as `progress("preparing", clips done, clips)`.

    Raises:
        UserError: the folder holds shards of something else or another process prepares in it, networks are missing,
            the disk is full, or no clip could be made.
    """
    caches = options.caches()
    settings = options.settings(caches)
    numbered = [Clip(e, n * options.clips + part, part) for n, e in enumerate(entries) for part in range(options.clips)]
    plan = {"settings": settings, "clips": options.clips, "seed": options.seed, "per_shard": per_shard}
    with held(make_folder(out), "./vc prepare"):
        _agree(out, {**plan, "entries": _listing(entries)})
        return _prepared(options, settings, caches, numbered, out, per_shard, jobs, progress)


def _prepared(
    options: Options,
    settings: Mapping[str, Any],
    caches: Sequence[Cache],
    numbered: Sequence[Clip],
    out: Path,
    per_shard: int,
    jobs: int,
    progress: Progress | None,
) -> dict[str, Any]:
    """The summary of all shards, after those that are not there yet were made. No other process works in the folder."""
    shards = {
        out / f"shard-{first // per_shard:06d}.tar": numbered[first : first + per_shard]
        for first in range(0, len(numbered), per_shard)
    }
    missing = {path: clips for path, clips in shards.items() if not path.exists()}
    wanted = [clip for clips in missing.values() for clip in clips]
    with closing(outcomes_here(wanted, options, caches) if jobs == 1 else outcomes(wanted, options, jobs)) as made:
        told = _told(made, progress, len(numbered) - len(wanted), len(numbered))
        for path, clips in missing.items():
            dropped: list[dict[str, str]] = []
            # zip asks for the clip first, so that no outcome is lost at the end of a shard.
            write_shard(path, settings, _samples(zip(clips, told), dropped), dropped)  # noqa: B905 - `told` goes on
    return _summarise(out)


def _told(made: Iterator[Outcome], progress: Progress | None, done: int, total: int) -> Iterator[Outcome]:
    for number, outcome in enumerate(made, done + 1):
        if progress is not None:
            progress("preparing", number, total)
        yield outcome


def _samples(
    made: Iterable[tuple[Clip, Outcome]], dropped: list[dict[str, str]]
) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    """Keys and members of the clips that could be made; the others are told in `dropped`."""
    for clip, outcome in made:
        if isinstance(outcome, str):
            dropped.append({"file": printable(clip.entry.file), "reason": printable(outcome)})
        else:
            yield clip.key, outcome


def _listing(entries: Sequence[Entry]) -> str:
    told = json.dumps([_listed(entry) for entry in entries], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()


def _listed(entry: Entry) -> dict[str, Any]:
    member = {"member": [entry.member.name, entry.member.offset, entry.member.size]} if entry.member else {}
    return {"file": entry.file, "caption": entry.caption, "others": entry.others, **member}


def _agree(out: Path, plan: dict[str, Any]) -> None:
    """Writes down what is prepared, or compares it with what is there; removes what a killed run left half-written."""
    if (out / PLAN).exists():
        there = parse_json((out / PLAN).read_text(encoding="utf-8"))
        if there != plan:
            names = [name for name in plan if there.get(name) != plan[name]]
            raise UserError(
                f"{out}: was begun with other {' and '.join(names)}: repeat the same command to go on, or name another "
                "folder."
            )
    elif files := shard_files(out):
        raise UserError(f"{out}: holds {files[0].name} of something else: name another folder.")
    else:
        with written_beside(out / PLAN) as part:
            part.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
    for leftover in out.glob(".shard-*.tar"):
        leftover.unlink()


def _summarise(out: Path) -> dict[str, Any]:
    headers = [read_header(file) for file in shard_files(out)]
    dropped = [each for header in headers for each in header["dropped"]]
    files = shard_files(out)
    summary = {
        "shards": len(files),
        "bytes": sum(file.stat().st_size for file in files),
        "clips": sum(header["count"] for header in headers),
        "dropped": dropped,
    }
    with written_beside(out / SUMMARY) as part:
        part.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if not summary["clips"]:
        reason = f" ({dropped[0]['reason']})" if dropped else ""
        raise UserError(f"{out}: none of the files gave a clip{reason}: see {SUMMARY} in it.")
    return summary
