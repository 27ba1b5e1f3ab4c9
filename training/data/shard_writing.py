"""Convert clips of videos or images into shards with several processes. Existing shards are skipped.

Every N-th shard can be a part of its own, for another process or machine. Shards do not depend on how the work is
divided.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
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
from training.lock import locked_part
from training.pool import in_order
from vc_core.disk import make_folder, written_beside
from vc_core.errors import UserError
from vc_core.extract.motion.from_video import block_vectors
from vc_core.extract.motion.reencode import REENCODE
from vc_core.parsing import parse_json
from vc_core.progress import Progress

PLAN, SUMMARY = "prepare.json", "summary.json"
"""Files in the folder of shards: the plan and the results."""


@dataclass(frozen=True)
class PrepareOptions:
    """Options in plain values, which can be sent to other processes."""

    folder: Path  # of the videos or images
    frames: int = 16
    size: tuple[int, int] = (256, 256)  # (height, width) of the training
    rate: float | None = None  # frames per second; None for the released rule
    clips: int = 1  # per video
    seed: int = 0
    layout: str = "points"  # motion layout, see `read_motion`
    nominal_height: int | None = None  # see `read_motion`
    latents: Path | None = None  # checkpoint with the autoencoder for latents
    depth: Path | None = None  # file or folder of a depth network
    sketch: str | None = None  # sketch method
    device: str = "cpu"

    def caches(self) -> list[Cache]:
        """The requested caches, with their networks. Raises `UserError` if files are missing."""
        caches = [
            self.latents and latents_cache(self.latents, self.size, self.device),
            self.depth and depth_cache(self.depth, self.device),
            self.sketch and sketch_cache(self.sketch, self.device),
        ]
        return [cache for cache in caches if cache]

    def settings(self, caches: Sequence[Cache]) -> dict[str, Any]:
        """The settings of all samples, as JSON values. Equal settings give samples of the same kind."""
        import av

        codec = REENCODE[self.layout].codec
        motion = {"layout": self.layout, "codec": codec, "nominal_height": self.nominal_height, "av": av.__version__}
        still = self.frames == 1
        settings = {"frames": self.frames, "size": [*self.size], "rate": self.rate}
        settings |= {"picture": "webp", "motion": None} if still else {"picture": "mp4", "motion": motion}
        return json.loads(json.dumps(settings | {cache.name: cache.settings() for cache in caches}))


@dataclass(frozen=True)
class ClipToPrepare:
    """One clip to prepare."""

    entry: Entry
    number: int  # among all clips
    part: int  # among the clips of its file


# --- One clip -------------------------------------------------------------------------------------------------------


def make_members(clip: ClipToPrepare, options: PrepareOptions, caches: Sequence[Cache]) -> dict[str, bytes]:
    """The members of a clip's sample, by file extension.

    Raises:
        BadSample: its file cannot be read or is too short.
    """
    entry, name = clip.entry, clip.entry.name(options.folder)
    with reading(name):
        generator = generator_for(options.seed, entry.file, clip.part)
        source, plan, note = clip_of(entry, options.folder, options.frames, options.rate, generator)
        if plan is None and options.frames > 1:
            raise UserError(f"{name} is an image, but --frames is {options.frames}. Prepare images with --frames 1.")
        large = Form(options.size).large  # does not depend on the network's condition size, see `training.data.shards`
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
            members[cache.ending], value = cache.make(frames)
            if value is not None:
                about[cache.name] = value
    text = json.dumps(about, sort_keys=True, ensure_ascii=False)
    # Surrogates in `others` become JSON's own escapes.
    return {"json": text.encode("utf-8", "backslashreplace"), **members}


# --- Many clips -----------------------------------------------------------------------------------------------------

Outcome = dict[str, bytes] | str
"""The members of a clip, or the reason why it was dropped."""


def _outcome(clip: ClipToPrepare, *, options: PrepareOptions, caches: Sequence[Cache] | None = None) -> Outcome:
    try:
        return make_members(clip, options, caches_of_worker(options) if caches is None else caches)
    except BadSample as error:
        return str(error)


@lru_cache(maxsize=1)
def caches_of_worker(options: PrepareOptions) -> Sequence[Cache]:
    """The caches, with networks that stay loaded from one clip to the next."""
    return options.caches()


def outcomes(
    clips: Iterable[ClipToPrepare], options: PrepareOptions, caches: Sequence[Cache], jobs: int
) -> Iterator[Outcome]:
    """Yield the result for each clip, in order. With more than one job, that many processes prepare clips in parallel.

    Raises:
        UserError: one of the processes was killed.
    """
    if jobs == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in other processes
        try:
            for clip in clips:
                yield _outcome(clip, options=options, caches=caches)
        finally:
            torch.set_num_threads(threads)
        return
    killed = (
        f"One of the {jobs} processes that prepare clips was killed, usually because memory ran out. Run the command "
        "again with fewer --jobs to resume after the last finished shard."
    )
    yield from in_order(partial(_outcome, options=options), clips, jobs, killed)


Shard = Sequence[ClipToPrepare]
Engine = Callable[[Mapping[Path, Shard], PrepareOptions, Mapping[str, Any], Callable[[int], None]], None]
"""Writes shards to their paths, as `write_shards` without the last two arguments."""


def write_shards(
    shards: Mapping[Path, Shard],
    options: PrepareOptions,
    settings: Mapping[str, Any],
    finished: Callable[[int], None],
    caches: Sequence[Cache],
    jobs: int = 1,
) -> None:
    """Write shards on this machine.

    Args:
        settings: of the samples, see `PrepareOptions.settings`.
        finished: called after clips have been prepared, with their number.
        jobs: number of processes.
    """
    clips = [clip for shard in shards.values() for clip in shard]
    with closing(outcomes(clips, options, caches, jobs)) as results:

        def samples(shard: Shard, dropped: list[dict[str, str]]) -> Iterator[tuple[str, Any]]:
            """Yield keys and members of the prepared clips; add the others to `dropped`."""
            for clip in shard:
                outcome = next(results)
                finished(1)
                if isinstance(outcome, str):
                    dropped.append({"file": printable(clip.entry.file), "reason": printable(outcome)})
                else:
                    yield f"{clip.number:09d}", outcome

        for path, shard in shards.items():
            dropped: list[dict[str, str]] = []
            write_shard(path, settings, samples(shard, dropped), dropped)


def prepare(
    options: PrepareOptions,
    entries: Sequence[Entry],
    out: Path,
    per_shard: int = 256,
    jobs: int = 1,
    progress: Progress | None = None,
    part: tuple[int, int] | None = None,
    engine: Engine | None = None,
) -> dict[str, Any] | None:
    """Write the missing shards. Return the summary, which is also written to `SUMMARY` in the folder; None if shards of
    other parts are missing.

    Args:
        per_shard: clips per shard.
        jobs: number of processes.
        progress: called as `progress("preparing", finished clips, clips)`.
        part: I and N: write only every N-th shard, from the I-th on. Other processes may write the other parts at the
            same time.
        engine: writes the shards, with its own number of processes; by default `write_shards`.

    Raises:
        UserError: the folder contains other shards or is in use by another process, networks are missing, the disk is
            full, or no clip could be prepared.
    """
    caches = options.caches()
    settings = options.settings(caches)
    clips = [ClipToPrepare(e, n * options.clips + i, i) for n, e in enumerate(entries) for i in range(options.clips)]
    shards = {
        out / f"shard-{first // per_shard:06d}.tar": clips[first : first + per_shard]
        for first in range(0, len(clips), per_shard)
    }
    number, count = part or (1, 1)
    own = dict(list(shards.items())[number - 1 :: count])
    plan = {"settings": settings, "clips": options.clips, "seed": options.seed, "per_shard": per_shard}
    with locked_part(make_folder(out), "./vc prepare", part) as turn:
        with turn() as alone:
            _agree(out, {**plan, "entries": _listing(entries)})
            if alone:
                _sweep(out)
        missing = _missing(own, out)
        total = sum(map(len, own.values()))
        done = total - sum(map(len, missing.values()))

        def finished(clips: int) -> None:
            nonlocal done
            done += clips
            if progress is not None:
                progress("preparing", done, total)

        (engine or partial(write_shards, caches=caches, jobs=jobs))(missing, options, settings, finished)
        with turn() as alone:
            if alone:  # remove what killed parts and lost workers have left
                _sweep(out)
            return None if _missing(shards, out) else _summarise(out)


def _missing(shards: Mapping[Path, Shard], out: Path) -> dict[Path, Shard]:
    names = {path.name for path in out.iterdir()}
    return {path: shard for path, shard in shards.items() if path.name not in names}


def _sweep(out: Path) -> None:
    """Remove half-written shards and indexes. No other process may be writing."""
    for leftover in out.glob(".shard-*"):
        leftover.unlink(missing_ok=True)


def _listing(entries: Sequence[Entry]) -> str:
    """A hash that identifies the entries."""
    rows = [
        {
            "file": entry.file,
            "caption": entry.caption,
            "others": entry.others,
            **({"member": [entry.member.name, entry.member.offset, entry.member.size]} if entry.member else {}),
        }
        for entry in entries
    ]
    return hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()


_SHOWN = {
    "entries": "videos or captions",
    "picture": "--frames",
    "layout": "--motion",
    "codec": "--motion",
    "av": "versions of PyAV",
}
"""Part of the plan -> its name for users; of the others it is their option."""


def _differing(previous: Any, plan: Any) -> Iterator[str]:
    """Yield for users what is different in two plans."""
    for name in {**previous, **plan}:
        before, now = previous.get(name), plan.get(name)
        if isinstance(before, dict) and isinstance(now, dict) and name in ("settings", "motion"):
            yield from _differing(before, now)
        elif before != now:
            yield _SHOWN.get(name, f"--{name.replace('_', '-')}")


def _agree(out: Path, plan: dict[str, Any]) -> None:
    """Write the plan, or compare it with the existing one."""
    if (out / PLAN).exists():
        previous = parse_json((out / PLAN).read_text(encoding="utf-8"))
        if previous != plan:
            names = ", ".join(dict.fromkeys(_differing(previous, plan)))
            raise UserError(
                f"{out} was started with different {names}. Repeat that command to resume, or choose another folder."
            )
    elif files := shard_files(out):
        raise UserError(f"{out} already contains other shards, such as {files[0].name}. Choose another folder.")
    else:
        with written_beside(out / PLAN) as part:
            part.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")


def _summarise(out: Path) -> dict[str, Any]:
    files = shard_files(out)
    headers = [read_header(file) for file in files]
    dropped = [clip for header in headers for clip in header["dropped"]]
    summary = {
        "shards": len(files),
        "bytes": sum(file.stat().st_size for file in files),
        "clips": sum(header["count"] for header in headers),
        "dropped": dropped,
    }
    with written_beside(out / SUMMARY) as part:
        part.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if not summary["clips"]:
        first = f" The first reason: {dropped[0]['reason']}" if dropped else ""
        raise UserError(f"None of the files gave a clip. See {out / SUMMARY}.{first}")
    return summary
