"""Captions of synthetic scenes, from a small grammar with variation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch

from vc_core.encoders.clip import tokenize

from .scenes import (
    BACKGROUNDS,
    CLIP_FRAMES,
    COLOR_NAMES,
    DIRECTION_WORDS,
    FAST,
    SHAPES,
    SLOW,
    STILL,
    Scenes,
    mix,
    uniform,
)

START, END = 49406, 49407  # CLIP's tokens before and after every text
PACES = ("", " slowly", " fast")
_CAPTION_STREAM = 1 << 20  # first of the random streams that the scenes themselves do not use


def caption_tokens(texts: Sequence[str]) -> torch.Tensor:
    """Token numbers (N, 77) of captions, equal to those of `vc_core.encoders.clip.tokenize`.

    Each of the grammar's few words is looked up once: a GPU processes scenes faster than the tokenizer splits texts.
    """
    rows = [[START, *(number for word in text.split() for number in _word(word)), END] for text in texts]
    return torch.tensor([row + [0] * (77 - len(row)) for row in rows])


@lru_cache(maxsize=4096)
def _word(word: str) -> tuple[int, ...]:
    first = tokenize([word])[0]
    return tuple(first[1 : int(first.argmax())].tolist())


def motion_class(scenes: Scenes) -> tuple[torch.Tensor, torch.Tensor]:
    """Direction and pace of the first object over a clip, as in captions: (N,) each.

    The direction is an index into DIRECTION_WORDS, or len(DIRECTION_WORDS) for an object that stands still; the pace is
    an index into PACES.
    """
    return _classes(scenes.displacement()[:, 0] / (CLIP_FRAMES - 1))


def _classes(step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    direction, speed = direction_class(step), step.norm(dim=-1)
    pace = torch.where(speed < SLOW, 1, torch.where(speed > FAST, 2, 0))
    return direction, torch.where(direction == len(DIRECTION_WORDS), 0, pace)


def direction_class(step: torch.Tensor) -> torch.Tensor:
    """The index into DIRECTION_WORDS of motions (..., 2) in frame widths per frame; len(DIRECTION_WORDS) if still."""
    dx, dy = step.unbind(-1)
    sector = (torch.atan2(dy, dx) / (math.pi / 4)).round().long() % len(DIRECTION_WORDS)
    return torch.where(torch.hypot(dx, dy) < STILL, len(DIRECTION_WORDS), sector)


def captions(scenes: Scenes, variation: int = 0, motion: float = 0.5, background: float = 0.5) -> list[str]:
    """One caption for each of N scenes: lower case, simple words, the first object named first.

    Args:
        variation: a number that picks one of the many captions of a scene; equal numbers give equal captions.
        motion: fraction of captions with direction and speed (0 for captions of single frames).
        background: fraction of captions with the background.
    """
    seeds = mix(scenes.seed.cpu() + variation * 0x51ED2701)
    motion_draw, background_draw, wording, other_draw = (uniform(seeds, _CAPTION_STREAM + i) for i in range(4))
    columns = (scenes.shape, scenes.color, scenes.count, scenes.background_kind, scenes.background_color)
    columns += _classes((scenes.displacement() / (CLIP_FRAMES - 1)).cpu().double())
    rows = zip(*(column.tolist() for column in columns), strict=True)
    result = []
    for i, (shape, color, count, kind, colors, direction, pace) in enumerate(rows):
        verb = "moving" if wording[i] < 0.7 else "going"
        parts = []
        for j in range(count):
            name = COLOR_NAMES[color[j]]
            words = f"{'an' if name[0] in 'aeiou' else 'a'} {name} {SHAPES[shape[j]]}"
            if motion_draw[i] < motion and (j == 0 or other_draw[i] < 0.5):
                still = direction[j] == len(DIRECTION_WORDS)
                words += " standing still" if still else f" {verb} {DIRECTION_WORDS[direction[j]]}{PACES[pace[j]]}"
            parts.append(words)
        text = " and ".join(parts)
        if background_draw[i] < background:
            first, second = (COLOR_NAMES[c] for c in colors)
            if BACKGROUNDS[kind] == "gradient":
                text += f" on a {first} and {second} gradient"
            else:
                joint = "on" if wording[i] < 0.4 else "on a background of" if wording[i] < 0.7 else "in front of"
                text += f" {joint} {first} and {second} {BACKGROUNDS[kind]}"
        result.append(text)
    return result
