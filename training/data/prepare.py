"""`./vc prepare`: a folder of videos or images with captions becomes shards that training reads fast.

Of each video as many clips as are asked for, each beginning at random; its pictures at 12 times the latent's size, the
block vectors of a real encode, and caches of what networks see in it. Clips are made by several processes and written
in their order, so the shards do not depend on how many there are; finished ones stay when the same command runs again.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from training.data.folder import read_captions, usable
from training.data.lists import LISTS, TEXTS, printable
from training.data.preparing import SUMMARY, Options, prepare
from training.launch import cores
from vc_core.checkpoint import BUNDLED
from vc_core.commands.values import METHODS, SIZE
from vc_core.progress import Progress
from vc_core.terminal import run_program
from vc_core.video.limits import add_limits

LAYOUTS = ("points", "dense")
SHOWN = 5
"""Reasons for dropping that are printed; the summary has all of them."""


def main(argv: Sequence[str] | None = None) -> int:
    """`./vc prepare`; the exit status is 0, 2 for what the user can mend, 130 for Ctrl-C."""
    arguments = _parser().parse_args(argv)
    return run_program(lambda: _run(arguments), "interrupted; the same command goes on after the last finished shard")


def _run(arguments: argparse.Namespace) -> None:
    options = Options(**{field.name: getattr(arguments, field.name) for field in fields(Options)})
    entries = read_captions(arguments.folder, arguments.captions, arguments.out)
    usable(entries, arguments.folder)  # says at once what will be dropped
    with _bar() as progress:
        summary = prepare(options, entries, arguments.out, arguments.per_shard, arguments.jobs, progress)
    for line in as_text(summary, arguments.out):
        print(line)


def as_text(summary: Mapping[str, Any], out: Path) -> list[str]:
    """The summary in a few lines."""
    lines = [f"{out}: {summary['clips']} clips in {summary['shards']} shards, {summary['bytes'] / 1e6:.1f} MB"]
    if dropped := summary["dropped"]:
        reasons = Counter(each["reason"] for each in dropped).most_common(SHOWN)
        lines.append(f"{len(dropped)} clips were dropped; {SUMMARY} there says why, for instance:")
        lines += [f"  {reason}" + (f" ({times} clips)" if times > 1 else "") for reason, times in reasons]
    return [printable(line) for line in lines]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vc prepare",
        description="Make shards for training out of a folder of videos or images. The same command goes on after the "
        "last finished shard.",
        allow_abbrev=False,
    )
    add, default = parser.add_argument, Options(Path())
    add("folder", type=Path, metavar="FOLDER",
        help="of videos, or of images with --frames 1, or of shards of other programs")  # fmt: skip
    add("-o", "--out", type=Path, required=True, metavar="SHARDS", help="folder of the shards, a new one")
    add(
        "--captions",
        type=Path,
        metavar="FILE",
        help="CSV, TSV, JSONL or JSON with file and caption, others are kept (default: one of "
        f"{', '.join(LISTS)} in FOLDER, else {', '.join(TEXTS)} beside each file, else shards of other programs)",
    )
    add("--frames", type=_whole, default=default.frames, metavar="N", help="of each clip (default: 16); 1 for images")
    add("--size", type=_size, default=default.size, metavar="WIDTHxHEIGHT", help="of the training (default: 256x256)")
    add("--rate", type=float, metavar="FPS", help="frames a second of clips (default: the released rule, 4 as a rule)")
    add(
        "--clips",
        type=_whole,
        default=default.clips,
        metavar="N",
        help="clips of each video, which begin at random (default: 1)",
    )
    add("--seed", type=int, default=default.seed, help="decides where clips begin (default: 0)")
    add(
        "--motion",
        dest="layout",
        choices=LAYOUTS,
        default=default.layout,
        help="layout that the network is trained in (default: points, as released)",
    )
    add(
        "--nominal-height",
        type=_height,
        metavar="PIXELS",
        help="height that videos are scaled to before their motion is taken, 336 as released (default: as they are)",
    )
    add("--latents", type=_checkpoint, metavar="CHECKPOINT",
        help="also latents, by the autoencoder of this file, or of the `bundled` checkpoint")  # fmt: skip
    add("--depth", type=Path, metavar="MODEL", help="also depth, by this network (a file or folder)")
    add(
        "--sketch",
        nargs="?",
        const="auto",
        choices=METHODS,
        metavar="METHOD",
        help=f"also sketches; one of {', '.join(METHODS)} (auto: pidinet where its files are)",
    )
    add("--device", default=default.device, help="where networks run (default: cpu)")
    add("--jobs", type=_whole, default=cores(), metavar="N", help="processes (default: as many as cores)")
    add_limits(parser)
    add("--per-shard", type=_whole, default=256, metavar="N", help="clips of a shard (default: 256)")
    return parser


def _checkpoint(text: str) -> Path:
    return BUNDLED if text == "bundled" else Path(text)


def _whole(text: str) -> int:
    return _in_range(text, 1, 10**9)


def _height(text: str) -> int:
    return _in_range(text, 16, 8192)


def _in_range(text: str, low: int, high: int) -> int:
    if not text.isdecimal() or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number from {low} to {high}")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    try:
        return SIZE.read(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: expected {SIZE.expected}") from error


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
