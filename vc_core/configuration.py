"""Dataclasses whose values are checked when they are made: pydantic checks, and what does not fit is told in our words.

Types are strict, and ranges stand beside the fields: `Annotated[int, Field(ge=1, le=64)]`. Where pydantic is missing
nothing is checked: a machine that only trains the bundled checkpoint reads its own files alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import UserError

try:
    from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
    from pydantic.dataclasses import dataclass as pydantic_dataclass
except ImportError:
    TypeAdapter = None
    BeforeValidator = Field = lambda *_, **__: None

MORE = 10**30
"""Highest of a range without an end: beyond any number that is meant."""

WHOLE = BeforeValidator(lambda value: value if type(value) is int else str(value))
"""Of a Literal of whole numbers: refuses 4.0 and True, which equal some."""


@dataclasses.dataclass(frozen=True)
class Spoken:
    """Of a type: what a message says was expected, and what a help text shows in place of a value."""

    expected: str
    form: str = ""


File = Annotated[
    Path,
    BeforeValidator(lambda value: Path(value) if isinstance(value, str) and value else value),
    Spoken("a path", "FILE"),
]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A value that does not fit its field.

    Attributes:
        where: names and indices that lead to the field.
        value: of the field.
        hint: its type.
        kind: `section`, for what is no mapping; `keys`, of which `value` lists the unknown ones; `range` of a number;
            `type`; or `value`, as a whole.
        inner: what leads on to `item` in the value, where a part of it has the wrong range or type.
        said: by a check of ours.
    """

    where: tuple[str | int, ...]
    value: Any
    hint: Any
    kind: Literal["section", "keys", "range", "type", "value"]
    inner: tuple[str | int, ...] = ()
    item: Any = None
    item_hint: Any = None
    said: str = ""


Tell = Callable[[Problem], str]


def checked(tell: Tell) -> Callable[[type], type]:
    """Makes a frozen dataclass that refuses values by a UserError in `tell`'s words; what plain dataclasses in it hold
    is checked with it."""

    def decorate(cls: type) -> type:
        if TypeAdapter is None:
            return dataclasses.dataclass(frozen=True)(cls)
        cls = pydantic_dataclass(frozen=True, config=_strict())(cls)
        made = cls.__init__

        @functools.wraps(made)
        def __init__(self: Any, *values: Any, **named: Any) -> None:
            try:
                made(self, *values, **named)
            except ValidationError as error:
                given = dict(zip(_hints(cls), values, strict=False)) | named
                raise _refusal(cls, given, error, tell) from error

        cls.__init__ = __init__
        return cls

    return decorate


def fitted(cls: type, name: str, value: Any, tell: Tell) -> Any:
    """A value as the field of a checked dataclass would hold it. Raises UserError in `tell`'s words."""
    try:
        return _adapter(cls, name).validate_python(value)
    except ValidationError as error:
        raise _refusal(cls, {name: value}, error, tell, (name,)) from error


def build(kind: Any, plain: Any, tell: Tell, where: tuple[str | int, ...] = ()) -> Any:
    """A dataclass, with others in it, of the mappings and lists of a file.

    Raises:
        UserError: what is no mapping, unknown keys, and values that do not fit, in `tell`'s words.
        TypeError: a key is missing.
    """
    if dataclasses.is_dataclass(kind):
        if not isinstance(plain, Mapping):
            raise UserError(tell(Problem(where, plain, kind, "section")))
        hints = _hints(kind)
        if unknown := [key for key in plain if key not in hints]:
            raise UserError(tell(Problem(where, unknown, kind, "keys")))
        return kind(**{key: build(bare(hints[key]), item, tell, (*where, key)) for key, item in plain.items()})
    if get_origin(kind) is tuple and isinstance(plain, list):
        return tuple(build(get_args(kind)[0], item, tell, (*where, i)) for i, item in enumerate(plain))
    return plain


def words(hint: Any, ranges: bool = True) -> str:
    """What a value of a type is, as in `expected a whole number from 1 to 64`."""
    inner, notes = (get_args(hint)[0], get_args(hint)[1:]) if get_origin(hint) is Annotated else (hint, ())
    for note in reversed(notes):
        if isinstance(note, Spoken):
            return note.expected
    origin, arguments = get_origin(inner), get_args(inner)
    if origin in (Union, UnionType):  # with None
        return words(arguments[0], ranges)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is dict:
        return "names and values"
    if origin is tuple:
        many = f" of at most {limits(hint)['max_length']}" if limits(hint) else ""
        many = many if arguments[1:] == (...,) else f" of {len(arguments)}"
        return f"a list{many}" + (
            "" if dataclasses.is_dataclass(arguments[0]) else f", each {words(arguments[0], ranges)}"
        )
    noun = {Path: "a path", float: "a number", int: "a whole number", bool: "true or false", str: "a text"}[inner]
    return noun + (bounds(**limits(hint)) if ranges else "")


def form(hint: Any) -> str:
    """What a help text shows in place of a value; empty for a switch."""
    for note in reversed(get_args(hint)[1:] if get_origin(hint) is Annotated else ()):
        if isinstance(note, Spoken):
            return note.form
    if get_origin(hint) in (Annotated, Union, UnionType):
        return form(get_args(hint)[0])
    return {int: "N", float: "X", bool: ""}.get(hint, "NAME")


def limits(hint: Any) -> dict[str, Any]:
    """What `Field` says of a type in Annotated: `ge`, `gt`, `le`, `max_length`."""
    notes = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    said = [limit for note in notes for limit in getattr(note, "metadata", ())]
    return {k: getattr(limit, k) for limit in said for k in ("ge", "gt", "le", "max_length") if hasattr(limit, k)}


def bounds(ge: Any = None, le: Any = None, gt: Any = None) -> str:
    """A range in words, with a space in front."""
    le = None if le == MORE else le
    low, high, above = (f"{limit:g}" if isinstance(limit, float) else str(limit) for limit in (ge, le, gt))
    if gt is not None:
        return f" above {above}" + (f", at most {high}" if le is not None else "")
    return "" if ge is None else f" from {low}" + (f" to {high}" if le is not None else " on")


def bare(hint: Any) -> Any:
    """A type without None and without what Annotated says of it."""
    return bare(get_args(hint)[0]) if get_origin(hint) in (Annotated, Union, UnionType) else hint


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _strict() -> "ConfigDict":
    return ConfigDict(strict=True, allow_inf_nan=False, extra="forbid", revalidate_instances="always")


@functools.cache
def _adapter(cls: type, name: str) -> "TypeAdapter":
    return TypeAdapter(_hints(cls)[name], config=_strict())


def _refusal(cls: type, given: Mapping[str, Any], error: Any, tell: Tell, before: tuple[str, ...] = ()) -> Exception:
    """The UserError of what pydantic found; TypeError where a field is missing or unknown, as of other dataclasses."""
    found = min(error.errors(), key=lambda one: one["type"] in _RANGES)  # types first
    name, *rest = *before, *found["loc"]
    if name not in given or name not in _hints(cls):
        return TypeError(f"{cls.__name__}: {name}: {found['msg']}")
    where, value, hint = (name,), given[name], _hints(cls)[name]
    while rest:
        kind = bare(hint)
        if dataclasses.is_dataclass(kind):
            value, hint = getattr(value, rest[0]), _hints(kind)[rest[0]]
        elif get_origin(kind) is tuple and dataclasses.is_dataclass(get_args(kind)[0]):
            value, hint = value[rest[0]], get_args(kind)[0]
        else:
            break
        where = (*where, rest.pop(0))
    kind = "range" if found["type"] in _RANGES else "type" if found["type"] in _TYPES else "value"
    item_hint, inner = hint, rest[: rest.index("[key]") - 1] if "[key]" in rest else rest
    if kind == "value":
        inner, found = [], {**found, "input": value}
    for _ in inner:
        item_hint = get_args(bare(item_hint))[0 if get_origin(bare(item_hint)) is tuple else 1]
    if get_origin(item_hint) in (Union, UnionType):
        item_hint = get_args(item_hint)[0]
    said = str(found.get("ctx", {}).get("error", ""))
    return UserError(tell(Problem(where, value, hint, kind, tuple(inner), found["input"], item_hint, said)))


_RANGES = ("greater_than", "greater_than_equal", "less_than_equal", "finite_number")
_TYPES = ("int_type", "float_type", "string_type", "bool_type", "is_instance_of")
