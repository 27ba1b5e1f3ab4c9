"""The demo, and the bundled checkpoint's obedience: the object follows the motion, and moves back if it is reversed."""

import json
import math
from dataclasses import replace

import av
import pytest
import torch

from tests.core.moving_clips import extract_motion
from vc_core.checkpoint.reading import BUNDLED, read_checkpoint, save_checkpoint
from vc_core.checkpoint.released import to_released
from vc_core.conditions import CONDITIONS
from vc_core.demo import FRAMES, VELOCITY, disc_mask, displacement, draw_clip, reversed_motion, run_demo
from vc_core.model.unet import UNet3D
from vc_core.video import labelled_grid, plan_frames, probe, write_video


def test_the_bundled_checkpoint_is_small_and_complete():
    assert BUNDLED.stat().st_size <= 36_000_000
    checkpoint = read_checkpoint(BUNDLED)
    assert set(checkpoint.parts) == {"model", "vae", "text", "image"}
    assert set(checkpoint.config.unet.conditions) == set(CONDITIONS)
    assert min(checkpoint.config.height, checkpoint.config.width) >= 64 and checkpoint.config.frames >= 16
    assert not checkpoint.assumed and not checkpoint.extra


def test_displacement_is_measured_right():
    moved = displacement(draw_clip((1 / 64, -0.5 / 64)))
    assert moved == pytest.approx([15 / 64, -7.5 / 64], abs=0.005)
    for nothing_red in (torch.rand(1, 3, 2, 16, 16) * 0.2, draw_clip((9.0, 0.0), frames=2)):
        assert all(math.isnan(value) for value in displacement(nothing_red))


def test_the_vectors_of_the_clip_describe_its_motion(tmp_path):
    clip = write_video(tmp_path / "clip.mp4", draw_clip(), 8)
    field = extract_motion(clip, plan_frames(probe(clip), FRAMES, rate=8), "dense", (64, 64))
    inside = field[0, :, 1:3, 28:36, 32:36].mean((1, 2, 3))
    assert inside.tolist() == pytest.approx([VELOCITY[0] * 64, 0.0], abs=0.15)
    assert field[0, :, :, :16].abs().mean() < 0.1  # the background does not move
    back = reversed_motion(field)
    assert back[0, :, 1:3, 28:36, 28:32].mean((1, 2, 3)).tolist() == pytest.approx([-VELOCITY[0] * 64, 0.0], abs=0.15)


def test_the_demo_obeys_its_motion(tmp_path):
    summary = run_demo(tmp_path, None, seed=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "demo.mp4", "depth.mp4", "mask.mp4", "measured.json", "motion.mp4", "reversed.mp4", "sheet.png", "sketch.mp4",
        "source.mp4",
    ]  # fmt: skip
    with av.open(str(tmp_path / "source.mp4")) as container:
        assert container.streams.video[0].codec.name == "h264"
    measured = json.loads((tmp_path / "measured.json").read_text())
    for name in ("motion", "reversed", "depth", "mask", "sketch"):
        (x, y), (cx, cy) = measured["displacement"][name], measured["commanded"][name]
        assert x / cx == pytest.approx(1.0, abs=0.35), name
        assert abs(y - cy) < 0.08, name
    assert measured["displacement"]["source"] == pytest.approx(measured["commanded"]["motion"])
    assert any("motion.mp4" in line for line in summary)
    assert [probe(tmp_path / name).frames for name in ("demo.mp4", "sketch.mp4")] == [FRAMES, FRAMES]


def test_the_demo_uses_only_the_conditions_of_its_checkpoint(tiny_checkpoint, tmp_path):
    complete = read_checkpoint(tiny_checkpoint)
    config = replace(complete.config, unet=replace(complete.config.unet, conditions=("motion", "single_image")))
    parts = {name: part.tensors.state() for name, part in complete.parts.items()}
    save_checkpoint(tmp_path / "few.safetensors", config, {**parts, "model": to_released(UNet3D(config.unet))})
    run_demo(tmp_path / "demo", tmp_path / "few.safetensors", seed=0)
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == [
        "demo.mp4", "measured.json", "motion.mp4", "reversed.mp4", "sheet.png", "source.mp4",
    ]  # fmt: skip


@pytest.mark.parametrize("background", ["stripes", "gradient"])
def test_the_mask_is_the_discs(background):
    clip, mask = draw_clip(background=background)[0], disc_mask()
    red = (clip[0] > 0.55) & (clip[1:] < 0.4).all(0)
    assert (red == mask.bool()).float().mean() > 0.99


def test_a_grid_shows_videos_below_their_labels():
    white, video = torch.ones(1, 1, 1, 8, 8), torch.rand(1, 3, 4, 32, 32)
    grid = labelled_grid([[("one", white), ("two", video)], [("three", white)]], cell=32)
    assert grid.shape == (1, 3, 4, 2 * (32 + 16 + 8) + 8, 2 * (32 + 8) + 8)
    assert torch.equal(grid[:, :, :, 24:56, 48:80], video)
    for label in (grid[..., 8:22, 8:40], grid[..., 64:78, 8:40]):
        assert label.min() < 0.5
    assert grid[..., 80:112, 48:80].min() == 1.0  # no fourth video
