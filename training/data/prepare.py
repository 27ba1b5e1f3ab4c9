"""`./vc prepare`: convert a folder of videos or images with captions into shards that training reads fast.

Each video gives the requested number of clips, each with a random start. A clip has frames at 12 times the latent's
size, the block vectors of a real encode, and caches of the networks' results. Several processes prepare clips, which
are written in their order, so the shards do not depend on the number of processes. Finished shards stay when the same
command runs again. Many machines share the work by `--part I/N`, or by Ray (`--engine ray`).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

from training.data.caption_lists import LISTS, TEXTS, printable
from training.data.folder import read_captions, usable
from training.data.on_ray import check_address, write_on_ray
from training.data.shard_writing import SUMMARY, PrepareOptions, prepare
from training.launch import cores
from vc_core.checkpoint.reading import BUNDLED
from vc_core.commands.setting_types import METHODS, Height, Method, Size
from vc_core.configuration import Field, Spoken
from vc_core.errors import UserError, counted
from vc_core.progress import Progress
from vc_core.terminal import argument, option, parsed, run_program
from vc_core.video.limits import allow, megapixels_option

DESCRIPTION = """Convert a folder of videos or images into shards for training. The same command resumes after the last
finished shard."""
Count = Annotated[int, Field(ge=1, le=10**9)]


def _split(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("/")))


def _within(part: tuple[int, int]) -> tuple[int, int]:
    if not 1 <= part[0] <= part[1]:
        raise ValueError
    return part


Part = Annotated[
    tuple[int, int],
    BeforeValidator(_split),
    AfterValidator(_within),
    Spoken("I/N, with I from 1 to N, such as 3/8", "I/N"),
]
SHOWN = 5
"""Printed reasons for dropped clips; the summary contains all of them."""


def main(argv: Sequence[str] | None = None) -> int:
    """`./vc prepare`; the exit status is 0, 2 for errors that the user can fix, 130 for Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # Without a value, --sketch means `auto`: tyro has no options with an optional value.
    for i, (word, after) in enumerate(zip(argv, [*argv, "-"][1:], strict=True)):
        if word == "--sketch" and after.startswith("-"):
            argv[i] = "--sketch=auto"
    work = parsed(program, argv, "vc prepare", DESCRIPTION)
    return run_program(work, "interrupted; run the same command to resume after the last finished shard")


def program(
    folder: argument(Path, "folder of videos, of images (with --frames 1), or of shards of other programs", "FOLDER"),
    out: option(Path, "new folder for the shards", "-o", shown="SHARDS"),
    captions: option(
        Path | None,
        f"CSV, TSV, JSONL or JSON with file and caption; other columns are kept (default: one of {', '.join(LISTS)} in "
        f"FOLDER, else {', '.join(TEXTS)} next to each file, else shards of other programs)",
        shown="FILE",
    ) = None,
    frames: option(Count, "frames of each clip (default: 16); 1 for images") = 16,
    size: option(Size, "video size of the training (default: 256x256)") = (256, 256),
    rate: option(
        float | None, "frames per second of clips (default: the released rule, usually 4)", shown="FPS"
    ) = None,
    clips: option(Count, "clips per video, with random starts (default: 1)") = 1,
    seed: option(int, "seed of the clips' random starts (default: 0)") = 0,
    motion: option(
        Literal["points", "dense"], "motion layout of the network (default: points, as in the released networks)"
    ) = "points",
    nominal_height: option(
        Height | None,
        "scale videos to this height before computing motion; 336 in the released training (default: no scaling)",
        shown="PIXELS",
    ) = None,
    latents: option(
        Path | None,
        "also store latents from the autoencoder of this file, or of the `bundled` checkpoint",
        shown="CHECKPOINT",
    ) = None,
    depth: option(Path | None, "also store depth from this network (a file or folder)", shown="MODEL") = None,
    sketch: option(
        Annotated[Method | None, Spoken(f"one of {', '.join(METHODS)}", "[METHOD]")],
        f"also store sketches; one of {', '.join(METHODS)} (auto: pidinet if its files are installed)",
    ) = None,
    device: option(str, "device for the networks (default: cpu)") = "cpu",
    jobs: option(
        Count | None, "processes (default: one per core); with --ray-address, shards at a time (default: no limit)"
    ) = None,
    max_megapixels: megapixels_option() = None,
    per_shard: option(Count, "clips per shard (default: 256)") = 256,
    part: option(
        Part | None,
        "write only every N-th shard, from the I-th on. N commands, such as an array job on a cluster, can write into "
        "one folder at the same time; the last one writes the summary",
        shown="I/N",
    ) = None,
    engine: option(
        Literal["processes", "ray"],
        "processes on this machine, or ray: tasks of Ray, one per shard; requires the package ray (default: processes)",
    ) = "processes",
    ray_address: option(
        str | None,
        "existing Ray cluster: HOST:PORT, or auto for one that this machine belongs to (default: a local one for this "
        "command)",
        shown="HOST:PORT",
    ) = None,
) -> None:
    if part is not None and engine == "ray":
        raise UserError("--part and --engine ray both divide the shards. Use only one of them.")
    if ray_address is not None and engine != "ray":
        raise UserError("--ray-address requires --engine ray. Add it, or remove --ray-address.")
    allow(max_megapixels)
    on_ray = None
    if engine == "ray":
        check_address(ray_address)
        on_ray = partial(write_on_ray, address=ray_address, jobs=jobs)
    options = PrepareOptions(
        folder,
        frames=frames,
        size=size,
        rate=rate,
        clips=clips,
        seed=seed,
        layout=motion,
        nominal_height=nominal_height,
        latents=BUNDLED if latents == Path("bundled") else latents,
        depth=depth,
        sketch=sketch,
        device=device,
    )
    entries = read_captions(folder, captions, out)
    usable(entries, folder)  # warns at once about clips that will be dropped
    with _bar() as progress:
        summary = prepare(options, entries, out, per_shard, jobs or cores(), progress, part, on_ray)
    if summary is None:
        print(printable(f"{out}: Part {part[0]}/{part[1]} is complete, others are not. The last one writes {SUMMARY}."))
        return
    for line in as_text(summary, out):
        print(line)


def as_text(summary: Mapping[str, Any], out: Path) -> list[str]:
    """The summary in a few lines."""
    clips, shards = counted(summary["clips"], "clip"), counted(summary["shards"], "shard")
    lines = [f"{out}: {clips} in {shards}, {summary['bytes'] / 1e6:.1f} MB"]
    if dropped := summary["dropped"]:
        reasons = Counter(clip["reason"] for clip in dropped).most_common(SHOWN)
        count = counted(len(dropped), "clip was", "clips were")
        lines.append(f"{count} dropped. {SUMMARY} there lists the reasons, for example:")
        lines += [f"  {reason}" + (f" ({times} clips)" if times > 1 else "") for reason, times in reasons]
    return [printable(line) for line in lines]


@contextmanager
def _bar() -> Iterator[Progress]:
    from tqdm import tqdm

    with tqdm(desc="preparing", unit="clip", dynamic_ncols=True, smoothing=0.05) as bar:

        def progress(_: str, done: int, total: int) -> None:
            if bar.total is None:
                bar.total, bar.initial = total, max(done - 1, 0)  # clips of finished shards took no time now
            bar.update(done - bar.n)

        yield progress


if __name__ == "__main__":
    sys.exit(main())
