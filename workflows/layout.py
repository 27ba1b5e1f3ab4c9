"""Graphs of ComfyUI nodes, and the files that its page loads: nodes with positions and sizes, links, groups, a note.

The page draws nodes with one of two renderers, LiteGraph's canvas or HTML ("Nodes 2.0"), and some nodes have more
widgets in later versions of ComfyUI. Each node gets the largest space that it may need.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

DYNAMIC, GROWING = "COMFY_DYNAMICCOMBO_V3", "COMFY_AUTOGROW_V3"
"""Types of newer ComfyUIs: a list that adds inputs for the selected item, and inputs that grow with their links."""
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC)
KINDS = ("required", "optional")
AFTER = ("control_after_generate", "fixed")
"""The widget that the page adds below a seed."""

TITLE, SLOT = 30, 20
GAP, MARGIN, HEADING, TALLEST = 40, 20, 34, 1600
WIDTH = 330
SIZES = {  # of nodes with previews or long texts
    "CLIPTextEncode": (360, 120),
    "ComfyMathExpression": (330, 200),
    "PreviewImage": (330, 340),
    "SaveVideo": (360, 460),
    "VCMotionFromTracks": (360, 900),
}
GROWS = {
    **dict.fromkeys(("VC3DUNetSampler", "VCSuperResolution"), 340),
    **dict.fromkeys(("MotionVectorExtract", "DepthSequence", "VCSketchSequence", "VCMaskSequence"), 350),
    **dict.fromkeys(("VCCameraMotion", "VCMotionFromTracks", "VCMotionPreview"), 300),
    **dict.fromkeys(("VCSingleImage", "VCSingleSketch"), 240),
    "VCCheckpointLoader": 125,
    **dict.fromkeys(("GetImageSize", "ImageBatch"), 70),
    **dict.fromkeys(
        ("FrameInterpolationModelLoader", "CLIPLoader", "CLIPVisionLoader", "VAELoader", "DifferentialDiffusion"), 40
    ),
}
"""Maximum growth of a node in pixels: by an image and a note during a run, or by an error about a missing file."""
NOTE, NOTE_COLORS = (360, 300), {"color": "#432", "bgcolor": "#653"}
NOTE_LINE, NOTE_LETTERS = 20, 66
"""Height of a note's line, and the number of letters per line; a note of 18 lines, empty ones included, fits `NOTE`."""
BOX = {"color": "#3f789e", "font_size": 24, "flags": {}}


@dataclass(frozen=True)
class Renderer:
    """Heights of the pieces of a renderer's nodes in pixels, measured on the page, without the title.

    Attributes:
        widget: one widget.
        ends: the space above, between and below the sockets and the widgets.
        badge: the name of the pack, below nodes that are not ComfyUI's own.
        button: the button below nodes with folded advanced widgets; 0 if these are shown like other widgets.
    """

    widget: int
    ends: int
    badge: int = 0
    button: int = 0

    def height(self, info: dict[str, Any]) -> int:
        """Return the height of a node with this entry in /object_info."""
        inputs = [spec for _, spec in specs(info, {})]
        rows = max(sum(not is_widget(spec) for spec in inputs), len(info["output"]))
        shown = [options(spec) for spec in inputs if is_widget(spec)]
        folded = [widget for widget in shown if self.button and widget.get("advanced")]
        count = len(shown) - len(folded)
        if self is CANVAS:
            count += sum(bool(widget.get("control_after_generate")) for widget in shown)
        own = info["python_module"].startswith("custom_nodes")
        return rows * SLOT + count * self.widget + self.ends + own * self.badge + bool(folded) * self.button


CANVAS, HTML = RENDERERS = Renderer(24, 16), Renderer(28, 14, badge=24, button=24)


class Output(NamedTuple):
    """An output of a node, to which other nodes connect."""

    node: int
    slot: int


@dataclass
class Node:
    """A node of a graph; `node["mask"]` and `node[3]` are its outputs.

    Attributes:
        models: files that the node needs, {"name", "url", "directory"}, which the page offers to download.
    """

    number: int
    kind: str
    group: str
    title: str
    values: dict[str, Any]
    links: dict[str, Output]
    info: dict[str, Any]
    later: dict[str, Any]
    models: list[dict[str, str]] = field(default_factory=list)
    place: tuple[int, int] = (0, 0)

    @property
    def outputs(self) -> list[str]:
        return self.info["output_name"]

    def __getitem__(self, output: int | str) -> Output:
        return Output(self.number, self.outputs.index(output) if isinstance(output, str) else output)

    @property
    def size(self) -> tuple[int, int]:
        """The saved (width, height): the size in LiteGraph."""
        return SIZES.get(self.kind) or (WIDTH, CANVAS.height(self.info))

    @property
    def room(self) -> int:
        """The maximum height in any renderer and version, with the title and previews."""
        heights = (renderer.height(info) for renderer in RENDERERS for info in (self.info, self.later))
        return TITLE + max(self.size[1], *heights) + GROWS.get(self.kind, 0)


@dataclass
class Graph:
    """Nodes in the order in which they were added: links point forward.

    Attributes:
        info: ComfyUI's /object_info.
        groups: titles of the groups, from left to right.
        later: the /object_info of a later version: nodes get enough space for their widgets there, and nodes that exist
            only there can be used.
    """

    info: dict[str, Any]
    groups: tuple[str, ...]
    later: dict[str, Any] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)

    def add(self, kind: str, group: str, title: str = "", **inputs: Any) -> Node:
        """Add a node; other widgets keep their defaults. Raises KeyError for inputs that the node does not have."""
        info = self.info.get(kind) or self.later[kind]
        by_name = dict(specs(info, inputs))
        if unknown := set(inputs) - set(by_name):
            raise KeyError(f"{kind} has no {sorted(unknown)}, but {list(by_name)}")
        links = {name: value for name, value in inputs.items() if isinstance(value, Output)}
        own = [name for name, spec in by_name.items() if is_widget(spec) and name not in links]
        values = {name: inputs.get(name, default(by_name[name])) for name in own}
        if extra := set(inputs) - set(links) - set(values):
            raise KeyError(f"{kind}: {sorted(extra)} are sockets, which need the output of a node")
        later = self.later.get(kind, info)
        node = Node(len(self.nodes) + 1, kind, group, title or "", values, links, info, later)
        self.nodes.append(node)
        return node


def specs(info: dict[str, Any], values: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return (name, entry in /object_info) of a node's inputs, in the page's order.

    A list that adds inputs is followed by the inputs of its item in `values`, or of its default, with names such as
    `format.codec`. Of growing inputs the first two are included, with names such as `values.a`.
    """
    return [
        item
        for kind in KINDS
        for name in info["input_order"].get(kind, ())
        for item in with_inner(name, info["input"][kind][name], values)
    ]


def with_inner(name: str, spec: Any, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    if spec[0] == GROWING:
        (inner,) = options(spec)["template"]["input"]["required"].values()
        yield from ((f"{name}.{each}", inner) for each in options(spec)["template"]["names"][:2])
        return
    yield name, spec
    for option in options(spec)["options"] if spec[0] == DYNAMIC else ():
        if option["key"] == values.get(name, default(spec)):
            for kind in KINDS:
                for inner, inner_spec in option["inputs"].get(kind, {}).items():
                    yield from with_inner(f"{name}.{inner}", inner_spec, values)


def options(spec: Any) -> dict[str, Any]:
    return spec[1] if len(spec) > 1 else {}


def is_widget(spec: Any) -> bool:
    return (isinstance(spec[0], list) or spec[0] in WIDGETS) and not options(spec).get("forceInput")


def default(spec: Any) -> Any:
    choices = spec[0] if isinstance(spec[0], list) else options(spec).get("options")
    if spec[0] == DYNAMIC:
        choices = [choice["key"] for choice in choices]
    return options(spec).get("default", choices[0] if choices else "")


def widgets(node: Node) -> list[tuple[str, Any]]:
    """Return (name, value) of a node's widgets, as the page stores them."""
    stored = []
    for name, spec in specs(node.info, node.values):
        if is_widget(spec):
            stored.append((name, node.values.get(name, default(spec))))
            if options(spec).get("control_after_generate"):
                stored.append(AFTER)
    return stored


def prompt(graph: Graph) -> dict[str, Any]:
    """Return the graph in ComfyUI's API format."""
    return {
        str(node.number): {
            "class_type": node.kind,
            "inputs": {**node.values, **{name: [str(o.node), o.slot] for name, o in node.links.items()}},
        }
        for node in graph.nodes
    }


# ---------------------------------------------------------------------------------------------------------------
# The page's format
# ---------------------------------------------------------------------------------------------------------------


def workflow(graph: Graph, name: str, note: str) -> dict[str, Any]:
    """Lay out the graph and return it in the page's file format, version 0.4, with a note at the top left."""
    size = note_size(note)
    groups = arrange(graph, size[1])
    types = {Output(n.number, i): kind for n in graph.nodes for i, kind in enumerate(n.info["output"])}
    links, ins = [], {}
    for node in graph.nodes:
        for slot, (socket, _) in enumerate(ordered(node)):
            if socket in node.links:
                origin = node.links[socket]
                links.append([len(links) + 1, origin.node, origin.slot, node.number, slot, types[origin]])
                ins[node.number, socket] = len(links)
    last = len(graph.nodes) + 1
    nodes = [ui_node(node, order, ins, links) for order, node in enumerate(graph.nodes, 1)]
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"videocomposer/{name}")),
        "revision": 0,
        "last_node_id": last,
        "last_link_id": len(links),
        "nodes": [note_node(last, note, size), *nodes],
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {"ds": {"scale": 0.65, "offset": [60, 140]}},
        "version": 0.4,
    }


def ordered(node: Node) -> list[tuple[str, Any]]:
    """Return a node's inputs in the page's numbering: sockets, then inputs with a widget."""
    return sorted(specs(node.info, node.values), key=lambda item: is_widget(item[1]))


def ui_node(node: Node, order: int, ins: dict[tuple[int, str], int], links: list[list[Any]]) -> dict[str, Any]:
    optional = node.info["input"].get("optional", {})
    inputs: list[dict[str, Any]] = []
    for name, spec in ordered(node):
        entry = {"name": name, "type": "COMBO" if isinstance(spec[0], list) else spec[0]}
        entry |= {"shape": 7} if name in optional and not is_widget(spec) else {}
        entry |= {"widget": {"name": name}} if is_widget(spec) else {}
        entry |= {"label": name.rpartition(".")[2]} if "." in name else {}
        inputs.append({**entry, "link": ins.get((node.number, name))})
    outputs = [
        {
            "name": title,
            "type": kind,
            "links": [link[0] for link in links if link[1:3] == [node.number, slot]] or None,
        }
        for slot, (title, kind) in enumerate(zip(node.outputs, node.info["output"], strict=True))
    ]
    return {
        "id": node.number,
        "type": node.kind,
        "pos": list(node.place),
        "size": list(node.size),
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        **({"title": node.title} if node.title else {}),
        "properties": {"Node name for S&R": node.kind, **({"models": node.models} if node.models else {})},
        "widgets_values": [value for _, value in widgets(node)],
    }


def note_size(text: str) -> tuple[int, int]:
    lines = sum(len(line) // NOTE_LETTERS + 1 for line in text.split("\n"))
    return NOTE[0], NOTE[1] + NOTE_LINE * max(0, lines - 18)


def note_node(number: int, text: str, size: tuple[int, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": "MarkdownNote",
        "pos": [0, 0],
        "size": list(size),
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": "About this template",
        "properties": {},
        "widgets_values": [text],
        **NOTE_COLORS,
    }


# ---------------------------------------------------------------------------------------------------------------
# Layout
# ---------------------------------------------------------------------------------------------------------------


def arrange(graph: Graph, note: int) -> list[dict[str, Any]]:
    """Place the nodes, group by group from left to right, each group in columns; return the groups' boxes.

    The first group is below the note; `note` is the note's height.
    """
    boxes, left = [], 0
    for title in graph.groups:
        top = 0 if boxes else note + GAP + HEADING
        right, low = left - GAP, top
        for column in columns([node for node in graph.nodes if node.group == title], TALLEST - top):
            right, y = right + GAP, top
            for node in column:
                node.place = (right, y + TITLE)
                y += node.room + GAP // 2
            right += max(node.size[0] for node in column)
            low = max(low, y)
        if right > left:
            box = [left - MARGIN, top - HEADING, right - left + 2 * MARGIN, low - top + HEADING]
            boxes.append({"id": len(boxes) + 1, "title": title, "bounding": box, **BOX})
            left = right + 2 * MARGIN + GAP
    return boxes


def columns(nodes: list[Node], tallest: int) -> list[list[Node]]:
    """Split the nodes, in their order, into columns that are not too tall."""
    tall = itertools.accumulate((node.room + GAP // 2 for node in nodes), initial=0)
    result: list[list[Node]] = []
    start = 0
    for node, above in zip(nodes, tall, strict=False):
        if not result or above - start + node.room > tallest:
            result.append([])
            start = above
        result[-1].append(node)
    return result
