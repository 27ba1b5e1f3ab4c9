"""Folders of videos or images with captions, and shards of other programs. Each sample is read from its file, or from
its member of a tar, when it is needed."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from training.data.caption_lists import (
    CAPTION,
    FILE,
    LISTS,
    TEXTS,
    VIDEOS,
    Entry,
    entry_with_texts,
    has_captions,
    printable,
    read_list,
)
from training.data.other_shards import read_shards
from training.data.sample import Sample
from training.data.sample_fields import Form, make, no_motion, reading
from training.data.shards import is_ours
from training.data.tars import TARS
from vc_core.errors import UserError, counted, shorten
from vc_core.extract import Options, Source, extract
from vc_core.folders import files_below
from vc_core.video import IMAGES, FramePlan, Media, VideoInfo, plan_frames, planned_frames, probe, read_image
from vc_core.video.frames import RELEASED_RATE

# --- Captions -------------------------------------------------------------------------------------------------------


def read_captions(folder: Path, captions: Path | None = None, out: Path | None = None) -> list[Entry]:
    """The videos or images of a folder with their captions, in the order of their list.

    Links are followed; warnings report skipped files. An entry with a `fault` cannot be used.

    Args:
        captions: a list, see `training.data.caption_lists`. By default the first of these that the folder contains:
            one of `LISTS`; `LISTS` in subfolders; texts next to files (`swan.txt` next to `swan.mp4`); shards of other
            programs (see `training.data.other_shards`).
        out: a subfolder for results, which is skipped.

    Raises:
        UserError: the folder contains none of these, or a list has the wrong structure.
    """
    folder = Path(folder)
    if folder.is_file():
        raise UserError(
            f"Expected a folder of videos or images, but {folder} is a file. Pass the folder that it is in."
        )
    if not folder.is_dir():
        raise UserError(f"Expected a folder of videos or images, but {folder} does not exist. Check the path.")
    if captions is not None:
        if not Path(captions).is_file():
            raise UserError(f"Expected a list of captions, but {captions} does not exist. Check the path.")
        return read_list(Path(captions))
    if caption_list := _list_in(folder, [path for path in folder.iterdir() if path.is_file()]):
        return read_list(caption_list)
    files = files_below(folder, without=[out] if out else [])
    if lists := _lists_below(folder, files):
        names = shorten([path.relative_to(folder).as_posix() for path in lists], 3)
        warnings.warn(f"{folder}: Using only the files listed in {names}.", stacklevel=2)
        return [
            replace(entry, file=(path.parent.relative_to(folder) / entry.file).as_posix())
            for path in lists
            for entry in read_list(path)
        ]
    tars, others = [], []
    for path in files:
        if path.name.lower() not in LISTS:  # lists without captions are already reported
            (tars if path.name.lower().endswith(TARS) else others).append(path)
    if entries := _files_with_texts(folder, others, optional=bool(tars)):
        _report_skipped(folder, [tar for tar in tars if not is_ours(tar)], "shards next to files with texts")
        return entries
    if own := next(filter(is_ours, tars), None):
        raise UserError(
            f"Expected videos, images or shards of another program, but {own} is a shard of ./vc prepare. Train on "
            f"{folder} with `kind: shards`, or choose another folder."
        )
    _report_skipped(folder, others, "neither shards nor inside shards")
    return read_shards(tars, folder)


def usable(entries: Sequence[Entry], folder: Path) -> list[Entry]:
    """The entries without a fault; a warning reports the others. Raises `UserError` if none remains."""
    faulty = [entry for entry in entries if entry.fault]
    if faulty:
        file, fault = printable(faulty[0].file), printable(faulty[0].fault)
        first = f"The first problem: {file and f'{file}: '}{fault}"
        if len(faulty) == len(entries):
            raise UserError(f"{folder}: None of the {counted(len(entries), 'clip')} can be used. {first}")
        skipped = f"Skipped {len(faulty)} of {len(entries)} clips, which cannot be used"
        warnings.warn(f"{folder}: {skipped}. {first}", stacklevel=2)
    return [entry for entry in entries if not entry.fault]


def _list_in(folder: Path, files: Sequence[Path]) -> Path | None:
    """The list among the files of one folder."""
    lists = [path for path in files if path.name.lower() in LISTS]
    if len(lists) > 1:
        lists = [path for path in lists if has_captions(path)] or lists
    if len(lists) > 1:
        names = " and ".join(sorted(path.name for path in lists))
        raise UserError(
            f"Expected one list of captions, but {folder} contains {names}. Remove one, or choose one with captions."
        )
    if lists and lists[0].stem.lower() == "metadata" and not has_captions(lists[0]):
        _report_skipped(folder, lists, f"a list without columns for file and caption ({FILE[1]} and {CAPTION[0]})")
        return None
    return lists[0] if lists else None


def _lists_below(folder: Path, files: Sequence[Path]) -> list[Path]:
    """At most one list of each subfolder, for data sets in several parts."""
    by_folder: dict[Path, list[Path]] = {}
    for path in files:
        if path.parent != folder and path.name.lower() in LISTS:
            by_folder.setdefault(path.parent, []).append(path)
    return [path for inner, paths in by_folder.items() if (path := _list_in(inner, paths))]


def _files_with_texts(folder: Path, files: Sequence[Path], optional: bool) -> list[Entry]:
    """Files with the texts next to them, in the order of their names. `optional`: the result may be empty.

    Every file with the extension of a video or an image must have a text, otherwise all are refused: nobody would
    notice a forgotten text before the end of the training. Files with other extensions count too if they have a text;
    otherwise they are skipped and reported.
    """
    texts: dict[Path, dict[str, Path]] = defaultdict(dict)
    others: dict[Path, list[Path]] = defaultdict(list)
    for path in files:
        stem, ending = path.with_suffix(""), path.suffix.lower()
        if ending in TEXTS:
            texts[stem][ending] = path
        else:
            others[stem].append(path)
    media: list[Path] = []
    previews: list[Path] = []
    unknown: list[Path] = []
    for stem, paths in others.items():
        videos = [path for path in paths if path.suffix.lower() in VIDEOS]
        images = [path for path in paths if path.suffix.lower() in IMAGES]
        known_media = videos or images
        media += known_media or (paths if stem in texts else [])
        previews += images if videos else []
        unknown += [] if known_media or stem in texts else paths
    without = [path for path in media if path.with_suffix("") not in texts]
    if optional and len(without) == len(media):
        return []
    if without:
        has_parquet = any(path.suffix.lower() == ".parquet" for path in unknown)
        parquet = ", or save the columns of its .parquet as metadata.jsonl" if has_parquet else ""
        raise UserError(
            f"{folder}: {counted(len(without), 'file has', 'files have')} no text file next to "
            f"{'it' if len(without) == 1 else 'them'}, for example "
            f"{printable(without[0].relative_to(folder).as_posix())}. Add a .txt for each, or list the files to train "
            f"on in {LISTS[0]}{parquet}."
        )
    if not media:
        raise UserError(
            f"{folder} contains no captions. Expected one of {', '.join(LISTS)}, a text next to each file (swan.txt "
            "next to swan.mp4), or shards."
        )
    alone = [by_ending for stem, by_ending in texts.items() if stem not in others]
    alone = [path for by_ending in alone for ending, path in by_ending.items() if ending != ".json"]
    _report_skipped(folder, alone, "texts without a video or an image")
    _report_skipped(folder, unknown, "not videos or images, and without a text")
    _report_skipped(folder, previews, "images next to videos of the same name")
    entries = []
    for path in sorted(media):
        file = path.relative_to(folder).as_posix()
        try:
            data = {ending: text.read_bytes() for ending, text in texts[path.with_suffix("")].items()}
            entries.append(entry_with_texts(file, data))
        except OSError as error:
            entries.append(Entry(file, "", {}, f"Its text cannot be read ({error.strerror}). Check the text file."))
    return entries


def _report_skipped(folder: Path, paths: Sequence[Path], what: str) -> None:
    if paths:
        names = shorten([printable(path.relative_to(folder).as_posix()) for path in paths], 3)
        warnings.warn(f"{folder}: Skipped {counted(len(paths), 'file')} ({what}): {names}.", stacklevel=3)


# --- Samples --------------------------------------------------------------------------------------------------------


def clip_of(
    entry: Entry,
    folder: Path,
    frames: int,
    rate: float | None,
    generator: torch.Generator,
    usual: float = RELEASED_RATE,
) -> tuple[Path | Media, FramePlan | None, str]:
    """The source of a clip; its plan, see `plan_frames`, with a random start that leaves room for all frames inside the
    entry's span, or None for an image; and the note on what was decided for the user, see `VideoInfo.note`.

    Raises:
        UserError, BadSample: it cannot be used, cannot be read or is too short.
    """
    source = entry.source(folder)
    if entry.is_image(folder):
        return source, None, ""
    with _decoding(source):
        first, info = _inside(entry.span, probe(source))
        plan = plan_frames(info, frames, rate, usual=usual)
        spare = max(Fraction(0), Fraction(info.duration) - frames / plan.rate)
        start = first + float(spare) * torch.rand((), generator=generator, dtype=torch.float64).item()
    return source, replace(plan, start=start), info.note


def _inside(span: tuple[float, float] | None, info: VideoInfo) -> tuple[float, VideoInfo]:
    """Where a span of a video starts, in seconds, and the video's description as if it consisted only of the span."""
    if span is None:
        return 0.0, info
    start, end = span[0], min(span[1], info.duration)
    if start >= end:
        raise UserError(
            f"{info.path} is {info.duration:g} seconds long, but its clip starts at {start:g} s. Fix its start in the "
            "list of captions."
        )
    name = Path(f"{info.path} ({start:g} to {end:g} s)")  # for messages
    frames = max(1, round((end - start) * info.rate))
    return start, replace(info, path=name, frames=frames, duration=end - start)


def pictures_of(source: Path | Media, plan: FramePlan | None) -> Iterator[Tensor]:
    """Yield the plan's frames, or the image if there is no plan, each `(1, 3, H, W)` in [0, 1].

    Raises:
        BadSample: the source cannot be read.
    """
    with _decoding(source):
        if plan is None:
            yield read_image(source)
            return
        for frame in planned_frames(source, plan, ("format", "rgb24")):
            yield torch.from_numpy(frame.to_ndarray()).permute(2, 0, 1)[None].float() / 255


def _decoding(source: Path | Media) -> AbstractContextManager[None]:
    """Turn whatever decoders raise into a BadSample: damaged bytes can raise anything, and must not end the run."""
    return reading(printable(str(source)), Exception)


@dataclass(frozen=True)
class FolderClips:
    """The clips of a folder: random frames of each video, centre-cropped. An image is a clip of one frame.

    Attributes:
        folder: base of relative files.
        rate: frames per second of clips; None for the released rule, see `plan_frames`, at the network's usual rate.
        nominal_height: videos are scaled to this height before their motion is computed, see `read_motion`.

    Raises:
        UserError: an image is among the files, but clips have more than one frame.
    """

    folder: Path
    entries: Sequence[Entry]
    form: Form
    rate: float | None = None
    nominal_height: int | None = None

    def __post_init__(self) -> None:
        image = None
        if self.form.frames > 1:
            image = next((entry for entry in self.entries if entry.is_image(self.folder)), None)
        if image is not None:
            raise UserError(
                f"Expected videos for clips of {self.form.frames} frames, but {image.file} is an image. Put images "
                "into their own domain, with frames 1."
            )

    def __len__(self) -> int:
        return len(self.entries)

    def sample(self, index: int, inputs: Collection[str], generator: torch.Generator) -> Sample:
        """See `training.data.sample.Clips`."""
        entry, form = self.entries[index], self.form
        with reading(entry.name(self.folder)):
            source, plan, _ = clip_of(
                entry, self.folder, form.frames, self.rate, generator, form.extraction.sampling_rate
            )
            sample_fields = make(pictures_of(source, plan), form, inputs, generator)
            if "motion" in inputs:
                motion = no_motion(form) if form.frames == 1 else self._motion(source, plan)
                sample_fields["conditions"]["motion"] = motion
        return Sample(entry.file, text=entry.caption if "text" in inputs else "", **sample_fields)

    def _motion(self, source: Path | Media, plan: FramePlan) -> Tensor:
        options = Options(nominal_height=self.nominal_height)
        return extract("motion", Source(source, plan, self.form.size, self.form.extraction), options)[0]
