"""The types of settings: how options and files spell their values, and which values are allowed."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from ..checkpoint.reading import BUNDLED_LORA
from ..conditions import CONDITIONS
from ..configuration import MORE, File, Spoken
from ..errors import nearest, spelled
from ..extract import drawing
from ..extract.mask import POLARITIES, RANDOM_MASKS
from ..extract.motion.from_video import MODES
from ..extract.sketch.methods import METHODS

BUNDLED = "bundled"
"""The name of the checkpoint that comes with this package, and of its LoRA."""

EASINGS, WHITES, MASKS = tuple(drawing.EASINGS), tuple(POLARITIES), tuple(RANDOM_MASKS)

APPLIED = (*CONDITIONS, "style")
"""Everything that has a strength and a schedule."""


def _check_names(names: Iterable[Any], allowed: Iterable[str]) -> None:
    allowed = tuple(allowed)
    for name in names:
        if name not in allowed:
            raise ValueError(
                f"Unknown condition '{spelled(name)}'. Expected one or more of {', '.join(allowed)}."
                f"{_ELSEWHERE.get(spelled(name)) or nearest(name, allowed)}"
            )


_ELSEWHERE = {
    "text": " Set the text with --text, and its strength with --guidance.",
    "style": " Set the style with --style FILE.",
    "image": " For the first frame, use single_image.",
}
"""Inputs that users confuse with conditions -> where to set them."""


def _conditions(value: Any) -> Any:
    names = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
    if not isinstance(names, list | tuple):
        return value
    _check_names(names, CONDITIONS)
    if len({*names}) != len(names):
        raise ValueError("Expected each condition only once.")
    return tuple(names)


def _by_condition(value: Any) -> Any:
    if isinstance(value, Mapping):
        _check_names(value, APPLIED)
    elif isinstance(value, list | tuple):  # options that are not NAME=VALUE
        _check_names([name for name in _ELSEWHERE if name in value and name not in APPLIED], APPLIED)
    return value


def _by_file(value: Any) -> Any:
    """Read FILE, FILE=STRENGTH or a list of them; return a mapping of files to strengths. The file `BUNDLED` is the
    bundled LoRA."""
    strengths = _strengths(value)
    if not isinstance(strengths, Mapping):
        return value
    return {BUNDLED_LORA if file == BUNDLED else file: strength for file, strength in strengths.items()}


def _strengths(value: Any) -> Any:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        return value
    strengths = {}
    for text in texts:
        path, _, factor = text.rpartition("=")
        try:
            strengths[path or text] = float(factor) if path else 1.0
        except ValueError:  # a file name that contains =
            strengths[text] = 1.0
    if len({*map(Path, strengths)}) < len(texts):
        raise ValueError("Expected each file only once.")
    return strengths


def _by_image(value: Any) -> Any:
    """Read FILE=INDEX or a list of them, or a mapping of files to one or several indices; return the mapping."""
    if isinstance(value, Mapping):
        return {file: tuple(items) if isinstance(items, list | tuple) else (items,) for file, items in value.items()}
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        return value
    indices: dict[str, tuple[int, ...]] = {}
    for text in texts:
        path, _, index = text.rpartition("=")
        try:
            indices[path] = (*indices.get(path, ()), int(index))
        except ValueError:
            path = ""
        if not path:
            raise ValueError("Expected FILE=INDEX, e.g. last.png=-1 for the last frame.")
    return indices


def _by_frame(value: Any) -> Any:
    """Read FRAME=TEXT, a list of them, or a mapping, whose frames are strings in JSON."""
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts):
        value = dict(text.partition("=")[::2] for text in texts)
        if len(value) < len(texts):
            raise ValueError("Expected each frame only once.")
    if not isinstance(value, Mapping):
        return value
    prompts = {int(spelled(frame)): prompt for frame, prompt in value.items()}
    if min(prompts, default=1) < 1:
        raise ValueError("Expected frames after 0, because 'text' is the prompt of frame 0.")
    return prompts


def _sides(value: Any) -> Any:
    """Read WIDTHxHEIGHT; return (height, width). A tuple was read before. A list is refused: its order is unclear."""
    if not isinstance(value, str):
        return value
    width, _, height = value.lower().partition("x")
    return int(height), int(width)


def _eights(size: tuple[int, int]) -> tuple[int, int]:
    if any(side % 8 for side in size):
        raise ValueError("Expected multiples of 8, e.g. 256x256.")
    return size


def _span(span: tuple[float, float]) -> tuple[float, float]:
    if not 0.0 <= span[0] <= span[1] <= 1.0:
        raise ValueError("Expected 0 <= start <= end <= 1.")
    return span


def _device(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("Expected text in quotes.")
    name, _, index = value.partition(":")
    if name not in ("auto", "cpu", "cuda", "mps") or (":" in value and not (name == "cuda" and index.isdecimal())):
        raise ValueError
    return value


Text = Annotated[str, Spoken("text in quotes", "TEXT")]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Count = Annotated[int, Field(ge=1, le=MORE)]
UpTo64 = Annotated[int, Field(ge=1, le=64)]
Height = Annotated[int, Field(ge=16, le=8192)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Mode, Method, Easing, White = Literal[MODES], Literal[METHODS], Literal[EASINGS], Literal[WHITES]
Files = Annotated[
    tuple[File, ...],
    Field(strict=False),
    BeforeValidator(lambda value: (value,) if isinstance(value, str | Path) else value),
    Spoken("a list of paths", "FILE [FILE ...]"),
]
Checkpoint = Annotated[File | None, BeforeValidator(lambda value: None if value == BUNDLED else value)]
Conditions = Annotated[tuple[str, ...], BeforeValidator(_conditions), Spoken("names separated by commas", "NAMES")]
Canvas = Annotated[
    tuple[Count, Count],
    BeforeValidator(_sides),
    PlainSerializer(lambda size: f"{size[1]}x{size[0]}"),
    Spoken("WIDTHxHEIGHT, e.g. 512x512", "WIDTHxHEIGHT"),
]
Size = Annotated[Canvas, AfterValidator(_eights), Spoken("WIDTHxHEIGHT, e.g. 256x256", "WIDTHxHEIGHT")]
Pair = Annotated[tuple[float, float], Field(strict=False), Spoken("two numbers, e.g. 0.2,0", "X,Y")]
Strengths = Annotated[
    dict[str, float], BeforeValidator(_by_condition), Spoken("a mapping such as {motion: 0.5}", "NAME=NUMBER")
]
Loras = Annotated[
    dict[File, Annotated[float, Field(allow_inf_nan=False)]],
    BeforeValidator(_by_file),
    Spoken("paths, or a mapping of paths to strengths", "FILE[=STRENGTH]"),
]
Keyframes = Annotated[
    dict[File, tuple[Annotated[int, Field(ge=-MORE, le=MORE)], ...]],
    BeforeValidator(_by_image),
    Spoken("a mapping of images to frame numbers", "FILE=INDEX"),
]
TextsByFrame = Annotated[
    dict[int, str],
    BeforeValidator(_by_frame),
    Spoken("a mapping of frames to texts, such as {40: a blue square}", "FRAME=TEXT"),
]
Schedules = Annotated[
    dict[str, Annotated[tuple[float, float], Field(strict=False), AfterValidator(_span)]],
    BeforeValidator(_by_condition),
    Spoken("a mapping such as {style: [0, 0.6]}", "NAME=START:END"),
]
Answer = Annotated[
    bool,
    Field(strict=True),
    BeforeValidator(lambda value: value == "yes" if value in ("yes", "no") else value),
    Spoken("yes or no", "yes|no"),
]
Device = Annotated[str, BeforeValidator(_device), Spoken("auto, cpu, cuda, cuda:N or mps", "NAME")]
