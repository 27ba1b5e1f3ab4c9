"""The templates: every saved version must run for ever, and its video must show what it promises.

templates.json contains every released version of every template, as the page saves it and as ComfyUI must understand
it. After adding or changing a template, run `./vc python -m tests.host.test_templates` to add the new version. It
removes nothing.
"""

import importlib
import json
import math
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.host.finding import find_comfyuis
from tests.host.graph import DYNAMIC, brought, default
from tests.host.scene import BUNDLED
from tests.host.server import REPOSITORY, Host, environment
from vc_core.checkpoint.released import to_released
from vc_core.config import UNetConfig
from vc_core.demo import RATE, RED, STRIPES, VELOCITY, draw_clip, follow
from vc_core.families import VGEN_NEGATIVE, VGEN_SUFFIX
from vc_core.model.unet import UNet3D
from vc_core.published import MODELS
from vc_core.upscaling import NEGATIVE, SUFFIX
from vc_core.video import plan_frames, probe, read_frames

WORKFLOWS = REPOSITORY / "workflows"
FROZEN = Path(__file__).with_name("templates.json")
NOTES = ("MarkdownNote", "Note")  # the page's own nodes, which the server does not have
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC)
GROWING = "COMFY_AUTOGROW_V3"
LARGE = "15 Large network with the style of an image"
SR600 = "20 Super resolution"
"""The templates that require a downloaded network."""
LATE = {"FrameInterpolationModelLoader", "FrameInterpolate", "ComfyMathExpression"}
"""ComfyUI's own nodes that 0.3.64 does not have."""

# A frozen node: {"type", "values": widget values in the order in which the page stores them,
# "inputs": name -> value for ComfyUI; links are [node id, output]}.
Frozen = dict[str, dict[str, Any]]


# ---------------------------------------------------------------------------------------------------------------
# From the page's format to ComfyUI's API format
# ---------------------------------------------------------------------------------------------------------------


def inputs(info: dict[str, Any], values: list[Any], links: dict[str, list[Any]]) -> dict[str, Any]:
    """Return a node's inputs: its links, and its widgets' stored values, which are in the order of `/object_info`.

    Widgets that were added later have no stored value and keep their default. Links to removed sockets are dropped. The
    widgets that a combo's option adds come right after it and are named `combo.widget`; so are the sockets of a growing
    input.
    """
    stored, result = iter(values), {}

    def add(name: str, spec: list[Any]) -> None:
        kind, *rest = spec
        options = rest[0] if rest else {}
        if isinstance(kind, list) or (kind in WIDGETS and not options.get("forceInput")):
            result[name] = next(stored, default(spec))
            if options.get("control_after_generate"):
                next(stored, None)
            for group in brought(spec, result[name]).values():
                for inner, its in group.items():
                    add(f"{name}.{inner}", its)
        if name in links:
            result[name] = links[name]
        if kind == GROWING:
            result.update((each, link) for each, link in links.items() if each.startswith(f"{name}."))

    for group in ("required", "optional"):
        for name in info["input_order"].get(group, []):
            add(name, info["input"][group][name])
    return result


def frozen_of(workflow: dict[str, Any], nodes: dict[str, Any]) -> Frozen:
    """Return the part of a template's file whose meaning must never change."""
    origins = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    result = {}
    for node in workflow["nodes"]:
        if node["type"] not in NOTES:
            links = {socket["name"]: origins[socket["link"]] for socket in node["inputs"] if socket["link"] is not None}
            values = inputs(nodes[node["type"]], node["widgets_values"], links)
            result[str(node["id"])] = {"type": node["type"], "values": node["widgets_values"], "inputs": values}
    return result


def links_of(node: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: value for name, value in node["inputs"].items() if is_link(value)}


def same(first: Frozen, second: Frozen) -> bool:
    """Whether two versions were saved alike, whatever inputs the nodes gained since."""

    def saved(template: Frozen) -> Any:
        return {number: (node["type"], node["values"], links_of(node)) for number, node in template.items()}

    return saved(first) == saved(second)


def lacking(types: Iterable[str], nodes: dict[str, Any]) -> set[str]:
    """Return the node classes that this ComfyUI is too old for."""
    return LATE & set(types) - set(nodes)


def types_of(workflow: dict[str, Any]) -> list[str]:
    return [node["type"] for node in workflow["nodes"]]


def as_understood(saved: Frozen, nodes: dict[str, Any]) -> dict[str, Any]:
    """Return a frozen template as a graph in API format, with today's nodes."""
    graph = {}
    for number, node in saved.items():
        values = inputs(nodes[node["type"]], node["values"], links_of(node))
        graph[number] = {"class_type": node["type"], "inputs": values}
    return graph


def is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def templates() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(WORKFLOWS.glob("*.json"))}


VERSIONS: dict[str, list[Frozen]] = json.loads(FROZEN.read_text()) if FROZEN.exists() else {}


# ---------------------------------------------------------------------------------------------------------------
# What each video must show
# ---------------------------------------------------------------------------------------------------------------

COLORS = {
    "red": RED, "yellow": (0.97, 0.89, 0.15), "green": (0.15, 0.65, 0.22), "blue": (0.15, 0.28, 0.88),
}  # fmt: skip
GROUNDS = {
    "blue and white": (*STRIPES, tuple(sum(channel) / 2 for channel in zip(*STRIPES, strict=True))),
    "blue and purple": ((0.26, 0.35, 0.77), (0.42, 0.32, 0.72), (0.54, 0.29, 0.68)),
    "orange": ((0.82, 0.50, 0.19),),
    "purple": ((0.50, 0.25, 0.69),),
}
ALONG = VELOCITY[0] * 15
"""Displacement of the example clip's disc in 16 frames, in frame widths."""


@dataclass(frozen=True)
class Promise:
    """What a template's video must show.

    Attributes:
        disc: the object's colour.
        last_disc: its colour at the end, for a template whose text changes.
        ground: a key of `GROUNDS`.
        path: the object's path, (fraction of the duration, x, y), relative to its start, in frame widths, if the
            example clip has its default speed.
        place: the object's start, x and y in frame widths, for a template whose sketch only sets that.
        direction: in which the example clip's disc moves, for a template that keeps everything except the disc.
        times: frames of the video per frame of the network, for a template that interpolates.
    """

    disc: str
    ground: str
    path: tuple[tuple[float, float, float], ...] = ()
    place: tuple[float, float] | None = None
    direction: tuple[float, float] | None = None
    frames: int = 16
    times: int = 1
    last_disc: str = ""


def to(x: float, y: float) -> tuple[tuple[float, float, float], ...]:
    return ((1.0, x, y),)


PROMISES = {
    "01 Text to video": Promise("yellow", "blue and purple"),
    "02 Motion from a clip": Promise("yellow", "blue and purple", to(ALONG, 0)),
    "03 Image with motion from a clip": Promise("green", "blue and white", to(0, ALONG)),
    "11 One sketch with the style of an image": Promise("blue", "orange", place=(0.5 + 0.7 * ALONG * 12 / 15,) * 2),
    "08 Depth from a clip": Promise("yellow", "blue and purple", to(ALONG, 0)),
    "09 Depth with the style of an image": Promise("green", "purple", to(ALONG, 0)),
    "10 Sketches from a clip": Promise("yellow", "blue and purple", to(0, -ALONG)),
    "06 Restyle a video": Promise("yellow", "blue and purple", to(ALONG, 0)),
    "07 Repaint an area that moves": Promise("yellow", "blue and white", to(ALONG, 0), direction=(1, 0)),
    "04 Motion along drawn tracks": Promise("red", "blue and white", to(74 / 512, -166 / 512)),
    # The camera is not tested here: the bundled checkpoint only follows objects.
    "05 Motion of a camera": Promise("red", "blue and white", to(0, -156 / 512)),
    "12 Long video in windows": Promise("red", "blue and white", ((0.5, 0, -180 / 512), (1.0, 0, 0)), frames=32),
    "13 More frames a second": Promise("yellow", "blue and purple", to(ALONG, 0), times=2),
    "17 First and last frame": Promise("red", "blue and white", to(0.7 * ALONG, 0.7 * ALONG)),
    "18 Cut and drag": Promise("red", "blue and white", to(44 / 512, 0)),
    # The bundled checkpoint does not know how the video goes on.
    "19 Extend a video": Promise("red", "blue and white", ((15 / 27, ALONG, 0),), frames=28),
    "21 Long video with changing text": Promise("red", "blue and white", frames=64, last_disc="yellow"),
    "14 Everything together": Promise("green", "blue and white", to(0.7 * ALONG, 0.7 * ALONG), direction=(0.7, 0.7)),
    "16 Second pass at twice the size": Promise("red", "blue and white", to(0.7 * ALONG, 0.7 * ALONG)),
    "22 Four steps": Promise("yellow", "blue and purple", to(ALONG, 0)),
}


def check(video: Tensor, promise: Promise, background: str) -> None:
    """Check a video `(1, 3, F, H, W)` in [0, 1] against its promise; `background` is the example clip's."""
    assert video.shape == (1, 3, promise.frames, 256, 256)
    assert video.std() > 0.05, "blank"
    if promise.last_disc:
        end = follow(video[:, :, -8:], COLORS[promise.last_disc], GROUNDS[promise.ground])
        assert not end.isnan().any(), f"no {promise.last_disc} object at the end"
        assert follow(video[:, :, -8:], COLORS[promise.disc], GROUNDS[promise.ground]).isnan().all()
        video = video[:, :, :8]
    centers = follow(video, COLORS[promise.disc], GROUNDS[promise.ground]) / 256
    assert not centers.isnan().any(), f"no {promise.disc} object in frames {centers.isnan().any(1).nonzero().flatten()}"
    ground = video[0].flatten(1).median(1).values
    off = min(math.dist(ground.tolist(), color) for color in GROUNDS[promise.ground])
    assert off < 0.25, f"unexpected background {ground.tolist()}"
    distance = max((math.hypot(*point) for _, *point in promise.path), default=0.0)
    for fraction, *goal in promise.path:
        displacement = centers[round(fraction * (promise.frames - 1))] - centers[0]
        assert math.dist(displacement.tolist(), goal) < 0.45 * distance, (
            f"expected the displacement {goal}, got {displacement.tolist()}"
        )
    if promise.place:
        begun = centers[: promise.frames // 2]
        assert (begun - torch.tensor(promise.place)).norm(dim=1).max() < 0.1, f"unexpected start {begun.tolist()}"
    if promise.direction:
        clip = draw_clip(tuple(VELOCITY[0] * side for side in promise.direction), background=background)
        outside = outside_the_disc(promise.direction, promise.frames)
        wrong = (video - clip).abs().mean(1, keepdim=True)[outside].mean()
        # With the mirrored clip 0.18 (stripes) and 0.15 (gradient).
        assert wrong < 0.13, f"kept part differs from the clip by {wrong:.3f}"


def outside_the_disc(direction: tuple[float, float], frames: int) -> Tensor:
    """Return where the moving mask keeps the example clip, with some margin, `(1, 1, F, 256, 256)`."""
    at, t = (torch.arange(256) + 0.5) / 256 - 0.5, torch.arange(frames)[:, None, None] * VELOCITY[0]
    return (torch.hypot(at - direction[0] * t, at[:, None] - direction[1] * t) > 0.25)[None, None]


# ---------------------------------------------------------------------------------------------------------------
# Tests
# ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nodes(host):
    return host.object_info()


@pytest.fixture(scope="module")
def interpolation(host, nodes, comfyui):
    """A file of zeros for ComfyUI's interpolation node, which then inserts the mean of two frames."""
    if "FrameInterpolate" not in nodes:
        return
    file = host.folder / "models" / "frame_interpolation" / "rife_v4.26.safetensors"
    file.parent.mkdir(exist_ok=True)  # pytest may run this fixture again for the same ComfyUI
    script = (
        "import sys, comfy.cli_args, torch, safetensors.torch; comfy.cli_args.args.cpu = True\n"
        "from comfy_extras.frame_interpolation_models.ifnet import IFNet\n"
        "weights = IFNet(head_ch=4, channels=[16] * 5).state_dict()\n"
        "zeros = {name: torch.zeros_like(value) for name, value in weights.items()}\n"
        "safetensors.torch.save_file(zeros, sys.argv[1])"
    )
    subprocess.run([comfyui.python, "-c", script, file], cwd=comfyui.folder, env=environment(), check=True)


def test_every_template_is_frozen_has_a_picture_and_a_note(nodes):
    files = templates()
    assert set(files) == set(VERSIONS) == {*PROMISES, LARGE, SR600}
    for name, workflow in files.items():
        assert lacking(types_of(workflow), nodes) or same(frozen_of(workflow, nodes), VERSIONS[name][-1]), (
            f"{name} changed. See the first lines of this file."
        )
        assert 1000 < (WORKFLOWS / f"{name}.jpg").stat().st_size < 40_000
        (note,) = [node for node in workflow["nodes"] if node["type"] in NOTES]
        assert all(word in note["widgets_values"][0] for word in ("**Change**", "**Try**"))


def test_templates_are_laid_out_without_overlaps_and_from_left_to_right():
    for name, workflow in templates().items():
        boxes = {node["id"]: (*node["pos"], *node["size"]) for node in workflow["nodes"]}
        for node, (x, y, width, height) in boxes.items():
            for another, (left, top, w, h) in boxes.items():
                apart = x + width <= left or left + w <= x or y + height + 30 <= top or top + h + 30 <= y
                assert node == another or apart, f"{name}: nodes {node} and {another} overlap"
        for _, origin, _, goal, _, _ in workflow["links"]:
            assert boxes[origin][0] <= boxes[goal][0], f"{name}: a link from {origin} back to {goal}"


@pytest.mark.parametrize("name", VERSIONS)
def test_saved_workflows_mean_the_same(name, nodes):
    for saved in versions_of(name, nodes):
        graph = as_understood(saved, nodes)
        for number, node in saved.items():
            values = {name: graph[number]["inputs"].get(name) for name in node["inputs"]}
            assert values == node["inputs"], f"node {number}, {node['type']}"


def test_comfyui_understands_what_the_builder_writes(nodes, monkeypatch):
    """With the nodes of any ComfyUI, whose combos may add inputs."""
    monkeypatch.syspath_prepend(WORKFLOWS)
    build, layout = (importlib.import_module(name) for name in ("build", "layout"))
    for name, template in build.TEMPLATES.items():
        if lacking(types_of(templates()[name]), nodes):
            continue
        graph = layout.Graph(nodes, build.GROUPS)
        template.build(graph)
        built = layout.workflow(graph, name, ""), layout.prompt(graph)
        saved, expected = json.loads(json.dumps(built))
        assert as_understood(frozen_of(saved, nodes), nodes) == expected, name


@pytest.mark.parametrize("name", PROMISES)
def test_template_runs_and_shows_what_it_promises(name, host, nodes, interpolation):
    promise = PROMISES[name]
    for saved in versions_of(name, nodes):
        (path,) = [file for file in host.run(as_understood(saved, nodes)).files if file.suffix == ".mp4"]
        info = probe(path)
        assert info.rate == Fraction(RATE) * promise.times
        clips = [node["inputs"] for node in saved.values() if node["type"] == "VCExampleClip"]
        background, speed = (clips[0].get("background", "stripes"), clips[0]["speed"]) if clips else ("", 1.0)
        video = read_frames(path, plan_frames(info, info.frames, float(info.rate)))
        goals = tuple((fraction, x * speed, y * speed) for fraction, x, y in promise.path)
        check(video[:, :, :: promise.times], replace(promise, path=goals), background)


def test_the_page_offers_the_files_of_the_large_network_and_the_note_names_its_command():
    workflow = templates()[LARGE]
    published = {model.source: model for model in MODELS}
    offered = [file for node in workflow["nodes"] for file in node["properties"].get("models", ())]
    assert sorted(file["directory"] for file in offered) == ["clip_vision", "text_encoders", "vae"]
    for file in offered:
        model = published[file["url"]]
        assert (Path(model.name).name, model.folder) == (file["name"], file["directory"])
        assert file["name"].endswith(".safetensors")
    nodes = {node["type"]: node["widgets_values"] for node in workflow["nodes"]}
    network, (note,) = nodes["VCCheckpointLoader"][0], nodes["MarkdownNote"]
    assert f"./vc get {network}`" in note and network in {model.name for model in MODELS}
    assert all(f"\n> {prompt.strip()}" in note for prompt in (VGEN_SUFFIX, VGEN_NEGATIVE))
    assert {file["name"] for file in offered} == {nodes[f"{kind}Loader"][0] for kind in ("CLIP", "VAE", "CLIPVision")}


@pytest.mark.parametrize("few", ["auto", "yes"])
def test_the_large_network_s_template_runs(host, nodes, few):
    """With a small network of the same kind under its name, smaller frames, and the bundled other parts."""
    small = UNetConfig(width=64, multipliers=(1,), res_blocks=1, attention_levels=(0,), temporal_in_heads=1,
                       context_dim=64, style_tokens=4)  # fmt: skip
    others = {"STCEncode": {"width": 64, "height": 64}, "VCCheckpointLoader": {"few_steps": few}}
    paths, results = run_with_small_network(host, nodes, LARGE, small, others)
    for path, result in zip(paths, results, strict=True):
        info = probe(path)
        assert (info.frames, info.rate, info.width, info.height) == (16, 3, 64, 64)
        assert {"auto": 20, "yes": 4}[few] in [data["max"] for kind, data in result.events if kind == "progress"]


def run_with_small_network(host, nodes, name, small, others):
    """Run all versions of a template with a small network under the published name and the bundled other parts.
    `others` are changed inputs, by the kind of node. Returns the videos and the results."""
    parts = {"CLIPLoader": ["bundled", 1], "CLIPVisionLoader": ["bundled", 2], "VCVideoVAE": ["bundled", 3]}
    paths, results = [], []
    for saved in VERSIONS[name]:
        graph = as_understood(saved, nodes)
        bundled = {number: parts[node["class_type"]] for number, node in graph.items() if node["class_type"] in parts}
        for node in graph.values():
            values = node["inputs"]
            values |= others.get(node["class_type"], {})
            values |= {name: bundled.get(value[0], value) for name, value in values.items() if is_link(value)}
            if node["class_type"] == "VCCheckpointLoader":
                torch.save(to_released(UNet3D(small)), host.checkpoints / values["ckpt_name"])
        graph = {number: node for number, node in graph.items() if number not in bundled}
        graph["bundled"] = {
            "class_type": "VCCheckpointLoader",
            "inputs": {"ckpt_name": BUNDLED, "weight_dtype": "fp32"},
        }
        results.append(host.run(graph))
        paths += [file for file in results[-1].files if file.suffix == ".mp4"]
    return paths, results


def test_the_super_resolution_template_runs(host, nodes):
    """With a small network under SR600's name, smaller frames, few steps, and the bundled other parts."""
    small = UNetConfig(width=64, multipliers=(1,), res_blocks=1, attention_levels=(0,), temporal_in_heads=1,
                       context_dim=64, style_tokens=0, stc_channels=0, conditions=())  # fmt: skip
    others = {"ImageScale": {"width": 96, "height": 64}, "VCSuperResolution": {"steps": 2}}
    paths, _ = run_with_small_network(host, nodes, SR600, small, others)
    for info in map(probe, paths):
        assert (info.frames, info.rate, info.width, info.height) == (16, 8, 96, 64)
    (note,) = (n["widgets_values"][0] for n in templates()[SR600]["nodes"] if n["type"] in NOTES)
    texts = [n["widgets_values"][0] for n in templates()[SR600]["nodes"] if n["type"] == "CLIPTextEncode"]
    assert any(text.endswith(SUFFIX) for text in texts) and NEGATIVE in texts and "./vc get sr_step" in note


def test_a_restyled_video_keeps_its_sound(host, nodes):
    """And its frame rate, with a file instead of the example clip."""
    with av.open(host.folder / "input" / "loud.mp4", "w") as file:
        video, audio = file.add_stream("h264", rate=12), file.add_stream("aac", rate=16000)
        video.width = video.height = 64
        for frame in (draw_clip(size=64, frames=24)[0].movedim(0, -1) * 255).byte().numpy():
            file.mux(video.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        tone = np.sin(np.arange(32000) * 0.2)[None].astype("float32") / 2
        sound = av.AudioFrame.from_ndarray(tone, "fltp", "mono")
        sound.sample_rate = 16000
        file.mux([*video.encode(), *audio.encode(sound), *audio.encode()])
    (saved,) = VERSIONS["06 Restyle a video"][-1:]
    graph = as_understood(saved, nodes)
    (parts,) = (number for number, node in graph.items() if node["class_type"] == "GetVideoComponents")
    (sampler,) = (number for number, node in graph.items() if node["class_type"] == "VC3DUNetSampler")
    graph["loud"] = {"class_type": "LoadVideo", "inputs": {"file": "loud.mp4"}}
    graph[parts]["inputs"]["video"] = ["loud", 0]
    graph[sampler]["inputs"]["steps"] = 1
    (path,) = [file for file in host.run(graph).files if file.suffix == ".mp4"]
    assert (probe(path).rate, probe(path).frames) == (12, 16)
    with av.open(path) as file:
        heard = np.concatenate([frame.to_ndarray().mean(0) for frame in file.decode(audio=0)])
    assert 0.2 < np.sqrt((heard**2).mean()) < 0.5  # 0.35 for a sine of that loudness
    assert len(heard) / 16000 == pytest.approx(16 / 12, abs=0.15)  # as long as the frames


def versions_of(name: str, nodes: dict[str, Any]) -> list[Frozen]:
    """Return a template's versions. Skips the test if this ComfyUI does not have all of its nodes."""
    types = [node["type"] for saved in VERSIONS[name] for node in saved.values()]
    if lacks := lacking(types, nodes):
        pytest.skip(f"this ComfyUI has no {', '.join(sorted(lacks))}")
    return VERSIONS[name]


def main() -> None:
    """Freeze new versions as the oldest ComfyUI understands them, because newer ones add inputs."""
    from tempfile import TemporaryDirectory

    remaining = templates()
    for comfyui in reversed(find_comfyuis()):
        with TemporaryDirectory() as folder:
            host = Host.start(Path(folder) / "host", comfyui=comfyui)
            try:
                nodes = host.object_info()
            finally:
                host.stop()
        for name in [name for name, workflow in remaining.items() if not lacking(types_of(workflow), nodes)]:
            versions, now = VERSIONS.setdefault(name, []), frozen_of(remaining.pop(name), nodes)
            if not versions or not same(now, versions[-1]):
                versions.append(now)
                print(f"{name}: version {len(versions)}")
    FROZEN.write_text(json.dumps(dict(sorted(VERSIONS.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
