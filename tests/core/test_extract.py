"""Extraction: a video in, a condition out."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from tests.core.moving_clips import extract_motion
from tests.core.pictures import read_mask
from vc_core.errors import UserError
from vc_core.extract.mask import masked_video
from vc_core.extract.motion.from_video import block_vectors
from vc_core.extract.motion.vectors import VECTOR, BlockVectors, rasterise_dense, rasterise_points
from vc_core.extract.sketch.methods import as_sketch, edges
from vc_core.video import FramePlan, plan_frames, probe, read_frames, resize_crop, write_video

PLAN = FramePlan(0.0, Fraction(8), 16)
VELOCITIES = [(3, 0), (0, 2), (-2, -3)]  # (dx, dy) in pixels a frame; right and down positive


def texture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth random colours (3, H, W) in [0, 1] with detail at several scales."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(3, height, width)
    for cell in (4, 8, 16):
        noise = torch.rand(1, 3, height // cell + 2, width // cell + 2, generator=generator)
        total += torch.nn.functional.interpolate(noise, size=(height, width), mode="bicubic")[0] / 3
    return ((total - 0.5) * 1.8 + 0.5).clamp(0, 1)


def moving(dx: int, dy: int, height: int = 96, width: int = 128, frames: int = 16) -> torch.Tensor:
    """A window over a large texture, such that the content moves by (dx, dy) from each frame to the next."""
    margin = frames * 3
    scene = texture(height + 2 * margin, width + 2 * margin)
    views = [scene[:, (y := margin - dy * f) : y + height, (x := margin - dx * f) : x + width] for f in range(frames)]
    return torch.stack(views, dim=1)[None]


@pytest.fixture(scope="module", params=VELOCITIES, ids=str)
def translating(request, tmp_path_factory):
    dx, dy = request.param
    path = tmp_path_factory.mktemp("clips") / "moving.mp4"
    return write_video(path, moving(dx, dy), 8), (dx, dy)


# --- motion ---------------------------------------------------------------------------------------------------


def test_dense_motion_is_the_true_motion(translating):
    path, (dx, dy) = translating
    field = extract_motion(path, PLAN, "dense", (96, 128))
    assert field.shape == (1, 2, 16, 96, 128) and field.dtype == torch.float32
    assert field[:, :, 0].abs().max() == 0
    error = (field - torch.tensor([dx, dy]).view(1, 2, 1, 1, 1)).abs().amax(dim=1)[0, 1:, 8:-8, 8:-8]
    assert (error < 0.5).float().mean() > 0.95
    assert error.median() < 0.1


def test_dense_motion_is_in_pixels_of_the_target(translating):
    path, (dx, dy) = translating
    field = extract_motion(path, PLAN, "dense", (48, 48))  # half the height, the sides cut off
    assert field.shape == (1, 2, 16, 48, 48)
    assert torch.allclose(field[0, :, 1:].flatten(1).median(dim=1).values, torch.tensor([dx, dy]) / 2, atol=0.05)


def test_released_motion_has_the_sign_and_unit_of_the_source(translating):
    path, (dx, dy) = translating
    vectors = block_vectors(path, PLAN)
    assert vectors.size == (96, 128) and {*range(16)} - {*vectors.rows["frame"].tolist()} == {0, 12}
    assert abs(np.median(vectors.rows["dx"]) - dx) <= 0.5 and abs(np.median(vectors.rows["dy"]) - dy) <= 0.5
    field = extract_motion(path, PLAN, "points", (48, 48))
    assert field.shape == (1, 2, 16, 48, 48)
    assert field[:, :, [0, 12]].abs().max() == 0


def test_the_dense_window_has_one_i_frame_however_long_it_is(tmp_path):
    path = write_video(tmp_path / "long.mp4", moving(1, 0, 64, 64, 40), 8)
    vectors = block_vectors(path, FramePlan(0.0, Fraction(8), 40), "dense")
    assert {*range(40)} - {*vectors.rows["frame"].tolist()} == {0}


def test_extraction_repeats_exactly(translating):
    path, _ = translating
    for layout in ("points", "dense"):
        assert torch.equal(extract_motion(path, PLAN, layout, (48, 48)), extract_motion(path, PLAN, layout, (48, 48)))


def test_odd_sizes(tmp_path):
    from tests.core.test_video import encode

    frames = (moving(2, 0, 97, 131)[0].permute(1, 2, 3, 0) * 255).byte().numpy()
    path = encode(tmp_path / "odd.mkv", list(frames), rate=8, codec="ffv1", pix_fmt="yuv444p")
    dense = extract_motion(path, PLAN, "dense", (97, 131))
    assert (dense[0, 0, 1:, :, 16:-16] - 2).abs().median() < 0.1
    assert (dense[0, 0, 1:, -1, 16:-16] - 2).abs().median() < 0.1  # the last line, which 4:2:0 cannot hold
    assert extract_motion(path, PLAN, "points", (64, 64)).abs().max() > 0


def test_an_unknown_layout_is_reported(translating):
    with pytest.raises(UserError, match="points, dense"):
        extract_motion(translating[0], PLAN, "sparse", (64, 64))


def vectors_of(*rows, height=64, width=96, frames=3) -> BlockVectors:
    return BlockVectors(np.array(list(rows), VECTOR), height, width, frames)


def test_points_are_single_pixels_and_the_last_one_wins():
    vectors = vectors_of(
        (1, 8, 24, 16, 16, 5, -3), (1, 200, 70, 16, 16, 1, 1), (2, 40, 8, 16, 16, 9, 9), (2, 40, 8, 16, 16, 2, 4)
    )
    field = rasterise_points(vectors, (64, 96))
    assert field[0, :, 1, 24, 8].tolist() == [5, -3]
    assert field[0, :, 1, 63, 95].tolist() == [1, 1]  # clipped into the frame
    assert field[0, :, 2, 8, 40].tolist() == [2, 4]
    assert (field != 0).sum() == 6
    # Without antialiasing a point that no output pixel samples is lost, and magnitudes are not scaled.
    halved = rasterise_points(vectors, (32, 48))
    assert halved[0, :, 2, 4, 20].tolist() == [0.5, 1]  # one of the four pixels under it


def test_dense_fills_blocks_and_scales():
    vectors = vectors_of((1, 24, 40, 16, 16, 4, -8), (1, 44, 40, 8, 16, 2, 2), (1, 92, 60, 16, 16, 6, 6))
    field = rasterise_dense(vectors, (64, 96))
    assert (field[0, 0, 1, 32:48, 16:32] == 4).all() and (field[0, 1, 1, 32:48, 16:32] == -8).all()
    assert (field[0, 0, 1, 32:48, 40:48] == 2).all()
    assert (field[0, 0, 1, 52:, 84:] == 6).all()  # overhangs the frame
    assert (field != 0).any(dim=1).sum() == 16 * 16 + 8 * 16 + 12 * 12
    assert torch.allclose(
        rasterise_dense(vectors, (32, 48))[0, :, 1, 18:22, 10:14].mean(dim=(1, 2)),
        torch.tensor([2.0, -4.0]),
    )


# --- sketch ---------------------------------------------------------------------------------------------------


def disc(size: int, brightness: float = 0.8) -> torch.Tensor:
    """A grey disc of radius 0.3 of the picture on a ground of 0.3: (1, 3, 1, size, size)."""
    at = (torch.arange(384) + 0.5) / 384 - 0.5
    inside = (at[:, None] ** 2 + at[None] ** 2).sqrt() < 0.3
    return resize_crop(torch.where(inside, brightness, 0.3).expand(1, 3, 384, 384), (size, size))[:, :, None]


@pytest.mark.parametrize("size", [64, 96, 384])
def test_edges_are_a_thin_bright_outline(size):
    drawing = edges(disc(size))
    assert drawing.shape == (1, 1, 1, size, size) and drawing.min() == 0 and drawing.max() == 1
    at = (torch.arange(size) + 0.5) / size - 0.5
    radius = (at[:, None] ** 2 + at[None] ** 2).sqrt()
    outline = (radius - 0.3).abs() < 2 / min(size, 96)
    assert drawing[0, 0, 0][~outline].max() == 0  # nothing but the outline, nothing at the picture's border
    width = drawing.sum() / (2 * torch.pi * 0.3 * size)  # the line's mean width in pixels
    assert 0.7 < width < (1.3 if size < 384 else 4)


def test_edges_are_judged_on_a_fixed_scale():
    faint, strong = edges(disc(96, 0.33)), edges(disc(96, 0.8))
    assert faint.max() == 0 and strong.max() == 1
    both = torch.cat([disc(96, 0.33), disc(96, 0.8)], dim=2)
    assert torch.equal(edges(both), torch.cat([faint, strong], dim=2))  # no frame judged by another
    assert torch.equal(edges(both.repeat(9, 1, 1, 1, 1))[8:], edges(both))


def test_edges_between_equally_bright_colours_are_found():
    video = torch.zeros(1, 3, 1, 64, 64)
    video[:, 0, ..., :32], video[:, 1, ..., 32:] = 0.587, 0.299
    assert edges(video)[..., 4:-4, 30:34].amax(dim=-1).min() == 1


def test_a_drawn_sketch_is_used_unchanged():
    drawing = torch.rand(1, 1, 2, 8, 8)
    assert torch.equal(as_sketch(drawing), drawing)
    assert torch.allclose(as_sketch(drawing, "dark"), 1 - drawing)
    assert torch.allclose(as_sketch(drawing.expand(-1, 3, -1, -1, -1)), drawing, atol=1e-6)
    assert as_sketch(torch.rand(2, 3, 8, 8)).shape == (2, 1, 8, 8)
    with pytest.raises(UserError, match="bright"):
        as_sketch(drawing, "black")


# --- mask -----------------------------------------------------------------------------------------------------


def test_mask_from_an_image(tmp_path):
    pixels = np.zeros((32, 48), np.uint8)
    pixels[:, :16] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    keep = read_mask(tmp_path / "mask.png", 5)
    assert keep.shape == (1, 1, 5, 32, 48)
    assert keep[..., :16].max() == 0 and keep[..., 16:].min() == 1
    assert torch.equal(read_mask(tmp_path / "mask.png", PLAN, white="keep"), 1 - read_mask(tmp_path / "mask.png", PLAN))
    small = read_mask(tmp_path / "mask.png", 5, size=(16, 16))
    assert small.shape == (1, 1, 5, 16, 16) and set(small.unique().tolist()) <= {0.0, 1.0}
    assert small[..., :4].max() == 0 and small[..., 4:].min() == 1
    with pytest.raises(UserError, match="paint"):
        read_mask(tmp_path / "mask.png", 5, white="erase")


def test_mask_from_a_video_moves_with_the_plan(tmp_path):
    video = torch.zeros(1, 3, 16, 32, 64)
    for frame in range(16):
        video[:, :, frame, :, 4 * frame : 4 * frame + 4] = 1
    path = write_video(tmp_path / "mask.mp4", video, 8)
    keep = read_mask(path, FramePlan(0.5, Fraction(4), 4))
    painted = [(1 - keep[0, 0, f, 0]).nonzero().flatten().float().mean().item() for f in range(4)]
    fours = read_frames(path, FramePlan(0.5, Fraction(4), 4))
    assert painted == pytest.approx([(fours[0, 0, f, 0] > 0.5).nonzero().float().mean().item() for f in range(4)])
    assert np.allclose(np.diff(painted), 8)


def test_masked_video():
    video, keep = torch.rand(2, 3, 4, 8, 8), (torch.rand(1, 1, 1, 8, 8) > 0.5).float()
    masked = masked_video(video, keep)
    assert masked.shape == (2, 4, 4, 8, 8)
    assert torch.equal(masked[:, 3:], keep.expand(2, 1, 4, 8, 8))
    assert torch.allclose(masked[:, :3], (video * 2 - 1) * keep)
    with pytest.raises(ValueError, match="size"):
        masked_video(video, keep[..., :4])


# --- real clips -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", ["blackswan", "motion_transfer", "video_8800"])
def test_every_clip_extracts(clip, clips_dir):
    info = probe(clips_dir / f"{clip}.mp4")
    plan = plan_frames(info)
    for layout in ("points", "dense"):
        field = extract_motion(info.path, plan, layout, (64, 64))
        assert field.shape == (1, 2, 16, 64, 64) and field.isfinite().all() and field.abs().max() > 1
    drawing = edges(read_frames(info.path, plan, (96, 96)))
    assert drawing.shape == (1, 1, 16, 96, 96) and 0.01 < drawing.mean() < 0.3
