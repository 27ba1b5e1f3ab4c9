"""Images and notes on condition nodes, and workflows from the time when all these nodes required a model."""

import json

from tests.host.server import REPOSITORY
from tests.host.test_templates import frozen_of, links_of

SIDES = {"VCSketchSequence": 96, "MotionVectorExtract": 96, "VCSingleImage": 96, "VCCameraMotion": 96}
"""Side of the enlarged images of conditions for the bundled checkpoint, which have 32 x 32 pixels."""
SECONDS = "Uses 0.00 s to 3.75 s of the clip, 4 frames per second."


def conditions_graph(host, speed):
    graph = host.graph()
    # Another speed and dtype each time, because the server sends no message for cached results.
    loader = graph.add("VCCheckpointLoader", weight_dtype="fp32" if speed == 1.0 else "bf16")
    clip = graph.add("VCExampleClip", frames=80, speed=speed)
    texts = [graph.add("CLIPTextEncode", text=text, clip=loader[1]) for text in ("a red circle", "")]
    video = {"model": loader, "video": clip[0]}
    conditions = {
        "sketch": graph.add("VCSketchSequence", **video),
        "motion": graph.add("VCCameraMotion", pan_right=0.3, add_to=graph.add("MotionVectorExtract", **video)),
        "single_image": graph.add("VCSingleImage", model=loader, image=clip[1]),
    }
    stc = graph.add("STCEncode", model=loader, positive=texts[0], negative=texts[1], **conditions)
    graph.add("PreviewAny", source=stc[3])
    return graph


def old_workflow():
    """Return a template as it was saved when `model` was the first socket of its condition nodes."""
    workflow = json.loads((REPOSITORY / "workflows" / "14 Everything together.json").read_text())
    links = {link[0]: link for link in workflow["links"]}
    for node in workflow["nodes"]:
        node.get("inputs", []).sort(key=lambda socket: socket["name"] != "model")
        for slot, socket in enumerate(node.get("inputs", [])):
            if socket.get("link") is not None:
                links[socket["link"]][4] = slot
    return workflow


def test_condition_nodes_show_what_the_network_sees_and_old_workflows_mean_the_same(browser, renderer):
    html = renderer["Comfy.VueNodes.Enabled"]
    report = browser.play("show_conditions.js", prompt=conditions_graph(browser.host, 2.0 if html else 1.0),
                        workflow=old_workflow(), shot="conditions_html" if html else "conditions", settings=renderer,
                        viewport={"width": 1800, "height": 1200})  # fmt: skip
    for run in report.result["runs"]:  # in the second run they are cached, and stay on their nodes
        assert run["ended"] == "execution_success"
        for kind, side in SIDES.items():
            shown = run["shown"][kind]
            assert shown["html"] == html and shown["images"] == [[side, side]], (kind, shown)
            assert shown["height"] > 60, (kind, shown)  # an older page shows them in their own size
        notes = {kind: shown["note"] for kind, shown in run["shown"].items()}
        assert notes["VCSketchSequence"] == notes["MotionVectorExtract"] == SECONDS
        assert notes["VCCheckpointLoader"].startswith("This checkpoint only knows simple drawn shapes at 64x64.")
    expected = frozen_of(old_workflow(), browser.host.object_info())
    assert {number: links_of(node) for number, node in report.result["output"].items()} == {
        number: links_of(node) for number, node in expected.items()
    }
    assert not report.complaints
