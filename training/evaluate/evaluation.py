"""`evaluate`: checkpoints side by side, by all measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.data.folder import FolderClips
from training.data.shards import ShardClips
from training.evaluate.clips import HELD_OUT, Clips, Truth, held_out_clips
from training.evaluate.data import open_data, read_clips
from training.evaluate.fvd import Fvd, described, load_fvd
from training.evaluate.measures import MEASURES, Measure, Seen
from training.evaluate.processes import Processes, jobs_on, one_thread
from training.evaluate.statistics import Estimate, difference, estimate
from training.evaluate.towers import Clip, load_clip
from training.evaluate.trials import (
    ARMS,
    TOGETHER,
    TRIALS,
    Sampling,
    Wiring,
    arms_of,
    compose_wirings,
    pairs,
    run_here,
)
from vc_core.checkpoint import BUNDLED, read_checkpoint
from vc_core.composer import VideoComposer
from vc_core.conditions import CONDITIONS
from vc_core.config import Config
from vc_core.encoders.autoencoder import decode, encode
from vc_core.errors import UserError
from vc_core.files import sha256
from vc_core.progress import Progress


@dataclass(frozen=True)
class Settings:
    """What is evaluated and how.

    Attributes:
        checkpoints: files; their results are compared with the first one's.
        parts: files that bring what the checkpoints lack.
        clips: number of scenes, or at most that many of the data's clips.
        data: folder of videos with captions, or of shards, in place of the scenes.
        rate, nominal_height: of a folder's videos, as the checkpoint was trained; see `training.recipe.Domain`.
        only: names of measures or trials, or `TOGETHER`; all of them where it is empty.
        clip: file or folder of an OpenCLIP ViT-H/14 in place of the checkpoints' towers.
        fvd: I3D's weights.
        device: where the networks run, see `VideoComposer.load`.
        jobs: processes that compose, of one thread each on a CPU; None: see `jobs_on`.
        out: folder of the results, which are no data where it lies among them.
    """

    checkpoints: tuple[Path, ...] = (BUNDLED,)
    parts: tuple[Path, ...] = ()
    clips: int = 48
    data: Path | None = None
    rate: float | None = None
    nominal_height: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    only: tuple[str, ...] = ()
    clip: Path | None = None
    fvd: Path | None = None
    device: str = "auto"
    jobs: int | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.clips < 2:
            raise UserError(f"{self.clips} clips are too few: expected at least 2, as conditions are swapped.")
        for name in ("seeds", "steps", "batch"):
            if (number := getattr(self.sampling, name)) < 1:
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
        """The rows of the table. Raises UserError for a name in `only` that is none."""
        return [row for row in self._chosen() if self.data is None or not row.scenes]

    def left_out(self) -> list[Measure]:
        """The rows that were asked for and that clips of which nothing else is known do not allow."""
        return [row for row in self._chosen() if self.data is not None and row.scenes]

    def _chosen(self) -> list[Measure]:
        known = [*TRIALS, TOGETHER, *MEASURES]
        if unknown := [name for name in self.only if name not in known]:
            raise UserError(f"There is no measure '{unknown[0]}': expected some of {', '.join(known)}.")
        chosen = {*self.only} - {TOGETHER} or known
        return [row for row in MEASURES.values() if {row.name, row.trial, TRIALS[row.trial].condition} & {*chosen}]

    @property
    def together(self) -> bool:
        """Whether videos with all conditions at once are wanted too."""
        return not self.only or TOGETHER in self.only

    def open_clips(self, config: Config) -> FolderClips | ShardClips | None:
        """The data's clips as a checkpoint of this config needs them; None where scenes are evaluated on.

        Raises:
            UserError: the data cannot be read, or does not fit the checkpoint.
        """
        return None if self.data is None else open_data(self.data, config, self.rate, self.nominal_height, self.out)


@dataclass(frozen=True)
class Row:
    """One measure of one checkpoint.

    Attributes:
        measure: what was measured.
        values: by arm (clips, seeds), or (clips, seeds, points, 2) of pairs, and `source` (clips, 1): the clips
            themselves, through the autoencoder; `TOGETHER` where it was composed.
        estimates: of each of these.
        gains: given less shuffled and given less absent, paired by clip and seed.
    """

    measure: Measure

    values: dict[str, np.ndarray]
    estimates: dict[str, Estimate]
    gains: dict[str, Estimate]


@dataclass(frozen=True)
class Evaluated:
    """One checkpoint.

    Attributes:
        name: the file's name, or with its number before it where several have the same.
        about: what is known of it: file, SHA-256, size, guidance, whose towers, how sketches were drawn.
        rows: by measure.
        notes: what was not measured, and why.
        beside: by measure, given less the first checkpoint's given, paired by clip and seed.
        clips, sources, videos: to look at; videos of each wiring (N * seeds, 3, F, H, W) uint8.
        together: the wiring of all conditions, where it was composed.
        judge: whose towers measured.
    """

    name: str
    about: dict[str, Any]
    rows: dict[str, Row]
    notes: list[str]
    fvd: dict[str, object]
    beside: dict[str, Estimate]
    clips: Clips
    sources: Tensor
    videos: dict[Wiring, Tensor]
    together: Wiring | None = None
    judge: Clip | None = field(default=None, repr=False)


def evaluate(settings: Settings, progress: Progress | None = None) -> list[Evaluated]:
    """Evaluates the checkpoints one after the other.

    Raises:
        UserError: files that cannot be read, or settings that are out of their range.
    """
    for path in settings.checkpoints:  # what is wrong with the last one is told before the minutes of the first
        checkpoint = read_checkpoint(path)
        checkpoint.part("model")
        settings.open_clips(checkpoint.config)
    names = names_of(settings.checkpoints)
    results: list[Evaluated] = []
    for path, name in zip(settings.checkpoints, names, strict=True):
        results.append(_evaluate(path, name, settings, results[0] if results else None, progress))
    return results


def names_of(paths: Sequence[Path]) -> list[str]:
    """A name for each file that no other one has."""
    stems = [path.stem for path in paths]
    return [stem if stems.count(stem) == 1 else f"{number + 1}-{stem}" for number, stem in enumerate(stems)]


def _evaluate(
    path: Path, name: str, settings: Settings, first: Evaluated | None, progress: Progress | None
) -> Evaluated:
    fvd = load_fvd(settings.fvd, torch.device("cpu"))  # before the minutes that composing takes
    composer = VideoComposer.load(path, settings.parts, device=settings.device)
    with one_thread(composer.device):
        return _evaluate_with(composer, fvd, path, name, settings, first, progress)


def _evaluate_with(
    composer: VideoComposer,
    fvd: Fvd,
    path: Path,
    name: str,
    settings: Settings,
    first: Evaluated | None,
    progress: Progress | None,
) -> Evaluated:
    clip = judge_of(settings, composer, first)
    offered = offered_by(composer)
    measures, notes = possible(settings.measures(), offered, clip)
    trials = dict.fromkeys(row.trial for row in measures)
    if fvd.distance is not None and any(row.trial == "text" for row in settings.measures()):
        trials["text"] = None  # it needs no tower, as the other measures of text may
    opened = settings.open_clips(composer.config)
    if opened is None:
        clips = held_out_clips(settings.clips, composer.config, progress)
    else:
        clips = read_clips(opened, settings.clips, progress)
    wirings = [wiring for trial in trials for wiring in arms_of(trial).values()]
    together = None
    if settings.together and measures:
        together = Wiring(frozenset(condition for condition in offered if condition in clips.made))
        wirings.append(together)
    jobs = jobs_on(composer.device, settings.jobs)
    run = run_here(composer) if jobs == 1 else Processes(path, settings.parts, str(composer.device), jobs)
    videos = compose_wirings(run, clips, wirings, settings.sampling, progress)
    sources = torch.cat([decode(composer.autoencoder, encode(composer.autoencoder, one[None].to(composer.device))).cpu()
                         for one in clips.truth.video])  # fmt: skip
    rows = measure(measures, clips, sources, videos, clip, settings.sampling.seeds, together, progress)
    arms = {arm: videos[wiring] for arm, wiring in arms_of("text").items() if "text" in trials}
    distances = {"note": "not measured: --only left out text.", "distances": {}}
    if arms or fvd.distance is None:
        real = (clips.truth.video * 255).round().to(torch.uint8)
        distances = described(fvd, real, arms)
    return Evaluated(
        name,
        _about(path, composer, clip, clips, settings),
        rows,
        notes,
        distances,
        {} if first is None else beside(rows, first.rows, clips.keys, first.clips.keys),
        clips,
        sources,
        videos,
        together,
        clip,
    )


def judge_of(settings: Settings, composer: VideoComposer, first: Evaluated | None) -> Clip:
    """The towers that measure: those that the settings name, else the first checkpoint's, for all; where it lacks one,
    each checkpoint's own.

    Figures of two pairs of towers could not be compared.
    """
    if first is None or first.judge.missing:
        return load_clip(settings.clip, composer, settings.parts)
    return first.judge if settings.clip is not None else replace(first.judge, source=f"as for {first.name}")


def offered_by(composer: VideoComposer) -> list[str]:
    """What a checkpoint can be told: text, style where it has an image tower, and its conditions."""
    style = () if composer.towers.visual is None else ("style",)
    return ["text", *style, *(name for name in CONDITIONS if name in composer.config.unet.conditions)]


def possible(measures: Sequence[Measure], offered: Sequence[str], clip: Clip) -> tuple[list[Measure], list[str]]:
    """The measures that a checkpoint which can be told so much and these towers allow, and why not the others."""
    found, notes = [], []
    for row in measures:
        reasons = [clip.missing[tower] for tower in ("text", "image") if tower in row.needs and tower in clip.missing]
        needed = {TRIALS[row.trial].condition, *TRIALS[row.trial].beside}
        reasons += [_LACKS.get(name, f"the checkpoint has no {name} condition") for name in sorted(needed - {*offered})]
        if reasons:
            notes.append(f"{row.name}: not measured, as {' and '.join(reasons)}.")
        else:
            found.append(row)
    return found, notes


_LACKS = {"style": "the checkpoint has no image tower to see a style with"}


def measure(
    measures: Sequence[Measure],
    clips: Clips,
    sources: Tensor,
    videos: dict[Wiring, Tensor],
    clip: Clip,
    seeds: int,
    together: Wiring | None = None,
    progress: Progress | None = None,
) -> dict[str, Row]:
    """All measures of composed videos, by name.

    Args:
        sources: (N, 3, F, H, W) in [0, 1], the clips themselves, as well as the autoencoder can show them.
        videos: of each wiring (N * seeds, 3, F, H, W) uint8, in the order of `pairs`.
        together: the wiring of all conditions, where there is one.
    """
    which = pairs(len(clips), seeds)
    truth, texts = clips.truth.of(which), [clips.texts[clip] for clip in which]
    seen = {wiring: Seen(video, texts, clip) for wiring, video in videos.items()}
    own = Seen(sources, clips.texts, clip)
    rows = {}
    for number, row in enumerate(measures):
        arms = arms_of(row.trial) | ({} if together is None else {TOGETHER: together})
        values = {arm: _figures(row, seen[wiring], truth, seeds) for arm, wiring in arms.items()}
        values["source"] = _figures(row, own, clips.truth, 1)
        if row.relative:
            values = {arm: figures / values["source"] for arm, figures in values.items()}
        rows[row.name] = summed_up(row, values)
        if progress is not None:
            progress("measuring", number + 1, len(measures))
    return rows


def summed_up(row: Measure, values: dict[str, np.ndarray]) -> Row:
    """A row of these values."""
    estimates = {arm: estimate(figures, row.statistic) for arm, figures in values.items()}
    gains = {arm: difference(values["given"], values[arm], row.statistic) for arm in ARMS[1:]}
    return Row(row, values, estimates, gains)


def _figures(row: Measure, seen: Seen, truth: Truth, seeds: int) -> np.ndarray:
    figures = row.of(seen, truth).double().numpy()
    return figures.reshape(-1, seeds, *figures.shape[1:])


def beside(
    rows: dict[str, Row], first: dict[str, Row], keys: Sequence[str], first_keys: Sequence[str]
) -> dict[str, Estimate]:
    """Given less the first checkpoint's given, for all measures of both, on the clips that both have.

    They are not the same ones where one checkpoint takes longer clips than the other, which some files have not.
    """
    both = [key for key in keys if key in first_keys]
    if not both:
        return {}
    mine, theirs = [keys.index(key) for key in both], [first_keys.index(key) for key in both]
    return {
        name: difference(
            rows[name].values["given"][mine], first[name].values["given"][theirs], rows[name].measure.statistic
        )
        for name in rows
        if name in first
    }


def _about(path: Path, composer: VideoComposer, clip: Clip, clips: Clips, settings: Settings) -> dict[str, Any]:
    config, video = composer.config, clips.truth.video
    return {
        "file": str(path),
        "sha256": sha256(path),
        "parts": {str(file): sha256(file) for file in settings.parts},
        "name": config.name,
        "width": video.shape[-1],
        "height": video.shape[-2],
        "frames": video.shape[2],
        "guidance": config.guidance if settings.sampling.guidance is None else settings.sampling.guidance,
        "towers": clip.source,
        "sketches": clips.sketched,
        "device": str(composer.device),
    }


def as_plain(settings: Settings) -> dict[str, Any]:
    """The settings for JSON."""
    plain = asdict(settings) | {"measures": [row.name for row in settings.measures()]}
    del plain["out"]  # figures do not depend on where they are written
    if settings.data is None:
        plain["held_out_seed"] = HELD_OUT
    return {name: _plain(value) for name, value in plain.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
