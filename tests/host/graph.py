"""Graphs in ComfyUI's API format, written as a script."""

from typing import Any


class Node(str):
    """The id of a node; `node[i]` is the link to its output i."""

    def __getitem__(self, output: int) -> list[Any]:  # type: ignore[override]
        return [str(self), output]


class Graph(dict[str, Any]):
    """node id -> its class and inputs; what `Host.run` takes.

    Args:
        nodes: what ComfyUI says about all nodes, see `Host.object_info`.
    """

    def __init__(self, nodes: dict[str, Any]):
        super().__init__()
        self._nodes = nodes

    def add(self, kind: str, **inputs: Any) -> Node:
        """Adds a node. A `Node` among the inputs is its first output; widgets that are left out keep their default."""
        given = {name: value[0] if isinstance(value, Node) else value for name, value in inputs.items()}
        node = Node(len(self) + 1)
        self[str(node)] = {"class_type": kind, "inputs": {**defaults(self._nodes[kind]), **given}}
        return node

    def set(self, node: Node, **inputs: Any) -> None:
        """Changes inputs of a node that is there."""
        given = {name: value[0] if isinstance(value, Node) else value for name, value in inputs.items()}
        self[str(node)]["inputs"].update(given)


DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
"""A list whose choice brings inputs of its own, named as `format.codec`; newer ComfyUIs have it."""


def defaults(info: dict[str, Any]) -> dict[str, Any]:
    """Input -> default, of the required widgets of a node, and of those that the default of a list brings."""
    return _defaults(info["input"].get("required", {}), "")


def _defaults(inputs: dict[str, Any], prefix: str) -> dict[str, Any]:
    found = {}
    for name, spec in inputs.items():
        value = default(spec)
        if value is not None:
            found[prefix + name] = value
        found |= _defaults(brought(spec, value).get("required", {}), f"{prefix}{name}.")
    return found


def default(spec: list[Any]) -> Any:
    """The default of an input as `/object_info` tells it: what it says, else a list's first choice, else None."""
    kind, *rest = spec
    options = rest[0] if rest else {}
    choices = kind if isinstance(kind, list) else options.get("options") if kind in ("COMBO", DYNAMIC) else None
    if "default" in options or not choices:
        return options.get("default")
    return choices[0]["key"] if kind == DYNAMIC else choices[0]


def brought(spec: list[Any], value: Any) -> dict[str, Any]:
    """The inputs that a choice brings, {"required": {name: spec}, "optional": ...}, of names without the list's own."""
    options = spec[1]["options"] if spec[0] == DYNAMIC else []
    return next((option["inputs"] for option in options if option["key"] == value), {})
