"""Motion fields as such, and the condition that a checkpoint's network sees of one."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.moving_clips import extract_motion
from vc_core.config import ExtractionConfig
from vc_core.extract.motion.camera import CameraMove, camera_field, condition_from_field
from vc_core.extract.motion.vectors import VECTOR, BlockVectors, rasterise_points
from vc_core.video import FramePlan, resize_crop, write_video

RELEASED = ExtractionConfig()
DENSE = ExtractionConfig(motion_layout="dense", motion_unit="pixels", sketch="edges", depth="relative")
SIZE, FRAMES = (48, 64), 5
quick = settings(max_examples=20, deadline=None)


def random_field(seed: int, size=SIZE, frames: int = FRAMES) -> torch.Tensor:
    field = torch.randn(1, 2, frames, *size, generator=torch.Generator().manual_seed(seed))
    field[:, :, 0] = 0
    return field


# --- the condition of a checkpoint's kind ---------------------------------------------------------------------


def test_a_dense_checkpoint_sees_the_field_itself():
    field = random_field(1)
    assert torch.equal(condition_from_field(field, DENSE, SIZE), field)


@pytest.mark.parametrize("size", [(64, 64), (256, 320), (112, 64), (256, 256)], ids=str)
def test_a_released_checkpoint_sees_blocks_of_the_nominal_source(size):
    field = torch.zeros(1, 2, 14, *size)
    dx, dy = field[0, :, 1:].unbind(0)
    dx += 2
    dy -= 1
    condition = condition_from_field(field, RELEASED, size)
    short = min(size)
    source = (336, 336 * size[1] // short) if short == size[0] else (336 * size[0] // short, 336)
    rows = [
        (frame, x, y, 16, 16, 2 * 336 / short, -336 / short)
        for frame in (*range(1, 12), 13)
        for y in range(8, source[0] + 8, 16)
        for x in range(8, source[1] + 8, 16)
    ]
    vectors = BlockVectors(np.array(rows, VECTOR), *source, 14)
    assert torch.allclose(condition, rasterise_points(vectors, size), atol=1e-5)
    assert condition[:, :, [0, 12]].abs().max() == 0 and condition[:, :, 11].abs().max() > 0
    if size == (256, 256):  # one pixel per block, in pixels of the source
        # Scaling without antialiasing keeps almost the full value of some pixels, and increases none.
        assert (
            0.9 < condition[0, 0, 1].max() / (2 * 336 / 256) <= 1 and 0.9 < condition[0, 1, 1].min() / (-336 / 256) <= 1
        )
        assert 0.003 < (condition[0, 0, 1] != 0).float().mean() < 0.02


def test_blocks_have_the_motion_at_their_centre():
    """Each vector of a zoom is the field's at its place, at a size without scaling."""
    size = (336, 336)
    field = camera_field(CameraMove(zoom=1.5, pan=(0.2, 0)), 3, size)
    condition = condition_from_field(field, RELEASED, size)
    centers = (..., slice(8, None, 16), slice(8, None, 16))
    # A block's centre is between four pixels; its vector is at the lower right of them.
    around = F.avg_pool2d(field[0], 2, stride=1)[None]
    expected = around[..., slice(7, None, 16), slice(7, None, 16)]
    assert torch.allclose(condition[centers], expected, atol=1e-4) and (condition != 0).sum() <= 2 * 2 * 21 * 21


def test_a_clip_and_the_same_motion_by_hand_give_the_same_condition(tmp_path):
    """A clip of the nominal size that moves by entire pixels, extracted with the codec."""
    scene = resize_crop(torch.rand(1, 3, 75, 75, generator=torch.Generator().manual_seed(0)), (450, 450), "bicubic")
    views = [scene[0, :, 20 + 2 * f : 356 + 2 * f, 80 - 3 * f : 416 - 3 * f] for f in range(14)]  # by (3, -2)
    clip = write_video(tmp_path / "pan.mp4", torch.stack(views, dim=1)[None], 8)
    seen = extract_motion(clip, FramePlan(0.0, Fraction(8), 14), "points", (256, 256))
    drawn_condition = condition_from_field(
        camera_field(CameraMove(pan=(-39 / 336, 26 / 336)), 14, (256, 256)), RELEASED, (256, 256)
    )
    assert torch.equal((seen != 0).any(dim=1).sum((0, 2, 3)) > 0, (drawn_condition != 0).any(dim=1).sum((0, 2, 3)) > 0)
    assert ((seen - drawn_condition).abs().amax(dim=1) < 0.01).float().mean() > 0.995
    moving = (drawn_condition != 0).any(dim=1)
    assert ((seen - drawn_condition).abs().amax(dim=1)[moving] < 0.01).float().mean() > 0.9


@quick
@given(st.integers(0, 99), st.integers(100, 199), st.sampled_from([RELEASED, DENSE]))
def test_conditions_of_fields_add(first, second, extraction):
    fields = random_field(first, (32, 32)), random_field(second, (32, 32))
    parts = [condition_from_field(field, extraction, (32, 32)) for field in fields]
    assert torch.allclose(condition_from_field(sum(fields), extraction, (32, 32)), parts[0] + parts[1], atol=1e-4)
