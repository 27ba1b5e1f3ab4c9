"""The rules that say which clips are dropped, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from training.data.caption_lists import Entry, printable
from training.data.cleaning.measuring import Measured
from training.data.cleaning.scenes import HASHES, Clip, SceneOptions

REASONS = {
    "missing": "files of the captions that do not exist",
    "caption": "clips without a usable caption",
    "image": "images, which have no motion",
    "unreadable": "files that cannot be read",
    "damaged": "ends of videos, from the first frame on that cannot be read",
    "black": "black frames",
    "short": "scenes that are too short",
    "still": "clips without motion",
    "letterbox": "clips with black bars",
    "duplicate": "clips that look like an earlier one",
}
"""Reason for dropping -> what it counts. The first rule that applies is a clip's reason."""

KEEPABLE = ("still", "letterbox", "duplicate")
"""Reasons that may be reported without dropping the clip."""


@dataclass(frozen=True)
class CleanOptions:
    """Thresholds. Those of 0 turn their rule off."""

    scenes: SceneOptions = field(default_factory=SceneOptions)
    still: float = 1.0  # levels, see `Clip.change`
    bars: float = 0.02  # fraction, see `Clip.bars`
    duplicates: float = 4.0  # bits of 64, see `mark_duplicates`
    keep: tuple[str, ...] = ()  # reasons for which clips are only reported


@dataclass(frozen=True)
class Result:
    """A clip, or a file that gave none, and what became of it."""

    entry: Entry
    clip: Clip | None  # None if nothing of the file can be read
    reason: str = ""  # one of REASONS, or "" without any
    detail: str = ""  # a sentence
    dropped: bool = False

    @property
    def seconds(self) -> float:
        return self.clip.seconds if self.clip else 0.0


# --- One file -------------------------------------------------------------------------------------------------------


def judged(entry: Entry, measured: Measured, options: CleanOptions) -> list[Result]:
    """The clips of a file, judged by all rules that need no other files."""
    results = [_judged(Result(entry, clip), options) for clip in measured.clips]
    if measured.reason:
        results.append(Result(entry, None, measured.reason, measured.problem, True))
    return results


def _short(clip: Clip, options: CleanOptions) -> str:
    if clip.frames < 2:
        return "It has only one frame."
    shortest = options.scenes.shortest
    short = clip.seconds < shortest - 1e-6
    return f"It is {clip.seconds:.2f} s long, less than {shortest:g} s." if short else ""


def _still(clip: Clip, options: CleanOptions) -> str:
    still = clip.change is not None and clip.change < options.still
    return f"Its pixels change by {clip.change:.2f} levels on average, less than {options.still:g}." if still else ""


def _letterbox(clip: Clip, options: CleanOptions) -> str:
    barred = 0 < options.bars <= clip.bars
    return f"A black bar covers {clip.bars:.1%} at each of two sides, {options.bars:.1%} or more." if barred else ""


RULES: Mapping[str, Callable[[Clip, CleanOptions], str]] = {
    "black": lambda clip, options: "All frames are black." if clip.black else "",
    "short": _short,
    "still": _still,
    "letterbox": _letterbox,
}
"""Reason -> a function that returns why it applies, or ""."""


def _judged(result: Result, options: CleanOptions) -> Result:
    for reason, rule in RULES.items():
        if detail := rule(result.clip, options):
            return with_reason(result, reason, detail, options)
    return result


def with_reason(result: Result, reason: str, detail: str, options: CleanOptions) -> Result:
    """The result with a reason, dropped unless the options keep it."""
    return replace(result, reason=reason, detail=detail, dropped=reason not in options.keep)


# --- Duplicates -----------------------------------------------------------------------------------------------------

_BITS = np.array([number.bit_count() for number in range(256)], np.uint8)


def mark_duplicates(results: Iterable[Result], options: CleanOptions) -> list[Result]:
    """The results, with the reason "duplicate" for each clip that looks like an earlier one.

    Clips are compared by the mean number of differing bits between the hashes of their frames: a re-encoded or resized
    copy differs by 0 to 3 of 64 bits, another scene by about 32. Parts of the same scene are not compared.
    """
    results = list(results)
    hashes = np.zeros((len(results), HASHES), np.uint64)
    scenes = np.zeros(len(results), np.int64)
    numbers: dict[tuple[str, int], int] = {}
    originals: list[Result] = []
    for place, result in enumerate(results):
        if result.dropped or not options.duplicates or not result.clip.hashes:
            continue
        count, scene = len(originals), numbers.setdefault((result.entry.file, result.clip.scene), len(numbers))
        hashes[count], scenes[count] = result.clip.hashes, scene
        differing = _BITS[(hashes[:count] ^ hashes[count]).view(np.uint8)]
        distances = np.where(scenes[:count] == scene, np.inf, differing.sum(axis=1) / HASHES)
        if count and (distance := distances.min()) <= options.duplicates:
            first = originals[int(distances.argmin())]
            original = f"{printable(first.entry.file)} from {first.clip.start:g} s on"
            limit = f"{distance:.1f} of 64 bits differ, at most {options.duplicates:g}"
            detail = f"It looks like {original} ({limit})."
            results[place] = with_reason(result, "duplicate", detail, options)
        else:
            originals.append(result)
    return results


def counts(results: Sequence[Result], dropped: bool) -> dict[str, dict[str, float]]:
    """For each reason that occurs the number of clips and their seconds, dropped or only reported ones."""
    totals = {}
    for reason in REASONS:
        group = [result for result in results if result.reason == reason and result.dropped == dropped]
        if group:
            totals[reason] = {"clips": len(group), "seconds": round(sum(result.seconds for result in group), 3)}
    return totals
