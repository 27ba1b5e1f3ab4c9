"""Parse JSON and YAML from users and other programs, which may be broken, deeply nested or malicious."""

import errno
import json
from pathlib import Path
from typing import Any

from .errors import brief, reason

DEEPEST = 64
"""The most levels of nested lists and mappings. Our files have six."""
LONGEST_YAML = 2**17
"""The most characters of a YAML text: its parser is slow, and recipes and settings have a few thousand."""
MOST_VALUES = 2**16
"""The most values of a YAML text, counting those repeated by aliases."""
_DEEP = f"it is nested deeper than {DEEPEST} levels"


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Return the text of a file. Raises ValueError, and OSError, also for pipes and devices, which may be endless."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file")
    return path.read_text(encoding=encoding)


def parse_json(text: str | bytes, deepest: float = DEEPEST) -> Any:
    """Return the value of a JSON text.

    Raises ValueError with a short reason in one line, for invalid JSON and for more levels than `deepest`, which would
    cause a RecursionError in later code.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(_DEEP) from None
    except ValueError as error:  # also invalid Unicode, and numbers of thousands of digits
        raise ValueError(reason(error)) from error
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, (list, dict))]:
        depth += 1
        if depth > deepest:
            raise ValueError(_DEEP)
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return value


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text, only of plain types. Aliases give the same object, and none contains itself.

    Raises ValueError with a short reason in one line, for invalid YAML and for a text longer than LONGEST_YAML, deeper
    than DEEPEST, or with more than MOST_VALUES values.
    """
    import yaml

    if len(text) > LONGEST_YAML:
        raise ValueError(f"it has {len(text)} characters, expected at most {LONGEST_YAML}")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {})  # before building it, because merged mappings are copied: ten lines of them fill the memory
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError(_DEEP) from None
    except yaml.MarkedYAMLError as error:
        raise ValueError(brief(_marked(error), 200)) from error
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(reason(error)) from error
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError("a value does not match its YAML tag") from error


def _marked(error: Any) -> str:
    """Return a YAML error with its line: `line 3, column 1: expected ',' or ']', while parsing a flow
    sequence from line 2 on`."""
    start, mark = error.context_mark, error.problem_mark
    context = f", {error.context} from line {start.line + 1} on" if start and mark and start.line < mark.line else ""
    return f"{f'line {mark.line + 1}, column {mark.column + 1}: ' if mark else ''}{error.problem}{context}"


def _measure(node: Any, sizes: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Return (number of values, number of levels) of a YAML node with its aliases expanded. `sizes`: the results of
    visited nodes, None for unfinished ones. Raises ValueError if either number is too large."""
    if id(node) in sizes:
        size = sizes[id(node)]
        if size is None:
            raise ValueError("an alias contains itself")
        return size
    sizes[id(node)] = None
    items = node.value if isinstance(node.value, list) else []  # pairs of nodes for a mapping
    inside = [_measure(part, sizes) for item in items for part in (item if isinstance(item, tuple) else (item,))]
    count = 1 + sum(count for count, _ in inside)
    levels = 1 + max((levels for _, levels in inside), default=0)
    if levels > DEEPEST + 1:
        raise ValueError(_DEEP)
    if count > MOST_VALUES:
        raise ValueError(f"it has more than {MOST_VALUES} values, counting those repeated by aliases")
    sizes[id(node)] = count, levels
    return count, levels
