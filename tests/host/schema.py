"""The frozen ids and inputs of the nodes, which keep saved workflows valid.

After adding nodes or inputs, run `./vc python -m tests.host.schema` to add them to schema.json. It removes nothing.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FROZEN = Path(__file__).with_name("schema.json")

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
# Options that depend on ComfyUI or on the user's files, which are not frozen.
_OTHERS_LISTS = {("VC3DUNetSampler", "sampler_name"), ("VC3DUNetSampler", "scheduler"),
                 ("VCCheckpointLoader", "ckpt_name"), ("DepthSequence", "depth_model")}  # fmt: skip


def schema_of(nodes: dict[str, Any]) -> dict[str, Any]:
    """Return the frozen part of nodes in `/object_info`: inputs with type, default and options, and outputs."""
    return {
        name: {
            **{group: _inputs(name, info["input"].get(group, {})) for group in ("required", "optional")},
            "outputs": [[kind, label] for kind, label in zip(info["output"], info["output_name"], strict=True)],
        }
        for name, info in sorted(nodes.items())
    }


def _inputs(node: str, inputs: dict[str, Any]) -> list[dict[str, Any]]:
    entries = []
    for name, (kind, *rest) in inputs.items():
        options = rest[0] if rest else {}
        choices = kind if isinstance(kind, list) else options.get("options", [])  # newer ComfyUIs use the second form
        entry = {"name": name, "type": "COMBO" if isinstance(kind, list) else kind}
        if "default" in options:
            entry["default"] = options["default"]
        if choices and (node, name) not in _OTHERS_LISTS:
            entry["options"] = list(choices)
        entries.append(entry)
    return entries


def widgets(node: dict[str, Any]) -> list[str]:
    """Return the names of a node's widgets in the order in which a workflow file stores their values."""
    return [i["name"] for group in ("required", "optional") for i in node[group] if i["type"] in WIDGETS]


def main() -> None:
    """Update schema.json, unless that would break what it promises."""
    from tests.host.server import Host
    from tests.host.test_registration import broken_promises

    with TemporaryDirectory() as folder:
        host = Host.start(Path(folder) / "host")
        try:
            now = schema_of(host.pack_nodes())
        finally:
            host.stop()
    before = json.loads(FROZEN.read_text()) if FROZEN.exists() else {}
    if broken := broken_promises(before, now):
        sys.exit("\n".join(broken))
    FROZEN.write_text(written(now))


def written(nodes: dict[str, Any]) -> str:
    """Return a schema as JSON with one input per line, for readable diffs."""
    texts = []
    for name, groups in nodes.items():
        lists = [
            f"  {json.dumps(group)}: [" + ",".join(f"\n   {json.dumps(entry)}" for entry in entries) + "]"
            for group, entries in groups.items()
        ]
        texts.append(f" {json.dumps(name)}: {{\n" + ",\n".join(lists) + "}")
    return "{\n" + ",\n".join(texts) + "\n}\n"


if __name__ == "__main__":
    main()
