"""The commands whose options are settings: `./vc compose` and `./vc extract`."""

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


def _given(titles: Mapping[str, str], short: Mapping[str, str]) -> Any:
    """The annotation of settings as options: dataclasses of the texts that were given, one for each group of the help.

    Args:
        titles: of the groups, by setting.
        short: options' second names.
    """
    groups: dict[str, list[tuple[str, Any, Any]]] = {}
    for name, title in titles.items():
        hint, kind = Settings.__annotations__[name], bare(Settings.__annotations__[name])
        many = name in FILES or kind.__name__ == "dict"
        taken = each(tuple[str, ...] if name in FILES else str) if many else (bool if hint is bool else str) | None
        names = [short[name]] if name in short else []
        annotation = option(taken, SETTINGS[name], *names, shown=form(hint))
        groups.setdefault(title, []).append((name, annotation, () if many else None))
    fields = [
        (f"group{i}", Annotated[dataclasses.make_dataclass("Given", options), arg(name=title, prefix_name=False)])
        for i, (title, options) in enumerate(groups.items())
    ]
    return dataclasses.make_dataclass("Given", fields)


def _options(given: Any) -> dict[str, Any]:
    """What was given, by setting."""
    texts = {
        name: text for group in vars(given).values() for name, text in vars(group).items() if text not in (None, ())
    }
    for name in texts.keys() & {*FILES}:
        if () in texts[name]:
            raise UserError(f"{as_option(name)} needs a name: give it one, or leave it out.")
        texts[name] = [path for paths in texts[name] for path in paths]
    return texts


@dataclasses.dataclass
class Limits:
    max_megapixels: megapixels_option() = None


@dataclasses.dataclass
class Sources:
    """Options given besides override what the file says."""

    source: option(
        Path | None,
        "a .yaml or .json of settings (keys are the options' names, paths are relative to it), or a video, folder or "
        "sheet that this command wrote: the same again",
        shown="FILE",
        name="from",
    ) = None
    batch: option(Path | None, "a .yaml list of settings, or 'runs:' with 'defaults:': all of them", shown="RUNS") = (
        None
    )


def compose(
    given: _given(TITLES, {"out": "-o"}),
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
    options = _options(given)
    if files.batch is not None:
        return _compose_many(files, options)
    with progress_bars() as progress:
        settings = composing.gather(files.source, options, progress)
        told = composing.run(settings, progress=progress, tell=progress.tell)
    for line in told:
        print(line)
    return None


def _compose_many(files: Sources, options: Mapping[str, Any]) -> int:
    for name, given in (("--from", files.source), ("--out", "out" in options), ("--sheet", "sheet" in options)):
        if given:
            raise UserError(f"{name} does not go with --batch: write it into {files.batch}, in each run.")
    runs = composing.gather_many(files.batch, options)
    failed, composer, loaded = [], None, None
    with progress_bars() as progress:
        for number, settings in enumerate(runs, 1):
            try:
                wanted = composing.loading(settings)
                if wanted != loaded:
                    composer = loaded = None  # given back before the next one is loaded
                    composer, loaded = composing.load(settings, progress), wanted
                told = composing.run(settings, composer, progress, progress.tell)
            except Exception as error:  # one run that fails does not stop the rest
                if terminal.debugging:
                    traceback.print_exception(error)
                told = [f"run {number}, {settings.out}: {sentence(error)}"]
                failed += told
            for line in told:
                progress.write(f"[{number}/{len(runs)}] {line}")
    if failed:
        print(f"vc: {len(failed)} of {len(runs)} runs failed:", *failed, sep="\n  ", file=sys.stderr)
    return 2 if failed else 0


def extract(
    kind: argument(Literal[KINDS], f"what to make: {', '.join(KINDS)}", "KIND"),
    file: argument(Path, "a video; an image too for style, single_image and single_sketch", "FILE"),
    out: option(
        Path,
        "a .safetensors: `condition` (1, C, F, H, W), and how it was made as JSON in its metadata",
        "-o",
        shown="OUT",
    ),
    given: _given({name: f"for {', '.join(kinds)}" for name, kinds in OPTIONS.items()}, SHORT),
    preview: option(Path | None, "also something to look at: a .png, or a video", shown="OUT") = None,
    json: option(bool, "print a summary as JSON") = False,
    checkpoint: option(
        Path | None,
        "make it as this one was trained, or as the `bundled` one (default: as the released one)",
        shown="FILE",
    ) = None,
    vectors: option(
        bool,
        f"for motion: also `vectors`, rows of {', '.join(COLUMNS)} (pixels of the source), the blocks of the released "
        "path whatever the checkpoint; their layout, height, width and fps are in the metadata",
    ) = False,
    max_megapixels: megapixels_option() = None,
) -> None:
    allow(max_megapixels)
    with progress_bars() as progress:
        told = extracting.run(kind, file, out, _options(given), preview, checkpoint, vectors, progress)
    if json:
        print(json_text.dumps(told, indent=2))
        return
    shape = " x ".join(map(str, told["shape"]))
    print(f"{out}: {kind}, {shape}, from {told['least']:.3g} to {told['most']:.3g}")
    if preview is not None:
        print(f"{preview}: to look at")
    if told["note"]:
        print(told["note"])
