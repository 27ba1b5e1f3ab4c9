"""What is composed for an evaluation: each condition given, taken from another clip, and left out; and all together.

The videos that are compared differ in one condition alone: all else is the same, the noise included.
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
    """The condition that a trial is about, and what stands beside it, always the clip's own."""

    condition: str
    beside: tuple[str, ...] = ("text",)


TRIALS: dict[str, Trial] = {
    "text": Trial("text", beside=()),
    "style": Trial("style"),
    "style_alone": Trial("style", beside=()),
    "single_image": Trial("single_image"),
    "single_sketch": Trial("single_sketch"),
    "sketch": Trial("sketch"),
    "depth": Trial("depth"),
    "mask": Trial("mask"),
    "motion": Trial("motion", beside=("text", "single_image")),
}

ARMS = ("given", "shuffled", "absent")
TOGETHER = "together"
"""The trial, and the arm of every measure, with all of a clip's conditions at once."""


@dataclass(frozen=True)
class Wiring:
    """Which conditions a video is composed from: the clip's own, and at most one of another clip, the next one."""

    own: frozenset[str]
    other: str | None = None


def arms_of(trial: str) -> dict[str, Wiring]:
    """The wirings of a trial by arm. Trials share some of them: an absent sketch leaves the text alone."""
    condition, beside = TRIALS[trial].condition, frozenset(TRIALS[trial].beside)
    return dict(zip(ARMS, (Wiring(beside | {condition}), Wiring(beside, condition), Wiring(beside)), strict=True))


@dataclass(frozen=True)
class Composing:
    """How videos are composed. `guidance`, `sampler` and `steps` None are the checkpoint's, but that one which was not
    distilled for few steps takes `many`.

    From 20 steps to 12 the bundled checkpoint's figures moved by less than 0.005, shapes by one of 24 videos.
    """

    seeds: int = 2
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    batch: int = 4
    many: int = 12

    def of(self, config: Config) -> Composing:
        """The same with what is None as a checkpoint of this config has it."""
        steps = (config.steps if config.few_steps else self.many) if self.steps is None else self.steps
        guidance = config.guidance if self.guidance is None else self.guidance
        return replace(self, steps=steps, guidance=guidance, sampler=self.sampler or config.sampler)


def pairs(clips: int, seeds: int) -> Tensor:
    """The clip of each video, (clips * seeds,): each clip with all of its seeds, then the next one."""
    return torch.arange(clips).repeat_interleave(seeds)


@dataclass(frozen=True)
class Task:
    """A batch of videos to be composed, with all that it takes.

    In arrays: they go to other processes as bytes, where tensors would take shared memory, of which containers have
    little.
    """

    text: list[str] | str  # one for each, or none for all
    style: np.ndarray | None  # of each, (B, ...)
    conditions: dict[str, np.ndarray]
    options: dict[str, Any]  # of `vc_core.pipeline.compose`

    def compose(self, composer: VideoComposer, progress: Progress | None = None) -> Tensor:
        """The videos, (B, 3, F, H, W) uint8."""
        style = None if self.style is None else Style(torch.from_numpy(self.style))
        conditions = [Condition(name, torch.from_numpy(array)) for name, array in self.conditions.items()]
        video = compose(composer, self.text, style=style, conditions=conditions, progress=progress, **self.options)
        return (video * 255).round().to(torch.uint8)


Run = Callable[[Iterable[Task], Progress | None], Iterable[Tensor]]
"""Composes tasks in their order; its progress is called as `progress("sampling", steps done of a task, steps)`."""


def run_here(composer: VideoComposer) -> Run:
    """Composes in this process."""
    return lambda tasks, progress: (task.compose(composer, progress) for task in tasks)


def compose_wirings(
    run: Run, clips: Examples, wirings: Iterable[Wiring], how: Composing, progress: Progress | None = None
) -> dict[Wiring, Tensor]:
    """The videos of each wiring, (N * seeds, 3, F, H, W) uint8, in the order of `pairs`.

    Video number i has the noise of seed i in every wiring, and with every checkpoint whose latents are as large.

    Args:
        how: with all of it said, see `Composing.of`.
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

    for made in run(tasks, report):
        videos.append(made)
    parts = len(batches)
    return {wiring: torch.cat(videos[i * parts : (i + 1) * parts]) for i, wiring in enumerate(wirings)}


def _task(clips: Examples, wiring: Wiring, rows: Tensor, seed: int, how: Composing) -> Task:
    taken = dict.fromkeys(wiring.own, rows) | ({wiring.other: (rows + 1) % len(clips)} if wiring.other else {})
    video = clips.truth.video
    return Task(
        text=[clips.texts[row] for row in taken["text"]] if "text" in taken else "",
        style=clips.truth.style[taken["style"]].numpy() if "style" in taken else None,
        # In the table's order, not in that of a set, which is another one at every run: sums round differently.
        conditions={name: clips.conditions[name][taken[name]].numpy() for name in CONDITIONS if name in taken},
        options=dict(
            frames=video.shape[2],
            size=tuple(video.shape[-2:]),
            batch=len(rows),
            seed=seed,
            sampling=Sampling(how.sampler, how.steps, guidance=how.guidance),
        ),
    )
