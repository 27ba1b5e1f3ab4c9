"""Kinds of values that settings have: how each is read from a file or from an option's text, and how it is stored."""

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..conditions import CONDITIONS
from ..errors import spelled

BUNDLED = "bundled"
"""What stands for the checkpoint that comes with this package."""

MODES = ("released", "stream")
METHODS = ("auto", "pidinet", "edges")
EASINGS = ("linear", "ease_in", "ease_out", "ease_in_out")
WHITES = ("paint", "keep")
MASKS = ("strokes", "rectangles", "half")
"""As `vc_core.extract` has them, which takes a second to import; the tests compare them."""

APPLIED = (*CONDITIONS, "style")
"""What has a strength and a schedule."""


@dataclass(frozen=True)
class Kind:
    """How a value is read, shown and stored.

    Attributes:
        expected: what a message says was expected.
        read: from a file's value, or from one that was read already; raises `ValueError` for what is not possible,
            with the reason where there is more to say than `expected`.
        from_text: from the text of an option to what `read` takes; raises `ValueError`.
        plain: to what JSON holds, such that `read` gives the value back.
        each_path: (value, function) -> the value with the function applied to each path in it; None where it has none.
        form: what the help shows for the value; None for a switch.
        option: further arguments of `add_argument`.
        merges: a value given besides an older one is joined with it (mappings).
    """

    expected: str
    read: Callable[[Any], Any]
    from_text: Callable[[Any], Any] = lambda text: text
    plain: Callable[[Any], Any] = lambda value: value
    each_path: Callable[[Any, Callable[[Path], Path]], Any] | None = None
    form: str | None = None
    option: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    merges: bool = False


def _between(noun: str, low: float | None, high: float | None, above: float | None) -> str:
    bounds = [
        f"above {above:g}" if above is not None else "",
        f"from {low} on" if low is not None and high is None else "",
        f"from {low} to {high}" if low is not None and high is not None else "",
        f"at most {high:g}" if low is None and high is not None else "",
    ]
    return " ".join([noun, ", ".join(filter(None, bounds))]).strip()


def _within(value: float, low: float | None, high: float | None, above: float | None) -> float:
    inside = math.isfinite(value) and (low is None or value >= low) and (high is None or value <= high)
    if not inside or (above is not None and value <= above):
        raise ValueError
    return value


def whole(low: int | None = None, high: int | None = None) -> Kind:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError
        return int(_within(value, low, high, None))

    return Kind(_between("a whole number", low, high, None), read, int, form="N")


def number(low: float | None = None, high: float | None = None, above: float | None = None) -> Kind:
    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError
        return float(_within(value, low, high, above))

    return Kind(_between("a number", low, high, above), read, float, form="X")


def choice(names: Iterable[str]) -> Kind:
    names = tuple(names)

    def read(value: Any) -> str:
        if value not in names:
            raise ValueError(f"expected one of {', '.join(names)}{nearest(value, names)}")
        return value

    return Kind(f"one of {', '.join(names)}", read, form="NAME")


def nearest(word: Any, known: Iterable[str]) -> str:
    """A question that names what was probably meant; empty where nothing is near."""
    close = difflib.get_close_matches(spelled(word), list(known), n=1)
    return f" (is '{close[0]}' meant?)" if close else ""


def _read_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("expected text: put it in quotes")
    return value


def _read_path(value: Any) -> Path:
    if not isinstance(value, (str, Path)) or not str(value):
        raise ValueError
    return Path(value)


def _read_paths(value: Any) -> tuple[Path, ...]:
    return tuple(_read_path(item) for item in ([value] if isinstance(value, (str, Path)) else _listed(value)))


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise ValueError
    return list(value)


def _read_checkpoint(value: Any) -> Path | None:
    return None if value == BUNDLED else _read_path(value)


def _read_switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _read_conditions(value: Any) -> tuple[str, ...]:
    names = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else _listed(value)
    for name in names:
        _known(name, CONDITIONS)
    if len(set(names)) != len(names):
        raise ValueError("expected each condition once")
    return tuple(names)


def _known(name: Any, names: Iterable[str]) -> str:
    names = tuple(names)
    if name not in names:
        raise ValueError(
            f"unknown condition '{spelled(name)}', expected some of {', '.join(names)}{nearest(name, names)}"
        )
    return name


def _read_size(value: Any) -> tuple[int, int]:
    value = _read_canvas(value)
    for side in value:
        if side < 8 or side % 8:
            raise ValueError("expected multiples of 8, for instance 256x256")
    return value


def _read_canvas(value: Any) -> tuple[int, int]:
    """(height, width) from WIDTHxHEIGHT. A tuple was read already; a file's list would leave the order open."""
    if isinstance(value, str):
        width, _, height = value.lower().partition("x")
        value = (int(height), int(width))
    if not isinstance(value, tuple) or len(value) != 2 or min(value) < 1:
        raise ValueError
    return value


def _read_pair(value: Any) -> tuple[float, float]:
    first, second = (_read_factor(item) for item in _listed(value))
    return first, second


def _read_factor(value: Any) -> float:
    return number().read(value)


def _read_span(value: Any) -> tuple[float, float]:
    start, end = (_read_factor(item) for item in _listed(value))
    if not 0.0 <= start <= end <= 1.0:
        raise ValueError("expected 0 <= start <= end <= 1")
    return start, end


def _by_condition(form: str, instance: str, read: Callable[[Any], Any], from_text: Callable[[str], Any]) -> Kind:
    """A mapping from the names of conditions; as options, one NAME=VALUE each."""

    def read_all(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise ValueError
        return {_known(name, APPLIED): read(item) for name, item in value.items()}

    def from_texts(texts: list[str]) -> dict[str, Any]:
        pairs = (text.partition("=") for text in texts)
        try:
            return {name: from_text(item) for name, _, item in pairs}
        except ValueError:
            raise ValueError(f"expected {form}") from None

    return Kind(
        f"a mapping such as {instance}",
        read_all,
        from_texts,
        lambda value: {name: list(item) if isinstance(item, tuple) else item for name, item in value.items()},
        form=form,
        option={"action": "append"},
        merges=True,
    )


TEXT = Kind("text", _read_text, form="TEXT")
PATH = Kind("a path", _read_path, str, str, each_path=lambda path, change: change(path), form="FILE")
SWITCH = Kind("true or false", _read_switch)
PATHS = Kind(
    "a list of paths",
    _read_paths,
    plain=lambda paths: [str(path) for path in paths],
    each_path=lambda paths, change: tuple(map(change, paths)),
    form="FILE",
    option={"nargs": "+", "action": "extend"},
)
CHECKPOINT = dataclasses.replace(PATH, read=_read_checkpoint)
CONDITION_NAMES = Kind("names with commas", _read_conditions, plain=list, form="NAMES")
SIZE = Kind("WIDTHxHEIGHT, for instance 256x256", _read_size, plain=lambda s: f"{s[1]}x{s[0]}", form="WIDTHxHEIGHT")
CANVAS = dataclasses.replace(SIZE, expected="WIDTHxHEIGHT, for instance 512x512", read=_read_canvas)
PAIR = Kind(
    "two numbers, for instance 0.2,0", _read_pair, lambda text: [float(part) for part in text.split(",")], list,
    form="X,Y",
)  # fmt: skip
STRENGTHS = _by_condition("NAME=FACTOR", "{motion: 0.5}", _read_factor, float)
SCHEDULES = _by_condition(
    "NAME=START:END", "{style: [0, 0.6]}", _read_span, lambda text: [float(part) for part in text.split(":")]
)


def _read_device(value: Any) -> str:
    name, _, index = _read_text(value).partition(":")
    if name not in ("auto", "cpu", "cuda", "mps") or (":" in value and not (name == "cuda" and index.isdecimal())):
        raise ValueError
    return value


DEVICE = Kind("auto, cpu, cuda, cuda:N or mps", _read_device, form="NAME")
