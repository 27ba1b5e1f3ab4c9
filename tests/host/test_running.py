"""Behaviour during and between runs: previews, interruption, caching, memory."""

import base64
import io
import shutil
import time

import pytest
import torch
from PIL import Image

from tests.host.scene import saved_latent
from vc_core.checkpoint.reading import BUNDLED as BUNDLED_FILE

PREVIEW = "videocomposer.preview"


@pytest.mark.parametrize("sampler", ["ours", "stock"])
def test_every_step_shows_all_frames(scene, sampler):
    sample = {"ours": scene.sample, "stock": scene.stock_sample}[sampler]
    node = sample(scene.encode(frames=12), steps=3, seed=time.time_ns() % 2**32)
    scene.add("SaveLatent", samples=node)
    shown = [data for kind, data in scene.host.run(scene.graph).events if kind == PREVIEW]
    assert len(shown) == 3
    for message in shown:
        assert (message["node"], message["frames"], message["rate"]) == (str(node), 12, 8.0)
        kind, _, data = message["image"].partition(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as sheet:
            columns = message.get("columns", 12)
            assert sheet.size == (8 * columns, 8 * -(-12 // columns))
    assert len({message["image"] for message in shown}) == 3


def test_an_interrupted_run_ends(scene):
    node = scene.sample(scene.encode(), steps=500)
    scene.add("SaveLatent", samples=node)
    interrupts = []

    def on_event(kind, data):
        if kind == "progress" and not interrupts:
            interrupts.append(scene.host.interrupt())

    result = scene.host.run(scene.graph, on_event)
    assert result.interrupted and not result.outputs
    assert max(data["value"] for kind, data in result.events if kind == "progress") < 100


@pytest.mark.parametrize(
    ("sampler", "frames", "call"),
    [("ours", 16, 3), ("stock", 16, 3), ("ours", 40, 2)],
    ids=["within a step", "within a step of the stock sampler", "within a window"],
)
def test_an_interrupted_run_ends_within_a_step_or_window(scene, sampler, frames, call):
    """The current prediction is finished, and nothing more is computed."""
    sample = {"ours": scene.sample, "stock": scene.stock_sample}[sampler]
    # A scale of 1 has one prediction in each step or window.
    node = sample(scene.encode(frames=frames), steps=6, cfg=1.0, model=scene.add("InterruptAt", call=call))
    scene.add("SaveLatent", samples=node)
    result = scene.host.run(scene.graph)
    assert result.interrupted and not result.outputs
    assert (scene.host.folder / "output" / "calls.txt").read_text() == str(call)


def result_graph(scene, seed=1):
    """Build a complete graph: a clip, its motion, a sampler, images. Returns its nodes by name."""
    clip = scene.add("VCExampleClip")
    motion = scene.add("MotionVectorExtract", video=clip, frame_rate=8.0)
    stc = scene.encode(motion=motion)
    sampler = scene.sample(stc, seed=seed)
    decoded = scene.add("VAEDecode", samples=sampler, vae=scene.loader[3])
    saved = scene.add("SaveImage", images=decoded, filename_prefix="cached")
    return {"clip": clip, "motion": motion, "stc": stc, "sampler": sampler, "decoded": decoded, "saved": saved}


def test_a_second_run_executes_nothing_and_a_change_only_what_depends_on_it(scene):
    nodes = result_graph(scene)
    scene.host.run(scene.graph)
    again = scene.host.run(scene.graph)
    assert again.executed == set()
    assert again.cached == set(scene.graph)

    scene.graph.set(nodes["sampler"], seed=2)
    assert scene.host.run(scene.graph).executed == {nodes[n] for n in ("sampler", "decoded", "saved")}
    scene.graph.set(nodes["motion"], strength=0.5)
    assert scene.host.run(scene.graph).executed == {nodes[n] for n in ("motion", "stc", "sampler", "decoded", "saved")}


def test_a_replaced_checkpoint_file_is_loaded_again(scene):
    nodes, file = result_graph(scene), scene.host.checkpoints / "replaced.safetensors"
    shutil.copy(BUNDLED_FILE, file)
    scene.graph.set(scene.loader, ckpt_name=file.name)
    scene.host.run(scene.graph)
    assert scene.host.run(scene.graph).executed == set()
    time.sleep(0.01)
    shutil.copy(BUNDLED_FILE, file)
    executed = scene.host.run(scene.graph).executed
    assert {scene.loader, nodes["sampler"]} <= executed
    assert nodes["clip"] not in executed


def test_a_replaced_video_file_is_read_again(scene):
    from vc_core.demo import draw_clip
    from vc_core.video import write_video

    file = scene.host.folder / "input" / "replaced.mp4"
    write_video(file, draw_clip(), 8)
    video = scene.add("LoadVideo", file=file.name)
    motion = scene.add("MotionVectorExtract", video=video, frame_rate=8.0)
    scene.add("SaveImage", images=motion[1], filename_prefix="replaced")
    scene.host.run(scene.graph)
    assert scene.host.run(scene.graph).executed == set()
    write_video(file, draw_clip((0.0, 0.02)), 8)
    assert {video, motion} <= scene.host.run(scene.graph).executed


def test_annotators_files_are_used_as_soon_as_they_exist(scene):
    sketch = scene.add("VCSketchSequence", video=scene.add("VCExampleClip"), method="edges")
    scene.add("SaveImage", images=sketch[1], filename_prefix="sketch")
    scene.host.run(scene.graph)
    assert scene.host.run(scene.graph).executed == set()
    file = scene.host.checkpoints / "table5_pidinet.pth"
    file.write_bytes(b"not yet")
    try:
        assert sketch in scene.host.run(scene.graph).executed
        assert file.name not in scene.host.object_info()["VCCheckpointLoader"]["input"]["required"]["ckpt_name"][0]
    finally:
        file.unlink()


def test_unloaded_models_come_back_as_they_were(scene):
    node = scene.sample(scene.encode())
    saved = scene.add("SaveLatent", samples=node)
    before = saved_latent(scene.host.run(scene.graph), saved)
    scene.graph.set(node, seed=2)  # otherwise the result would come from the cache
    scene.host.run(scene.graph)
    scene.host.unload_models()
    scene.graph.set(node, seed=1)
    result = scene.host.run(scene.graph)
    assert {node, saved} <= result.executed
    assert torch.equal(saved_latent(result, saved), before)
