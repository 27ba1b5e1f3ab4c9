"""The pack loads without a word of warning, and its nodes are as they were promised."""

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
    assert frozen == now, "new nodes or inputs: ./vc python -m tests.host.schema adds them to schema.json"


def broken_promises(frozen, now):
    """What has changed of the frozen schema, a sentence each. What is new may only come last.

    A socket that had to be connected may become optional: links are saved by the socket's name.
    """
    broken = []
    for node, old in frozen.items():
        if node not in now:
            broken.append(f"{node} is gone.")
            continue
        new = now[node]
        freed = [one for one in old["required"] if one["type"] not in WIDGETS and one in new["optional"]]
        old = {**old, "required": [one for one in old["required"] if one not in freed]}
        new = {**new, "optional": [one for one in new["optional"] if one not in freed]}
        for group in ("required", "optional"):
            for i, before in enumerate(old[group]):
                after = new[group][i] if i < len(new[group]) else None
                if after is None or {**before, "options": None} != {**after, "options": None}:
                    broken.append(f"{node}: {group} input {i} was {before} and is {after}.")
                elif lost := [option for option in before.get("options", []) if option not in after["options"]]:
                    broken.append(f"{node}: input {before['name']} no longer takes {lost}.")
        if widgets(new)[: len(widgets(old))] != widgets(old):
            broken.append(f"{node}: a new widget lies before old ones, whose values a workflow has by their place.")
        if new["outputs"][: len(old["outputs"])] != old["outputs"]:
            broken.append(f"{node}: the outputs were {old['outputs']} and are {new['outputs']}.")
    return broken


def test_a_broken_promise_is_seen(host):
    now = schema_of(host.pack_nodes())

    def changed(change):
        copy = json.loads(json.dumps(now))
        change(copy["VCSingleImage"]["required"])
        return broken_promises(now, copy)

    def freed(inputs, node):
        copy = json.loads(json.dumps(now))
        for name in inputs:
            (one,) = [each for each in copy[node]["required"] if each["name"] == name]
            copy[node]["required"].remove(one)
            copy[node]["optional"].insert(0, one)
        return broken_promises(now, copy)

    assert not freed(["video", "mask"], "VCMaskSequence") and not freed(["model"], "STCEncode")
    assert freed(["width"], "VCMaskSequence")  # a widget, whose value would be another's

    assert not changed(lambda inputs: inputs.append({"name": "new", "type": "INT", "default": 0}))
    assert changed(lambda inputs: inputs.insert(0, {"name": "new", "type": "INT", "default": 0}))
    assert changed(lambda inputs: inputs.pop())
    assert changed(lambda inputs: inputs.reverse())
    assert changed(lambda inputs: inputs[2].update(default=8))
    assert changed(lambda inputs: inputs[2].update(name="breadth"))
    assert broken_promises(now, {name: node for name, node in now.items() if name != "VCSingleImage"})
