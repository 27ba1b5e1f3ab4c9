"""Write `en/nodeDefs.json`, the English texts of the nodes in the format of ComfyUI's translations.

    python locales/english.py http://127.0.0.1:8188

The texts come from the nodes' schemas in a running ComfyUI with this pack. A test checks that they are up to date.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

ENGLISH = Path(__file__).parent / "en" / "nodeDefs.json"


def node_texts(nodes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the English texts of nodes from `/object_info` in the format of `nodeDefs.json`."""
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
    """Escape the characters in texts that are syntax in vue-i18n."""
    if isinstance(text, dict):
        return {key: _escaped(value) for key, value in text.items()}
    return "".join(f"{{'{c}'}}" if c in "{}@|$" else c for c in text)


def pack_nodes(object_info: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Select the nodes of this pack, by their category."""
    return {name: node for name, node in object_info.items() if node["category"].split("/")[0] == "VideoComposer"}


if __name__ == "__main__":
    with urllib.request.urlopen(f"{sys.argv[1].rstrip('/')}/object_info") as reply:
        nodes = pack_nodes(json.load(reply))
    ENGLISH.write_text(json.dumps(node_texts(nodes), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    print(f"{ENGLISH}: {len(nodes)} nodes")
