"""Composes videos for an evaluation: with each condition given, from another clip, and absent; and with all together.

Videos that are compared differ in only one condition. Everything else is the same, including the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.evaluate.examples import Examples
from vc_core.composer import VideoComposer
from vc_core.conditions import CONDITIONS, Condition
from vc_core.config import Config
from vc_core.diffusion.samplers import Sampling
from vc_core.pipeline import Style, compose
from vc_core.progress import Progress


@dataclass(frozen=True)
class Trial:
    """The tested condition, and other conditions, which are always the clip's own."""

    condition: str
    others: tuple[str, ...] = ("text",)


TRIALS: dict[str, Trial] = {
    "text": Trial("text", others=()),
    "style": Trial("style"),
    "style_alone": Trial("style", others=()),
    "single_image": Trial("single_image"),
    "single_sketch": Trial("single_sketch"),
    "sketch": Trial("sketch"),
    "depth": Trial("depth"),
    "mask": Trial("mask"),
    "motion": Trial("motion", others=("text", "single_image")),
    "motion_with_text": Trial("motion"),
}

ARMS = ("given", "shuffled", "absent")
TOGETHER = "together"
"""The trial, and the arm of every measure, with all of a clip's conditions at once."""


@dataclass(frozen=True)
class Wiring:
    """The conditions that a video is composed from: the clip's own, and at most one from the next clip."""

    own: frozenset[str]
    other: str | None = None


def arms_of(trial: str) -> dict[str, Wiring]:
    """Return the wirings of a trial by arm. Trials may share wirings: without a sketch only the text remains."""
    condition, others = TRIALS[trial].condition, frozenset(TRIALS[trial].others)
    return dict(zip(ARMS, (Wiring(others | {condition}), Wiring(others, condition), Wiring(others)), strict=True))


@dataclass(frozen=True)
class Composing:
    """Sampling settings. None for `guidance`, `sampler` and `steps` uses the checkpoint's own, except that a checkpoint
    that was not distilled for few steps uses `many` steps.

    With 12 steps instead of 20 the bundled checkpoint's figures changed by less than 0.005, shapes by one of 24 videos.
    """

    seeds: int = 2
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    batch: int = 4
    many: int = 12

    def of(self, config: Config) -> Composing:
        """Replace None by the settings for a checkpoint of this config."""
        steps = (config.steps if config.few_steps else self.many) if self.steps is None else self.steps
        guidance = config.guidance if self.guidance is None else self.guidance
        return replace(self, steps=steps, guidance=guidance, sampler=self.sampler or config.sampler)


def pairs(clips: int, seeds: int) -> Tensor:
    """Return the clip index of each video, (clips * seeds,): each clip with all of its seeds, then the next clip."""
    return torch.arange(clips).repeat_interleave(seeds)


@dataclass(frozen=True)
class Task:
    """A batch of videos to compose, with all of its inputs.

    Inputs are arrays, because arrays are sent to other processes as bytes; tensors would use shared memory, which is
    small in containers.
    """

    text: list[str] | str  # one per video, or an empty text for all
    style: np.ndarray | None  # (B, ...)
    conditions: dict[str, np.ndarray]
    options: dict[str, Any]  # for `vc_core.pipeline.compose`

    def compose(self, composer: VideoComposer, progress: Progress | None = None) -> Tensor:
        """Return the videos, (B, 3, F, H, W) uint8."""
        style = None if self.style is None else Style(torch.from_numpy(self.style))
        conditions = [Condition(name, torch.from_numpy(array)) for name, array in self.conditions.items()]
        video = compose(composer, self.text, style=style, conditions=conditions, progress=progress, **self.options)
        return (video * 255).round().to(torch.uint8)


Run = Callable[[Iterable[Task], Progress | None], Iterable[Tensor]]
"""Composes tasks in order, and calls `progress("sampling", finished steps of a task, steps)`."""


def run_here(composer: VideoComposer) -> Run:
    """Return a function that composes in this process."""
    return lambda tasks, progress: (task.compose(composer, progress) for task in tasks)


def compose_wirings(
    run: Run, clips: Examples, wirings: Iterable[Wiring], how: Composing, progress: Progress | None = None
) -> dict[Wiring, Tensor]:
    """Compose the videos of each wiring, (N * seeds, 3, F, H, W) uint8, in the order of `pairs`.

    Video number i has the noise of seed i in every wiring, and with every checkpoint that has latents of this size.

    Args:
        how: without None, see `Composing.of`.
        progress: called as `progress("composing", done, total)`, in steps of batches.
    """
    batches, wirings = pairs(len(clips), how.seeds).split(how.batch), list(dict.fromkeys(wirings))
    tasks = (
        _task(clips, wiring, rows, number * how.batch, how) for wiring in wirings for number, rows in enumerate(batches)
    )
    videos: list[Tensor] = []

    def report(what: str, done: int, steps: int) -> None:
        if progress is not None and what == "sampling":
            total = len(wirings) * len(batches) * how.steps
            progress("composing", len(videos) * how.steps + done * how.steps // steps, total)

    for batch in run(tasks, report):
        videos.append(batch)
    parts = len(batches)
    return {wiring: torch.cat(videos[i * parts : (i + 1) * parts]) for i, wiring in enumerate(wirings)}


def _task(clips: Examples, wiring: Wiring, rows: Tensor, seed: int, how: Composing) -> Task:
    sources = dict.fromkeys(wiring.own, rows) | ({wiring.other: (rows + 1) % len(clips)} if wiring.other else {})
    video = clips.truth.video
    return Task(
        text=[clips.texts[row] for row in sources["text"]] if "text" in sources else "",
        style=clips.truth.style[sources["style"]].numpy() if "style" in sources else None,
        # In the table's order. A set's order changes in every run, and sums would round differently.
        conditions={name: clips.conditions[name][sources[name]].numpy() for name in CONDITIONS if name in sources},
        options=dict(
            frames=video.shape[2],
            size=tuple(video.shape[-2:]),
            batch=len(rows),
            seed=seed,
            sampling=Sampling(how.sampler, how.steps, guidance=how.guidance),
        ),
    )
