"""The real page: the tracks' editor, the previews, the templates and the languages."""

import json
import re
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import pytest

from tests.host.test_tracks import disc, draw_picture, frames, moving
from tests.web.conftest import PACK_FOLDER

WIDE = {"width": 2400, "height": 1200}  # for screenshots of complete graphs
REPOSITORY = Path(__file__).parents[2]
# The page queries the model files that templates list, and may have no network connection during tests.
DOWNLOAD = ("huggingface.co", "Error fetching file size")
# Downloaded by `./vc get`, not by the page.
NETWORKS = ("tft2v_vcomposer_non_ema_254000.pth", "sr_step_110000_ema.pth")
TEMPLATES = sorted((REPOSITORY / "workflows").glob("*.json"))


def points(*pairs):
    return [{"x": x, "y": y} for x, y in pairs]


def test_tracks_are_drawn_and_written_into_the_text(browser, renderer):
    report = browser.play("edit_tracks.js", settings=renderer)
    steps = report.result
    assert not report.complaints
    first, second = points((128, 256), (256, 256), (384, 400)), points((60, 60))
    expected = {
        "fresh": points((128, 256), (384, 256)),
        "added": points((128, 256), (384, 256), (450, 100)),
        "inserted": points((128, 256), (256, 256), (384, 256), (450, 100)),
        "moved": points((128, 256), (256, 256), (384, 400), (450, 100)),
        "clamped": points((128, 256), (256, 256), (384, 400), (512, 100)),
        "deleted": first,
        "second": [first, second + points((60, 200))],
        "doubled": [first, second],
        "doubledOnNothing": [first, second + points((300, 480))],
        "undone": [first, second + points((300, 480))],
        "cleared": [],
    }
    for step, tracks in expected.items():
        assert near(steps[step][0], tracks) and steps[step][1:] == [512, 512], step
    for step, box, path in (
        ("box", (300, 60, 120, 100), points((360, 110), (360, 300))),
        ("secondBox", (60, 320, 60, 100), points((90, 370))),
    ):
        assert list(steps[step]["box"].values()) == pytest.approx(box, abs=2), step
        assert near(steps[step]["path"], path), step
    assert (steps["boxes"], steps["boxesAfterUndo"]) == (1, 2)
    assert steps["deprecated"] == []
    assert steps["textShown"] == 3
    assert steps["unreadable"][0] == "nonsense" and "is not valid JSON for tracks" in steps["unreadable"][1]
    assert steps["unsized"] == [points((16, 32), (48, 32)), 0, 0]
    assert steps["sized"] == [points((16, 32), (48, 32), (48, 56)), 64, 64] == steps["loaded"]
    assert (steps["editorsAfterUndo"], steps["editors"], steps["editorsAfterClear"]) == (1, 1, 0)
    assert steps["prompt"][0] == "tracks" and "videocomposer_tracks" not in steps["prompt"]


def near(tracks, expected):
    """Whether tracks are equal within one pixel, because a click has only the precision of a page pixel."""
    if isinstance(expected, list):
        return len(tracks) == len(expected) and all(map(near, tracks, expected))
    return tracks == pytest.approx(expected, abs=1)


PICTURES = {"wide": (854, 480), "tall": (480, 854), "square": (512, 512)}


def test_the_object_under_the_drawn_track_moves(browser, renderer):
    host, places = browser.host, {}
    for name, size in PICTURES.items():
        places[name] = draw_picture(host.folder / "input" / f"{name}.png", size)
    pictures = [{"path": str(host.folder / "input" / f"{name}.png"), "at": place} for name, place in places.items()]
    prompt = host.graph()
    image, model = prompt.add("LoadImage", image="wide.png"), prompt.add("VCCheckpointLoader")
    # A different value for each renderer, so that nothing is cached: cached nodes send no message to the page.
    end = 0.9 if renderer["Comfy.VueNodes.Enabled"] else 0.8
    motion = prompt.add("VCMotionFromTracks", model=model, image=image, radius=64.0, end_percent=end)
    prompt.add("PreviewImage", images=motion[1])
    settings = {**renderer, "Comfy.RightSidePanel.IsOpen": True}
    report = browser.play("draw_on_picture.js", pictures=pictures, prompt=prompt, settings=settings)
    assert not [text for text in report.complaints if "gone.png" not in text]  # the test requests this missing file

    graph, shown = host.graph(), {}
    model = graph.add("VCCheckpointLoader")
    for (name, size), place, drawn in zip(PICTURES.items(), places.values(), report.result["drawn"], strict=True):
        assert drawn["name"] == f"{name}.png [input]"
        assert drawn["blue"][0] == 0 < drawn["blue"][1], name
        # The first track keeps its position on the canvas: from a quarter to three quarters of its width.
        (width, height), (tracks, *canvas) = size, drawn["scaled"]
        assert canvas == [width, height], name
        assert near(tracks, points((width / 4, height / 2), (width * 3 / 4, height / 2))), name
        tracks, *canvas = drawn["tracks"]
        assert canvas == [width, height], name
        assert near(tracks, points(place, (place[0] + 60, place[1]))), name
        image = graph.add("LoadImage", image=f"{name}.png")
        motion = graph.add("VCMotionFromTracks", model=model, tracks=json.dumps(tracks),
                           canvas_width=canvas[0], canvas_height=canvas[1])  # fmt: skip
        preview = graph.add("VCMotionPreview", motion=motion, images=image)
        single = graph.add("VCSingleImage", model=model, image=image)[1]
        shown[name] = [graph.add("PreviewImage", images=images) for images in (preview, single)]
    result = host.run(graph)
    for name, (arrows, single) in shown.items():
        pictures, (first,) = frames(result, arrows), frames(result, single)
        assert moving(pictures) == pytest.approx(disc(first), abs=0.05), name

    states = report.result["persistence"]
    assert states["before"] == [True, 2, 512] and states["characters"] < 5000
    assert [states[step] for step in ("undone", "loaded", "back")] == [[True, 1, 512]] * 3
    assert states["copied"] and "different aspect ratios, so the tracks are misplaced" in states["bent"]
    assert states["away"] == [False, 1, 512, "Background…"]
    assert "gone.png is not in ComfyUI's input folder" in states["gone.png [input]"][1]
    assert "Run again to see it" in states["gone.png [temp]"][1]
    assert [states[name][::2] for name in ("gone.png [input]", "gone.png [temp]")] == [[0, "Background…"]] * 2

    panel = report.result["panel"]
    assert panel["before"] == panel["after"] > 300
    assert not panel.get("rows") and panel.get("others", True)

    run = report.result["run"]
    assert run["ended"] == "execution_success" and run["blue"] > 0
    assert run["before"] == [points((128, 256), (384, 256)), 512, 512]
    assert run["after"][1:] == [854, 480] and near(run["after"][0], points((213.5, 240), (640.5, 240)))


def test_previews_start_and_end_with_their_messages(browser, renderer):
    report = browser.play("send_previews.js", settings=renderer)
    # The newest page reads the image of a stock preview in a way that its own security policy refuses.
    assert not [text for text in report.complaints if "blob:" not in text]
    assert report.result == {
        "nothing": False,  # for another node, another class, a damaged image
        "onlyStock": True,
        "shown": True,
        "stockWithOurs": False,
        "pixels": [512, 256],
        "colors": True,
        "grown": True,
        "saved": True,
        "stays": True,
        "ended": True,
        "still": True,
        "ends": ["executing", "status", "execution_start", "execution_success", "reconnecting"],
        "late": False,
        "widgets": 1,
        "resizedStays": True,
        "off": False,
        "removed": True,
    }


def test_a_note_disappears_when_its_node_runs_again(browser, renderer):
    report = browser.play("send_notes.js", settings=renderer)
    assert not report.complaints
    assert report.result == {
        "before": ["16 frames", "16 frames"], "after": ["", "16 frames"], "exists": True, "fullyVisible": True,
    }  # fmt: skip


def video_graph(host, sampler="VC3DUNetSampler", steps=6, frames=0):
    graph = host.graph()
    checkpoint = graph.add("VCCheckpointLoader")
    text = graph.add("CLIPTextEncode", text="a red circle", clip=checkpoint[1])
    none = graph.add("CLIPTextEncode", text="", clip=checkpoint[1])
    inputs = {"positive": text, "negative": none, "frames": frames}
    encode = graph.add("STCEncode", model=checkpoint, **inputs)
    latent = {"latent_image" if sampler == "KSampler" else "latent": encode[2]}
    inputs = {"positive": encode[0], "negative": encode[1], "steps": steps, "cfg": 2.0, **latent}
    samples = graph.add(sampler, model=checkpoint, **inputs)
    images = graph.add("VAEDecode", samples=samples, vae=checkpoint[3])
    graph.add("SaveAnimatedWEBP", images=images, filename_prefix="page")
    return graph


@pytest.mark.slow  # 5 runs at the speed of their previews
def test_a_run_from_the_page_is_previewed_frame_by_frame(browser):
    own, stock = video_graph(browser.host), video_graph(browser.host, "KSampler")
    cases = {
        "own": {"prompt": own, "shot": "preview"},
        "stock": {"prompt": stock, "sampler": "KSampler"},
        "subgraph": {"prompt": own, "subgraph": True, "shot": "preview_subgraph"},
        "replaced": {"prompt": video_graph(browser.host, steps=20), "replace": True},
        "interrupted": {"prompt": video_graph(browser.host, steps=500), "interrupt": True},
    }
    report = browser.play("watch_preview.js", cases=[{"sampler": "VC3DUNetSampler", **case} for case in cases.values()])
    assert not report.complaints
    for name, run in zip(cases, report.result, strict=True):
        assert run["ended"] == ("execution_interrupted" if name == "interrupted" else "execution_success"), name
        (sampler,) = run["samplers"]
        assert run["nodes"] == ([sampler.split(":")[0], sampler] if name == "subgraph" else [sampler]), name
        assert (run["connected"], run["stock"], run["remaining"], run["pixels"]) == (True, False, 0, [512, 512]), name
        ((before, after),) = run["sizes"]
        assert before == after, name
        assert {message["node"] for message in run["messages"]} == {sampler}
        assert all((message["frames"], message["rate"]) == (16, 8) for message in run["messages"])
    runs = dict(zip(cases, report.result, strict=True))
    assert len(runs["own"]["messages"]) == len(runs["stock"]["messages"]) == 6
    assert len(runs["interrupted"]["messages"]) < 100
    assert all(run["images"] >= 16 for run in runs.values())  # the frames of a message are played


@pytest.mark.skipif(not TEMPLATES, reason="there are no templates in workflows/")
def test_every_template_loads_as_it_was_saved_and_nothing_overlaps(browser, renderer):
    graphs = {template.stem: json.loads(template.read_text()) for template in TEMPLATES}
    available = {*browser.host.object_info(), "MarkdownNote"}
    names = [name for name, graph in graphs.items() if {node["type"] for node in graph["nodes"]} <= available]
    assert len(names) >= len(graphs) - 1  # one template needs nodes that only later ComfyUIs have
    report = browser.play("load_templates.js", templates=names, pack=PACK_FOLDER, viewport=WIDE, settings=renderer)
    assert not [text for text in report.complaints if not any(words in text for words in DOWNLOAD)]
    for name in names:
        loaded = report.result[name]
        assert loaded["thumbnail"], name
        nodes = graphs[name]["nodes"]
        to_download = [
            n["type"] for n in nodes if "models" in n["properties"] or {*n["widgets_values"][:1]} & {*NETWORKS}
        ]
        files = [model["name"] for n in nodes for model in n["properties"].get("models", [])]
        if loaded["dialogs"] and files:  # older pages list them in a dialog
            (dialog,) = loaded["dialogs"]
            assert [file for file in files if file not in dialog] == []
        else:
            assert (loaded["missing"], loaded["dialogs"]) == (to_download, []), name
        assert loaded.get("error") is None, name
        assert loaded["nodes"][0] == loaded["nodes"][1] and loaded["links"][0] == loaded["links"][1], name
        assert loaded["changed"] == [], name
        assert loaded["prompt"], name
        assert loaded["grown"] > 100, name
        assert (loaded["misplaced"], loaded["misplacedWithPreview"]) == ([], []), name


def test_the_list_of_templates_is_in_order_of_use():
    names = [template.stem for template in TEMPLATES]
    assert [name[:3] for name in names] == [f"{number:02} " for number in range(1, len(names) + 1)]
    assert all(re.fullmatch(r"\d\d [A-Z][a-z ]+", name) for name in names)  # valid in every address and file system


@pytest.mark.slow
@pytest.mark.skipif(not TEMPLATES, reason="there are no templates in workflows/")
@pytest.mark.parametrize("name", ["02 Motion from a clip", "07 Repaint an area that moves"])
def test_a_template_runs_from_the_page_to_its_end(browser, renderer, name):
    graph = json.loads((REPOSITORY / "workflows" / f"{name}.json").read_text())
    case = {"graph": graph, "sampler": "VC3DUNetSampler", "shot": "template_run"}
    report = browser.play("watch_preview.js", cases=[case], settings=renderer)
    (run,) = report.result
    assert not report.complaints
    assert run["ended"] == "execution_success"
    assert [message["node"] for message in run["messages"]] == run["samplers"] * 12
    assert run["nodes"] == run["samplers"] and run["images"] >= 16 and run["remaining"] == 0
    assert run["misplaced"] == []  # with the images and notes that the nodes show now


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_uses_the_language(browser, language):
    nodes = browser.host.pack_nodes()
    settings = {"Comfy.Locale": language}
    inputs = {"nodes": list(nodes), "help": "DepthSequence", "shot": f"nodes_{language}"}
    report = browser.play("read_texts.js", **inputs, settings=settings, viewport=WIDE)
    # In English the page first requests a file that no pack needs to have, then the file without a language.
    assert not [text for text in report.complaints if not text.endswith("/DepthSequence/en.md")]
    title = {"en": "Depth Sequence", "zh": "深度序列"}[language]
    assert title in report.result["help"] and "midas_v3_dpt_large.pth" in report.result["help"]
    folder = REPOSITORY / "locales" / language
    texts, categories = (json.loads((folder / f"{name}.json").read_text()) for name in ("nodeDefs", "main"))
    for name, node in nodes.items():
        shown, expected = report.result["texts"][name], texts[name]
        assert (shown["title"], shown["description"]) == (expected["display_name"], expected["description"]), name
        path = node["category"].split("/")
        assert shown["category"] == "/".join(categories["nodeCategories"][part] for part in path), name
        for key, label in {**shown["inputs"], **shown["widgets"]}.items():
            if key in expected["inputs"]:
                assert label == expected["inputs"][key]["name"], (name, key)
        assert shown["outputs"] == [text["name"] for text in expected["outputs"].values()], name


@pytest.mark.parametrize("ending", [".md", "/zh.md"])
def test_the_help_pages_are_served(browser, ending):
    for node in browser.host.pack_nodes():
        with urlopen(f"{browser.host.url}/extensions/{quote(PACK_FOLDER)}/docs/{node}{ending}") as page:
            assert page.read().startswith(b"# ")
