"""Numbers of which one value is automatic, on the page."""


def automatic(info):
    """{name: value} of a node's numbers of which a value leaves it to the node."""
    inputs = {**info["input"]["required"], **info["input"].get("optional", {})}
    return {name: spec[1]["videocomposer_auto"] for name, spec in inputs.items() if "videocomposer_auto" in spec[-1]}


def test_the_nodes_say_which_numbers_may_be_automatic(browser):
    found = {node: automatic(info) for node, info in browser.host.pack_nodes().items()}
    size = dict.fromkeys(("frames", "width", "height"), 0)
    assert found["STCEncode"] == size
    assert found["MotionVectorExtract"] == {**size, "frame_rate": 0, "nominal_height": 0}
    assert found["DepthSequence"] == {**size, "frame_rate": 0, "depth_scale": 0}
    assert found["VCMotionFromTracks"] == {**size, "canvas_width": 0, "canvas_height": 0, "radius": 0}
    assert found["VC3DUNetSampler"] == {"steps": 0, "cfg": 0, "context_length": 0, "context_overlap": -1}
    assert found["VCExampleClip"] == {}


def test_auto_is_shown_in_place_of_the_number_that_means_it(browser, renderer):
    nodes = browser.host.pack_nodes()
    cases = {
        ("STCEncode", "frames", "24"): {"width", "height"},
        ("VC3DUNetSampler", "cfg", "7.5"): {"context_length", "context_overlap"},
    }
    given = [{"type": node, "name": widget, "typed": [text, "0"]} for node, widget, text in cases]
    seen = browser.play("show_auto.js", cases=given, settings=renderer)
    assert not seen.complaints
    for ((node, widget, text), others), looks in zip(cases.items(), seen.result, strict=True):
        values = automatic(nodes[node])
        before, typed, again = ({name: one for name, one in look.items() if one[0] != "folded"} for look in looks)
        shown = {name for name in set(before) & set(values) if before[name][1] == values[name]}  # steps begins at 20
        assert widget in shown
        assert {name: value for name, (text, value) in before.items() if text == "auto"} == {
            n: values[n] for n in shown
        }
        assert typed[widget] == [text, float(text)]
        assert {name for name, (text, _) in typed.items() if text == "auto"} == shown & others
        assert again == before
