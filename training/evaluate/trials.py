"""What is composed for an evaluation: each condition given, taken from another clip, and left out.

The videos that are compared differ in one condition alone: all else is the same, the noise included.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from training.evaluate.clips import Clips
from vc_core.composer import VideoComposer
from vc_core.conditions import CONDITIONS, Condition
from vc_core.pipeline import Style, compose
from vc_core.progress import Progress

TRIALS: dict[str, tuple[str, ...]] = {
    "text": (),
    "style": ("text",),
    "single_image": ("text",),
    "single_sketch": ("text",),
    "sketch": ("text",),
    "depth": ("text",),
    "mask": ("text",),
    "motion": ("text", "single_image"),
}
"""The condition that a trial is about -> what stands beside it, always the clip's own."""

ARMS = ("given", "shuffled", "absent")


@dataclass(frozen=True)
class Wiring:
    """Which conditions a video is composed from: the clip's own, and at most one of another clip."""

    own: frozenset[str]
    other: str | None = None


def arms_of(trial: str) -> dict[str, Wiring]:
    """The wirings of a trial by arm. Trials share some of them: an absent sketch leaves the text alone."""
    beside = frozenset(TRIALS[trial])
    return dict(zip(ARMS, (Wiring(beside | {trial}), Wiring(beside, trial), Wiring(beside)), strict=True))


@dataclass(frozen=True)
class Sampling:
    """How videos are composed. `guidance` None is the checkpoint's."""

    seeds: int = 2
    steps: int = 20
    guidance: float | None = None
    sampler: str = "dpmpp_2m"
    batch: int = 4


def pairs(clips: int, seeds: int) -> Tensor:
    """The clip of each video, (clips * seeds,): each clip with all of its seeds, then the next one."""
    return torch.arange(clips).repeat_interleave(seeds)


def compose_wirings(
    composer: VideoComposer,
    clips: Clips,
    wirings: Iterable[Wiring],
    sampling: Sampling,
    progress: Progress | None = None,
) -> dict[Wiring, Tensor]:
    """The videos of each wiring, (N * seeds, 3, F, H, W) uint8, in the order of `pairs`.

    Video number i has the noise of seed i in every wiring, and with every checkpoint whose latents are as large.

    Args:
        progress: called as `progress("composing", done, total)`, in steps of batches.
    """
    rows, wirings = pairs(len(clips), sampling.seeds), list(dict.fromkeys(wirings))
    batches = [range(len(rows))[i : i + sampling.batch] for i in range(0, len(rows), sampling.batch)]
    total, made = len(wirings) * len(batches) * sampling.steps, {}

    def report(before: int, what: str, done: int, steps: int) -> None:
        if progress is not None and what == "sampling":
            progress("composing", before * sampling.steps + done * sampling.steps // steps, total)

    for number, wiring in enumerate(wirings):
        videos = []
        for part, numbers in enumerate(batches):
            told = partial(report, number * len(batches) + part)
            chosen = rows[numbers.start : numbers.stop]
            videos.append(_compose(composer, clips, wiring, chosen.tolist(), numbers.start, sampling, told))
        made[wiring] = torch.cat(videos)
    return made


def _compose(
    composer: VideoComposer,
    clips: Clips,
    wiring: Wiring,
    chosen: Sequence[int],
    seed: int,
    sampling: Sampling,
    progress: Progress,
) -> Tensor:
    others = [(clip + 1) % len(clips) for clip in chosen]
    taken = {name: list(chosen) for name in wiring.own} | ({wiring.other: others} if wiring.other else {})
    video = compose(
        composer,
        [clips.texts[i] for i in taken["text"]] if "text" in taken else "",
        style=Style(clips.truth.style[taken["style"]]) if "style" in taken else None,
        # In the table's order, not in that of a set, which is another one at every run: sums round differently.
        conditions=[Condition(name, clips.conditions[name][taken[name]]) for name in CONDITIONS if name in taken],
        frames=clips.truth.video.shape[2],
        size=tuple(clips.truth.video.shape[-2:]),
        batch=len(chosen),
        seed=seed,
        sampler=sampling.sampler,
        steps=sampling.steps,
        guidance=sampling.guidance,
        progress=progress,
    )
    return (video * 255).round().to(torch.uint8)
