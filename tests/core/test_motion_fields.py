"""Motion fields as such, and the condition that a checkpoint's network sees of one."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vc_core.config import ExtractionConfig
from vc_core.errors import UserError
from vc_core.extract.camera import CameraMove, camera_field
from vc_core.extract.fields import add_fields, check_field, condition_from_field, fit_field
from vc_core.extract.motion import extract_motion
from vc_core.extract.vectors import VECTOR, BlockVectors, rasterise_points
from vc_core.video import FramePlan, resize_crop, write_video

RELEASED = ExtractionConfig()
DENSE = ExtractionConfig(motion_layout="dense", motion_unit="pixels", sketch="edges", depth="relative")
SIZE, FRAMES = (48, 64), 5
quick = settings(max_examples=20, deadline=None)


def random_field(seed: int, size=SIZE, frames: int = FRAMES) -> torch.Tensor:
    field = torch.randn(1, 2, frames, *size, generator=torch.Generator().manual_seed(seed))
    field[:, :, 0] = 0
    return field


def test_fields_add():
    a, b, c = map(random_field, range(3))
    assert torch.equal(add_fields(a), a) and torch.allclose(add_fields(a, b, c), a + b + c)
    assert add_fields(a, b.repeat(2, 1, 1, 1, 1)).shape[0] == 2
    for other in (random_field(0, (8, 8)), random_field(0, frames=3)):
        with pytest.raises(UserError, match="cannot be added"):
            add_fields(a, other)
    with pytest.raises(UserError, match="cannot be added"):
        add_fields(a.repeat(3, 1, 1, 1, 1), b.repeat(2, 1, 1, 1, 1))
    with pytest.raises(UserError, match="at least one"):
        add_fields()


@pytest.mark.parametrize(
    ("field", "says"),
    [
        (torch.zeros(1, 3, 4, 8, 8), "shape"),
        (torch.zeros(2, 4, 8, 8), "shape"),
        (torch.full((1, 2, 4, 8, 8), math.nan), "finite"),
        (torch.ones(1, 2, 4, 8, 8), "first frame"),
    ],
)
def test_what_is_no_field_is_told(field, says):
    for function in (check_field, add_fields, lambda f: condition_from_field(f, DENSE, (8, 8))):
        with pytest.raises(UserError, match=says):
            function(field)


def test_a_field_made_at_another_size_means_the_same():
    move = CameraMove(pan=(0.1, 0.2), zoom=1.2)
    large, small = camera_field(move, FRAMES, (96, 128)), camera_field(move, FRAMES, (48, 64))
    inside = (..., slice(2, -2), slice(2, -2))
    assert (fit_field(large, (48, 64)) - small)[inside].abs().max() < 0.01
    assert (fit_field(small, (96, 128)) - large)[inside].abs().max() < 0.02


# --- the condition of a checkpoint's kind ---------------------------------------------------------------------


def test_a_dense_checkpoint_sees_the_field_itself():
    field = random_field(1)
    assert torch.equal(condition_from_field(field, DENSE, SIZE), field)
    fitted = condition_from_field(field, DENSE, (24, 32))
    assert torch.equal(fitted, fit_field(field, (24, 32)))


@pytest.mark.parametrize("size", [(64, 64), (256, 320), (112, 64), (256, 256)], ids=str)
def test_a_released_checkpoint_sees_blocks_of_the_nominal_source(size):
    field = torch.zeros(1, 2, 14, *size)
    dx, dy = field[0, :, 1:].unbind(0)
    dx += 2
    dy -= 1
    found = condition_from_field(field, RELEASED, size)
    short = min(size)
    source = (336, 336 * size[1] // short) if short == size[0] else (336 * size[0] // short, 336)
    rows = [
        (frame, x, y, 16, 16, 2 * 336 / short, -336 / short)
        for frame in (*range(1, 12), 13)
        for y in range(8, source[0] + 8, 16)
        for x in range(8, source[1] + 8, 16)
    ]
    vectors = BlockVectors(np.array(rows, VECTOR), *source, 14, "IPPPPPPPPPPPIP")
    assert torch.allclose(found, rasterise_points(vectors, source, 14, size), atol=1e-5)
    assert found[:, :, [0, 12]].abs().max() == 0 and found[:, :, 11].abs().max() > 0
    every = condition_from_field(field, RELEASED, size, i_frame_every=None)
    assert torch.equal(every[:, :, 12], found[:, :, 11]) and every[:, :, 0].abs().max() == 0
    if size == (256, 256):  # one pixel a block, in pixels of the source
        # Scaling without antialiasing hits some pixels nearly whole, and none with more than they have.
        assert 0.9 < found[0, 0, 1].max() / (2 * 336 / 256) <= 1 and 0.9 < found[0, 1, 1].min() / (-336 / 256) <= 1
        assert 0.003 < (found[0, 0, 1] != 0).float().mean() < 0.02


def test_blocks_take_the_motion_at_their_place():
    """Each vector of a zoom, where nothing was lost in scaling, is the field's at that place."""
    size = (336, 336)
    field = camera_field(CameraMove(zoom=1.5, pan=(0.2, 0)), 3, size)
    found = condition_from_field(field, RELEASED, size)
    centers = (..., slice(8, None, 16), slice(8, None, 16))
    # A block's centre is between four pixels; its vector stands at the lower right one.
    around = F.avg_pool2d(field[0], 2, stride=1)[None]
    expected = around[..., slice(7, None, 16), slice(7, None, 16)]
    assert torch.allclose(found[centers], expected, atol=1e-4) and (found != 0).sum() <= 2 * 2 * 21 * 21


def test_the_released_path_sees_the_same_of_a_real_clip(tmp_path):
    """A clip of the nominal size that moves by whole pixels, through the codec, and the same motion made by hand."""
    scene = resize_crop(torch.rand(1, 3, 75, 75, generator=torch.Generator().manual_seed(0)), (450, 450), "bicubic")
    views = [scene[0, :, 20 + 2 * f : 356 + 2 * f, 80 - 3 * f : 416 - 3 * f] for f in range(14)]  # by (3, -2)
    clip = write_video(tmp_path / "pan.mp4", torch.stack(views, dim=1)[None], 8)
    seen = extract_motion(clip, FramePlan(0.0, Fraction(8), 14), "points", (256, 256))
    made = condition_from_field(
        camera_field(CameraMove(pan=(-39 / 336, 26 / 336)), 14, (256, 256)), RELEASED, (256, 256)
    )
    assert torch.equal((seen != 0).any(dim=1).sum((0, 2, 3)) > 0, (made != 0).any(dim=1).sum((0, 2, 3)) > 0)
    assert ((seen - made).abs().amax(dim=1) < 0.01).float().mean() > 0.995
    moving = (made != 0).any(dim=1)
    assert ((seen - made).abs().amax(dim=1)[moving] < 0.01).float().mean() > 0.9


@quick
@given(st.integers(0, 99), st.integers(100, 199), st.sampled_from([RELEASED, DENSE]), st.sampled_from([32, 48, 80]))
def test_conditions_of_fields_add(first, second, extraction, side):
    fields = random_field(first, (side, 48)), random_field(second, (side, 48))
    parts = [condition_from_field(field, extraction, (32, 32)) for field in fields]
    whole = condition_from_field(add_fields(*fields), extraction, (32, 32))
    assert torch.allclose(whole, parts[0] + parts[1], atol=1e-4)
    batch = condition_from_field(torch.cat(fields), extraction, (32, 32))
    assert torch.allclose(batch, torch.cat(parts), atol=1e-6)
