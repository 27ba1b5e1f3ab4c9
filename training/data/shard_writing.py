"""Clips of videos or images made into the samples of shards, by several processes, as far as they are not there yet."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from training.data.caption_lists import Entry, printable
from training.data.folder import clip_of, pictures_of
from training.data.order import generator_for
from training.data.packing import pack_image, pack_vectors, pack_video
from training.data.precomputed import Cache, depth_cache, latents_cache, sketch_cache
from training.data.sample import BadSample
from training.data.sample_fields import Form, fit, reading
from training.data.shards import read_header, shard_files, write_shard
from training.lock import held
from vc_core.disk import make_folder, written_beside
from vc_core.errors import UserError
from vc_core.extract.motion.from_video import block_vectors
from vc_core.extract.motion.reencode import REENCODE
from vc_core.parsing import parse_json
from vc_core.progress import Progress

PLAN, SUMMARY = "prepare.json", "summary.json"
"""In the folder of shards: what is being prepared, and what became of it."""

AHEAD = 4  # clips that each process may be ahead of the one that is written next


@dataclass(frozen=True)
class PrepareOptions:
    """What is to be prepared, in plain values that other processes can be sent."""

    folder: Path  # of the videos or images
    frames: int = 16
    size: tuple[int, int] = (256, 256)  # (height, width) of the training
    rate: float | None = None  # frames a second; None for the released rule
    clips: int = 1  # of each video
    seed: int = 0
    layout: str = "points"  # of the motion, see `read_motion`
    nominal_height: int | None = None  # likewise
    latents: Path | None = None  # checkpoint whose autoencoder makes them
    depth: Path | None = None  # file or folder of a network
    sketch: str | None = None  # a method
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
        still = self.frames == 1
        settings = {"frames": self.frames, "size": [*self.size], "rate": self.rate}
        settings |= {"picture": "webp", "motion": None} if still else {"picture": "mp4", "motion": motion}
        return json.loads(json.dumps(settings | {cache.name: cache.settings() for cache in caches}))


@dataclass(frozen=True)
class ClipToPrepare:
    """One clip to be made: the number `part` of those of its file."""

    entry: Entry
    number: int  # of all clips
    part: int


# --- One clip -------------------------------------------------------------------------------------------------------


def make_members(clip: ClipToPrepare, options: PrepareOptions, caches: Sequence[Cache]) -> dict[str, bytes]:
    """The members of a clip's sample, by their endings.

    Raises:
        BadSample: its file cannot be read or is too short.
    """
    entry, name = clip.entry, clip.entry.name(options.folder)
    with reading(name):
        generator = generator_for(options.seed, entry.file, clip.part)
        source, plan, note = clip_of(entry, options.folder, options.frames, options.rate, generator)
        if plan is None and options.frames > 1:
            raise UserError(f"{name}: is an image, and clips of {options.frames} frames are prepared")
        large = Form(options.size).large  # for networks that take conditions of any size, see `training.data.shards`
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


def _outcome(clip: ClipToPrepare, options: PrepareOptions, caches: Sequence[Cache] | None = None) -> Outcome:
    try:
        return make_members(clip, options, _caches_of_worker(options) if caches is None else caches)
    except BadSample as error:
        return str(error)


@lru_cache(maxsize=1)
def _caches_of_worker(options: PrepareOptions) -> Sequence[Cache]:
    """Which keeps the networks from one clip to the next."""
    return options.caches()


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)  # the processes are as many as cores; and sums are the same on every machine


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for clips for ever."""
    wait([parent_process().sentinel])
    os._exit(1)


def outcomes(
    clips: Iterable[ClipToPrepare], options: PrepareOptions, caches: Sequence[Cache], jobs: int
) -> Iterator[Outcome]:
    """What became of each clip, in their order; with more than one job made by so many other processes, a few ahead.

    Raises:
        UserError: one of the processes was killed.
    """
    if jobs == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in other processes
        try:
            for clip in clips:
                yield _outcome(clip, options, caches)
        finally:
            torch.set_num_threads(threads)
        return
    # Not forked: the libraries' threads would be missing in the copies.
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), _start_worker)
    running: deque[Future[Outcome]] = deque()
    try:
        for clip in clips:
            running.append(pool.submit(_outcome, clip, options))
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
    options: PrepareOptions,
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
    clips = [
        ClipToPrepare(e, n * options.clips + part, part) for n, e in enumerate(entries) for part in range(options.clips)
    ]
    plan = {"settings": settings, "clips": options.clips, "seed": options.seed, "per_shard": per_shard}
    with held(make_folder(out), "./vc prepare"):
        _agree(out, {**plan, "entries": _listing(entries)})
        missing = {
            path: clips[first : first + per_shard]
            for first in range(0, len(clips), per_shard)
            if not (path := out / f"shard-{first // per_shard:06d}.tar").exists()
        }
        wanted = [clip for of_shard in missing.values() for clip in of_shard]
        done = len(clips) - len(wanted)
        with closing(outcomes(wanted, options, caches, jobs)) as made:

            def samples(of_shard: Sequence[ClipToPrepare], dropped: list[dict[str, str]]) -> Iterator[tuple[str, Any]]:
                """Keys and members of the clips that could be made; the others are told in `dropped`."""
                nonlocal done
                for clip in of_shard:
                    outcome, done = next(made), done + 1
                    if progress is not None:
                        progress("preparing", done, len(clips))
                    if isinstance(outcome, str):
                        dropped.append({"file": printable(clip.entry.file), "reason": printable(outcome)})
                    else:
                        yield f"{clip.number:09d}", outcome

            for path, of_shard in missing.items():
                dropped: list[dict[str, str]] = []
                write_shard(path, settings, samples(of_shard, dropped), dropped)
        return _summarise(out)


def _listing(entries: Sequence[Entry]) -> str:
    """Tells the entries from others."""
    told = [
        {
            "file": entry.file,
            "caption": entry.caption,
            "others": entry.others,
            **({"member": [entry.member.name, entry.member.offset, entry.member.size]} if entry.member else {}),
        }
        for entry in entries
    ]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


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
    files = shard_files(out)
    headers = [read_header(file) for file in files]
    dropped = [each for header in headers for each in header["dropped"]]
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
