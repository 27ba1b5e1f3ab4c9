"""JSON and YAML as users and other programs hand them over, which may be broken, deep, or meant to do harm."""

import errno
import json
from pathlib import Path
from typing import Any

from .errors import reason

DEEPEST = 64
"""Levels of lists and mappings in each other: ours have six."""
LONGEST_YAML = 2**17
"""Characters. Its reader is slow, and recipes and settings have a few thousand."""
MOST_VALUES = 2**16
"""Values of a YAML, those that aliases repeat among them."""
_DEEP = f"it is nested deeper than {DEEPEST} levels"


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of a file. Raises OSError, also for pipes and devices, which may have no end, and ValueError."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "it is a pipe or a device, and no file")
    return path.read_text(encoding=encoding)


def parse_json(text: str | bytes, deepest: float = DEEPEST) -> Any:
    """The value of a JSON text.

    Raises ValueError, with a few words in one line, for what is no JSON or of more levels than `deepest`, which would
    end in a RecursionError in whatever walks over it.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(_DEEP) from None
    except ValueError as error:  # also text that is no Unicode, and numbers of thousands of digits
        raise ValueError(reason(error)) from error
    level, depth = [value], 0
    while level := [one for one in level if isinstance(one, (list, dict))]:
        depth += 1
        if depth > deepest:
            raise ValueError(_DEEP)
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return value


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, of plain types alone. Aliases are one object each time, and none holds itself.

    Raises ValueError, with a few words in one line, for what is no YAML, longer than LONGEST_YAML, deeper than DEEPEST,
    or of more than MOST_VALUES values.
    """
    import yaml

    if len(text) > LONGEST_YAML:
        raise ValueError(f"it has {len(text)} characters, expected at most {LONGEST_YAML}")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {})  # before it is built: merged mappings are copied, and ten lines of them fill all memory
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError(_DEEP) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(reason(error)) from error
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError("a value in it is not of the kind that its tag says") from error


def _measure(node: Any, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """How many values are in a node of YAML, written out, and in how many levels. `known`: of nodes seen, None of those
    that are being measured. Raises ValueError for too many of either."""
    if id(node) in known:
        found = known[id(node)]
        if found is None:
            raise ValueError("it has an alias inside of what the alias stands for")
        return found
    known[id(node)] = None
    inner = node.value if isinstance(node.value, list) else []  # of a mapping pairs of nodes
    inside = [_measure(one, known) for item in inner for one in (item if isinstance(item, tuple) else (item,))]
    count = 1 + sum(count for count, _ in inside)
    levels = 1 + max((levels for _, levels in inside), default=0)
    if levels > DEEPEST + 1:
        raise ValueError(_DEEP)
    if count > MOST_VALUES:
        raise ValueError(f"it has more than {MOST_VALUES} values, with those that its aliases repeat")
    known[id(node)] = count, levels
    return count, levels
