"""The pack loads without warnings, and its nodes keep what was promised."""

import json

from tests.host.schema import FROZEN, WIDGETS, schema_of, widgets
from tests.host.server import PACK_FOLDER


def test_the_pack_loads_without_a_warning(host):
    about_us = [line for line in host.start_log.splitlines() if PACK_FOLDER in line]
    assert len(about_us) == 1, about_us
    assert "seconds:" in about_us[0] and "FAILED" not in about_us[0], about_us
    assert "Traceback" not in host.start_log


def test_everything_that_the_user_sees_has_a_text(host):
    lacking = []
    for name, info in host.pack_nodes().items():
        if "VideoComposer" not in info["display_name"] or not info["description"].endswith("."):
            lacking.append(name)
        if not info["category"].startswith("VideoComposer"):
            lacking.append(f"{name}: category")
        for group in ("required", "optional"):
            for key, (_, *options) in info["input"].get(group, {}).items():
                if not (options and options[0].get("tooltip")):
                    lacking.append(f"{name}: input {key}")
        tips = info.get("output_tooltips") or [None] * len(info["output"])
        lacking += [f"{name}: output {key}" for key, tip in zip(info["output_name"], tips, strict=True) if not tip]
    assert not lacking


def test_nothing_that_saved_workflows_rely_on_has_changed(host):
    assert not broken_promises(json.loads(FROZEN.read_text()), schema_of(host.pack_nodes()))


def test_every_node_and_input_is_frozen(host):
    frozen, now = json.loads(FROZEN.read_text()), schema_of(host.pack_nodes())
    assert frozen == now, "New nodes or inputs: add them to schema.json by ./vc python -m tests.host.schema"


def broken_promises(frozen, now):
    """Return a sentence for each incompatible change of the frozen schema. New items may only come last.

    A required socket may become optional, because links are saved by the socket's name.
    """
    broken = []
    for node, old in frozen.items():
        if node not in now:
            broken.append(f"{node} is missing.")
            continue
        new = now[node]
        freed = [entry for entry in old["required"] if entry["type"] not in WIDGETS and entry in new["optional"]]
        old = {**old, "required": [entry for entry in old["required"] if entry not in freed]}
        new = {**new, "optional": [entry for entry in new["optional"] if entry not in freed]}
        for group in ("required", "optional"):
            for i, before in enumerate(old[group]):
                after = new[group][i] if i < len(new[group]) else None
                if after is None or {**before, "options": None} != {**after, "options": None}:
                    broken.append(f"{node}: expected {before} as {group} input {i}, got {after}.")
                elif lost := [option for option in before.get("options", []) if option not in after["options"]]:
                    broken.append(f"{node}: input {before['name']} no longer has the options {lost}.")
        if widgets(new)[: len(widgets(old))] != widgets(old):
            broken.append(f"{node}: a new widget comes before old ones, whose values workflows store by position.")
        if new["outputs"][: len(old["outputs"])] != old["outputs"]:
            broken.append(f"{node}: expected the outputs {old['outputs']}, got {new['outputs']}.")
    return broken


def test_a_broken_promise_is_detected(host):
    now = schema_of(host.pack_nodes())

    def changed(change):
        copy = json.loads(json.dumps(now))
        change(copy["VCSingleImage"]["required"])
        return broken_promises(now, copy)

    def freed(inputs, node):
        copy = json.loads(json.dumps(now))
        for name in inputs:
            (entry,) = [item for item in copy[node]["required"] if item["name"] == name]
            copy[node]["required"].remove(entry)
            copy[node]["optional"].insert(0, entry)
        return broken_promises(now, copy)

    assert not freed(["video", "mask"], "VCMaskSequence") and not freed(["model"], "STCEncode")
    assert freed(["width"], "VCMaskSequence")  # a widget, whose value would move to another

    assert not changed(lambda inputs: inputs.append({"name": "new", "type": "INT", "default": 0}))
    assert changed(lambda inputs: inputs.insert(0, {"name": "new", "type": "INT", "default": 0}))
    assert changed(lambda inputs: inputs.pop())
    assert changed(lambda inputs: inputs.reverse())
    assert changed(lambda inputs: inputs[2].update(default=8))
    assert changed(lambda inputs: inputs[2].update(name="breadth"))
    assert broken_promises(now, {name: node for name, node in now.items() if name != "VCSingleImage"})
