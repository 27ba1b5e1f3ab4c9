"""Writes `en/nodeDefs.json`, the nodes' English texts in the form that ComfyUI's page translates from.

    python locales/english.py http://127.0.0.1:8188

The texts are those of the nodes' schemas, as a running ComfyUI with this pack tells them. A test compares them.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

ENGLISH = Path(__file__).parent / "en" / "nodeDefs.json"


def node_texts(nodes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The English texts of nodes, as `/object_info` describes them, in the form of `nodeDefs.json`."""
    return {name: _texts(node) for name, node in nodes.items()}


def _texts(node: dict[str, Any]) -> dict[str, Any]:
    inputs = {
        name: {"name": name, "tooltip": spec[1]["tooltip"]}
        for group in ("required", "optional")
        for name, spec in node["input"].get(group, {}).items()
    }
    outputs = zip(node["output_name"], node["output_tooltips"], strict=True)
    return _escaped(
        {
            "display_name": node["display_name"],
            "description": node["description"],
            "inputs": inputs,
            "outputs": {str(i): {"name": name, "tooltip": tip} for i, (name, tip) in enumerate(outputs)},
        }
    )


def _escaped(text: Any) -> Any:
    """Texts in which the characters stand for themselves that vue-i18n would take for its syntax."""
    if isinstance(text, dict):
        return {key: _escaped(value) for key, value in text.items()}
    return "".join(f"{{'{c}'}}" if c in "{}@|$" else c for c in text)


def pack_nodes(object_info: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of all nodes of a ComfyUI those of this pack: every one in its categories."""
    return {name: node for name, node in object_info.items() if node["category"].split("/")[0] == "VideoComposer"}


if __name__ == "__main__":
    with urllib.request.urlopen(f"{sys.argv[1].rstrip('/')}/object_info") as reply:
        found = pack_nodes(json.load(reply))
    ENGLISH.write_text(json.dumps(node_texts(found), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    print(f"{ENGLISH}: {len(found)} nodes")
