"""Folders of videos or images with captions, and shards of other programs: each sample is cut out of its file or its
member of a tar as it is needed."""

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
    beside,
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
from vc_core.video import IMAGES, FramePlan, Media, plan_frames, planned_frames, probe, read_image
from vc_core.video.frames import RELEASED_RATE

# --- Captions -------------------------------------------------------------------------------------------------------


def read_captions(folder: Path, captions: Path | None = None, out: Path | None = None) -> list[Entry]:
    """The videos or images of a folder with their captions, in the order of what lists them.

    Links are followed; what is left out is said in warnings. An entry whose `fault` says something cannot be used.

    Args:
        captions: a list, see `training.data.caption_lists`. By default what is found in the folder, the first of these:
            one of `LISTS`; `LISTS` in folders below it; texts beside files (`swan.txt` beside `swan.mp4`); shards of
            other programs (see `training.data.other_shards`).
        out: of the folders below it, one that results go to.

    Raises:
        UserError: there is nothing of these, or a list is not as expected.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, and one of videos or images was expected: check the path.")
    if captions is not None:
        if not Path(captions).is_file():
            raise UserError(f"{captions}: no such file, and a list of captions was expected: check the path.")
        return read_list(Path(captions))
    if list_of := _list_in(folder, [path for path in folder.iterdir() if path.is_file()]):
        return read_list(list_of)
    files = files_below(folder, without=[out] if out else [])
    if lists := _lists_below(folder, files):
        names = shorten([path.relative_to(folder).as_posix() for path in lists], 3)
        warnings.warn(f"{folder}: takes what is listed in {names}, and nothing else in it.", stacklevel=2)
        return [
            replace(entry, file=(path.parent.relative_to(folder) / entry.file).as_posix())
            for path in lists
            for entry in read_list(path)
        ]
    tars, others = [], []
    for path in files:
        if path.name.lower() not in LISTS:  # one without captions, which is told already
            (tars if path.name.lower().endswith(TARS) else others).append(path)
    if entries := _texts_beside(folder, others, none=bool(tars)):
        _leaves_out(folder, [tar for tar in tars if not is_ours(tar)], "shards beside files that have texts")
        return entries
    if own := next(filter(is_ours, tars), None):
        raise UserError(
            f"{own}: is a shard of ./vc prepare, and videos, images or shards of another program were expected: train "
            f"on {folder} with `kind: shards`, or name another folder."
        )
    _leaves_out(folder, others, "neither shards nor in them")
    return read_shards(tars, folder)


def usable(entries: Sequence[Entry], folder: Path) -> list[Entry]:
    """Those without a fault; the others are said in a warning. Raises `UserError` where none is left."""
    faulty = [entry for entry in entries if entry.fault]
    if faulty:
        first = f"{printable(faulty[0].file)}: {printable(faulty[0].fault)}"
        if len(faulty) == len(entries):
            raise UserError(f"{folder}: none of its {counted(len(entries), 'clip')} can be used; {first}")
        left_out = f"{len(faulty)} of {len(entries)} clips, which cannot be used, for instance {first}"
        warnings.warn(f"{folder}: leaves out {left_out}", stacklevel=2)
    return [entry for entry in entries if not entry.fault]


def _list_in(folder: Path, files: Sequence[Path]) -> Path | None:
    """The list among the files of one folder."""
    found = [path for path in files if path.name.lower() in LISTS]
    if len(found) > 1:
        found = [path for path in found if has_captions(path)] or found
    if len(found) > 1:
        names = " and ".join(sorted(path.name for path in found))
        raise UserError(f"{folder}: has both {names}: leave one there, or name the one to take.")
    if found and found[0].stem.lower() == "metadata" and not has_captions(found[0]):
        _leaves_out(folder, found, f"a list without columns for file and caption ({FILE[1]} and {CAPTION[0]})")
        return None
    return found[0] if found else None


def _lists_below(folder: Path, files: Sequence[Path]) -> list[Path]:
    """One list at the most of each folder below, as those of a data set's parts."""
    by_folder: dict[Path, list[Path]] = {}
    for path in files:
        if path.parent != folder and path.name.lower() in LISTS:
            by_folder.setdefault(path.parent, []).append(path)
    return [path for inner, paths in by_folder.items() if (path := _list_in(inner, paths))]


def _texts_beside(folder: Path, files: Sequence[Path], none: bool) -> list[Entry]:
    """Files with their texts, in the order of their names. `none`: it may be that there are none.

    What is known for a video or an image must have a text, or all is refused: a text that was forgotten would be missed
    only when training is done. What has another ending is one too where it has a text; else it is left out and told.
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
        known = videos or images
        media += known or (paths if stem in texts else [])
        previews += images if videos else []
        unknown += [] if known or stem in texts else paths
    without = [path for path in media if path.with_suffix("") not in texts]
    if none and len(without) == len(media):
        return []
    if without:
        has_parquet = any(path.suffix.lower() == ".parquet" for path in unknown)
        parquet = ", or write the columns of its .parquet as metadata.jsonl" if has_parquet else ""
        raise UserError(
            f"{folder}: {len(without)} files have no text beside them, "
            f"{printable(without[0].relative_to(folder).as_posix())} among them: give each its .txt, or list those to "
            f"train on in {LISTS[0]}{parquet}."
        )
    if not media:
        raise UserError(
            f"{folder}: has no captions: expected one of {', '.join(LISTS)}, a text beside each file (swan.txt beside "
            "swan.mp4), or shards."
        )
    alone = [of for stem, of in texts.items() if stem not in others]
    alone = [path for of in alone for ending, path in of.items() if ending != ".json"]
    _leaves_out(folder, alone, "texts without a video or an image")
    _leaves_out(folder, unknown, "neither videos nor images nor with a text")
    _leaves_out(folder, previews, "images beside videos of the same name")
    entries = []
    for path in sorted(media):
        file = path.relative_to(folder).as_posix()
        try:
            found = {ending: text.read_bytes() for ending, text in texts[path.with_suffix("")].items()}
            entries.append(beside(file, found))
        except OSError as error:
            entries.append(Entry(file, "", {}, f"its text cannot be read ({error.strerror}): check it."))
    return entries


def _leaves_out(folder: Path, paths: Sequence[Path], what: str) -> None:
    if paths:
        names = shorten([printable(path.relative_to(folder).as_posix()) for path in paths], 3)
        warnings.warn(f"{folder}: leaves out {counted(len(paths), 'file')}, {what}: {names}.", stacklevel=3)


# --- Samples --------------------------------------------------------------------------------------------------------


def clip_of(
    entry: Entry,
    folder: Path,
    frames: int,
    rate: float | None,
    generator: torch.Generator,
    usual: float = RELEASED_RATE,
) -> tuple[Path | Media, FramePlan | None, str]:
    """What a clip is read from; its plan, see `plan_frames`, that starts at random, anywhere from where all its frames
    are there, or None of an image; and what was decided for the user, see `VideoInfo.note`.

    Raises:
        UserError, BadSample: it cannot be used, cannot be read or is too short.
    """
    source = entry.source(folder)
    if entry.is_image(folder):
        return source, None, ""
    with _decoding(source):
        info = probe(source)
        plan = plan_frames(info, frames, rate, usual=usual)
        spare = max(Fraction(0), Fraction(info.duration) - frames / plan.rate)
        start = float(spare) * torch.rand((), generator=generator, dtype=torch.float64).item()
    return source, replace(plan, start=start), info.note


def pictures_of(source: Path | Media, plan: FramePlan | None) -> Iterator[Tensor]:
    """The plan's frames, or an image where there is no plan, one after the other, `(1, 3, H, W)` in [0, 1].

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
    """Makes a BadSample of whatever decoders raise: of damaged bytes that may be anything, and one must not end all."""
    return reading(printable(str(source)), Exception)


@dataclass(frozen=True)
class FolderClips:
    """The clips of a folder: random frames of each video, centre-cropped; of an image the whole clip is it.

    Attributes:
        folder: where relative files are.
        rate: frames a second of clips; None for the released rule, see `plan_frames`, with the network's usual rate.
        nominal_height: videos are scaled to this height before their motion is taken, see `read_motion`.

    Raises:
        UserError: images among the files where clips have more than one frame.
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
                f"{image.file} is an image, and clips of {self.form.frames} frames are trained on: put images into a "
                "domain of their own, with frames 1."
            )

    def __len__(self) -> int:
        return len(self.entries)

    def sample(self, index: int, kept: Collection[str], generator: torch.Generator) -> Sample:
        """See `training.data.sample.Clips`."""
        entry, form = self.entries[index], self.form
        with reading(entry.name(self.folder)):
            source, plan, _ = clip_of(
                entry, self.folder, form.frames, self.rate, generator, form.extraction.sampling_rate
            )
            made = make(pictures_of(source, plan), form, kept, generator)
            if "motion" in kept:
                made["conditions"]["motion"] = no_motion(form) if form.frames == 1 else self._motion(source, plan)
        return Sample(entry.file, text=entry.caption if "text" in kept else "", **made)

    def _motion(self, source: Path | Media, plan: FramePlan) -> Tensor:
        options = Options(nominal_height=self.nominal_height)
        return extract("motion", Source(source, plan, self.form.size, self.form.extraction), options)[0]
