"""Build graphs in ComfyUI's API format."""

from typing import Any


class Node(str):
    """The id of a node; `node[i]` is the link to its output i."""

    def __getitem__(self, output: int) -> list[Any]:  # type: ignore[override]
        return [str(self), output]


class Graph(dict[str, Any]):
    """Node id -> class and inputs of the node, for `Host.run`.

    Args:
        nodes: ComfyUI's description of all nodes, see `Host.object_info`.
    """

    def __init__(self, nodes: dict[str, Any]):
        super().__init__()
        self._nodes = nodes

    def add(self, kind: str, **inputs: Any) -> Node:
        """Add a node. A `Node` as an input is its first output. Widgets that are not passed keep their default."""
        linked = {name: value[0] if isinstance(value, Node) else value for name, value in inputs.items()}
        node = Node(len(self) + 1)
        self[str(node)] = {"class_type": kind, "inputs": {**defaults(self._nodes[kind]), **linked}}
        return node

    def set(self, node: Node, **inputs: Any) -> None:
        """Change inputs of an existing node."""
        linked = {name: value[0] if isinstance(value, Node) else value for name, value in inputs.items()}
        self[str(node)]["inputs"].update(linked)


DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
"""Type of a combo in newer ComfyUIs whose options add inputs, named like `format.codec`."""


def defaults(info: dict[str, Any]) -> dict[str, Any]:
    """Return input -> default, of a node's required widgets and of those that a combo's default option adds."""
    return _defaults(info["input"].get("required", {}), "")


def _defaults(inputs: dict[str, Any], prefix: str) -> dict[str, Any]:
    values = {}
    for name, spec in inputs.items():
        value = default(spec)
        if value is not None:
            values[prefix + name] = value
        values |= _defaults(brought(spec, value).get("required", {}), f"{prefix}{name}.")
    return values


def default(spec: list[Any]) -> Any:
    """Return the default of an input in `/object_info`, otherwise a combo's first option, otherwise None."""
    kind, *rest = spec
    options = rest[0] if rest else {}
    choices = kind if isinstance(kind, list) else options.get("options") if kind in ("COMBO", DYNAMIC) else None
    if "default" in options or not choices:
        return options.get("default")
    return choices[0]["key"] if kind == DYNAMIC else choices[0]


def brought(spec: list[Any], value: Any) -> dict[str, Any]:
    """Return the inputs that an option adds, {"required": {name: spec}, "optional": ...}, without their prefix."""
    options = spec[1]["options"] if spec[0] == DYNAMIC else []
    return next((option["inputs"] for option in options if option["key"] == value), {})
