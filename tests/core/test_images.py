"""Still pictures as people have them: tiles, deep ones, floating-point ones, and what is no still picture."""

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
    """A picture in which every place has a colour of its own."""
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
    ids=["upright", "left", "right", "upside down", "mirrored", "turned, then mirrored"],
)
def test_a_grid_of_tiles_is_put_together_whole_and_upright(tmp_path, turns, shown):
    path, picture = tmp_path / "IMG_0001.HEIC", scene()
    path.write_bytes(heic(picture, (64, 64), *turns))
    assert is_image(path)
    assert np.abs(pixels_of(path) - shown(picture)).max() < 12  # each tile's colours differ by far more


def test_a_grid_that_lacks_a_tile_is_told(tmp_path):
    data = heic(scene(), (64, 64))
    (tmp_path / "cut.heic").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(UserError, match=r"cut\.heic: cannot be read as an image"):
        read_image(tmp_path / "cut.heic")
    (tmp_path / "other.heic").write_bytes(heic(scene(), (64, 64), kind=b"iovl"))
    with pytest.raises(UserError, match=r"iovl.*grid of tiles is expected"):
        read_image(tmp_path / "other.heic")


def test_tiles_that_are_larger_than_their_picture_are_refused_at_the_first(tmp_path, monkeypatch):
    data, whole = heic(scene(128, 192), (64, 64)), struct.pack(">II", 192, 128)
    path = tmp_path / "small.heic"
    path.write_bytes(data.replace(whole, struct.pack(">II", 32, 16)))  # six tiles of any size for a small picture
    monkeypatch.setattr(images, "_pixels", lambda frame: pytest.fail("a tile was kept"))
    for read in (read_image, lambda path: read_depth_maps(path, plan(1))):
        with pytest.raises(
            UserError, match=r"small\.heic.* cannot be read as an image \(6 tiles do not make up 32 by 16"
        ):
            read(path)


def test_damaged_boxes_are_told():
    data = heic(scene(64, 64), (64, 64))
    generator = np.random.default_rng(0)
    for _ in range(300):
        spoiled = bytearray(data[:600])
        spoiled[generator.integers(600)] = generator.integers(256)
        try:
            layout(bytes(spoiled[: generator.integers(20, 600)]))
        except ValueError as error:
            assert str(error)


def test_a_picture_of_tiles_is_an_image_for_commands(tmp_path, capsys):
    path, out = tmp_path / "IMG_0001.HEIC", tmp_path / "seen.png"
    path.write_bytes(heic(scene(128, 128), (64, 64)))
    command = ["extract", "single_image", path, "-o", tmp_path / "s.safetensors", "--checkpoint", "bundled"]
    assert cli.main([str(word) for word in (*command, "--preview", out)]) == 0
    with Image.open(out) as seen:
        right = np.asarray(seen.convert("RGB"))[:, -20:]
    assert right[..., 0].max() > 230 and right[..., 1].max() > 230  # what is in the lower right tile alone
    with pytest.raises(UserError, match="is an image, and a video was expected"):
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
def test_other_floating_point_numbers_are_told(tmp_path, value, says):
    pixels = np.zeros((4, 8), np.float32)
    pixels[1, 2] = value
    Image.fromarray(pixels).save(tmp_path / "other.tif")
    with pytest.raises(UserError, match=rf"other\.tif.*{says}.*expected"):
        read_image(tmp_path / "other.tif")


def test_alpha_of_floating_point_tiffs_is_laid_over_white(tmp_path):
    pixels = np.zeros((4, 8, 4), np.float32)
    pixels[..., 3] = np.linspace(0, 1, 8)
    float_tiff(tmp_path / "clear.tif", pixels)
    assert torch.allclose(read_image(tmp_path / "clear.tif")[0, 0], torch.from_numpy(1 - pixels[..., 3]), atol=1e-6)


def test_numbers_of_other_sizes_are_told(tmp_path):
    float_tiff(tmp_path / "half.tif", np.ones((4, 8, 3), np.float16))
    with pytest.raises(UserError, match=r"half\.tif.*floating-point numbers are not of 32 bits"):
        read_image(tmp_path / "half.tif")
    Image.fromarray(np.full((4, 8), 2**30, np.int32)).save(tmp_path / "whole.tif")
    with pytest.raises(UserError, match=r"whole\.tif.*32 bits.*1073741824.*0 to 65535 is expected"):
        read_image(tmp_path / "whole.tif")


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_tiffs_in_which_zero_is_white_are_understood(tmp_path, kind):
    path, most = tmp_path / "negative.tif", 65535 if kind is np.uint16 else 1
    ramp = np.tile(np.linspace(0, most, 8).astype(kind), (4, 1))
    Image.fromarray(ramp).save(path)
    said = struct.pack("<HHI", 262, 3, 1)
    path.write_bytes(path.read_bytes().replace(said + b"\1\0", said + b"\0\0"))
    assert torch.allclose(read_image(path)[0, 0], torch.from_numpy(1 - ramp / most).float(), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_transparent_colour_of_a_deep_picture_is_white(tmp_path, channels):
    levels = np.tile(np.arange(8, dtype=np.uint16) * 8001, (4, 1))
    levels[:, 5] = levels[:, 2] + 1  # as good as the transparent one, but not the same
    pixels = levels if channels == 1 else np.stack([levels] * 3, -1)
    deep_png(tmp_path / "deep.png", pixels, [levels[0, 2]] * channels)
    row = read_image(tmp_path / "deep.png")[0, :, 0]
    expected = levels[0] / 65535
    expected[2] = 1
    assert np.abs(row.numpy() - expected).max() < 2 / 255


# --- what is read, and what is not --------------------------------------------------------------------------------


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
def test_an_image_that_is_not_read_says_what_it_is(tmp_path, name, start, says):
    path = tmp_path / name
    if start is None:
        of_streams(tmp_path / "film.mp4", ("mpeg4", 2, (32, 32), (0, 0, 200))).rename(path)
    else:
        path.write_bytes(start + bytes(100))
    with pytest.raises(UserError, match=rf"{name}.*{says}.*PNG"):
        read_image(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.setattr(images, "head_of", lambda path: pytest.fail("it would be waited for"))
    assert is_image(tmp_path / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png: no such file, and an image was expected"):
        read_image(tmp_path / "pipe.png")


def test_extract_tells_what_a_jpeg_xl_is(tmp_path, capsys):
    (tmp_path / "x.jxl").write_bytes(b"\xff\x0a" + bytes(100))
    assert cli.main(["extract", "single_image", str(tmp_path / "x.jxl"), "-o", str(tmp_path / "x.safetensors")]) == 2
    assert "x.jxl: is JPEG XL, and is not read here: save it as a PNG" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [".jp2", ".ppm", ".qoi", ".tga", ".tif", ".bmp"])
def test_other_still_pictures_are_images(tmp_path, ending):
    if ending == ".jp2":
        needs.pillow("jpg_2000")
    if Image.registered_extensions()[ending] not in Image.SAVE:
        pytest.skip(f"Pillow writes no {ending} before version 11.2")
    picture = scene(16, 24)
    Image.fromarray(picture).save(tmp_path / f"a{ending}")
    assert ending in IMAGES and is_image(tmp_path / f"a{ending}")
    assert np.abs(pixels_of(tmp_path / f"a{ending}") - picture).max() < 6


def test_an_hdr_picture_is_brought_to_sdr(tmp_path):
    path = hdr_video(tmp_path / "pq.avif", "libsvtav1", [0.5807] * 3, 16, frames=1)
    assert is_image(path)
    assert pixels_of(path).min() >= 250 and pixels_of(path).max() <= 255


@pytest.mark.parametrize("ending", ["webp", "png", "avif"])
def test_an_animation_is_no_still_picture(tmp_path, ending):
    needs.pillow(ending)
    moving = animated(tmp_path / f"moving.{ending}", [(250, 0, 0), (0, 250, 0)])
    still = tmp_path / f"still.{ending}"
    Image.new("RGB", (32, 24)).save(still)
    assert not is_image(moving) and is_image(still) and is_image(tmp_path / f"absent.{ending}")
    assert read_image(moving)[0, 0].mean() > 0.9  # its first picture, where one is asked for
