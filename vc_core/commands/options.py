"""The command lines of `./vc compose` and `./vc extract`. Most of their options are settings."""

import dataclasses
import json as json_text
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from .. import terminal
from ..configuration import bare, form
from ..errors import UserError
from ..terminal import argument, each, option, progress_bars, sentence
from ..video.limits import allow, megapixels_option
from . import compose as composing
from . import extract as extracting
from .extract import COLUMNS, KINDS, OPTIONS, SHORT
from .settings import FILES, SETTINGS, TITLES, Settings, as_option


def options_type(titles: Mapping[str, str], short: Mapping[str, str]) -> Any:
    """Build the annotation of settings as options: one dataclass of the option texts for each group of the help.

    Args:
        titles: the group's title, by setting.
        short: second names of options.
    """
    groups: dict[str, list[tuple[str, Any, Any]]] = {}
    for name, title in titles.items():
        hint, kind = Settings.__annotations__[name], bare(Settings.__annotations__[name])
        many = name in FILES or kind.__name__ == "dict"
        values = each(tuple[str, ...] if name in FILES else str) if many else (bool if hint is bool else str) | None
        names = [short[name]] if name in short else []
        annotation = option(values, SETTINGS[name], *names, shown=form(hint))
        groups.setdefault(title, []).append((name, annotation, () if many else None))
    fields = [
        (f"group{i}", Annotated[dataclasses.make_dataclass("Group", options), arg(name=title, prefix_name=False)])
        for i, (title, options) in enumerate(groups.items())
    ]
    return dataclasses.make_dataclass("Options", fields)


def texts_of(options: Any) -> dict[str, Any]:
    """Return the texts of the options that the user set, by setting."""
    texts = {
        name: text for group in vars(options).values() for name, text in vars(group).items() if text not in (None, ())
    }
    for name in texts.keys() & {*FILES}:
        if () in texts[name]:
            raise UserError(f"{as_option(name)} has no value. Add a path, or remove the option.")
        texts[name] = [path for paths in texts[name] for path in paths]
    return texts


@dataclasses.dataclass
class Limits:
    max_megapixels: megapixels_option() = None


@dataclasses.dataclass
class Sources:
    """Options on the command line override the values in the file."""

    source: option(
        Path | None,
        "settings file, .yaml or .json: option names without --, one per line; its paths are relative to its folder. "
        "Or an output of compose (a video, folder or sheet): repeat that run",
        shown="FILE",
        name="from",
    ) = None
    batch: option(
        Path | None,
        "compose several videos: a .yaml with a list of settings, or with a list 'runs:' and common 'defaults:'",
        shown="RUNS",
    ) = None


def compose(
    options: options_type(TITLES, {"out": "-o"}),
    limits: Annotated[Limits, arg(name=TITLES["device"], help="", prefix_name=False)],
    files: Annotated[Sources, arg(name="settings from files")],
) -> int | None:
    """
    Examples:
      ./vc compose --text "a red circle" -o out.mp4
      ./vc compose --image first.png --video clip.mp4 --use motion -o moved.mp4
      ./vc compose --from out.mp4 --seed 2 -o another.mp4
    """
    allow(limits.max_megapixels)
    texts = texts_of(options)
    if files.batch is not None:
        return _compose_many(files, texts)
    with progress_bars() as progress:
        settings = composing.gather(files.source, texts, progress)
        lines = composing.run(settings, progress=progress, note=progress.note)
    for line in lines:
        print(line)
    return None


def _compose_many(files: Sources, texts: Mapping[str, Any]) -> int:
    for name, is_set in (("--from", files.source), ("--out", "out" in texts), ("--sheet", "sheet" in texts)):
        if is_set:
            advice = "Use only one of them." if name == "--from" else f"Set '{name[2:]}' in {files.batch} for each run."
            raise UserError(f"{name} and --batch exclude each other. {advice}")
    runs = composing.gather_many(files.batch, texts)
    failed, composer, loaded = [], None, None
    with progress_bars() as progress:
        for number, settings in enumerate(runs, 1):
            try:
                loading = composing.loading(settings)
                if loading != loaded:
                    composer = loaded = None  # free its memory before the next one is loaded
                    composer, loaded = composing.load(settings, progress), loading
                lines = composing.run(settings, composer, progress, progress.note)
            except Exception as error:  # one failed run does not stop the rest
                if terminal.debugging:
                    traceback.print_exception(error)
                lines = [f"run {number}, {settings.out}: {sentence(error)}"]
                failed += lines
            for line in lines:
                progress.write(f"[{number}/{len(runs)}] {line}")
    if failed:
        print(f"vc: {len(failed)} of {len(runs)} runs failed:", *failed, sep="\n  ", file=sys.stderr)
    return 2 if failed else 0


def extract(
    kind: argument(Literal[KINDS], f"condition to extract: {', '.join(KINDS)}", "KIND"),
    file: argument(Path, "a video; for style, single_image and single_sketch also an image", "FILE"),
    out: option(
        Path,
        "output .safetensors: tensor `condition` (1, C, F, H, W), and a JSON record in its metadata",
        "-o",
        shown="OUT",
    ),
    options: options_type({name: f"for {', '.join(kinds)}" for name, kinds in OPTIONS.items()}, SHORT),
    preview: option(Path | None, "also write a preview: a .png or a video", shown="OUT") = None,
    json: option(bool, "print a summary as JSON") = False,
    checkpoint: option(
        Path | None,
        "extract the condition as this checkpoint expects it; `bundled` is the bundled one (default: the released one)",
        shown="FILE",
    ) = None,
    vectors: option(
        bool,
        f"for motion: also write the tensor `vectors` with the columns {', '.join(COLUMNS)}, in pixels of the source: "
        "the blocks of --mode released, for any checkpoint; layout, height, width and fps are in the metadata",
    ) = False,
    max_megapixels: megapixels_option() = None,
) -> None:
    allow(max_megapixels)
    with progress_bars() as progress:
        summary = extracting.run(kind, file, out, texts_of(options), preview, checkpoint, vectors, progress)
    if json:
        print(json_text.dumps(summary, indent=2))
        return
    shape = " x ".join(map(str, summary["shape"]))
    print(f"{out}: {kind}, {shape}, values from {summary['least']:.3g} to {summary['most']:.3g}")
    if preview is not None:
        print(f"{preview}: preview")
    if summary["note"]:
        print(summary["note"])
