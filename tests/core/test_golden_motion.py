"""The released motion path against the reference vectors of the official code."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.core.moving_clips import extract_motion
from vc_core.extract.motion.from_video import block_vectors
from vc_core.video import plan_frames, probe

CLIPS = ("motion_transfer", "video_8800", "blackswan")


@pytest.fixture(scope="module")
def golden(golden_dir):
    if not (golden_dir / "motion.json").is_file():
        pytest.skip(f"{golden_dir} contains no motion.json")
    return json.loads((golden_dir / "motion.json").read_text()), load_file(golden_dir / "motion.safetensors")


@pytest.mark.parametrize("clip", CLIPS)
def test_block_vectors_as_released(clip, golden, clips_dir, capsys):
    facts, vectors = golden[0][clip], golden[1][clip]
    info = probe(clips_dir / f"{clip}.mp4")
    plan = plan_frames(info)
    assert (info.frames, info.height, info.width) == (facts["frames"], facts["height"], facts["width"])
    assert (plan.rate, plan.start, plan.frames) == (facts["fps"], 0, 16)

    extracted = block_vectors(info.path, dataclasses.replace(plan, frames=facts["encoded_frames"]))
    coded = {*extracted.rows["frame"].tolist()}
    assert "".join("IP"[frame in coded] for frame in range(extracted.frames)) == facts["kinds"]
    expected = {tuple(map(int, row[:3])): row[3:] for row in vectors}
    actual = {
        tuple(map(int, (r["frame"], r["dst_x"], r["dst_y"]))): np.array([r["dx"], r["dy"]]) for r in extracted.rows
    }
    both = expected.keys() & actual.keys()
    fraction = sum((expected[key] == actual[key]).all() for key in both) / len(expected.keys() | actual.keys())
    difference = np.mean([np.abs(expected[key] - actual[key]).mean() for key in both])
    with capsys.disabled():
        print(f"\n{clip}: {fraction:.2%} of {len(expected)} blocks equal, mean difference {difference:.4f} px")
    assert fraction >= 0.95
    assert difference <= 0.1


def test_the_frames_after_the_plan_change_nothing(clips_dir):
    """Reading only 16 frames does not change them, so the golden values of entire clips are also valid for plans."""
    info = probe(clips_dir / "blackswan.mp4")
    plan = plan_frames(info)
    rows = block_vectors(info.path, dataclasses.replace(plan, frames=17)).rows
    assert np.array_equal(block_vectors(info.path, plan).rows, rows[rows["frame"] < 16])


def test_points_map_as_released(golden, clips_dir):
    """The field is the reference vectors, one pixel each, resized without antialiasing and centre-cropped."""
    torchvision = pytest.importorskip("torchvision.transforms")
    facts, rows = golden[0]["blackswan"], golden[1]["blackswan"]
    info = probe(clips_dir / "blackswan.mp4")
    expected = torch.zeros(16, 2, facts["height"], facts["width"])
    for frame, x, y, dx, dy in rows[rows[:, 0] < 16]:
        x, y = min(int(x), facts["width"] - 1), min(int(y), facts["height"] - 1)
        expected[int(frame), :, y, x] = torch.tensor([dx, dy])
    expected = torchvision.CenterCrop(256)(torchvision.Resize(256, antialias=False)(expected))
    field = extract_motion(info.path, plan_frames(info), "points", (256, 256))
    same = (field[0].transpose(0, 1) - expected).abs().amax(dim=1) < 1e-4
    assert same.float().mean() > 0.995
    assert field[:, :, [0, 12]].abs().max() == 0  # the I-frames
