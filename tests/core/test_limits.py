"""Small files that decode to huge ones: pixels are counted before decoding."""

import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from tests.core.odd_files import animated, heic, of_streams, png_bomb, png_film_bomb, text_bomb
from tests.core.pictures import plan
from vc_core import cli
from vc_core.errors import UserError
from vc_core.extract.depth.maps import read_depth_maps
from vc_core.extract.mask import load_mask
from vc_core.extract.motion.from_video import block_vectors, read_motion
from vc_core.extract.motion.reencode import REENCODE
from vc_core.video import FramePlan, probe, read_frames, read_image
from vc_core.video.limits import MOST_TEXT, VARIABLE, check_pixels, check_texts, most_pixels
from vc_core.video.metadata import read_metadata

PLAN = FramePlan(0.0, Fraction(10), 2)


def webp_bomb(path):
    """An animated WebP with a canvas size of 16383 by 16383: its decoder needs gigabytes."""
    data = bytearray(animated(path, [(250, 0, 0), (0, 250, 0)]).read_bytes())
    data[24:30] = (16383 - 1).to_bytes(3, "little") * 2
    path.write_bytes(data)
    return path


def lying_film_bomb(path):
    """A video whose container says that its frames are small."""
    data = png_film_bomb(path).read_bytes()
    path.write_bytes(data.replace(struct.pack(">HH", 13000, 13000), struct.pack(">HH", 16, 16)))
    assert path.read_bytes() != data
    return path


def gif_bomb(path):
    path.write_bytes(b"GIF89a" + struct.pack("<HHBBB", 60000, 60000, 0, 0, 0)
                     + b",\0\0\0\0" + struct.pack("<HHB", 60000, 60000, 0) + b"\x02\x02\x44\x01\0;")  # fmt: skip
    return path


def tiff_bomb(path):
    Image.new("1", (40000, 40000)).save(path, compression="group4")
    return path


def film_bomb(path):
    """A video whose frames have twice as many pixels as `small_limit` allows."""
    return of_streams(path, ("mpeg4", 2, (320, 400), (0, 0, 200)))


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setenv(VARIABLE, "0.064")


MEASURE = """
import sys
from fractions import Fraction
from vc_core.errors import UserError
from vc_core.video import probe, read_frames, read_image, FramePlan
from vc_core.extract.mask import load_mask
from vc_core.extract.depth.maps import read_depth_maps
import av, PIL.Image
PIL.Image.init()
plan = FramePlan(0.0, Fraction(10), 2)
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) // 1024
for path in sys.argv[1:]:
    start, data = peak(), open(path, "rb").read()
    for read in (lambda: read_image(path), lambda: probe(path), lambda: probe(data), lambda: read_frames(path, plan),
                 lambda: load_mask(path, plan, "paint", (8, 8)), lambda: read_depth_maps(path, plan)):
        try:
            read()
        except UserError:
            pass
        else:
            sys.exit(path + " was read")
    print(peak() - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_bombs_are_refused_before_they_fill_memory(tmp_path):
    bombs = {"a.png": png_bomb, "a.gif": gif_bomb, "a.tif": tiff_bomb, "a.mov": png_film_bomb, "b.mov": lying_film_bomb}
    bombs |= {"a.webp": webp_bomb} if features.check("webp") else {}
    paths = [make(tmp_path / name) for name, make in bombs.items()]
    assert all(path.stat().st_size < 400_000 for path in paths)
    command = [sys.executable, "-c", MEASURE, *map(str, paths)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stdout[-500:] + run.stderr[-500:]
    used = dict(zip(bombs, map(int, run.stdout.split()), strict=True))
    assert max(used.values()) < 100, used  # MB; decoding would need 160 to 3,600


@pytest.mark.parametrize("container", ["mp4", "mkv", "avi", "ts"])
def test_a_video_with_too_large_frames_is_refused(tmp_path, small_limit, container):
    path = tmp_path / f"a.{container}"
    film_bomb(path) if container != "ts" else of_streams(path, ("mpeg2video", 2, (320, 400), (0, 0, 200)))
    for read in (
        probe,
        lambda p: read_frames(p, PLAN),
        lambda p: read_motion(p, PLAN),
        lambda p: probe(p.read_bytes()),
    ):
        with pytest.raises(UserError, match=r"megapixels.*0\.064 .*--max-megapixels.*VC_MAX|0\.064 megapixels.*--max"):
            read(path)


def test_a_video_with_a_wrong_size_is_refused(tmp_path, small_limit):
    path = of_streams(tmp_path / "a.mkv", ("mpeg4", 2, (320, 400), (0, 0, 200)))
    data = path.read_bytes()
    changed = data.replace(b"\xb0\x82\x01\x90\xba\x82\x01\x40", b"\xb0\x82\x00\x10\xba\x82\x00\x10")
    assert changed != data
    path.write_bytes(changed)
    with pytest.raises(UserError, match=r"a\.mkv is 400 by 320 pixels"):
        read_frames(path, PLAN)


def test_the_limit_applies_to_tiles_animations_and_settings(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(heic(np.zeros((100, 150, 3), np.uint8), (64, 64)))
    first = Image.new("RGB", (150, 100))
    first.save(tmp_path / "a.png", save_all=True, append_images=[Image.new("RGB", (150, 100), "red")], duration=100)
    names = ["a.heic", "a.png"]
    if features.check("webp"):
        first.save(tmp_path / "a.webp")
        names.append("a.webp")
        with pytest.raises(UserError, match="16383 by 16383"):
            read_metadata(webp_bomb(tmp_path / "bomb.webp"))
    monkeypatch.setenv(VARIABLE, "0.01")
    for name in names:
        with pytest.raises(UserError, match=rf"{name}.*150 by 100 pixels"):
            read_image(tmp_path / name)
        with pytest.raises(UserError, match=name):
            load_mask(tmp_path / name, plan(2), "paint", (8, 8))
        with pytest.raises(UserError, match=name):
            read_depth_maps(tmp_path / name, plan(2))
    monkeypatch.setenv(VARIABLE, "0.015")
    for name in names:
        read_image(tmp_path / name)


HEADS = {
    "y4m": b"YUV4MPEG2 F25:1 W20000 Ip H20000 A1:1 C420\nFRAME\n",
    "gif": b"GIF89a" + struct.pack("<HHBBB", 20000, 20000, 0, 0, 0) + b";",
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + struct.pack(">II", 20000, 20000) + b"\x08\0\0\0\0" + bytes(4)
    + b"\0\0\0\x08acTL" + bytes(12),
}  # fmt: skip


@pytest.mark.parametrize("ending", HEADS)
def test_sizes_are_read_without_a_decoder(tmp_path, ending):
    path = tmp_path / f"large.{ending}"
    path.write_bytes(HEADS[ending] + bytes(100))
    for read in (probe, lambda path: probe(path.read_bytes()), lambda path: load_mask(path, PLAN, "paint", (8, 8))):
        with pytest.raises(UserError, match=r"is 20000 by 20000 pixels \(400 megapixels\).*--max-megapixels"):
            read(path)


def test_texts_that_would_fill_memory_are_refused(tmp_path):
    path = text_bomb(tmp_path / "texts.png")
    for read in (lambda path: read_depth_maps(path, plan(1)), probe, read_image):
        with pytest.raises(UserError, match=r"texts\.png.*(more than 64 MB of text|too large)"):
            read(path)
    assert read_depth_maps(text_bomb(tmp_path / "less.png", 30), plan(1)).shape == (1, 1, 1, 4, 4)


def test_the_limit_is_a_hundred_megapixels_and_can_be_raised(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert most_pixels() == 100_000_000
    check_pixels("x", (10_000, 10_000))
    with pytest.raises(UserError, match="x is 10001 by 10000 pixels"):
        check_pixels("x", (10_000, 10_001))
    monkeypatch.setenv(VARIABLE, "2000")  # the highest possible limit
    film = of_streams(tmp_path / "a.mkv", ("mpeg4", 2, (32, 32), (0, 0, 200)))
    assert probe(film).width == 32
    for wrong in ("many", "0", "-1", "nan", "1e9"):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(UserError, match=rf"{VARIABLE} is '{wrong}'\. Expected megapixels"):
            most_pixels()
    monkeypatch.setenv(VARIABLE, "0.0001")
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    command = ["extract", "single_image", str(tmp_path / "a.png"), "-o", str(tmp_path / "a.safetensors")]
    assert cli.main(command) == 2 and "32 by 32 pixels" in capsys.readouterr().err
    assert cli.main([*command, "--max-megapixels", "1"]) == 0 and most_pixels() == 10**6
    with pytest.raises(SystemExit):
        cli.main([*command, "--max-megapixels", "none"])


def test_pillows_own_limit_is_restored(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape[-1] == 32
    assert Image.MAX_IMAGE_PIXELS == 100


# --- larger than encoders allow -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["points", "dense"])
@pytest.mark.parametrize("size", [(64, 20000), (20000, 64)], ids=["wide", "high"])
def test_errors_for_sizes_above_the_encoders_limit_name_a_nominal_height(layout, size):
    frames = torch.zeros(2, 3, *size)
    plan = FramePlan(0.0, Fraction(8), 2)
    for read in (lambda: read_motion(frames, plan, layout=layout), lambda: block_vectors(frames, plan, layout)):
        with pytest.raises(UserError, match=r"supports at most .*--nominal-height [0-9]+") as error:
            read()
        height = int(str(error.value).partition("--nominal-height ")[2].split()[0])
        assert read_motion(frames, plan, (32, 32), layout, nominal_height=height).field.shape[-1] == 32


@pytest.mark.parametrize("size", [(32, 20000), (20000, 32)], ids=["wide", "high"])
def test_a_strip_too_long_for_any_height_must_be_cropped(size):
    with pytest.raises(UserError, match=r"supports at most 8191 pixels per side\. Crop it\."):
        read_motion(torch.zeros(2, 3, *size), FramePlan(0.0, Fraction(8), 2))


def test_a_frame_that_swscale_cannot_scale_is_reported():
    """swscale's filters have a limited length: it cannot scale 60000 lines to 16."""
    with pytest.raises(UserError, match=r"32 by 60000 pixels cannot be scaled"):
        read_motion(torch.zeros(2, 3, 60000, 32), FramePlan(0.0, Fraction(8), 2), nominal_height=16)


def test_the_encoders_limits_are_those_of_the_table():
    """The largest side works, and larger ones give our message, never the encoder's error."""
    for layout in ("points", "dense"):
        side, plan = REENCODE[layout].largest // 2 * 2, FramePlan(0.0, Fraction(8), 2)
        assert block_vectors(torch.zeros(2, 3, 32, side), plan, layout).frames == 2
        with pytest.raises(UserError, match=f"{side + 2} by 32 pixels"):
            block_vectors(torch.zeros(2, 3, 32, side + 2), plan, layout)


def test_a_panorama_is_reported_and_works_at_the_suggested_height(tmp_path, capsys):
    path = of_streams(tmp_path / "wide.mkv", ("ffv1", 3, (64, 8400), (0, 0, 200)))
    command = ["extract", "motion", path, "-o", tmp_path / "m.safetensors", "--frames", 2, "--rate", 10]
    command = [str(word) for word in (*command, "--size", "64x64")]
    assert cli.main(command) == 2
    message = capsys.readouterr().err
    assert "wide.mkv: Motion would be extracted at 8400 by 64 pixels" in message and "--nominal-height 62" in message
    assert cli.main([*command, "--nominal-height", "62"]) == 0
    assert cli.main([*command, "--mode", "stream"]) == 0  # with another encoder, which supports the size


@pytest.mark.parametrize("packed", [False, True])
def test_international_texts_of_a_png(tmp_path, packed):
    """Photoshop, GIMP and others save XMP in them; packed ones count towards the limit."""
    texts = PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", "x" * 1000, zip=packed)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=texts)
    with open(tmp_path / "a.png", "rb") as file:
        check_texts("a.png", file)
    texts.add_itxt("Comment", "x" * (MOST_TEXT + 1), zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png", pnginfo=texts)
    with open(tmp_path / "b.png", "rb") as file, pytest.raises(UserError, match=r"b\.png contains more than 64 MB"):
        check_texts("b.png", file)
