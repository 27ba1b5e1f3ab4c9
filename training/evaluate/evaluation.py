"""`evaluate`: checkpoints side by side, by all measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.data.folder import FolderClips
from training.data.shards import ShardClips
from training.evaluate.examples import Examples, held_out_clips
from training.evaluate.fvd import Distance, described, load_fvd
from training.evaluate.judge import Judge, load_judge
from training.evaluate.measures import MEASURES, Measure, Seen
from training.evaluate.own_clips import open_data, read_clips
from training.evaluate.processes import one_thread, run_in_processes
from training.evaluate.statistics import Estimate, difference, estimate
from training.evaluate.trials import (
    ARMS,
    TOGETHER,
    TRIALS,
    Composing,
    Wiring,
    arms_of,
    compose_wirings,
    pairs,
    run_here,
)
from training.launch import cores
from vc_core.checkpoint.files import sha256
from vc_core.checkpoint.reading import BUNDLED, read_checkpoint
from vc_core.composer import VideoComposer, choose_device
from vc_core.config import Config
from vc_core.encoders.autoencoder import decode, encode
from vc_core.errors import UserError
from vc_core.progress import Progress, reported

JOBS = 2
"""Processes that compose on a CPU, where nobody says how many."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What is evaluated and how."""

    checkpoints: tuple[Path, ...] = (BUNDLED,)  # their results are compared with the first one's
    parts: tuple[Path, ...] = ()  # files that bring what the checkpoints lack
    clips: int = 48  # number of scenes, or at most that many of the data's clips
    data: Path | None = None  # folder of videos with captions, or of shards, in place of the scenes
    rate: float | None = None  # of a folder's videos, as in training, see `training.recipe.Domain`
    nominal_height: int | None = None  # the same
    sampling: Composing = field(default_factory=Composing)
    only: tuple[str, ...] = ()  # names of measures or trials, or `TOGETHER`; all of them where it is empty
    clip: Path | None = None  # file or folder of an OpenCLIP ViT-H/14 in place of the checkpoints' towers
    fvd: Path | None = None  # I3D's weights
    device: str = "auto"  # where the networks run, see `VideoComposer.load`
    jobs: int | None = None  # processes that compose, of one thread each on a CPU; None: `JOBS` there, else one
    out: Path | None = None  # folder of the results, which are no data where it lies among them

    def __post_init__(self) -> None:
        if self.clips < 2:
            raise UserError(f"{self.clips} clips are too few: expected at least 2, as conditions are swapped.")
        for name in ("seeds", "steps", "batch"):
            if (number := getattr(self.sampling, name)) is not None and number < 1:
                raise UserError(f"The number of {name} is {number}: expected at least 1.")
        if self.jobs is not None and self.jobs < 1:
            raise UserError(f"The number of jobs is {self.jobs}: expected at least 1.")
        if self.data is None and (self.rate or self.nominal_height):
            raise UserError("The rate and the nominal height are for videos of --data: name these, or leave them out.")
        if not self.measures():
            raise UserError(
                f"{' and '.join(self.only)} can be measured on synthetic scenes alone: leave out --data, or choose "
                f"among {', '.join(row.name for row in MEASURES.values() if not row.scenes)}."
            )

    @property
    def noun(self) -> str:
        """What is evaluated on."""
        return "scene" if self.data is None else "clip"

    def measures(self) -> list[Measure]:
        """The rows of the table, those of `chosen` that the clips allow."""
        return [row for row in self.chosen() if self.data is None or not row.scenes]

    def chosen(self) -> list[Measure]:
        """The rows that were asked for. Raises `UserError` for a name in `only` that is none."""
        known = [*TRIALS, TOGETHER, *MEASURES]
        if unknown := [name for name in self.only if name not in known]:
            raise UserError(f"There is no measure '{unknown[0]}': expected some of {', '.join(known)}.")
        chosen = {*self.only} - {TOGETHER} or known
        return [row for row in MEASURES.values() if {row.name, row.trial, TRIALS[row.trial].condition} & {*chosen}]

    def open_data(self, config: Config) -> FolderClips | ShardClips | None:
        """The data's clips as a checkpoint of this config needs them; None where scenes are evaluated on.

        Raises:
            UserError: the data cannot be read, or does not fit the checkpoint.
        """
        return None if self.data is None else open_data(self.data, config, self.rate, self.nominal_height, self.out)


@dataclass(frozen=True)
class Row:
    """One measure of one checkpoint, by arm; `source`, of one seed, are the clips themselves, through the autoencoder;
    `TOGETHER` is there where it was composed."""

    measure: Measure
    values: dict[str, np.ndarray]  # (clips, seeds), or (clips, seeds, points, 2) of pairs
    estimates: dict[str, Estimate]
    gains: dict[str, Estimate]  # given less shuffled and given less absent, paired by clip and seed


def summed_up(measure: Measure, values: dict[str, np.ndarray]) -> Row:
    """A row of these values."""
    estimates = {arm: estimate(figures, measure.statistic) for arm, figures in values.items()}
    gains = {arm: difference(values["given"], values[arm], measure.statistic) for arm in ARMS[1:]}
    return Row(measure, values, estimates, gains)


@dataclass(frozen=True)
class Evaluated:
    """One checkpoint."""

    name: str  # the file's, or with its number before it where several have the same
    about: dict[str, Any]  # file, SHA-256, size, guidance, whose towers, how sketches were drawn
    rows: dict[str, Row]  # by measure
    notes: list[str]  # what was not measured, and why
    fvd: dict[str, object]
    beside: dict[str, Estimate]  # by measure, given less the first checkpoint's given, paired by clip and seed
    clips: Examples
    videos: dict[Wiring, Tensor]  # (N * seeds, 3, F, H, W) uint8
    together: Wiring | None  # that of all conditions, where it was composed
    judge: Judge = field(repr=False)


def evaluate(settings: EvaluationSettings, progress: Progress | None = None) -> list[Evaluated]:
    """Evaluates the checkpoints one after the other.

    Raises:
        UserError: files that cannot be read, or settings that are out of their range.
    """
    for path in settings.checkpoints:  # what is wrong with the last one is told before the minutes of the first
        checkpoint = read_checkpoint(path)
        checkpoint.part("model")
        settings.open_data(checkpoint.config)
    fvd = load_fvd(settings.fvd)
    results: list[Evaluated] = []
    with one_thread(choose_device(settings.device)):
        for path, name in zip(settings.checkpoints, names_of(settings.checkpoints), strict=True):
            results.append(_evaluate(path, name, settings, fvd, results[0] if results else None, progress))
    return results


def names_of(paths: Sequence[Path]) -> list[str]:
    """A name for each file that no other one has."""
    stems = [path.stem for path in paths]
    return [stem if stems.count(stem) == 1 else f"{number + 1}-{stem}" for number, stem in enumerate(stems)]


def _evaluate(
    path: Path,
    name: str,
    settings: EvaluationSettings,
    fvd: Distance | None,
    first: Evaluated | None,
    progress: Progress | None,
) -> Evaluated:
    composer = VideoComposer.load(path, settings.parts, device=settings.device)
    how = settings.sampling.of(composer.config)
    config, autoencoder, device = composer.config, composer.autoencoder, composer.device
    judge = judge_of(settings, composer, first)
    offered = [name for name in config.unet.inputs if name != "style" or "image" in composer.checkpoint.parts]
    measures, notes = possible(settings.measures(), offered, judge)
    trials = dict.fromkeys(row.trial for row in measures)
    if fvd is not None and any(row.trial == "text" for row in settings.measures()):
        trials["text"] = None  # it needs no tower, as the other measures of text may

    data = settings.open_data(config)
    if data is None:
        clips = held_out_clips(settings.clips, config, progress)
    else:
        clips = read_clips(data, settings.clips, progress)
    wirings = [wiring for trial in trials for wiring in arms_of(trial).values()]
    together = None
    if measures and (not settings.only or TOGETHER in settings.only):
        together = Wiring(frozenset({*offered} & {"text", "style", *clips.conditions}))
        wirings.append(together)
    jobs = settings.jobs or (min(JOBS, cores()) if device.type == "cpu" else 1)
    run = run_here(composer) if jobs == 1 else run_in_processes(path, settings.parts, str(device), jobs)
    videos = compose_wirings(run, clips, wirings, how, progress)

    truth, which = clips.truth, pairs(len(clips), how.seeds)
    sources = [decode(autoencoder, encode(autoencoder, one[None].to(device))).cpu() for one in truth.video]
    own, truths = Seen(torch.cat(sources), clips.texts, judge), truth.of(which)
    seen = {wiring: Seen(video, [clips.texts[clip] for clip in which], judge) for wiring, video in videos.items()}
    rows = {}
    for measure in reported("measuring", measures, progress):
        arms = arms_of(measure.trial) | ({} if together is None else {TOGETHER: together})
        figures = {arm: measure.of(seen[wiring], truths) for arm, wiring in arms.items()}
        figures["source"] = measure.of(own, truth)
        values = {arm: each.double().unflatten(0, (len(clips), -1)).numpy() for arm, each in figures.items()}
        if measure.relative:
            values = {arm: each / values["source"] for arm, each in values.items()}
        rows[measure.name] = summed_up(measure, values)

    arms = {arm: videos[wiring] for arm, wiring in arms_of("text").items() if "text" in trials}
    about = {
        "file": str(path),
        "sha256": sha256(path),
        "parts": {str(file): sha256(file) for file in settings.parts},
        "name": config.name,
        "width": truth.video.shape[-1],
        "height": truth.video.shape[-2],
        "frames": truth.video.shape[2],
        "guidance": how.guidance,
        "sampling": f"{how.steps} steps of {how.sampler}",
        "towers": judge.source,
        "sketches": clips.sketched,
        "device": str(device),
    }
    return Evaluated(
        name,
        about,
        rows,
        notes,
        described(fvd, (truth.video * 255).round().to(torch.uint8), arms),
        {} if first is None else beside(rows, first.rows, clips.keys, first.clips.keys),
        clips,
        videos,
        together,
        judge,
    )


def judge_of(settings: EvaluationSettings, composer: VideoComposer, first: Evaluated | None) -> Judge:
    """The towers that measure: those that the settings name, else the first checkpoint's, for all; where it lacks one,
    each checkpoint's own.

    Figures of two pairs of towers could not be compared.
    """
    if first is None or first.judge.missing:
        return load_judge(settings.clip, composer, settings.parts)
    return first.judge if settings.clip is not None else replace(first.judge, source=f"as for {first.name}")


def possible(measures: Sequence[Measure], offered: Sequence[str], judge: Judge) -> tuple[list[Measure], list[str]]:
    """The measures that a checkpoint which can be told so much and these towers allow, and why not the others."""
    found, notes = [], []
    for row in measures:
        reasons = [judge.missing[tower] for tower in row.needs if tower in judge.missing]
        for name in sorted({TRIALS[row.trial].condition, *TRIALS[row.trial].beside} - {*offered}):
            lacks = "style, or no image tower to see one with" if name == "style" else f"{name} condition"
            reasons.append(f"the checkpoint has no {lacks}")
        if reasons:
            notes.append(f"{row.name}: not measured, as {' and '.join(reasons)}.")
        else:
            found.append(row)
    return found, notes


def beside(
    rows: dict[str, Row], first: dict[str, Row], keys: Sequence[str], first_keys: Sequence[str]
) -> dict[str, Estimate]:
    """Given less the first checkpoint's given, for all measures of both, on the clips that both have.

    They are not the same ones where one checkpoint takes longer clips than the other, which some files have not.
    """
    both = [key for key in keys if key in first_keys]
    mine, theirs = ([own.index(key) for key in both] for own in (keys, first_keys))
    return {
        name: difference(row.values["given"][mine], first[name].values["given"][theirs], row.measure.statistic)
        for name, row in rows.items()
        if both and name in first
    }
