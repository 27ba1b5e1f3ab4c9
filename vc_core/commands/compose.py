"""From settings to files: what `./vc compose` does, apart from the command line."""

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import memory, pipeline
from ..checkpoint.reading import BUNDLED
from ..composer import VideoComposer
from ..conditions import Condition
from ..diffusion.guidance import needed_sides
from ..diffusion.samplers import Sampling
from ..diffusion.windows import Windows
from ..disk import check_place
from ..encoders.autoencoder import Tiling
from ..errors import UserError, about
from ..extract.pictures import picture_of
from ..families import VGEN_NEGATIVE, VGEN_SUFFIX, odd_settings
from ..progress import Progress
from ..video import FramePlan, plan_frames, read_frames, read_image
from ..video.writing import check_videos, numbered, write_contact_sheet, write_videos
from .checks import check_inputs, check_settings
from .conditions import fill_in, make_conditions, named_as, probed
from .record import KEY, Record, differences, make_record, read_record, with_found_inputs
from .settings import Label, Settings, as_key, as_option, read_yaml

SETTINGS_FILES = (".yaml", ".yml", ".json")
TOLD = 10**9
"""Bytes of memory that are told of before a run needs them, as are fewer where they are not free."""


# --- Settings, before anything runs ---------------------------------------------------------------------------------


def gather(source: Path | None, options: Mapping[str, Any], progress: Progress | None = None) -> Settings:
    """The settings of a file, of settings or produced, with options besides. Warns where a repetition may differ.

    Raises:
        UserError: settings that are not possible; inputs of a produced file that are missing or another; no new name
            for the result.
    """
    if source is None:
        settings = Settings().with_options(options)
    elif source.suffix.lower() in SETTINGS_FILES and not source.is_dir():
        settings = Settings.from_yaml(source).with_options(options)
    else:
        record = read_record(source)
        settings = record.settings.with_options(options)
        _check_new_name(settings, source)
        settings = with_found_inputs(settings, record, source, options, progress)
        if differs := differences(record, settings):
            warnings.warn(f"{source}: the result may differ in its last bits ({'; '.join(differs)}).", stacklevel=2)
    check_ready(settings)
    return settings


def _check_new_name(settings: Settings, source: Path) -> None:
    if settings.out is None:
        raise UserError(f"--from {source} needs a name for the new result: give -o.")
    for path in filter(None, (settings.out, settings.sheet)):
        if os.path.realpath(path) == os.path.realpath(source):
            raise UserError(f"{path} is the file that the settings come from: give the new result another name.")


def gather_many(path: Path, options: Mapping[str, Any]) -> list[Settings]:
    """The settings of many runs, all of them checked: a YAML list, or `runs:` with `defaults:` for all.

    Raises:
        UserError: the first run that is not possible; runs without `out`, or with the same.
    """
    runs, written = [], {}
    for number, values in enumerate(_listed_runs(path), 1):
        with about(path, f"run {number}"):
            settings = Settings.from_mapping(values, path.parent).with_options(options)
            check_ready(settings, as_key)
            for output in outputs(settings):
                key = os.path.realpath(output)
                if key in written:
                    raise UserError(f"{output} is written by run {written[key]} already: give each run its own 'out'.")
                written[key] = number
            runs.append(settings)
    return runs


def _listed_runs(path: Path) -> list[dict[str, Any]]:
    data, expected = read_yaml(path), "expected a list of runs, or 'runs:' with 'defaults:' beside it"
    defaults: Any = {}
    if isinstance(data, Mapping):
        if unknown := sorted(map(str, set(data) - {"runs", "defaults"})):
            raise UserError(f"{path} has the keys {', '.join(unknown)}: {expected}.")
        data, defaults = data.get("runs"), data.get("defaults") or {}
    if not isinstance(data, list) or not data or not all(isinstance(run, Mapping) for run in [defaults, *data]):
        raise UserError(f"{path} holds no runs: {expected}.")
    return [{**defaults, **run} for run in data]


def check_ready(settings: Settings, label: Label = as_option) -> None:
    """Refuses what cannot run: contradictions, missing inputs, outputs that cannot be written. Raises `UserError`."""
    check_settings(settings, label)
    check_inputs(settings, label)
    if settings.out is None:
        raise UserError(f"There is no name for the result: give {label('out')}.")
    read = {os.path.realpath(path): name for name, paths in settings.inputs().items() for path in paths}
    for path in outputs(settings):
        if name := read.get(os.path.realpath(path)):
            raise UserError(f"{path} would overwrite what {label(name)} reads: give the result another name.")
    check_videos(settings.out, settings.batch_size, settings.fps)
    if settings.sheet is not None:
        if settings.sheet.suffix.lower() != ".png":
            raise UserError(
                f"{settings.sheet} cannot be written: expected a name that ends in .png for a contact sheet."
            )
        check_place(settings.sheet)


def outputs(settings: Settings) -> list[Path]:
    """Every path that a run writes."""
    return [*numbered(settings.out, settings.batch_size), *filter(None, [settings.sheet])]


# --- One run --------------------------------------------------------------------------------------------------------


def run(
    settings: Settings,
    composer: VideoComposer | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> list[str]:
    """Composes and writes what the settings say. Returns lines on it: one for each file, and what was chosen.

    Args:
        composer: of the settings' checkpoint; by default it is loaded.
        tell: called before anything is composed, with how much memory that needs, see `TOLD`.

    Raises:
        UserError: see `check_ready`; sources that are unreadable or too short; whatever `compose` refuses.
    """
    check_ready(settings)
    composer = load(settings, progress) if composer is None else composer
    if settings.style is not None:
        composer.check_style()
    full, plan = fill_in(settings, composer.config)
    if tell is not None and (line := _memory(full, composer)):
        tell(line)
    made = make_conditions(full, plan, composer.config, progress)
    style = None if full.style is None else pipeline.Style(read_image(full.style), **_applied(full, "style"))
    init = _init(full, plan)
    windows = None if full.window is None else Windows(full.window, full.overlap, full.carry)
    videos = pipeline.compose(
        composer,
        f"{full.text}{VGEN_SUFFIX}".removeprefix(", ") if full.vgen_prompts else full.text,
        negative=", ".join(filter(None, [full.negative, VGEN_NEGATIVE * full.vgen_prompts])),
        style=style,
        conditions=[Condition(name, each.tensor, **_applied(full, name)) for name, each in made.items()],
        init=init,
        sampling=Sampling(**named_as(Sampling, full), windows=windows),
        frames=full.frames,
        size=full.size,
        batch=full.batch_size,
        seed=full.seed,
        tiling=_tiling(full),
        progress=progress,
    )
    record = make_record(full, {name: each.how for name, each in made.items() if each.how}, progress)
    metadata = {KEY: record.to_json()}
    paths = write_videos(full.out, videos, full.fps, full.scale, metadata, progress)
    height, width = (side * full.scale for side in full.size)
    what = f"{full.frames} frames of {width}x{height} at {full.fps:g} a second"
    told = [f"{path}: {what}, seed {full.seed + i}" for i, path in enumerate(paths)]
    if full.sheet is not None:
        rows = [(name, picture_of(name, each.tensor)) for name, each in made.items()]
        rows += [("style", style.image[:, :, None])] if style else []
        rows += [] if init is None else [("init", init)]
        rows += [(path.name, video[None]) for path, video in zip(paths, videos, strict=True)]
        write_contact_sheet(full.sheet, rows, title=full.text, metadata=metadata)
        told.append(f"{full.sheet}: what the network saw and what it made")
    told += [each.note for each in made.values()]
    told += [f"assumed: {sentence}" for sentence in composer.checkpoint.assumed]
    sampler = "" if full.lora else full.sampler  # a LoRA may bring the distillation
    told += odd_settings(composer.config, full.size, full.steps, full.guidance, sampler)
    return [*filter(None, [*told, _chosen(settings, full, plan, record)])]


def load(settings: Settings, progress: Progress | None = None) -> VideoComposer:
    """The composer that the settings name. Raises `UserError`, see `VideoComposer.load`."""
    return VideoComposer.load(**loading(settings), progress=progress)


def loading(settings: Settings) -> dict[str, Any]:
    """The arguments of `VideoComposer.load` by which a composer is loaded."""
    alike = ("parts", "device", "dtype", "compute", "offload", "compile")
    overrides = ("few_steps", "prediction", "zero_terminal_snr")
    return {
        "path": settings.checkpoint or BUNDLED,
        "loras": settings.lora,
        "overrides": {name: getattr(settings, name) for name in overrides},
        **{name: getattr(settings, name) for name in alike},
    }


def _memory(settings: Settings, composer: VideoComposer) -> str:
    """One sentence on the memory that a run needs; empty where that is little. The settings are filled in."""
    sides, _ = needed_sides(settings.guidance, settings.condition_guidance)
    need = composer.needs(
        settings.style is not None,
        size=settings.size,
        frames=min(settings.frames, settings.window or settings.frames),
        length=settings.frames,
        predictions=len(sides),
        batch=settings.batch_size,
        tiling=_tiling(settings),
    )
    free, advice = memory.available(composer.device), composer.advice(settings.batch_size, _tiling(settings))
    little = need.total < min(TOLD, free)
    return "" if little else memory.as_text(need, composer.stored, composer.offload, free, advice)


def _tiling(settings: Settings) -> Tiling:
    return Tiling(**named_as(Tiling, settings))


def _init(settings: Settings, plan: FramePlan | None) -> Tensor | None:
    """The video to begin from, `(1, 3, F, H, W)`; beside a source, at the source's rate, so that they stay in step."""
    if settings.init is None:
        return None
    if settings.video is not None:
        plan = plan_frames(probed(settings.init), settings.frames, plan.rate, settings.start)
    return read_frames(settings.init, plan, settings.size)


def _applied(settings: Settings, name: str) -> dict[str, float]:
    """How a condition is applied: arguments of `Condition` and `Style`."""
    start, end = settings.schedule.get(name, (0.0, 1.0))
    return {"strength": settings.strength.get(name, 1.0), "start": start, "end": end}


# What is told of settings that were not given: (setting, words from the filled-in settings).
_CHOICES: tuple[tuple[str, Callable[[Settings], str]], ...] = (
    ("frames", lambda s: f"{s.frames} frames"),
    ("size", lambda s: f"size {s.size[1]}x{s.size[0]}"),
    ("window", lambda s: f"windows of {s.window} frames that share {s.overlap}"),
    ("steps", lambda s: f"{s.steps} steps of {s.sampler}"),
    ("guidance", lambda s: f"guidance {s.guidance:g}"),
    ("fps", lambda s: f"{s.fps:g} frames a second"),
    ("scale", lambda s: f"every pixel enlarged {s.scale} times"),
)


def _chosen(given: Settings, full: Settings, plan: FramePlan | None, record: Record) -> str:
    """One sentence on what was chosen for the user; empty where nothing was."""
    words = [
        say(full)
        for name, say in _CHOICES
        if getattr(given, name) is None and getattr(full, name) is not None and (name, full.scale) != ("scale", 1)
    ]
    if given.takes_frames and given.rate is None:
        words.append(f"{float(plan.rate):g} frames taken from each second of {(given.video or given.init).name}")
    if given.device == "auto":
        words.append(f"{record.machine['device']} in {record.machine['compute']}")
    return f"chosen: {', '.join(words)}" if words else ""
