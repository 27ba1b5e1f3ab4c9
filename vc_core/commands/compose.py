"""From settings to files: the work of `./vc compose`, without the command line."""

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import memory, pipeline
from ..checkpoint.reading import BUNDLED
from ..composer import VideoComposer
from ..conditions import Condition, strength_note
from ..diffusion.guidance import needed_sides
from ..diffusion.samplers import Sampling, make_sampler
from ..diffusion.tiles import Tiles
from ..diffusion.windows import Windows
from ..disk import check_place
from ..encoders.autoencoder import Tiling
from ..errors import UserError, about
from ..extract.pictures import picture_of
from ..extract.sources import Extracted
from ..families import VGEN_NEGATIVE, VGEN_SUFFIX, odd_settings
from ..progress import Progress
from ..video import FramePlan, read_image
from ..video.writing import check_videos, numbered, write_contact_sheet, write_videos
from .checks import check_inputs, check_settings
from .conditions import fill_in, make_conditions, named_as, output_size
from .drafts import beginning
from .record import KEY, Record, differences, make_record, read_record, with_current_inputs
from .second_pass import enlarged, load_upscale_model, second_pass
from .settings import SETTINGS, Label, Settings, as_key, as_option, by_name, read_yaml

SETTINGS_FILES = (".yaml", ".yml", ".json")
NOTED = 10**9
"""Bytes. A run that needs as much memory, or more than is free, prints a note before it starts."""


# --- Settings, before anything runs ---------------------------------------------------------------------------------


def gather(source: Path | None, options: Mapping[str, Any], progress: Progress | None = None) -> Settings:
    """Read the settings from a settings file or an output file, and apply options to them.

    Warns if a repeated run may differ from the output file.

    Raises:
        UserError: wrong settings; an input of the output file is missing or has changed; no new name for the output.
    """
    if source is None:
        settings = Settings().with_options(options)
    elif source.suffix.lower() in SETTINGS_FILES and not source.is_dir():
        settings = Settings.from_yaml(source).with_options(options)
    else:
        record = read_record(source)
        settings = record.settings.with_options(options)
        _check_new_name(settings, source)
        settings = with_current_inputs(settings, record, source, options, progress)
        if differs := differences(record, settings):
            warnings.warn(
                f"The new output may differ from {source} in its last bits ({'; '.join(differs)}).", stacklevel=2
            )
    check_ready(settings)
    return settings


def _check_new_name(settings: Settings, source: Path) -> None:
    if settings.out is None:
        raise UserError(f"--from {source} requires a name for the new output. Add -o FILE.")
    for path in filter(None, (settings.out, settings.sheet)):
        if os.path.realpath(path) == os.path.realpath(source):
            raise UserError(f"{path} is also the --from file. Choose another name for the new output.")


def gather_many(path: Path, options: Mapping[str, Any]) -> list[Settings]:
    """Read and check the settings of many runs: a YAML list, or `runs:` with common `defaults:`.

    Raises:
        UserError: the first run that has wrong settings, no `out`, or the `out` of another run.
    """
    runs, written = [], {}
    defaults, listed = _listed_runs(path)
    for number, values in enumerate(listed, 1):
        with about(path, f"run {number}"):
            merged = {**by_name(defaults), **by_name(values)}
            settings = Settings.from_mapping(merged, path.parent).with_options(options)
            check_ready(settings, as_key)
            for output in outputs(settings):
                key = os.path.realpath(output)
                if key in written:
                    raise UserError(f"Run {written[key]} also writes {output}. Choose a different 'out' for each run.")
                written[key] = number
            runs.append(settings)
    return runs


def _listed_runs(path: Path) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    """Return the common defaults and the runs of a YAML."""
    data, expected = read_yaml(path), "Expected a list of runs, or a list 'runs:' and common 'defaults:'"
    defaults: Any = {}
    if isinstance(data, Mapping):
        unknown = sorted(map(str, set(data) - {"runs", "defaults"}))
        if {key.replace("-", "_") for key in unknown} & {*SETTINGS}:
            raise UserError(
                f"{path} contains the settings of one run, but --batch expects a list of runs. Use --from {path}, or "
                "begin each run with '- '."
            )
        if unknown:
            raise UserError(f"{path} has unknown keys: {', '.join(unknown)}. {expected}.")
        data, defaults = data.get("runs"), data.get("defaults") or {}
    if not isinstance(data, list) or not data or not all(isinstance(run, Mapping) for run in [defaults, *data]):
        raise UserError(f"{path} contains no runs. {expected}.")
    return defaults, data


def check_ready(settings: Settings, label: Label = as_option) -> None:
    """Refuse contradictions, missing inputs and outputs that cannot be written. Raises `UserError`."""
    check_settings(settings, label)
    check_inputs(settings, label)
    if settings.out is None:
        raise UserError(f"The output has no name. Add {label('out')}, for example out.mp4.")
    read = {os.path.realpath(path): name for name, paths in settings.inputs().items() for path in paths}
    for path in outputs(settings):
        if name := read.get(os.path.realpath(path)):
            raise UserError(
                f"The output {path} would overwrite the input of {label(name)}. Choose another name for the output."
            )
    check_videos(settings.out, settings.batch_size, settings.fps)
    if settings.sheet is not None:
        if settings.sheet.suffix.lower() != ".png":
            raise UserError(f"A contact sheet is a .png file, but its name is {settings.sheet}. Choose a .png name.")
        check_place(settings.sheet)


def outputs(settings: Settings) -> list[Path]:
    """Return every path that a run writes."""
    return [*numbered(settings.out, settings.batch_size), *filter(None, [settings.sheet])]


# --- One run --------------------------------------------------------------------------------------------------------


def run(
    settings: Settings,
    composer: VideoComposer | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> list[str]:
    """Compose the settings' videos and write them. Returns lines to print: one per file, notes, and the
    values set automatically.

    Args:
        composer: made from the settings' checkpoint; None to load it.
        note: called before composing with a sentence on the memory that it needs, see `NOTED`.

    Raises:
        UserError: see `check_ready`; a source is unreadable or too short; any error of `compose`.
    """
    check_ready(settings)
    composer = load(settings, progress) if composer is None else composer
    if settings.style is not None:
        composer.check_style()
    full, plan = fill_in(settings, composer.config)
    sampling = Sampling(
        **named_as(Sampling, full),
        windows=None if full.window is None else Windows(full.window, full.overlap, full.carry),
    )
    if full.upscale is not None:  # refuse now what the second pass would refuse
        again = second_pass(sampling, full.upscale_denoise, composer.config)
        make_sampler(again, composer.config.diffusion)
        network = full.upscale_model and load_upscale_model(full.upscale_model, full.upscale, composer.device)
    if note is not None and (line := memory_note(full, composer)):
        note(line)
    extracted = make_conditions(full, plan, composer.config, progress)
    style = None if full.style is None else pipeline.Style(read_image(full.style), **_applied(full, "style"))
    start = beginning(full, plan, composer.config)
    extracted |= start.conditions
    texts = {0: full.text, **full.text_at}
    shared = {
        "text": {frame: _prompt(full, text) for frame, text in texts.items()},
        "negative": ", ".join(filter(None, [full.negative, VGEN_NEGATIVE * full.vgen_prompts])),
        "style": style,
        "frames": full.frames,
        "batch": full.batch_size,
        "seed": full.seed,
        "tiling": _tiling(full),
        "progress": progress,
    }
    videos = first = pipeline.compose(
        composer,
        **shared,
        conditions=_applied_all(full, extracted),
        init=start.init,
        denoise_mask=start.mask,
        sampling=sampling,
        size=full.size,
    )
    size = output_size(full.size, full.upscale)
    if full.upscale is not None:
        larger = dataclasses.replace(full, size=size, canvas=full.canvas or full.size)  # tracks stay in their pixels
        start = beginning(larger, plan, composer.config)
        extracted = {**make_conditions(larger, plan, composer.config, progress), **start.conditions}
        videos = pipeline.compose(
            composer,
            **shared,
            conditions=_applied_all(full, extracted),
            init=start.restored(enlarged(first, size, network, progress)),
            denoise_mask=start.mask,
            sampling=again,
            size=size,
        )
    videos = start.joined(videos)
    record = make_record(full, {name: item.how for name, item in extracted.items() if item.how}, progress)
    metadata = {KEY: record.to_json()}
    paths = write_videos(full.out, videos, full.fps, full.scale, metadata, progress, start.sound)
    height, width = (side * full.scale for side in size)
    what = f"{videos.shape[2]} frames of {width}x{height}, {full.fps:g} per second"
    lines = [f"{path}: {what}, seed {full.seed + i}" for i, path in enumerate(paths)]
    if full.sheet is not None:
        rows = [(name, picture_of(name, item.tensor)) for name, item in extracted.items()]
        rows += [("style", style.image[:, :, None])] if style else []
        rows += [] if start.init is None else [("init", start.init)]
        if full.upscale is not None:
            rows += [(f"{path.name}, first", video) for path, video in zip(paths, first, strict=True)]
        rows += [(path.name, video) for path, video in zip(paths, videos, strict=True)]
        write_contact_sheet(full.sheet, rows, title=", then ".join(texts.values()), metadata=metadata)
        lines.append(f"{full.sheet}: the conditions and the results")
    lines += [*start.notes, *(item.note for item in extracted.values())]
    lines += [f"assumed: {sentence}" for sentence in composer.checkpoint.assumed]
    sampler = "" if full.lora else full.sampler  # a LoRA may bring the distillation
    lines += [strength_note(name, strength) for name, strength in full.strength.items()]
    lines += odd_settings(composer.config, full.size, full.steps, full.guidance, sampler)
    return [*filter(None, [*lines, _chosen(settings, full, plan, record)])]


def _prompt(settings: Settings, text: str) -> str:
    return f"{text}{VGEN_SUFFIX}".removeprefix(", ") if settings.vgen_prompts else text


def load(settings: Settings, progress: Progress | None = None, **overrides: Any) -> VideoComposer:
    """Load the composer of these settings. Raises `UserError`, see `VideoComposer.load`."""
    arguments = loading(settings)
    return VideoComposer.load(**arguments | {"overrides": arguments["overrides"] | overrides}, progress=progress)


def loading(settings: Settings) -> dict[str, Any]:
    """Return the arguments of `VideoComposer.load` for these settings."""
    same = ("parts", "device", "dtype", "compute", "offload", "compile")
    overrides = ("few_steps", "prediction", "zero_terminal_snr")
    return {
        "path": settings.checkpoint or BUNDLED,
        "loras": settings.lora,
        "overrides": {name: getattr(settings, name) for name in overrides},
        **{name: getattr(settings, name) for name in same},
    }


def memory_note(settings: Settings, composer: VideoComposer) -> str:
    """Return a sentence on the memory that a run needs; empty if it is little. The settings must be filled in."""
    sides, _ = needed_sides(settings.guidance, settings.condition_guidance)
    passes = [(settings.size, None)]
    if settings.upscale is not None:
        passes.append((output_size(settings.size, settings.upscale), Tiles.trained(composer.config)))
    needs = (
        composer.needs(
            settings.style is not None,
            size=size,
            frames=min(settings.frames, settings.window or settings.frames),
            length=settings.frames,
            predictions=len(sides),
            batch=settings.batch_size,
            tiling=_tiling(settings),
            tiles=tiles,
        )
        for size, tiles in passes
    )
    need = max(needs, key=lambda need: need.total)
    free, advice = memory.available(composer.device), composer.advice(settings.batch_size, _tiling(settings))
    little = need.total < min(NOTED, free)
    return "" if little else memory.as_text(need, composer.stored, composer.offload, free, advice)


def _tiling(settings: Settings) -> Tiling:
    return Tiling(**named_as(Tiling, settings))


def _applied_all(settings: Settings, extracted: Mapping[str, Extracted]) -> list[Condition]:
    return [Condition(name, item.tensor, **_applied(settings, name)) for name, item in extracted.items()]


def _applied(settings: Settings, name: str) -> dict[str, float]:
    """Return the arguments of `Condition` and `Style` that say how a condition is applied."""
    start, end = settings.schedule.get(name, (0.0, 1.0))
    return {"strength": settings.strength.get(name, 1.0), "start": start, "end": end}


# Settings whose values are reported if the user did not set them: (setting, words from the filled-in settings).
_CHOICES: tuple[tuple[str, Callable[[Settings], str]], ...] = (
    ("frames", lambda s: f"{s.frames} frames"),
    ("size", lambda s: f"size {s.size[1]}x{s.size[0]}"),
    ("window", lambda s: f"windows of {s.window} frames that share {s.overlap}"),
    ("steps", lambda s: f"{s.steps} steps of {s.sampler}"),
    ("guidance", lambda s: f"guidance {s.guidance:g}"),
    ("fps", lambda s: f"{s.fps:g} frames per second"),
    ("scale", lambda s: f"enlarged {s.scale} times"),
)


def _chosen(user: Settings, full: Settings, plan: FramePlan | None, record: Record) -> str:
    """Return a line with the values that were set automatically; empty if there are none."""
    words = [
        say(full)
        for name, say in _CHOICES
        if getattr(user, name) is None and getattr(full, name) is not None and (name, full.scale) != ("scale", 1)
    ]
    if user.reads_sequence and user.rate is None:
        words.append(
            f"{float(plan.rate):g} frames sampled per second of {(user.video or user.init or user.extend).name}"
        )
    if user.device == "auto":
        words.append(f"{record.machine['device']} in {record.machine['compute']}")
    return f"set automatically: {', '.join(words)}" if words else ""
