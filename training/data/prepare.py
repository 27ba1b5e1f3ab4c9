"""`./vc prepare`: a folder of videos or images with captions becomes shards that training reads fast.

Of each video as many clips as are asked for, each beginning at random; its pictures at 12 times the latent's size, the
block vectors of a real encode, and caches of what networks see in it. Clips are made by several processes and written
in their order, so the shards do not depend on how many there are; finished ones stay when the same command runs again.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from training.data.caption_lists import LISTS, TEXTS, printable
from training.data.folder import read_captions, usable
from training.data.shard_writing import SUMMARY, PrepareOptions, prepare
from training.launch import cores
from vc_core.checkpoint.reading import BUNDLED
from vc_core.commands.settings import METHODS, Height, Method, Size
from vc_core.configuration import Field, Spoken
from vc_core.progress import Progress
from vc_core.terminal import argument, option, parsed, run_program
from vc_core.video.limits import allow, megapixels_option

DESCRIPTION = """Make shards for training out of a folder of videos or images. The same command goes on after the last
finished shard."""
Whole = Annotated[int, Field(ge=1, le=10**9)]
SHOWN = 5
"""Reasons for dropping that are printed; the summary has all of them."""


def main(argv: Sequence[str] | None = None) -> int:
    """`./vc prepare`; the exit status is 0, 2 for what the user can mend, 130 for Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # Alone it stands for `auto`: tyro has no option that may be given with a value or without.
    for i, (word, after) in enumerate(zip(argv, [*argv[1:], "-"], strict=True)):
        if word == "--sketch" and after.startswith("-"):
            argv[i] = "--sketch=auto"
    work = parsed(program, argv, "vc prepare", DESCRIPTION)
    return run_program(work, "interrupted; the same command goes on after the last finished shard")


def program(
    folder: argument(Path, "of videos, or of images with --frames 1, or of shards of other programs", "FOLDER"),
    out: option(Path, "folder of the shards, a new one", "-o", shown="SHARDS"),
    captions: option(
        Path | None,
        f"CSV, TSV, JSONL or JSON with file and caption, others are kept (default: one of {', '.join(LISTS)} in "
        f"FOLDER, else {', '.join(TEXTS)} beside each file, else shards of other programs)",
        shown="FILE",
    ) = None,
    frames: option(Whole, "of each clip (default: 16); 1 for images") = 16,
    size: option(Size, "of the training (default: 256x256)") = (256, 256),
    rate: option(
        float | None, "frames a second of clips (default: the released rule, 4 as a rule)", shown="FPS"
    ) = None,
    clips: option(Whole, "clips of each video, which begin at random (default: 1)") = 1,
    seed: option(int, "decides where clips begin (default: 0)") = 0,
    motion: option(
        Literal["points", "dense"], "layout that the network is trained in (default: points, as released)"
    ) = "points",
    nominal_height: option(
        Height | None,
        "height that videos are scaled to before their motion is taken, 336 as released (default: as they are)",
        shown="PIXELS",
    ) = None,
    latents: option(
        Path | None,
        "also latents, by the autoencoder of this file, or of the `bundled` checkpoint",
        shown="CHECKPOINT",
    ) = None,
    depth: option(Path | None, "also depth, by this network (a file or folder)", shown="MODEL") = None,
    sketch: option(
        Annotated[Method | None, Spoken(f"one of {', '.join(METHODS)}", "[METHOD]")],
        f"also sketches; one of {', '.join(METHODS)} (auto: pidinet where its files are)",
    ) = None,
    device: option(str, "where networks run (default: cpu)") = "cpu",
    jobs: option(Whole | None, "processes (default: as many as cores)") = None,
    max_megapixels: megapixels_option() = None,
    per_shard: option(Whole, "clips of a shard (default: 256)") = 256,
) -> None:
    allow(max_megapixels)
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
    usable(entries, folder)  # says at once what will be dropped
    with _bar() as progress:
        summary = prepare(options, entries, out, per_shard, jobs or cores(), progress)
    for line in as_text(summary, out):
        print(line)


def as_text(summary: Mapping[str, Any], out: Path) -> list[str]:
    """The summary in a few lines."""
    lines = [f"{out}: {summary['clips']} clips in {summary['shards']} shards, {summary['bytes'] / 1e6:.1f} MB"]
    if dropped := summary["dropped"]:
        reasons = Counter(each["reason"] for each in dropped).most_common(SHOWN)
        lines.append(f"{len(dropped)} clips were dropped; {SUMMARY} there says why, for instance:")
        lines += [f"  {reason}" + (f" ({times} clips)" if times > 1 else "") for reason, times in reasons]
    return [printable(line) for line in lines]


@contextmanager
def _bar() -> Iterator[Progress]:
    from tqdm import tqdm

    with tqdm(desc="preparing", unit="clip", dynamic_ncols=True, smoothing=0.05) as bar:

        def progress(_: str, done: int, total: int) -> None:
            bar.total = total
            bar.initial = bar.initial or done - 1  # what finished shards hold took no time now
            bar.update(done - bar.n)

        yield progress


if __name__ == "__main__":
    sys.exit(main())
