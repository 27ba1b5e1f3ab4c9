"""Which stream of a file is its video; and videos that are sequences of images."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from tests import needs
from tests.core.moving_clips import PLAN, RATE, SHOWN, moving
from tests.core.odd_files import animated, of_streams
from vc_core import cli
from vc_core.errors import UserError
from vc_core.extract.mask import load_mask
from vc_core.extract.motion.from_video import read_motion
from vc_core.video import plan_frames, probe, read_frames, write_video

RED, BLUE = (200, 0, 0), (0, 0, 200)
FILM = ("mpeg4", 10, (48, 64), BLUE)


# --- which stream -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["mkv", "mp4", "mov", "avi", "nut", "asf", "ts"])
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_a_still_next_to_the_video_is_not_read(tmp_path, container, first):
    still = ("mpeg2video" if container == "ts" else "mjpeg", 1, (240, 320), RED)
    path = of_streams(tmp_path / f"a.{container}", *((still, FILM) if first else (FILM, still)))
    info = probe(path)
    assert (info.height, info.width, info.codec) == (48, 64, "mpeg4")
    colour = read_frames(path, plan_frames(info, 4, 10)).mean((0, 2, 3, 4)) * 255
    assert (colour - torch.tensor(BLUE)).abs().max() < 6


@pytest.mark.parametrize("container", ["mkv", "mp4", "avi"])
def test_thumbnails_of_the_video_are_not_read(tmp_path, container):
    """Fewer and larger images than the video's frames; and as many, but smaller."""
    few = of_streams(tmp_path / f"few.{container}", ("mjpeg", 4, (240, 320), RED), FILM)
    small = of_streams(tmp_path / f"small.{container}", ("mjpeg", 10, (24, 32), RED), FILM)
    assert [probe(path).codec for path in (few, small)] == ["mpeg4", "mpeg4"]


def test_of_two_videos_the_larger_is_read_and_a_single_frame_is_still_a_video(tmp_path):
    two = of_streams(tmp_path / "two.mkv", ("mpeg4", 10, (32, 32), RED), FILM)
    assert probe(two).width == 64
    single = of_streams(tmp_path / "single.mkv", ("mpeg4", 1, (48, 64), BLUE))
    assert probe(single).frames == 1


def test_motion_is_of_the_same_stream(tmp_path):
    needs.encoders("libx264")
    path = of_streams(tmp_path / "a.mp4", ("mjpeg", 1, (240, 320), RED), ("libx264", 10, (48, 64), BLUE))
    assert read_motion(path, plan_frames(probe(path), 4, 10), (48, 64), "dense").field.abs().max() == 0


# --- sequences of images ------------------------------------------------------------------------------------------


def numbered(frames=12, height=32, width=48):
    """Frame i is grey of 20 i / 255."""
    return (torch.arange(frames) * 20 / 255).view(1, 1, -1, 1, 1).expand(1, 3, -1, height, width).contiguous()


def numbers(video):
    return (video.mean((0, 1, 3, 4)) * 255 / 20).round().int().tolist()


@pytest.fixture(params=["folder", "clip.webp"])
def written(request, tmp_path):
    """12 frames at 8 per second from our own writer."""
    needs.pillow(request.param.rpartition(".")[2])
    return write_video(tmp_path / request.param, numbered(), 8)


def test_written_videos_are_read_exactly(written):
    info = probe(written)
    assert (info.frames, info.rate, info.duration, info.width, info.height) == (12, 8, 1.5, 48, 32) and not info.note
    video = read_frames(written, plan_frames(info, 12, 8))
    assert torch.equal((video * 255).round(), (numbered() * 255).round())
    assert numbers(read_frames(written, plan_frames(info, 3, 2))) == [1, 5, 9]  # as the fps filter chooses
    assert numbers(read_frames(written, plan_frames(info, 3, 8, start=0.5))) == [4, 5, 6]
    with pytest.raises(UserError, match="too short"):
        plan_frames(info, 13, 8)


def test_an_animated_webp_is_read_from_bytes_and_files_too(tmp_path):
    needs.pillow("webp")
    path = write_video(tmp_path / "a.webp", numbered(4), 8)
    with open(path, "rb") as file:
        for source in (path.read_bytes(), file):
            assert numbers(read_frames(source, plan_frames(probe(path), 4, 8))) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["folder", "a.webp"])
@pytest.mark.parametrize("mode", ["released", "stream"])
def test_the_known_motion_of_images_is_found(tmp_path, name, mode):
    needs.pillow(name.rpartition(".")[2])
    frames = torch.from_numpy(np.stack(moving(3, 0))).permute(3, 0, 1, 2)[None] / 255
    path = write_video(tmp_path / name, frames, RATE)
    motion = read_motion(path, PLAN, (96, 128), "dense", mode=mode)
    middle = motion.field[0, :, 1:, SHOWN, SHOWN]
    assert (middle[0] - 9).abs().median() < 0.5 and middle[1].abs().median() < 0.5
    if mode == "stream":
        assert motion.why.endswith("decoder exports no motion vectors")


@pytest.mark.parametrize("ending", ["webp", "avif", "png", "gif"])
def test_animations_from_other_programs_keep_their_times(tmp_path, ending):
    needs.pillow(ending)
    path = animated(tmp_path / f"a.{ending}", [(40 * n, 40 * n, 40 * n) for n in range(6)], milliseconds=200)
    info = probe(path)
    assert (info.frames, info.duration) == (6, pytest.approx(1.2, abs=0.01))
    greys = read_frames(path, plan_frames(info, 3, Fraction(5, 2))).mean((0, 1, 3, 4)) * 255
    assert (greys - torch.tensor([0.0, 80.0, 160.0])).abs().max() < 6


def test_uneven_times_of_an_animated_webp_are_used(tmp_path):
    needs.pillow("webp")
    path = animated(tmp_path / "a.webp", [(40 * n,) * 3 for n in range(4)], milliseconds=[100, 700, 100, 100])
    greys = read_frames(path, plan_frames(probe(path), 10, 10)).mean((0, 1, 3, 4)) * 255
    assert (greys / 40).round().int().tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 2, 3]


def test_a_truncated_webp_is_reported(tmp_path):
    needs.pillow("webp")
    noise = torch.rand(1, 3, 6, 32, 32, generator=torch.Generator().manual_seed(0))
    data = write_video(tmp_path / "a.webp", noise, 8).read_bytes()
    (tmp_path / "cut.webp").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"cut\.webp"):
        read_frames(tmp_path / "cut.webp", plan_frames(probe(tmp_path / "cut.webp"), 6, 8))


def folder_of(path, count, size=(32, 24), ending="png"):
    path.mkdir()
    for number in range(count):
        Image.new("RGB", size, (20 * number,) * 3).save(path / f"shot {number}.{ending}")
    return path


def test_a_foreign_folder_is_read_at_25_per_second_unless_it_has_a_rate(tmp_path):
    folder = folder_of(tmp_path / "frames", 12, ending="jpg")
    (folder / "Thumbs.db").write_bytes(b"not an image")
    info = probe(folder)
    assert (info.frames, info.rate) == (12, 25) and "25 frames per second" in info.note
    assert numbers(read_frames(folder, plan_frames(info, 12, 25))) == [*range(12)]  # 2 before 10
    (folder / "video.json").write_text(json.dumps({"frames": 12, "rate": "30000/1001"}))
    assert probe(folder).rate == Fraction(30000, 1001) and not probe(folder).note


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: (f / "shot 3.png").unlink(), "contains 11 images, but its video.json says 12"),
        (lambda f: (f / "video.json").write_text("[]"), "video.json does not describe the images"),
        (
            lambda f: (f / "video.json").write_text('{"frames": 12, "rate": 0}'),
            "The rate must be .* frames per second, got 0",
        ),
        (lambda f: Image.new("RGB", (8, 8)).save(f / "shot 3.png"), "shot 3.png is 8 by 8 pixels"),
        (lambda f: (f / "shot 3.png").write_bytes(b"text"), "shot 3.png cannot be read as an image"),
        (lambda f: Image.new("RGB", (32, 24)).save(f / "cover.jpg"), "several kinds"),
        (lambda f: [path.unlink() for path in f.iterdir()], "without images"),
    ],
)
def test_problems_of_a_folder_are_reported(tmp_path, change, says):
    folder = folder_of(tmp_path / "frames", 12)
    (folder / "video.json").write_text('{"frames": 12, "rate": 8}')
    change(folder)
    with pytest.raises(UserError, match=says):
        read_frames(folder, plan_frames(probe(folder), 12, 8))


def test_commands_accept_folders_and_animations_as_videos(tiny_checkpoint, tmp_path, capsys):
    folder = folder_of(tmp_path / "frames", 12)
    webp = animated(tmp_path / "a.webp", [(20 * n,) * 3 for n in range(12)], size=(48, 64), lossless=True)
    common = ["compose", "--checkpoint", tiny_checkpoint, "--steps", 1, "--scale", 1, "--text", "x"]
    for name, options in (("a", ["--video", folder, "--use", "sketch,motion", "--sketch-method", "edges"]),
                        ("b", ["--init", webp, "--denoise", 0.5])):  # fmt: skip
        assert cli.main([str(word) for word in (*common, *options, "-o", tmp_path / f"{name}.mp4")]) == 0
    captured = capsys.readouterr()
    assert "12 images in the order of their names, at 25 frames per second" in captured.err
    repeated = ["compose", "--from", tmp_path / "a.mp4", "-o", tmp_path / "c.mp4"]
    assert cli.main([str(word) for word in repeated]) == 0  # the folder is found and unchanged
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "c.mp4").read_bytes()
    extract = ["extract", "motion", webp, "-o", tmp_path / "m.safetensors", "--frames", 4, "--size", "64x64"]
    assert cli.main([str(word) for word in extract]) == 0
    extract[2] = folder
    assert cli.main([str(word) for word in extract]) == 0


def test_a_mask_may_be_an_animation(tmp_path):
    folder = write_video(tmp_path / "source", numbered(8), 8)
    white = torch.zeros(1, 3, 8, 32, 48)
    white[..., :24] = 1
    mask = load_mask(
        write_video(tmp_path / "m.webp", white, 8), plan_frames(probe(folder), 4, 8), "paint", white.shape[-2:]
    )
    assert np.isclose(mask.keep.mean(), 0.5)
