"""`./vc clean`: split long videos at their cuts, and drop what a training should not see, before shards are written.

The videos are not changed. The result is a list of clips with captions that `./vc prepare` and training read, a report,
and a contact sheet of what was dropped.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from training.data.caption_lists import LISTS, TEXTS, VIDEOS, Entry, printable
from training.data.cleaning.captioner import load_captioner
from training.data.cleaning.measuring import Measured, Measurements, key_of, measure
from training.data.cleaning.results import REPORT, SHEET, middle_frame, write_list, write_report, write_sheet
from training.data.cleaning.rules import (
    KEEPABLE,
    REASONS,
    CleanOptions,
    Result,
    counts,
    judged,
    mark_duplicates,
)
from training.data.cleaning.scenes import SceneOptions, check_installed
from training.data.folder import read_captions
from training.data.sample import BadSample
from training.launch import cores
from training.pool import in_order
from vc_core.configuration import Field
from vc_core.disk import check_place, make_folder
from vc_core.errors import UserError, counted
from vc_core.folders import files_below
from vc_core.progress import Progress
from vc_core.terminal import argument, each, option, parsed, progress_bars, run_program
from vc_core.video.limits import allow, megapixels_option

DESCRIPTION = """Split the videos of a folder at their cuts, drop still, black, letterboxed and duplicate clips, and
write a list of the others for ./vc prepare. The videos are not changed."""
MEASURED = ".measured.jsonl"
"""Ending of the file of `Measurements`, next to the list."""
SHOWN = 512  # pixels of the longer side of a frame for the captioner
Count = Annotated[int, Field(ge=1, le=10**9)]
Seconds = Annotated[float, Field(ge=0, le=10**6)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def main(argv: Sequence[str] | None = None) -> int:
    """`./vc clean`; the exit status is 0, 2 for errors that the user can fix, 130 for Ctrl-C."""
    work = parsed(program, argv, "vc clean", DESCRIPTION)
    return run_program(work, "interrupted; run the same command to resume after the last complete video")


def program(
    folder: argument(Path, "folder of videos", "FOLDER"),
    out: option(Path, "list to write; the report and a contact sheet are written next to it", "-o", shown="CLIPS.csv"),
    captions: option(
        Path | None,
        f"captions of the videos, as for ./vc prepare (default: one of {', '.join(LISTS)} in FOLDER, else "
        f"{', '.join(TEXTS)} next to each file); a caption applies to all clips of its video",
        shown="FILE",
    ) = None,
    captioner: option(
        Path | None,
        "describe each clip's middle frame with the network of transformers in this folder, such as BLIP, instead of "
        "using captions",
        shown="FOLDER",
    ) = None,
    device: option(str, "device for the captioner (default: cpu)") = "cpu",
    detector: option(
        Literal["adaptive", "content"],
        "PySceneDetect's detector of cuts: adaptive compares each frame's change with that of its neighbours, so that "
        "fast motion is not a cut; content uses the change alone (default: adaptive)",
    ) = "adaptive",
    cut: option(
        Annotated[float, Field(gt=0, le=255)] | None,
        "threshold of the detector; lower values find more cuts (default: 3 for adaptive, 27 for content)",
        shown="NUMBER",
    ) = None,
    min_seconds: option(Seconds, "drop shorter clips (default: 1)", shown="SECONDS") = 1.0,
    max_seconds: option(Seconds, "split longer scenes into clips of this length (default: 30)", shown="SECONDS") = 30.0,
    still: option(
        Annotated[float, Field(ge=0, le=255)],
        "drop clips whose frames, a quarter of a second apart, differ by less than this on average, in levels of 0 to "
        "255 (default: 1); 0 turns this off",
        shown="LEVELS",
    ) = 1.0,
    black: option(
        Fraction,
        "brightness below which a pixel is black, from 0 to 1 (default: 0.1); in a black frame, 98% of the pixels are",
        shown="FRACTION",
    ) = 0.1,
    bars: option(
        Fraction,
        "drop clips with black bars at two opposite sides that each cover at least this fraction of the frame "
        "(default: 0.02); 0 turns this off",
        shown="FRACTION",
    ) = 0.02,
    duplicates: option(
        Annotated[float, Field(ge=0, le=64)],
        "drop clips whose perceptual hash differs from an earlier clip's by at most this many of 64 bits (default: 4); "
        "0 turns this off",
        shown="BITS",
    ) = 4.0,
    keep: option(
        each(Literal[KEEPABLE]), "keep clips of this kind, and only report them; may be repeated", shown="KIND"
    ) = (),
    jobs: option(Count | None, "processes (default: one per core)") = None,
    max_megapixels: megapixels_option() = None,
) -> None:
    allow(max_megapixels)
    check_installed()
    paths = _check_places(out, folder, captions)
    if max_seconds < max(1, 2 * min_seconds):
        raise UserError(
            f"--max-seconds is {max_seconds:g} and --min-seconds {min_seconds:g}. --max-seconds must be at least 1 and "
            "at least twice --min-seconds."
        )
    scenes = SceneOptions(detector, cut, min_seconds, max_seconds, black)
    options = CleanOptions(scenes, still, bars, duplicates, tuple(keep))
    if captions and captioner:
        raise UserError("--captions and --captioner are both set. Choose one.")
    describe = load_captioner(captioner, device) if captioner else None
    entries = _videos_of(folder) if captioner else read_captions(folder, captions)
    if member := next((entry for entry in entries if entry.member), None):
        raise UserError(
            f"./vc clean reads videos, but {folder} contains shards, such as the one of {printable(member.file)}. "
            "Unpack them first."
        )
    with progress_bars() as progress:
        results = clean(entries, folder, options, Measurements(paths[MEASURED]), jobs or cores(), progress)
        if describe:
            results, texts = _described(results, folder, describe, progress)
        else:
            texts = [result.entry.caption for result in results]
    summary = summary_of(results, options)
    write_report(paths[REPORT], {"folder": printable(str(folder)), **summary}, results)
    write_sheet(paths[SHEET], results, folder)
    remaining = [number for number, result in enumerate(results) if not result.dropped]
    if remaining:
        write_list(out, [results[number] for number in remaining], [texts[number] for number in remaining])
    for line in as_text(summary, out):
        print(line)
    print(f"{paths[REPORT]} lists all clips with their figures; {paths[SHEET]} shows those that were dropped.")
    if not remaining:
        raise UserError(f"No clip of {folder} remains, so {out} was not written. Change the thresholds.")


def _check_places(out: Path, folder: Path, captions: Path | None) -> dict[str, Path]:
    """The paths of the other files by their endings. Raises `UserError` if they, or the list, cannot be written."""
    if out.suffix.lower() != ".csv":
        raise UserError(f"-o is {out}. Expected a name that ends in .csv.")
    if captions and out.resolve() == captions.resolve():
        raise UserError(f"-o is {out}, which contains the captions. Choose another name.")
    if folder.resolve() in out.resolve().parents:
        raise UserError(f"-o is {out}, inside {folder}. Choose a place outside of the videos' folder.")
    make_folder(out.parent)
    paths = {ending: out.with_name(out.stem + ending) for ending in (REPORT, SHEET, MEASURED)}
    for path in (out, *paths.values()):
        check_place(path)
    return paths


def _videos_of(folder: Path) -> list[Entry]:
    """The videos of a folder, without captions. Raises `UserError` if it has none."""
    files = [path for path in files_below(folder) if path.suffix.lower() in VIDEOS]
    if not files:
        raise UserError(f"{folder} contains no videos. Pass a folder that does.")
    return [Entry(path.relative_to(folder).as_posix(), "", {}) for path in files]


# --- All files ------------------------------------------------------------------------------------------------------


def clean(
    entries: Sequence[Entry],
    folder: Path,
    options: CleanOptions,
    known: Measurements,
    jobs: int = 1,
    progress: Progress | None = None,
) -> list[Result]:
    """All clips of the entries in their order, judged. The result does not depend on `jobs` and `known`.

    Args:
        known: measured videos, which are not measured again; the others are added.
        progress: called as `progress("cleaning", finished files, files)`.

    Raises:
        UserError: one of the processes was killed.
    """
    keys = [key_of(entry, folder, options.scenes) for entry in entries]
    previous = [known.get(key) for key in keys]
    unknown = [entry for entry, measured in zip(entries, previous, strict=True) if measured is None]
    results: list[Result] = []
    with closing(_measured(unknown, folder, options.scenes, min(jobs, len(unknown)))) as new:
        for done, (entry, key, measured) in enumerate(zip(entries, keys, previous, strict=True), 1):
            if measured is None:
                measured = next(new)
                known.add(key, measured)
            results += judged(entry, measured, options)
            if progress is not None:
                progress("cleaning", done, len(entries))
    return mark_duplicates(results, options)


def _measured(entries: Sequence[Entry], folder: Path, options: SceneOptions, jobs: int) -> Iterator[Measured]:
    """Yield what `measure` returns for each entry, in order, computed by this or by several processes."""
    if jobs <= 1:
        yield from (measure(entry, folder, options) for entry in entries)
        return
    killed = (
        f"One of the {jobs} processes was killed, usually because memory ran out. Run the command again with fewer "
        "--jobs; videos that have been measured are not measured again."
    )
    work = partial(measure, folder=folder, options=options)
    # Ctrl-C ends a process in the middle of a long video.
    yield from in_order(work, entries, jobs, killed, on_interrupt=signal.SIG_DFL)


def _described(
    results: Sequence[Result], folder: Path, describe: Any, progress: Progress
) -> tuple[list[Result], list[str]]:
    """The results, and a caption for each clip that remains. A clip without one is dropped."""
    results, texts = list(results), [""] * len(results)
    remaining = [number for number, result in enumerate(results) if not result.dropped]
    for done, number in enumerate(remaining, 1):
        entry, clip = results[number].entry, results[number].clip
        try:
            texts[number] = describe(middle_frame(entry.source(folder), entry.name(folder), clip, SHOWN))
            problem = "" if texts[number] else "The captioner returned an empty text."
        except BadSample as error:
            problem = str(error)
        if problem:
            results[number] = replace(results[number], reason="caption", detail=problem, dropped=True)
        progress("captioning", done, len(remaining))
    return results, texts


# --- The summary ----------------------------------------------------------------------------------------------------


def summary_of(results: Sequence[Result], options: CleanOptions) -> dict[str, Any]:
    """Counts of all clips, and for each reason."""
    kept = [result for result in results if not result.dropped]
    return {
        "files": len({result.entry.file for result in results}),
        "clips_found": len(results),
        "clips_kept": len(kept),
        "seconds_kept": round(sum(result.seconds for result in kept), 3),
        "dropped": counts(results, True),
        "reported": counts(results, False),
        "options": asdict(options),
    }


def as_text(summary: dict[str, Any], out: Path) -> list[str]:
    """The summary in a few lines."""
    kept, files = counted(summary["clips_kept"], "clip"), counted(summary["files"], "file")
    lines = [f"{out}: {kept} ({summary['seconds_kept']:.1f} s) from {files}"]
    for group, verb in (("dropped", "dropped"), ("reported", "kept, but reported")):
        for reason, total in summary[group].items():
            seconds = f", {total['seconds']:.1f} s" if total["seconds"] else ""
            lines.append(f"  {verb}: {total['clips']} {reason}{seconds} ({REASONS[reason]})")
    return [printable(line) for line in lines]


if __name__ == "__main__":
    sys.exit(main())
