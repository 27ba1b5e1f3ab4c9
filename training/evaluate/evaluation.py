"""`evaluate`: compare checkpoints by all measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.data.folder import FolderClips
from training.data.shards import ShardClips
from training.evaluate.clip_list import ClipList, check_clips, listed_indices, read_clip_list
from training.evaluate.examples import Examples, held_out_clips
from training.evaluate.fvd import I3D, described, load_fvd
from training.evaluate.judge import Judge, load_judge
from training.evaluate.measures import MEASURES, SLOWEST, Features, Measure
from training.evaluate.own_clips import open_data, read_clips
from training.evaluate.processes import load_composer, one_thread, run_in_processes
from training.evaluate.statistics import Estimate, difference, estimate
from training.evaluate.tracking import Flow, clip_tracks, load_raft, read_tracks_file, tracks_from
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
from vc_core.checkpoint.loading import on_meta
from vc_core.checkpoint.lora import read_lora
from vc_core.checkpoint.reading import BUNDLED, read_checkpoint
from vc_core.composer import VideoComposer, choose_device
from vc_core.config import Config
from vc_core.diffusion.samplers import SAMPLERS
from vc_core.encoders.autoencoder import decode, encode
from vc_core.errors import UserError, nearest
from vc_core.progress import Progress, reported

JOBS = 2
"""Default number of processes that compose on a CPU."""


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation."""

    checkpoints: tuple[Path, ...] = (BUNDLED,)  # each is compared with the first
    parts: tuple[Path, ...] = ()  # files with parts that the checkpoints do not contain
    loras: tuple[Path, ...] = ()  # the first checkpoint is also evaluated with each of these LoRAs
    clips: int = 48  # number of scenes, or maximum number of clips of the data
    data: Path | None = None  # folder of videos with captions, or of shards; None for synthetic scenes
    clip_list: Path | None = None  # list of an earlier evaluation, see `training.evaluate.clip_list`
    rate: float | None = None  # of a folder's videos, as in training, see `training.recipe.Domain`
    nominal_height: int | None = None  # the same
    sampling: Composing = field(default_factory=Composing)
    only: tuple[str, ...] = ()  # names of measures or trials, or `TOGETHER`; empty for all
    clip: Path | None = None  # file or folder of an OpenCLIP ViT-H/14, instead of the checkpoints' towers
    fvd: Path | None = None  # I3D weights
    vbench: Path | None = None  # folder for VBench's input and results
    raft: Path | None = None  # weights of torchvision's RAFT
    tracks: Path | None = None  # target tracks of the clips, instead of those that RAFT finds
    device: str = "auto"  # where the networks run, see `VideoComposer.load`
    jobs: int | None = None  # processes that compose, with one thread each on a CPU; None: `JOBS` there, otherwise 1
    out: Path | None = None  # folder of the results, which is ignored if it is inside the data folder

    def __post_init__(self) -> None:
        if self.clips < 2:
            raise UserError(f"Expected at least 2 clips, got {self.clips}. Conditions are swapped between clips.")
        for name in ("seeds", "steps", "batch"):
            if (number := getattr(self.sampling, name)) is not None and number < 1:
                raise UserError(f"--{name} is {number}. Expected at least 1.")
        if self.sampling.sampler is not None and self.sampling.sampler not in SAMPLERS:
            raise UserError(f"--sampler is {self.sampling.sampler}. Expected one of {', '.join(SAMPLERS)}.")
        if self.jobs is not None and self.jobs < 1:
            raise UserError(f"--jobs is {self.jobs}. Expected at least 1.")
        if self.tracks is not None and (self.raft is None or self.data is None):
            raise UserError(
                "--tracks requires --data and --raft: RAFT follows the tracks' points in the composed videos."
            )
        if self.data is None and self.clip_list is not None:
            raise UserError("--clip-list works only with --data. Synthetic scenes are always the same.")
        if self.data is None and (self.rate or self.nominal_height):
            raise UserError("--rate and --nominal-height work only with videos of --data. Pass --data too.")
        if self.vbench is not None and not self.composes_for_vbench:
            raise UserError(
                "--vbench requires videos composed from text or from all conditions, but --only excludes both. Add "
                "text or together to --only."
            )
        if not self.measures():
            raise UserError(
                f"{' and '.join(self.only)} can be measured only on synthetic scenes. Leave out --data, or choose some "
                f"of {', '.join(row.name for row in MEASURES.values() if not row.scenes)}."
            )

    @property
    def networks(self) -> list[tuple[Path, Path | None]]:
        """Return each checkpoint and LoRA to evaluate."""
        return [*((path, None) for path in self.checkpoints), *((self.checkpoints[0], lora) for lora in self.loras)]

    @property
    def noun(self) -> str:
        """Noun for the clips in texts."""
        return "scene" if self.data is None else "clip"

    @property
    def composes_for_vbench(self) -> bool:
        """Whether there are videos for VBench."""
        return not self.only or TOGETHER in self.only or any(row.trial == "text" for row in self.requested())

    def measures(self) -> list[Measure]:
        """Return the measures of the table: those of `requested` that work with the clips."""
        return [row for row in self.requested() if self.data is None or not row.scenes]

    def requested(self) -> list[Measure]:
        """Return the requested measures. Raises `UserError` for an unknown name in `only`."""
        names = [*TRIALS, TOGETHER, *MEASURES]
        if unknown := [name for name in self.only if name not in names]:
            raise UserError(
                f"Unknown measure '{unknown[0]}' in --only.{nearest(unknown[0], names)} Expected some of "
                f"{', '.join(names)}."
            )
        rows = [row for row in MEASURES.values() if self.raft is not None or not row.needs_flow]
        if missing := [name for name in self.only if name in MEASURES and MEASURES[name] not in rows]:
            raise UserError(f"{missing[0]} requires the weights of torchvision's RAFT. Pass --raft FILE.")
        chosen = {*self.only} - {TOGETHER} or names
        return [row for row in rows if {row.name, row.trial, TRIALS[row.trial].condition} & {*chosen}]

    def open_data(self, config: Config) -> FolderClips | ShardClips | None:
        """Open the data's clips for a checkpoint of this config; None for synthetic scenes.

        Raises:
            UserError: the data cannot be read, or does not match the checkpoint.
        """
        if self.data is None:
            return None
        settings = {"rate": self.rate, "nominal_height": self.nominal_height}
        if self.clips_of_list is not None:
            for name, value in settings.items():
                listed = getattr(self.clips_of_list, name)
                if value not in (None, listed):
                    option = f"--{name.replace('_', '-')}"
                    raise UserError(f"{option} is {value}, but {self.clip_list} uses {listed}. Leave out {option}.")
                settings[name] = listed
        return open_data(self.data, config, **settings, out=self.out)

    @cached_property
    def clips_of_list(self) -> ClipList | None:
        """The list of clips. Raises `UserError` if the file cannot be read."""
        return None if self.clip_list is None else read_clip_list(self.clip_list)


@dataclass(frozen=True)
class Row:
    """One measure of one checkpoint, by arm. The arm `source`, with one seed, is the clips themselves, encoded and
    decoded by the autoencoder. `TOGETHER` exists if it was composed."""

    measure: Measure
    values: dict[str, np.ndarray]  # (clips, seeds), or (clips, seeds, points, 2) of pairs
    estimates: dict[str, Estimate]
    gains: dict[str, Estimate]  # given minus shuffled and given minus absent, paired by clip and seed


def row_of(measure: Measure, values: dict[str, np.ndarray]) -> Row:
    """Compute the row of a measure from its values."""
    estimates = {arm: estimate(figures, measure.statistic) for arm, figures in values.items()}
    gains = {arm: difference(values["given"], values[arm], measure.statistic) for arm in ARMS[1:]}
    return Row(measure, values, estimates, gains)


@dataclass(frozen=True)
class Result:
    """The evaluation of one checkpoint."""

    name: str  # of the file, with a number in front if several files have the same name
    about: dict[str, Any]  # file, SHA-256, size, guidance, towers, sketch method
    rows: dict[str, Row]  # by measure
    notes: list[str]  # measures that were skipped, and why
    fvd: dict[str, object]
    over_first: dict[str, Estimate]  # by measure, given minus the first checkpoint's given, paired by clip and seed
    clips: Examples
    videos: dict[Wiring, Tensor]  # (N * seeds, 3, F, H, W) uint8
    together: Wiring | None  # wiring of all conditions, if it was composed
    judge: Judge = field(repr=False)
    vbench: list[Any] = field(default_factory=list)  # `training.evaluate.vbench.Scored`, if there are any


@dataclass(frozen=True)
class Tools:
    """Networks that measure, other than towers. None if the user has not passed their weights."""

    fvd: I3D | None = None
    flow: Flow | None = None


def evaluate(settings: EvaluationSettings, progress: Progress | None = None) -> list[Result]:
    """Evaluate the checkpoints one after the other.

    Raises:
        UserError: a file cannot be read, or a setting is out of range.
    """
    for path in settings.checkpoints:  # check all files before spending minutes on the first
        checkpoint = read_checkpoint(path)
        checkpoint.part("model")
        data = settings.open_data(checkpoint.config)
        if settings.clips_of_list is not None and path == settings.checkpoints[0]:  # others may have other frames
            check_clips(data, settings.clips_of_list, settings.data)
    for lora in settings.loras:
        read_lora(lora, on_meta(read_checkpoint(settings.checkpoints[0]).config))
    tools = Tools(load_fvd(settings.fvd), load_raft(settings.raft, choose_device(settings.device)))
    read_tracks_file(settings.tracks)
    results: list[Result] = []
    with one_thread(choose_device(settings.device)):
        names = names_of([lora or path for path, lora in settings.networks])
        for (path, lora), name in zip(settings.networks, names, strict=True):
            results.append(_evaluate(path, lora, name, settings, tools, results[0] if results else None, progress))
    return results


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return a unique name for each file."""
    stems = [path.stem for path in paths]
    return [stem if stems.count(stem) == 1 else f"{number + 1}-{stem}" for number, stem in enumerate(stems)]


def _evaluate(
    path: Path,
    lora: Path | None,
    name: str,
    settings: EvaluationSettings,
    tools: Tools,
    first: Result | None,
    progress: Progress | None,
) -> Result:
    composer = load_composer(path, settings.parts, lora, settings.device)
    how = settings.sampling.of(composer.config)
    config, autoencoder, device = composer.config, composer.autoencoder, composer.device
    judge = judge_of(settings, composer, first)
    offered = [name for name in config.unet.inputs if name != "style" or "image" in composer.checkpoint.parts]
    measures, notes = possible(settings.measures(), offered, judge)
    trials = dict.fromkeys(row.trial for row in measures)
    if (tools.fvd is not None or settings.vbench is not None) and any(
        row.trial == "text" for row in settings.measures()
    ):
        trials["text"] = None  # FVD and VBench need no tower, even if all other measures of text do

    data = settings.open_data(config)
    if data is None:
        clips = held_out_clips(settings.clips, config, progress)
    else:
        chosen = []
        if (listed := settings.clips_of_list) is not None:
            indices = listed_indices(data, listed, settings.data)
            chosen = [(index, clip["number"]) for index, clip in zip(indices, listed.clips, strict=True)]
        clips = read_clips(data, settings.clips, progress, chosen)
    if any(row.needs_flow for row in measures):
        clips = with_tracks(clips, tools.flow, settings.tracks)
    wirings = [wiring for trial in trials for wiring in arms_of(trial).values()]
    together = None
    if measures and (not settings.only or TOGETHER in settings.only):
        together = Wiring(frozenset({*offered} & {"text", "style", *clips.conditions}))
        wirings.append(together)
    jobs = settings.jobs or (min(JOBS, cores()) if device.type == "cpu" else 1)
    run = run_here(composer) if jobs == 1 else run_in_processes(path, settings.parts, str(device), jobs, lora)
    videos = compose_wirings(run, clips, wirings, how, progress)

    truth, which = clips.truth, pairs(len(clips), how.seeds)
    sources = [decode(autoencoder, encode(autoencoder, video[None].to(device))).cpu() for video in truth.video]
    own, truths = Features(torch.cat(sources), clips.texts, judge, tools.flow), truth.of(which)
    texts = [clips.texts[clip] for clip in which]
    features = {wiring: Features(video, texts, judge, tools.flow) for wiring, video in videos.items()}
    rows = {}
    for measure in reported("measuring", measures, progress):
        arms = arms_of(measure.trial) | ({} if together is None else {TOGETHER: together})
        figures = {arm: measure.of(features[wiring], truths) for arm, wiring in arms.items()}
        figures["source"] = measure.of(own, truth)
        values = {arm: tensor.double().unflatten(0, (len(clips), -1)).numpy() for arm, tensor in figures.items()}
        if measure.relative:
            values = {arm: array / values["source"] for arm, array in values.items()}
        rows[measure.name] = row_of(measure, values)

    arms = {arm: videos[wiring] for arm, wiring in arms_of("text").items() if "text" in trials}
    about = {
        "file": str(path),
        "sha256": sha256(lora or path),
        "lora": None if lora is None else str(lora),
        "parts": {str(file): sha256(file) for file in settings.parts},
        "name": config.name,
        "width": truth.video.shape[-1],
        "height": truth.video.shape[-2],
        "frames": truth.video.shape[2],
        "guidance": how.guidance,
        "sampling": f"{how.steps} steps of {how.sampler}",
        "towers": judge.source,
        "sketches": clips.sketch_method,
        "device": str(device),
    }
    return Result(
        name,
        about,
        rows,
        notes,
        described(
            tools.fvd,
            (truth.video * 255).round().to(torch.uint8),
            arms,
            [source["rate"] for source in clips.sources],
        ),
        {} if first is None else over_first(rows, first.rows, clips.keys, first.clips.keys),
        clips,
        videos,
        together,
        judge,
    )


def with_tracks(clips: Examples, flow: Flow, file: Path | None) -> Examples:
    """Add the target tracks of a file, or those that the flow finds in the clips.

    Raises:
        UserError: the file contains no tracks, or those of another clip.
    """
    video = clips.truth.video
    if file is None:
        tracks = torch.stack([clip_tracks(clip, flow, SLOWEST) for clip in video])
    else:
        names = [key.partition(": ")[2] for key in clips.keys]
        tracks = tracks_from(file, read_tracks_file(file), names, video.shape[2], video.shape[-1])
    return replace(clips, truth=replace(clips.truth, tracks=tracks))


def judge_of(settings: EvaluationSettings, composer: VideoComposer, first: Result | None) -> Judge:
    """Return the towers for the CLIP measures: those in the settings, or the first checkpoint's for all checkpoints. If
    the first checkpoint lacks a tower, each checkpoint uses its own.

    Figures from different towers cannot be compared.
    """
    if first is None or first.judge.missing:
        return load_judge(settings.clip, composer, settings.parts)
    return first.judge if settings.clip is not None else replace(first.judge, source=f"as for {first.name}")


def possible(measures: Sequence[Measure], offered: Sequence[str], judge: Judge) -> tuple[list[Measure], list[str]]:
    """Return the measures that work with the checkpoint's conditions (`offered`) and the towers, and notes on the
    others."""
    supported, notes = [], []
    for row in measures:
        reasons = [judge.missing[tower] for tower in row.needs if tower in judge.missing]
        for name in sorted({TRIALS[row.trial].condition, *TRIALS[row.trial].others} - {*offered}):
            missing = "style, or no image tower for it" if name == "style" else f"{name} condition"
            reasons.append(f"the checkpoint has no {missing}")
        if reasons:
            notes.append(f"{row.name}: not measured, because {' and '.join(reasons)}.")
        else:
            supported.append(row)
    return supported, notes


def over_first(
    rows: dict[str, Row], first: dict[str, Row], keys: Sequence[str], first_keys: Sequence[str]
) -> dict[str, Estimate]:
    """Return given minus the first checkpoint's given, for all measures of both, on the clips that both have.

    The clips differ if one checkpoint uses longer clips than the other, because some files are too short.
    """
    both = [key for key in keys if key in first_keys]
    mine, theirs = ([own.index(key) for key in both] for own in (keys, first_keys))
    return {
        name: difference(row.values["given"][mine], first[name].values["given"][theirs], row.measure.statistic)
        for name, row in rows.items()
        if both and name in first
    }
