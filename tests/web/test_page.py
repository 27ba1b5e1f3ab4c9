"""The real page: the tracks' editor, the previews, the templates and the languages."""

import json
import re
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import pytest

from tests.host.test_tracks import disc, draw_picture, frames, moving
from tests.web.conftest import PACK_FOLDER

WIDE = {"width": 2400, "height": 1200}  # for pictures of whole graphs
REPOSITORY = Path(__file__).parents[2]
# The page looks for models that templates name, and may reach none from where tests run.
DOWNLOAD = ("huggingface.co", "Error fetching file size")
NETWORK = "tft2v_vcomposer_non_ema_254000.pth"  # which `./vc get` brings, and not the page
TEMPLATES = sorted((REPOSITORY / "workflows").glob("*.json"))


def points(*pairs):
    return [{"x": x, "y": y} for x, y in pairs]


def test_tracks_are_drawn_and_written_into_the_text(browser, renderer):
    seen = browser.play("edit_tracks.js", settings=renderer)
    steps = seen.result
    assert not seen.complaints
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
    assert steps["unreadable"][0] == "nonsense" and "no JSON" in steps["unreadable"][1]
    assert steps["unsized"] == [points((16, 32), (48, 32)), 0, 0]
    assert steps["sized"] == [points((16, 32), (48, 32), (48, 56)), 64, 64] == steps["loaded"]
    assert (steps["editorsAfterUndo"], steps["editors"], steps["editorsAfterClear"]) == (1, 1, 0)
    assert steps["prompt"][0] == "tracks" and "videocomposer_tracks" not in steps["prompt"]


def near(found, expected):
    """Whether tracks are those that were meant: a click is somewhere in a pixel of the page."""
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(near, found, expected))
    return found == pytest.approx(expected, abs=1)


PICTURES = {"wide": (854, 480), "tall": (480, 854), "square": (512, 512)}


def test_what_is_drawn_on_a_picture_is_what_moves(browser, renderer):
    host, places = browser.host, {}
    for name, size in PICTURES.items():
        places[name] = draw_picture(host.folder / "input" / f"{name}.png", size)
    pictures = [{"path": str(host.folder / "input" / f"{name}.png"), "at": place} for name, place in places.items()]
    prompt = host.graph()
    image, model = prompt.add("LoadImage", image="wide.png"), prompt.add("VCCheckpointLoader")
    # Nothing that is cached from the other renderer, since what does not run tells the page nothing.
    share = 0.9 if renderer["Comfy.VueNodes.Enabled"] else 0.8
    motion = prompt.add("VCMotionFromTracks", model=model, image=image, radius=64.0, end_percent=share)
    prompt.add("PreviewImage", images=motion[1])
    settings = {**renderer, "Comfy.RightSidePanel.IsOpen": True}
    seen = browser.play("draw_on_picture.js", pictures=pictures, prompt=prompt, settings=settings)
    assert not [text for text in seen.complaints if "gone.png" not in text]  # which is asked for, and not there

    graph, shown = host.graph(), {}
    model = graph.add("VCCheckpointLoader")
    for (name, size), place, drawn in zip(PICTURES.items(), places.values(), seen.result["drawn"], strict=True):
        assert drawn["name"] == f"{name}.png [input]"
        assert drawn["blue"][0] == 0 < drawn["blue"][1], name
        # What was there before has kept its place on the canvas, a quarter to three quarters of it.
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

    kept = seen.result["kept"]
    assert kept["before"] == [True, 2, 512] and kept["characters"] < 5000
    assert [kept[step] for step in ("undone", "loaded", "back")] == [[True, 1, 512]] * 3
    assert kept["copied"] and "different shapes, so the tracks do not fit" in kept["bent"]
    assert kept["away"] == [False, 1, 512, "Background…"]
    assert "gone.png is not in ComfyUI's input folder" in kept["gone.png [input]"][1]
    assert "run again" in kept["gone.png [temp]"][1]
    assert [kept[name][::2] for name in ("gone.png [input]", "gone.png [temp]")] == [[0, "Background…"]] * 2

    beside = seen.result["beside"]
    assert beside["before"] == beside["after"] > 300
    assert not beside.get("rows") and beside.get("others", True)

    ran = seen.result["ran"]
    assert ran["ended"] == "execution_success" and ran["blue"] > 0
    assert ran["before"] == [points((128, 256), (384, 256)), 512, 512]
    assert ran["after"][1:] == [854, 480] and near(ran["after"][0], points((213.5, 240), (640.5, 240)))


def test_previews_come_and_go_with_their_messages(browser, renderer):
    seen = browser.play("send_previews.js", settings=renderer)
    # The newest page reads the picture of a stock preview in a way that its own policy refuses.
    assert not [text for text in seen.complaints if "blob:" not in text]
    assert seen.result == {
        "nothing": False,  # for another node, another class, a picture that is none
        "stockAlone": True,
        "shown": True,
        "stockBeside": False,
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


def test_a_note_goes_when_its_node_runs_again(browser, renderer):
    seen = browser.play("send_notes.js", settings=renderer)
    assert not seen.complaints
    assert seen.result == {
        "before": ["16 frames", "16 frames"], "after": ["", "16 frames"], "found": True, "whole": True,
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


@pytest.mark.slow  # 5 runs at the pace of their previews
def test_a_run_from_the_page_is_previewed_frame_by_frame(browser):
    own, stock = video_graph(browser.host), video_graph(browser.host, "KSampler")
    cases = {
        "own": {"prompt": own, "shot": "preview"},
        "stock": {"prompt": stock, "sampler": "KSampler"},
        "subgraph": {"prompt": own, "subgraph": True, "shot": "preview_subgraph"},
        "replaced": {"prompt": video_graph(browser.host, steps=20), "replace": True},
        "interrupted": {"prompt": video_graph(browser.host, steps=500), "interrupt": True},
    }
    seen = browser.play("watch_preview.js", cases=[{"sampler": "VC3DUNetSampler", **case} for case in cases.values()])
    assert not seen.complaints
    for name, run in zip(cases, seen.result, strict=True):
        assert run["ended"] == ("execution_interrupted" if name == "interrupted" else "execution_success"), name
        (sampler,) = run["samplers"]
        assert run["nodes"] == ([sampler.split(":")[0], sampler] if name == "subgraph" else [sampler]), name
        assert (run["connected"], run["stock"], run["left"], run["pixels"]) == (True, False, 0, [512, 512]), name
        ((before, after),) = run["sizes"]
        assert before == after, name
        assert {message["node"] for message in run["messages"]} == {sampler}
        assert all((message["frames"], message["rate"]) == (16, 8) for message in run["messages"])
    runs = dict(zip(cases, seen.result, strict=True))
    assert len(runs["own"]["messages"]) == len(runs["stock"]["messages"]) == 6
    assert len(runs["interrupted"]["messages"]) < 100
    assert all(run["pictures"] >= 16 for run in runs.values())  # the frames of a message are played


@pytest.mark.skipif(not TEMPLATES, reason="there are no templates in workflows/")
def test_every_template_loads_as_it_was_saved_and_nothing_overlaps(browser, renderer):
    graphs = {template.stem: json.loads(template.read_text()) for template in TEMPLATES}
    known = {*browser.host.object_info(), "MarkdownNote"}
    names = [name for name, graph in graphs.items() if {node["type"] for node in graph["nodes"]} <= known]
    assert len(names) >= len(graphs) - 1  # one needs nodes that only later ComfyUIs have
    seen = browser.play("load_templates.js", templates=names, pack=PACK_FOLDER, viewport=WIDE, settings=renderer)
    assert not [text for text in seen.complaints if not any(said in text for said in DOWNLOAD)]
    for name in names:
        loaded = seen.result[name]
        assert loaded["thumbnail"], name
        nodes = graphs[name]["nodes"]
        to_download = [n["type"] for n in nodes if "models" in n["properties"] or n["widgets_values"][:1] == [NETWORK]]
        files = [model["name"] for n in nodes for model in n["properties"].get("models", [])]
        if loaded["dialogs"] and files:  # in which older pages tell of them
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


def test_the_list_of_templates_is_in_the_order_of_their_use():
    names = [template.stem for template in TEMPLATES]
    assert [name[:3] for name in names] == [f"{number:02} " for number in range(1, len(names) + 1)]
    assert all(re.fullmatch(r"\d\d [A-Z][a-z ]+", name) for name in names)  # what every address and file system takes


@pytest.mark.slow
@pytest.mark.skipif(not TEMPLATES, reason="there are no templates in workflows/")
@pytest.mark.parametrize("name", ["02 Motion from a clip", "07 Repaint an area that moves"])
def test_a_template_runs_from_the_page_to_its_end(browser, renderer, name):
    graph = json.loads((REPOSITORY / "workflows" / f"{name}.json").read_text())
    case = {"graph": graph, "sampler": "VC3DUNetSampler", "shot": "template_run"}
    seen = browser.play("watch_preview.js", cases=[case], settings=renderer)
    (run,) = seen.result
    assert not seen.complaints
    assert run["ended"] == "execution_success"
    assert [message["node"] for message in run["messages"]] == run["samplers"] * 12
    assert run["nodes"] == run["samplers"] and run["pictures"] >= 16 and run["left"] == 0
    assert run["misplaced"] == []  # with the pictures and notes that the nodes show now


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_speaks_the_language(browser, language):
    nodes = browser.host.pack_nodes()
    settings = {"Comfy.Locale": language}
    given = {"nodes": list(nodes), "help": "DepthSequence", "shot": f"nodes_{language}"}
    seen = browser.play("read_texts.js", **given, settings=settings, viewport=WIDE)
    # In English the page first asks for a file that no pack needs to have, and then takes the one without a language.
    assert not [text for text in seen.complaints if not text.endswith("/DepthSequence/en.md")]
    title = {"en": "Depth Sequence", "zh": "深度序列"}[language]
    assert title in seen.result["help"] and "midas_v3_dpt_large.pth" in seen.result["help"]
    folder = REPOSITORY / "locales" / language
    texts, categories = (json.loads((folder / f"{name}.json").read_text()) for name in ("nodeDefs", "main"))
    for name, node in nodes.items():
        shown, expected = seen.result["texts"][name], texts[name]
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
