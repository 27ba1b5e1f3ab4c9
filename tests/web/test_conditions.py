"""What condition nodes show on themselves on the page, and workflows from when they all wanted a model."""

import json

from tests.host.server import REPOSITORY
from tests.host.test_templates import frozen_of, links_of

SIDES = {"VCSketchSequence": 96, "MotionVectorExtract": 96, "VCSingleImage": 96, "VCCameraMotion": 96}
"""Of the pictures of conditions for the bundled checkpoint, 32 pixels a side, enlarged."""
SECONDS = "Seconds 0.00 to 3.75 of the clip, 4 frames a second."


def conditions_graph(host, speed):
    graph = host.graph()
    # Another speed and type each time: what is in the server's cache is told to no page.
    loader = graph.add("VCCheckpointLoader", weight_dtype="fp32" if speed == 1.0 else "bf16")
    clip = graph.add("VCExampleClip", frames=80, speed=speed)
    texts = [graph.add("CLIPTextEncode", text=text, clip=loader[1]) for text in ("a red circle", "")]
    video = {"model": loader, "video": clip[0]}
    made = {
        "sketch": graph.add("VCSketchSequence", **video),
        "motion": graph.add("VCCameraMotion", pan_right=0.3, add_to=graph.add("MotionVectorExtract", **video)),
        "single_image": graph.add("VCSingleImage", model=loader, image=clip[1]),
    }
    stc = graph.add("STCEncode", model=loader, positive=texts[0], negative=texts[1], **made)
    graph.add("PreviewAny", source=stc[3])
    return graph


def saved_once():
    """A template as it was saved when `model` was the first socket of its condition nodes."""
    workflow = json.loads((REPOSITORY / "workflows" / "14 Everything together.json").read_text())
    links = {link[0]: link for link in workflow["links"]}
    for node in workflow["nodes"]:
        node.get("inputs", []).sort(key=lambda one: one["name"] != "model")
        for slot, one in enumerate(node.get("inputs", [])):
            if one.get("link") is not None:
                links[one["link"]][4] = slot
    return workflow


def test_condition_nodes_show_what_the_network_sees_and_old_workflows_mean_the_same(browser, renderer):
    html = renderer["Comfy.VueNodes.Enabled"]
    seen = browser.play("show_conditions.js", prompt=conditions_graph(browser.host, 2.0 if html else 1.0),
                        workflow=saved_once(), shot="conditions_html" if html else "conditions", settings=renderer,
                        viewport={"width": 1800, "height": 1200})  # fmt: skip
    for run in seen.result["runs"]:  # the second has them in the cache, and they stay on their nodes
        assert run["ended"] == "execution_success"
        for kind, side in SIDES.items():
            shown = run["shown"][kind]
            assert shown["html"] == html and shown["pictures"] == [[side, side]], (kind, shown)
            assert shown["drawn"] > 60, (kind, shown)  # an older page shows them as they are
        notes = {kind: shown["note"] for kind, shown in run["shown"].items()}
        assert notes["VCSketchSequence"] == notes["MotionVectorExtract"] == SECONDS
        assert notes["VCCheckpointLoader"].startswith("This checkpoint knows simple drawn shapes at 64x64 only.")
    expected = frozen_of(saved_once(), browser.host.object_info())
    assert {number: links_of(node) for number, node in seen.result["told"].items()} == {
        number: links_of(node) for number, node in expected.items()
    }
    assert not seen.complaints
