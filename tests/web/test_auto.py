"""Numbers with an automatic value, on the page."""


def automatic(info):
    """Return {name: automatic value} of a node's numbers."""
    inputs = {**info["input"]["required"], **info["input"].get("optional", {})}
    return {name: spec[1]["videocomposer_auto"] for name, spec in inputs.items() if "videocomposer_auto" in spec[-1]}


def test_the_nodes_declare_their_automatic_numbers(browser):
    values = {node: automatic(info) for node, info in browser.host.pack_nodes().items()}
    size = dict.fromkeys(("frames", "width", "height"), 0)
    assert values["STCEncode"] == size
    assert values["MotionVectorExtract"] == {**size, "frame_rate": 0, "nominal_height": 0}
    assert values["DepthSequence"] == {**size, "frame_rate": 0, "depth_scale": 0}
    assert values["VCMotionFromTracks"] == {**size, "canvas_width": 0, "canvas_height": 0, "radius": 0}
    assert values["VC3DUNetSampler"] == {
        "steps": 0, "cfg": 0, "context_length": 0, "context_overlap": -1, "tile_size": 0, "tile_overlap": -1,
    }  # fmt: skip
    assert values["VCExampleClip"] == {}


def test_auto_is_shown_instead_of_the_automatic_number(browser, renderer):
    nodes = browser.host.pack_nodes()
    cases = {
        ("STCEncode", "frames", "24"): {"width", "height"},
        ("VC3DUNetSampler", "cfg", "7.5"): {"context_length", "context_overlap", "tile_overlap"},
    }
    inputs = [{"type": node, "name": widget, "typed": [text, "0"]} for node, widget, text in cases]
    report = browser.play("show_auto.js", cases=inputs, settings=renderer)
    assert not report.complaints
    for ((node, widget, text), others), looks in zip(cases.items(), report.result, strict=True):
        values = automatic(nodes[node])
        before, typed, again = ({name: item for name, item in look.items() if item[0] != "folded"} for look in looks)
        shown = {name for name in set(before) & set(values) if before[name][1] == values[name]}  # steps starts at 20
        assert widget in shown
        assert {name: value for name, (text, value) in before.items() if text == "auto"} == {
            n: values[n] for n in shown
        }
        assert typed[widget] == [text, float(text)]
        assert {name for name, (text, _) in typed.items() if text == "auto"} == shown & others
        assert again == before
