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


def defaults(info: dict[str, Any]) -> dict[str, Any]:
    """Input -> default, of the required widgets of a node."""
    found = {}
    for name, (kind, *rest) in info["input"].get("required", {}).items():
        options = rest[0] if rest else {}
        if "default" in options:
            found[name] = options["default"]
        elif isinstance(kind, list) and kind:
            found[name] = kind[0]
        elif kind == "COMBO" and options.get("options"):
            found[name] = options["options"][0]
    return found
