"""Depth maps from elsewhere: their range, their polarity, and their files."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.pictures import plan
from vc_core.errors import UserError
from vc_core.extract.depth.maps import (
    HIGHEST,
    USUAL,
    by_percentiles,
    depth_from_maps,
    mapped_levels,
    read_depth_maps,
)
from vc_core.video import FramePlan

# --- range and polarity -------------------------------------------------------------------------------------------


grey = st.lists(st.floats(0, 1, width=32), min_size=4, max_size=40, unique=True).map(
    lambda numbers: torch.tensor(numbers).view(1, 1, 1, 1, -1)
)


@settings(max_examples=25, deadline=None)
@given(grey, st.sampled_from(["bright", "dark"]), st.none() | st.floats(0.1, 30))
def test_mapped_depth_is_in_range_and_keeps_the_order(maps, near, scale):
    out = depth_from_maps(maps, near, scale)
    assert out.shape == maps.shape and out.min() >= 0 and out.max() <= HIGHEST
    order = maps.flatten().argsort(descending=near == "dark")
    assert (out.flatten()[order].diff() >= 0).all()
    torch.testing.assert_close(out, depth_from_maps(1 - maps, "dark" if near == "bright" else "bright", scale))


@settings(max_examples=25, deadline=None)
@given(grey.filter(lambda maps: maps.flatten().sort().values.diff().min() > 1e-3), st.floats(0.1, 50), st.floats(-5, 5))
def test_percentiles_find_any_scale(maps, factor, offset):
    torch.testing.assert_close(by_percentiles(maps * factor + offset), by_percentiles(maps), atol=2e-3, rtol=0)


def test_percentiles_of_all_frames_become_the_usual_depths():
    maps = torch.linspace(0, 0.1, 1001).view(1, 1, 1, 1, -1).expand(2, 1, 3, 1, -1).clone()
    maps[:, :, 1] += 0.4  # one frame is nearer, which must not change
    maps[1] = maps[1] * 2 + 0.01  # another clip, with its own scale
    out = depth_from_maps(maps)
    assert np.percentile(out[0].numpy(), (2, 98)) == pytest.approx(USUAL, abs=1e-4)
    assert out[0, 0, 1].min() > out[0, 0, 0].max()
    torch.testing.assert_close(out[0], out[1])


@pytest.mark.parametrize("near", ["bright", "dark"])
def test_the_levels_that_became_the_usual_depths_are_returned(near):
    maps = torch.stack([torch.linspace(0.1, 0.6, 501), torch.linspace(0.3, 0.9, 501)]).view(2, 1, 1, 1, -1)
    depths = depth_from_maps(maps, near)
    for levels, clip, depth in zip(mapped_levels(maps, near), maps, depths, strict=True):
        assert (levels[0] < levels[1]) == (near == "bright")
        for level, became in zip(levels, USUAL, strict=True):
            at = (clip - level).abs().argmin()
            assert depth.flatten()[at] == pytest.approx(became, abs=2e-3)


def test_a_scale_is_used_unchanged():
    maps = torch.tensor([0.0, 0.25, 1.0]).view(1, 1, 1, 1, 3)
    assert depth_from_maps(maps, scale=4).flatten().tolist() == [0, 1, 4]
    assert depth_from_maps(maps, "dark", scale=4).flatten().tolist() == [4, 3, 0]
    assert depth_from_maps(maps, scale=40).flatten().tolist() == [0, 10, 10]


def test_a_few_bright_pixels_are_depth_too():
    maps = torch.zeros(1, 1, 1, 20, 20)
    maps[..., 3, 3] = 0.5
    assert depth_from_maps(maps).amax() == USUAL[1] and depth_from_maps(maps).count_nonzero() == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((torch.full((1, 1, 2, 4, 4), 0.5),), "0.5 everywhere"),
        ((torch.rand(1, 1, 2, 4, 4), "far"), '"bright" or "dark"'),
        ((torch.rand(1, 1, 2, 4, 4), "bright", -1.0), "scale .* above 0"),
        ((torch.rand(1, 2, 4, 4),), "Expected .batch, 1 or 3, frames"),
        ((torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1, 1).expand(1, 3, 2, 4, 4),), "in colours"),
        ((torch.tensor([1.0, float("nan")]).view(1, 1, 1, 1, 2),), "not finite"),
    ],
)
def test_maps_without_depth_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        depth_from_maps(*arguments)


# --- files ----------------------------------------------------------------------------------------------------------


def ramp(bits: int = 16, size: int = 256) -> np.ndarray:
    """Every 16-bit level once, or its upper eight bits."""
    levels = np.arange(size * size, dtype=np.uint16).reshape(size, size)
    return levels if bits == 16 else (levels >> 8).astype(np.uint8)


def save_image(path, levels: np.ndarray, colours: bool = False):
    """An image with all bits: grey, or as RGB."""
    import av

    deep = levels.dtype == np.uint16
    form = ("rgb48be" if deep else "rgb24") if colours else ("gray16be" if deep else "gray")
    given = {"rgb48be": "rgb48le", "gray16be": "gray16le"}.get(form, form)
    save_video(path, [np.stack([levels] * 3, -1) if colours else levels], given, "png", form)
    assert next(av.open(str(path)).decode(video=0)).format.name == form
    return path


def save_video(path, frames, given: str, codec: str, stored: str, rate: int = 8, **options):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.options = stored, options
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=given)))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("colours", [False, True], ids=["grey", "RGB"])
@pytest.mark.parametrize("bits", [8, 16])
def test_all_bits_of_an_image_are_read(tmp_path, bits, colours):
    levels = ramp(bits)
    maps = read_depth_maps(save_image(tmp_path / "map.png", levels, colours), plan(3))
    assert maps.shape == (1, 1, 3, 256, 256)
    expected = torch.from_numpy(levels.astype(np.float32) / (2**bits - 1))
    for frame in maps[0, 0]:
        torch.testing.assert_close(frame, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "name, bits, given, codec, stored, tolerance",
    [
        ("map.mkv", 16, "gray16le", "ffv1", "gray16le", 1e-7),
        ("map.mp4", 8, "gray", "libx264", "yuv420p", 1.5 / 219),  # what limited range leaves
    ],
)
def test_all_bits_of_a_video_are_read_at_the_times_of_the_plan(tmp_path, name, bits, given, codec, stored, tolerance):
    levels = ramp(bits, 64 if bits == 16 else 256)
    frames = [np.roll(levels, shift, axis=0) for shift in range(8)]
    path = save_video(tmp_path / name, frames, given, codec, stored, **({"crf": "0"} if codec == "libx264" else {}))
    maps = read_depth_maps(path, FramePlan(0.25, Fraction(4), 3))  # the frames 2, 4 and 6
    for read, shift in zip(maps[0, 0], (2, 4, 6), strict=True):
        expected = torch.from_numpy(frames[shift].astype(np.float32) / (2**bits - 1))
        torch.testing.assert_close(read, expected, rtol=0, atol=tolerance)


def test_a_folder_of_maps_is_read_in_the_order_of_numbers(tmp_path):
    for number in (1, 2, 10):
        save_image(tmp_path / f"{number}.png", np.full((8, 12), number, np.uint8))
    (tmp_path / "notes.txt").write_text("no map")
    maps = read_depth_maps(tmp_path, plan(3), size=(4, 4))
    assert maps.shape == (1, 1, 3, 4, 4)
    assert (maps[0, 0, :, 0, 0] * 255).round().tolist() == [1, 2, 10]
    with pytest.raises(UserError, match="contains 3 images for 4 frames"):
        read_depth_maps(tmp_path, plan(4))


def test_map_files_that_cannot_be_used_are_refused(tmp_path):
    from PIL import Image

    metres = np.random.default_rng(0).random((8, 8), np.float32)
    Image.fromarray(metres).save(tmp_path / "float.tif")
    with pytest.raises(UserError, match=r"float.tif .*(8 or 16 bits|16-bit PNG)"):
        read_depth_maps(tmp_path / "float.tif", plan(1))
    (tmp_path / "float.pfm").write_bytes(b"Pf\n8 8\n-1.0\n" + metres.tobytes())
    with pytest.raises(UserError, match=r"floating-point numbers \(grayf32le\).*16-bit PNG"):
        read_depth_maps(tmp_path / "float.pfm", plan(1))
    Image.new("RGB", (8, 8), (255, 90, 0)).save(tmp_path / "heat.png")
    with pytest.raises(UserError, match="in colours"):
        read_depth_maps(tmp_path / "heat.png", plan(1))
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot be read as an image"):
        read_depth_maps(tmp_path / "broken.png", plan(1))
    with pytest.raises(UserError, match="There is no depth map"):
        read_depth_maps(tmp_path / "absent.png", plan(1))
