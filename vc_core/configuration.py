"""Dataclasses that check their values when they are created. pydantic checks, and the messages are our own.

Types are strict. Ranges are part of a field's type: `Annotated[int, Field(ge=1, le=64)]`. If pydantic is not installed,
nothing is checked: a machine that only trains the bundled checkpoint reads nothing but its own files.
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
"""Upper limit of a range that has none: larger than any sensible number."""

INTEGER = BeforeValidator(lambda value: value if type(value) is int else str(value))
"""For a Literal of integers: refuses 4.0 and True, which are equal to some integers."""


@dataclasses.dataclass(frozen=True)
class Spoken:
    """Words for a type: `expected` ends the sentence "Expected ...", `form` is the placeholder in help texts."""

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
        value: the field's value.
        hint: the field's type.
        kind: `section`: the value should be a mapping; `keys`: `value` is a list of unknown keys; `range`: a number is
            out of range; `type`: the type is wrong; `value`: the entire value is wrong.
        inner: names and indices that lead from the value to `item`, the part of it with the wrong range or type.
        message: from one of our own validators.
    """

    where: tuple[str | int, ...]
    value: Any
    hint: Any
    kind: Literal["section", "keys", "range", "type", "value"]
    inner: tuple[str | int, ...] = ()
    item: Any = None
    item_hint: Any = None
    message: str = ""


Describe = Callable[[Problem], str]


def checked(describe: Describe) -> Callable[[type], type]:
    """Turn a class into a frozen dataclass that checks its values, also those inside plain dataclasses in its fields.

    A wrong value raises a UserError with the text that `describe` returns.
    """

    def decorate(cls: type) -> type:
        if TypeAdapter is None:
            return dataclasses.dataclass(frozen=True)(cls)
        cls = pydantic_dataclass(frozen=True, config=_strict())(cls)
        unchecked = cls.__init__

        @functools.wraps(unchecked)
        def __init__(self: Any, *values: Any, **named: Any) -> None:
            try:
                unchecked(self, *values, **named)
            except ValidationError as error:
                values_by_name = dict(zip(_hints(cls), values, strict=False)) | named
                raise _own_error(cls, values_by_name, error, describe) from error

        cls.__init__ = __init__
        return cls

    return decorate


def fitted(cls: type, name: str, value: Any, describe: Describe) -> Any:
    """Return a value as the field `name` of a checked dataclass stores it. Raises UserError with `describe`'s text."""
    try:
        return _adapter(cls, name).validate_python(value)
    except ValidationError as error:
        raise _own_error(cls, {name: value}, error, describe, (name,)) from error


def build(kind: Any, plain: Any, describe: Describe, where: tuple[str | int, ...] = ()) -> Any:
    """Build a dataclass, and the dataclasses inside it, from the mappings and lists of a file.

    Raises:
        UserError: a section that is not a mapping, an unknown key, or a wrong value, with `describe`'s text.
        TypeError: a key is missing.
    """
    if dataclasses.is_dataclass(kind):
        if not isinstance(plain, Mapping):
            raise UserError(describe(Problem(where, plain, kind, "section")))
        hints = _hints(kind)
        if unknown := [key for key in plain if key not in hints]:
            raise UserError(describe(Problem(where, unknown, kind, "keys")))
        return kind(**{key: build(bare(hints[key]), item, describe, (*where, key)) for key, item in plain.items()})
    if get_origin(kind) is tuple and isinstance(plain, list):
        return tuple(build(get_args(kind)[0], item, describe, (*where, i)) for i, item in enumerate(plain))
    return plain


def words(hint: Any, ranges: bool = True) -> str:
    """Describe the values of a type, to follow "Expected": `an integer from 1 to 64`."""
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
        return "a mapping of names to values"
    if origin is tuple:
        many = f" of at most {limits(hint)['max_length']} items" if limits(hint) else ""
        many = many if arguments[1:] == (...,) else f" of {len(arguments)} items"
        each = ", each" if many else ", each item"
        return f"a list{many}" + (
            "" if dataclasses.is_dataclass(arguments[0]) else f"{each} {words(arguments[0], ranges)}"
        )
    noun = {Path: "a path", float: "a number", int: "an integer", bool: "true or false", str: "a string"}[inner]
    return noun + (bounds(**limits(hint)) if ranges else "")


def form(hint: Any) -> str:
    """Return the placeholder for a value in help texts; empty for a switch."""
    for note in reversed(get_args(hint)[1:] if get_origin(hint) is Annotated else ()):
        if isinstance(note, Spoken):
            return note.form
    if get_origin(hint) in (Annotated, Union, UnionType):
        return form(get_args(hint)[0])
    return {int: "N", float: "X", bool: ""}.get(hint, "NAME")


def limits(hint: Any) -> dict[str, Any]:
    """Return the limits of the `Field` in an Annotated type: `ge`, `gt`, `le`, `max_length`."""
    notes = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    every = [limit for note in notes for limit in getattr(note, "metadata", ())]
    return {k: getattr(limit, k) for limit in every for k in ("ge", "gt", "le", "max_length") if hasattr(limit, k)}


def bounds(ge: Any = None, le: Any = None, gt: Any = None) -> str:
    """Return a range in words, with a space in front: ` from 1 to 64`, ` of at least 1`, ` above 0 and at most 1`."""
    le = None if le == MORE else le
    low, high, above = (f"{limit:g}" if isinstance(limit, float) else str(limit) for limit in (ge, le, gt))
    if gt is not None:
        return f" above {above}" + (f" and at most {high}" if le is not None else "")
    if ge is None:
        return ""
    return f" of at least {low}" if le is None else f" from {low} to {high}"


def bare(hint: Any) -> Any:
    """Return a type without None and without its Annotated metadata."""
    return bare(get_args(hint)[0]) if get_origin(hint) in (Annotated, Union, UnionType) else hint


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _strict() -> "ConfigDict":
    return ConfigDict(strict=True, allow_inf_nan=False, extra="forbid", revalidate_instances="always")


@functools.cache
def _adapter(cls: type, name: str) -> "TypeAdapter":
    return TypeAdapter(_hints(cls)[name], config=_strict())


def _own_error(
    cls: type, values: Mapping[str, Any], error: Any, describe: Describe, before: tuple[str, ...] = ()
) -> Exception:
    """Turn pydantic's error into a UserError; into a TypeError, as other dataclasses raise it, for a missing or unknown
    field."""
    first = min(error.errors(), key=lambda item: item["type"] in _RANGES)  # types before ranges
    name, *rest = *before, *first["loc"]
    if name not in values or name not in _hints(cls):
        return TypeError(f"{cls.__name__}: {name}: {first['msg']}")
    where, value, hint = (name,), values[name], _hints(cls)[name]
    while rest:
        kind = bare(hint)
        if dataclasses.is_dataclass(kind):
            value, hint = getattr(value, rest[0]), _hints(kind)[rest[0]]
        elif get_origin(kind) is tuple and dataclasses.is_dataclass(get_args(kind)[0]):
            value, hint = value[rest[0]], get_args(kind)[0]
        else:
            break
        where = (*where, rest.pop(0))
    kind = "range" if first["type"] in _RANGES else "type" if first["type"] in _TYPES else "value"
    item_hint, inner = hint, rest[: rest.index("[key]") - 1] if "[key]" in rest else rest
    if kind == "value":
        inner, first = [], {**first, "input": value}
    for _ in inner:
        item_hint = get_args(bare(item_hint))[0 if get_origin(bare(item_hint)) is tuple else 1]
    if get_origin(item_hint) in (Union, UnionType):
        item_hint = get_args(item_hint)[0]
    message = str(first.get("ctx", {}).get("error", ""))
    return UserError(describe(Problem(where, value, hint, kind, tuple(inner), first["input"], item_hint, message)))


_RANGES = ("greater_than", "greater_than_equal", "less_than_equal", "finite_number")
_TYPES = ("int_type", "float_type", "string_type", "bool_type", "is_instance_of")
