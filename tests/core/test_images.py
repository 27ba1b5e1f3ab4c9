"""Users' images: tiles, high bit depths, floating point, and files that are not images."""

import os
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from tests import needs
from tests.core.odd_files import animated, deep_png, float_tiff, hdr_video, heic, imir, irot, of_streams
from tests.core.pictures import plan
from vc_core import cli
from vc_core.errors import UserError
from vc_core.extract.depth.maps import read_depth_maps
from vc_core.video import IMAGES, images, is_image, probe, read_image
from vc_core.video.heif import layout


def scene(height=100, width=150):
    """An image with a different colour at each position."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (height + width)], -1).astype(np.uint8)


def pixels_of(path):
    return (read_image(path)[0] * 255).round().permute(1, 2, 0).numpy()


# --- tiles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turns", "shown"),
    [
        ((), lambda x: x),
        ((irot(1),), lambda x: np.rot90(x, 1)),
        ((irot(3),), lambda x: np.rot90(x, 3)),
        ((imir(0),), np.flipud),
        ((imir(1),), np.fliplr),
        ((irot(1), imir(1)), lambda x: np.fliplr(np.rot90(x, 1))),
    ],
    ids=["upright", "left", "right", "upside down", "mirrored", "rotated, then mirrored"],
)
def test_a_grid_of_tiles_is_composed_and_upright(tmp_path, turns, shown):
    path, picture = tmp_path / "IMG_0001.HEIC", scene()
    path.write_bytes(heic(picture, (64, 64), *turns))
    assert is_image(path)
    assert np.abs(pixels_of(path) - shown(picture)).max() < 12  # each tile's colours differ by far more


def test_a_missing_tile_is_reported(tmp_path):
    data = heic(scene(), (64, 64))
    (tmp_path / "cut.heic").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(UserError, match=r"cut\.heic cannot be read as an image"):
        read_image(tmp_path / "cut.heic")
    (tmp_path / "other.heic").write_bytes(heic(scene(), (64, 64), kind=b"iovl"))
    with pytest.raises(UserError, match=r"expected a grid of tiles, got .*iovl"):
        read_image(tmp_path / "other.heic")


def test_tiles_larger_than_their_image_are_refused_at_the_first(tmp_path, monkeypatch):
    data, size = heic(scene(128, 192), (64, 64)), struct.pack(">II", 192, 128)
    path = tmp_path / "small.heic"
    path.write_bytes(data.replace(size, struct.pack(">II", 32, 16)))  # six tiles for a small image
    monkeypatch.setattr(images, "_pixels", lambda frame: pytest.fail("a tile was kept"))
    for read in (read_image, lambda path: read_depth_maps(path, plan(1))):
        with pytest.raises(
            UserError, match=r"small\.heic.* cannot be read as an image \(6 tiles do not match an image of 32 by 16"
        ):
            read(path)


def test_damaged_boxes_are_reported():
    data = heic(scene(64, 64), (64, 64))
    generator = np.random.default_rng(0)
    for _ in range(300):
        spoiled = bytearray(data[:600])
        spoiled[generator.integers(600)] = generator.integers(256)
        try:
            layout(bytes(spoiled[: generator.integers(20, 600)]))
        except ValueError as error:
            assert str(error)


def test_commands_accept_images_of_tiles(tmp_path, capsys):
    path, out = tmp_path / "IMG_0001.HEIC", tmp_path / "preview.png"
    path.write_bytes(heic(scene(128, 128), (64, 64)))
    command = ["extract", "single_image", path, "-o", tmp_path / "s.safetensors", "--checkpoint", "bundled"]
    assert cli.main([str(word) for word in (*command, "--preview", out)]) == 0
    with Image.open(out) as preview:
        right = np.asarray(preview.convert("RGB"))[:, -20:]
    assert right[..., 0].max() > 230 and right[..., 1].max() > 230  # only the lower right tile has this colour
    with pytest.raises(UserError, match=r"is an image\. Expected a video"):
        probe(path)


# --- numbers ------------------------------------------------------------------------------------------------------


def test_floating_point_tiffs_are_from_zero_to_one(tmp_path):
    ramp = np.tile(np.linspace(0, 1, 8, dtype=np.float32), (4, 1))
    Image.fromarray(ramp).save(tmp_path / "grey.tif")
    float_tiff(tmp_path / "rgb.tif", np.stack([ramp, 1 - ramp, ramp * 0], -1))
    assert torch.equal(read_image(tmp_path / "grey.tif")[0, 1], torch.from_numpy(ramp))
    rgb = read_image(tmp_path / "rgb.tif")[0]
    assert torch.equal(rgb[1], torch.from_numpy(1 - ramp)) and rgb[2].max() == 0


@pytest.mark.parametrize(("value", "says"), [(255.0, "from 0 to 255"), (np.nan, "not finite"), (-1.0, "from -1")])
def test_other_floating_point_values_are_reported(tmp_path, value, says):
    pixels = np.zeros((4, 8), np.float32)
    pixels[1, 2] = value
    Image.fromarray(pixels).save(tmp_path / "other.tif")
    with pytest.raises(UserError, match=rf"other\.tif.*{says}.*Expected"):
        read_image(tmp_path / "other.tif")


def test_alpha_of_floating_point_tiffs_is_blended_over_white(tmp_path):
    pixels = np.zeros((4, 8, 4), np.float32)
    pixels[..., 3] = np.linspace(0, 1, 8)
    float_tiff(tmp_path / "clear.tif", pixels)
    assert torch.allclose(read_image(tmp_path / "clear.tif")[0, 0], torch.from_numpy(1 - pixels[..., 3]), atol=1e-6)


def test_values_of_other_sizes_are_reported(tmp_path):
    float_tiff(tmp_path / "half.tif", np.ones((4, 8, 3), np.float16))
    with pytest.raises(UserError, match=r"half\.tif.*floating-point values do not have 32 bits"):
        read_image(tmp_path / "half.tif")
    Image.fromarray(np.full((4, 8), 2**30, np.int32)).save(tmp_path / "integers.tif")
    with pytest.raises(UserError, match=r"integers\.tif.*32-bit.*1073741824.*Expected 0 to 65535"):
        read_image(tmp_path / "integers.tif")


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_tiffs_with_zero_as_white_are_inverted(tmp_path, kind):
    path, most = tmp_path / "negative.tif", 65535 if kind is np.uint16 else 1
    ramp = np.tile(np.linspace(0, most, 8).astype(kind), (4, 1))
    Image.fromarray(ramp).save(path)
    tag = struct.pack("<HHI", 262, 3, 1)
    path.write_bytes(path.read_bytes().replace(tag + b"\1\0", tag + b"\0\0"))
    assert torch.allclose(read_image(path)[0, 0], torch.from_numpy(1 - ramp / most).float(), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_transparent_colour_of_a_16_bit_image_is_white(tmp_path, channels):
    levels = np.tile(np.arange(8, dtype=np.uint16) * 8001, (4, 1))
    levels[:, 5] = levels[:, 2] + 1  # almost the transparent level
    pixels = levels if channels == 1 else np.stack([levels] * 3, -1)
    deep_png(tmp_path / "deep.png", pixels, [levels[0, 2]] * channels)
    row = read_image(tmp_path / "deep.png")[0, :, 0]
    expected = levels[0] / 65535
    expected[2] = 1
    assert np.abs(row.numpy() - expected).max() < 2 / 255


# --- supported and unsupported files --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "start", "says"),
    [
        ("x.jxl", b"\xff\x0a", "JPEG XL"),
        ("y.jxl", b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        ("z.exr", b"\x76\x2f\x31\x01", "linear light"),
        ("half.png", b"\x89PNG\r\n\x1a\n", "cannot be read as an image"),
        ("film.png", None, "cannot be read as an image"),
    ],
)
def test_errors_name_unsupported_formats(tmp_path, name, start, says):
    path = tmp_path / name
    if start is None:
        of_streams(tmp_path / "film.mp4", ("mpeg4", 2, (32, 32), (0, 0, 200))).rename(path)
    else:
        path.write_bytes(start + bytes(100))
    with pytest.raises(UserError, match=rf"{name}.*{says}.*PNG"):
        read_image(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_are_not_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.setattr(images, "head_of", lambda path: pytest.fail("the pipe would be read"))
    assert is_image(tmp_path / "pipe.png")
    with pytest.raises(UserError, match=r"Expected an image file, but there is no file at .*pipe\.png"):
        read_image(tmp_path / "pipe.png")


def test_extract_names_jpeg_xl(tmp_path, capsys):
    (tmp_path / "x.jxl").write_bytes(b"\xff\x0a" + bytes(100))
    assert cli.main(["extract", "single_image", str(tmp_path / "x.jxl"), "-o", str(tmp_path / "x.safetensors")]) == 2
    assert "x.jxl is a JPEG XL image, which is not supported. Save it as a PNG" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [".jp2", ".ppm", ".qoi", ".tga", ".tif", ".bmp"])
def test_other_image_formats_are_read(tmp_path, ending):
    if ending == ".jp2":
        needs.pillow("jpg_2000")
    if Image.registered_extensions()[ending] not in Image.SAVE:
        pytest.skip(f"Pillow cannot write {ending} before version 11.2")
    picture = scene(16, 24)
    Image.fromarray(picture).save(tmp_path / f"a{ending}")
    assert ending in IMAGES and is_image(tmp_path / f"a{ending}")
    assert np.abs(pixels_of(tmp_path / f"a{ending}") - picture).max() < 6


def test_hdr_images_are_converted_to_sdr(tmp_path):
    path = hdr_video(tmp_path / "pq.avif", "libsvtav1", [0.5807] * 3, 16, frames=1)
    assert is_image(path)
    assert pixels_of(path).min() >= 250 and pixels_of(path).max() <= 255


@pytest.mark.parametrize("ending", ["webp", "png", "avif"])
def test_an_animation_is_not_an_image(tmp_path, ending):
    needs.pillow(ending)
    moving = animated(tmp_path / f"moving.{ending}", [(250, 0, 0), (0, 250, 0)])
    still = tmp_path / f"still.{ending}"
    Image.new("RGB", (32, 24)).save(still)
    assert not is_image(moving) and is_image(still) and is_image(tmp_path / f"absent.{ending}")
    assert read_image(moving)[0, 0].mean() > 0.9  # its first frame
