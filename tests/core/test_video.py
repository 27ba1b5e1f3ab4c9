"""Reading and writing video: the plan, the frames, and the errors for bad input."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests import needs
from tests.core import moving_clips
from tests.core.moving_clips import INTERLACED, MATRICES, moving, scene, stored, woven
from vc_core.errors import UserError
from vc_core.video import (
    IMAGES,
    FramePlan,
    plan_frames,
    probe,
    read_frames,
    read_image,
    resize_crop,
    write_video,
)


def numbered(frames: int, height: int = 48, width: int = 64) -> torch.Tensor:
    """A video in which frame n is grey with brightness n / 32, so that frames can be identified after reading."""
    return (torch.arange(frames) / 32).view(1, 1, frames, 1, 1).expand(1, 3, frames, height, width)


def numbers(video: torch.Tensor) -> list[int]:
    return (video.mean(dim=(0, 1, 3, 4)) * 32).round().int().tolist()


@pytest.fixture
def clip(tmp_path):
    """20 numbered frames at 10 per second."""
    return write_video(tmp_path / "a clip with spaces, ä.mp4", numbered(20), 10)


def encode(path, frames, rate=10, rotation=None, codec="libx264", pix_fmt="yuv420p", times=None, **options):
    """Encode (H, W, 3) uint8 arrays directly with PyAV, for options that write_video does not have."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pix_fmt
        stream.options = options
        stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = times[number] if times else number * 1000 // rate
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


# --- the plan -------------------------------------------------------------------------------------------------


def test_probe(clip):
    info = probe(clip)
    assert (info.width, info.height, info.frames, info.rate, info.codec) == (64, 48, 20, 10, "h264")
    assert info.duration == pytest.approx(2.0)


def test_probe_counts_where_the_header_has_no_number(tmp_path):
    path = encode(tmp_path / "a.mkv", [np.full((48, 64, 3), n * 8, np.uint8) for n in range(20)])
    info = probe(path)
    assert info.frames == 20
    assert info.duration == pytest.approx(2.0, abs=0.11)
    assert len(numbers(read_frames(path, plan_frames(info)))) == 16


def test_released_plan(tmp_path):
    long = probe(write_video(tmp_path / "long.mp4", numbered(33), 8))  # 33 / 8 * 4 = 16.5 frames at 4
    assert plan_frames(long) == FramePlan(0.0, Fraction(4), 16)
    edge = probe(write_video(tmp_path / "edge.mp4", numbered(32), 8))  # at most 16 at 4
    assert plan_frames(edge) == FramePlan(0.0, Fraction(5), 16)
    short = probe(write_video(tmp_path / "short.mp4", numbered(20), 10))
    assert plan_frames(short) == FramePlan(0.0, Fraction(9), 16)
    assert plan_frames(short, frames=4).rate == 4
    assert plan_frames(short, frames=4, rate=2.5, start=0.4) == FramePlan(0.4, Fraction(5, 2), 4)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"frames": 4, "start": 1.9},
        {"frames": 4, "rate": 4},
        {"frames": 0},
        {"start": -1},
        {"rate": 0},
        {"start": float("nan")},
        {"rate": 1e6},
        {"rate": 1e-6},
        {"rate": float("inf")},
        {"rate": float("nan")},
        {"frames": 1, "rate": 1, "start": 0.7},
        {"frames": 1, "start": 0.7},
    ],
)
def test_clips_that_are_too_short_are_reported(tmp_path, arguments):
    info = probe(write_video(tmp_path / "short.mp4", numbered(8), 12))
    with pytest.raises(UserError, match=r"short\.mp4"):
        plan_frames(info, **arguments)


# --- the frames -----------------------------------------------------------------------------------------------


def test_frames_are_those_of_the_fps_filter(clip):
    video = read_frames(clip, FramePlan(0.0, Fraction(10), 16))
    assert video.shape == (1, 3, 16, 48, 64) and video.dtype == torch.float32
    assert numbers(video) == list(range(16))
    assert numbers(read_frames(clip, FramePlan(0.5, Fraction(5), 6))) == [5, 7, 9, 11, 13, 15]
    # Each frame is assigned to the nearest tick, which shows the last of its frames: frame k at tick round(0.4 k).
    assert numbers(read_frames(clip, FramePlan(0.0, Fraction(4), 6))) == [1, 3, 6, 8, 11, 13]


def test_starting_late_gives_the_same_frames(clips_dir):
    path = clips_dir / "video_8800.mp4"
    early = read_frames(path, FramePlan(0.0, Fraction(4), 16), (32, 32))
    late = read_frames(path, FramePlan(2.0, Fraction(4), 8), (32, 32))
    assert torch.equal(early[:, :, 8:], late)


def test_uneven_frame_times_follow_the_clock(tmp_path):
    times = [0, 100, 200, 300, 1300, 1400, 1500, 1600]  # one second without motion
    frames = [np.full((48, 64, 3), n * 8, np.uint8) for n in range(8)]
    path = encode(tmp_path / "uneven.mp4", frames, times=times)
    assert numbers(read_frames(path, FramePlan(0.0, Fraction(10), 16))) == [0, 1, 2] + [3] * 10 + [4, 5, 6]


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("form", ["mp4", "matroska"])
def test_rotated_and_mirrored_frames_are_shown_upright(matrix, form):
    shown = np.zeros((48, 64, 3), np.uint8)
    shown[:24, :32] = 255, 255, 255  # top left
    shown[24:, :32] = 255, 0, 0  # bottom left
    data = moving_clips.encode(None, [stored(shown, matrix)] * 4, form=form, matrix=matrix, pix_fmt="yuv444p")
    info = probe(data)
    assert (info.width, info.height) == (64, 48)
    video = read_frames(data, FramePlan(0.0, Fraction(10), 3))
    expected = torch.from_numpy(shown).permute(2, 0, 1)[None, :, None].float() / 255
    assert video.shape == (1, 3, 3, 48, 64)
    assert ((video - expected).abs() > 0.1).float().mean() < 0.05


def test_other_rotations_are_reported(tmp_path):
    path = encode(tmp_path / "askew.mp4", [np.zeros((48, 64, 3), np.uint8)] * 4, rotation=30)
    for read in (probe, lambda path: read_frames(path, FramePlan(0.0, Fraction(10), 2))):
        with pytest.raises(UserError, match=r"askew\.mp4 has a -?30° rotation tag"):
            read(path)


@pytest.mark.parametrize(
    ("aspect", "matrix", "size"),
    [
        (Fraction(16, 15), (1, 0, 0, 1), (48, 68)),  # DV for televisions
        (Fraction(1, 2), (1, 0, 0, 1), (48, 32)),
        (Fraction(2), (0, 1, -1, 0), (128, 48)),  # pixels are wide as stored, so they are high as shown
        (Fraction(1000, 1001), (1, 0, 0, 1), (48, 64)),  # rounding of a container
    ],
)
def test_pixels_are_shown_square(aspect, matrix, size):
    frames = [np.full((48, 64, 3), 200, np.uint8)] * 4
    data = moving_clips.encode(None, frames, aspect=aspect, matrix=matrix)
    info = probe(data)
    assert (info.height, info.width) == size
    assert read_frames(data, FramePlan(0.0, Fraction(10), 2)).shape[-2:] == size


def test_absurd_pixel_aspects_are_reported():
    data = moving_clips.encode(None, [np.zeros((48, 640, 3), np.uint8)] * 4, aspect=Fraction(32))
    for read in (probe, lambda data: read_frames(data, FramePlan(0.0, Fraction(10), 2))):
        with pytest.raises(UserError, match="20480 by 48 pixels"):
            read(data)


@pytest.mark.parametrize("codec", INTERLACED)
def test_interlaced_frames_have_no_combs(codec):
    form, options = INTERLACED[codec]
    frames = [np.repeat(frame.mean(axis=-1, keepdims=True).astype(np.uint8), 3, axis=-1) for frame in moving(6, 0, 12)]
    data = moving_clips.encode(None, woven(frames), codec, form, **options)
    video = read_frames(data, FramePlan(0.0, Fraction(12), 6))[0].permute(1, 2, 3, 0) * 255
    upper, combed = (torch.from_numpy(np.stack(images)).float() for images in (frames[::2], woven(frames)))
    assert video.shape == upper.shape
    assert (video - upper).abs().mean() < 0.4 * (combed - upper).abs().mean()
    lines = (video[:, 1:] - video[:, :-1]).abs().mean()  # differences between neighbouring lines
    assert lines < 1.2 * (upper[:, 1:] - upper[:, :-1]).abs().mean() < (combed[:, 1:] - combed[:, :-1]).abs().mean()


TRANSPARENT = {
    # codec: (container, pixel format, options)
    "libvpx-vp9": ("webm", "yuva420p", {"b": "4000000", "deadline": "realtime", "cpu-used": "8", "g": "3"}),
    "prores_ks": ("mov", "yuva444p10le", {"profile": "4"}),
    "png": ("mov", "rgba", {}),
    "qtrle": ("mov", "argb", {}),
}


@pytest.mark.parametrize("codec", TRANSPARENT)
def test_alpha_is_blended_over_white(codec):
    """As for images. Several groups of pictures and reused decoders make no difference."""
    needs.encoders(codec)
    form, pix_fmt, options = TRANSPARENT[codec]
    pixels = np.zeros((64, 96, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[:, :32, 3], pixels[:, 32:64, 3] = 255, 128
    data = moving_clips.encode(None, [pixels] * 12, codec, form, pix_fmt, **options)
    video = read_frames(data, FramePlan(0.0, Fraction(12), 12)) * 255
    for first, colour in ((0, (200, 0, 0)), (32, (227, 127, 127)), (64, (255, 255, 255))):
        middle = video[0, :, :, 8:56, first + 8 : first + 24]
        assert (middle - torch.tensor(colour).view(3, 1, 1, 1)).abs().max() < 6, colour


def test_hd_without_a_tag_is_read_as_in_the_released_pipeline():
    """Black and grey do not depend on the matrix. The red of this colour is 190 with BT.709 and 179 with BT.601."""
    colours = {}
    for name, tag in {"none": None, "bt709": 1, "bt601": 5}.items():
        frame = av.VideoFrame(1280, 720, "yuv420p")
        for plane, value in zip(frame.planes, (100, 90, 180), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        file = io.BytesIO()
        with av.open(file, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.height, stream.width, stream.pix_fmt = 720, 1280, "yuv420p"
            stream.options = {"preset": "ultrafast", "crf": "4"}
            if tag:
                stream.codec_context.colorspace = frame.colorspace = tag
            frame.pts = 0
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        video = read_frames(file.getvalue(), FramePlan(0.0, Fraction(10), 1))
        colours[name] = (video[0, :, 0, 360, 640] * 255).round().int().tolist()
    assert colours["none"] == colours["bt601"]
    assert colours["bt709"][0] - colours["bt601"][0] > 8


# --- single frames --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["mp4", "matroska", "gif"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_single_frame_of_the_shortest_video(form, count):
    """A clip may be shorter than the plan's step."""
    if form == "gif":
        file = io.BytesIO()
        pictures = [Image.new("RGB", (64, 48), (200 - 100 * n,) * 3) for n in range(count)]
        pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=40)
        data = file.getvalue()
    else:
        frames = [np.full((48, 64, 3), 200 - 100 * n, np.uint8) for n in range(count)]
        data = moving_clips.encode(None, frames, form=form)
    info = probe(data)
    assert info.frames == count
    # The first step of a slow plan ends after the clip, and shows the last frame in it.
    for rate, grey in ((None, 200), (1000, 200), (4, 300 - 100 * count), (0.01, 300 - 100 * count)):
        video = read_frames(data, plan_frames(info, frames=1, rate=rate))
        assert video.shape == (1, 3, 1, 48, 64)
        assert video.mean() * 255 == pytest.approx(grey, abs=6)
    with pytest.raises(UserError, match="too short"):
        plan_frames(info, frames=count + 1)


def test_for_a_single_frame_no_later_frames_are_decoded():
    """Later frames may be damaged."""
    data = moving_clips.encode(None, moving(2, 0, 13), "mpeg4", "avi", b="2000000", g="30")
    with av.open(io.BytesIO(data)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    spoilt = data
    for packet in packets[4:]:
        spoilt = spoilt.replace(packet, packet[:20] + bytes(len(packet) - 20))
    plan = plan_frames(probe(data), frames=1, rate=12, start=0.25)
    assert torch.equal(read_frames(spoilt, plan), read_frames(data, plan))
    with pytest.raises(UserError, match="damaged"):
        read_frames(spoilt, FramePlan(0.0, Fraction(12), 13))


def test_colours_survive_the_round_trip(tmp_path):
    colours = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0.5]]).T.reshape(1, 3, 4, 1, 1)
    path = write_video(tmp_path / "colours.mp4", colours.expand(-1, -1, -1, 64, 64), 4)
    video = read_frames(path, FramePlan(0.0, Fraction(4), 4))
    assert (video - colours).abs().max() < 0.04


def test_ten_bit_frames_are_read(tmp_path):
    frames = [np.full((48, 64, 3), n * 8, np.uint8) for n in range(8)]
    path = encode(tmp_path / "ten.mkv", frames, codec="ffv1", pix_fmt="yuv420p10le")
    assert numbers(read_frames(path, FramePlan(0.0, Fraction(10), 8))) == list(range(8))


# --- resizing and images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width, size", [(48, 85, (32, 32)), (85, 48, (32, 32)), (31, 33, (64, 64))])
@pytest.mark.parametrize("antialias", [True, False])
def test_resize_crop_is_resize_and_centre_crop(height, width, size, antialias):
    transforms = pytest.importorskip("torchvision.transforms")
    video = torch.rand(1, 3, 2, height, width)
    frames = video[0].transpose(0, 1)
    expected = transforms.CenterCrop(size)(transforms.Resize(min(size), antialias=antialias)(frames))
    assert torch.allclose(resize_crop(video, size, antialias=antialias)[0].transpose(0, 1), expected, atol=1e-6)


def test_resize_crop_covers_any_shape():
    for size in [(40, 16), (16, 40), (7, 9)]:
        assert resize_crop(torch.ones(2, 1, 30, 50), size).shape == (2, 1, *size)
    assert torch.allclose(resize_crop(torch.ones(1, 1, 30, 50), (12, 80)), torch.ones(1, 1, 12, 80))


def test_read_image(tmp_path):
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[:, :3, 3] = 255  # left half opaque black, right half transparent
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    image = read_image(tmp_path / "alpha.png")
    assert image.shape == (1, 3, 4, 6)
    assert image[..., :3].max() == 0 and image[..., 3:].min() == 1

    exif = Image.Exif()
    exif[0x0112] = 6  # rotate clockwise by 90 degrees
    grey = np.zeros((8, 16, 3), np.uint8)
    grey[:, :8] = 255
    Image.fromarray(grey).save(tmp_path / "turned.png", exif=exif)
    turned = read_image(tmp_path / "turned.png")
    assert turned.shape == (1, 3, 16, 8) and turned[..., :8, :].min() == 1 and turned[..., 8:, :].max() == 0

    Image.fromarray(scene()).save(tmp_path / "camera.jfif", format="JPEG")
    assert {".jfif", ".avif"} <= IMAGES
    assert read_image(tmp_path / "camera.jfif").shape == (1, 3, *scene().shape[:2])
    animated = [Image.new("RGB", (6, 4), colour) for colour in ("white", "black")]
    animated[0].save(tmp_path / "animated.gif", save_all=True, append_images=animated[1:])
    assert read_image(tmp_path / "animated.gif").min() == 1  # the first image

    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png").mean() == pytest.approx(0.5, abs=1e-3)


# --- bad input ------------------------------------------------------------------------------------------------


def bad_files(folder, clip):
    data = clip.read_bytes()
    (folder / "text.mp4").write_text("this is not a video " * 50)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "headless.mp4").write_bytes(data[: data.find(b"moov")])
    Image.new("RGB", (8, 8)).save(folder / "image.png")
    Image.new("RGB", (8, 8)).save(folder / "image.jpg")
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 4096), np.float32), format="fltp", layout="stereo")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return ["absent.mp4", ".", "text.mp4", "empty.mp4", "headless.mp4", "image.png", "image.jpg", "sound.mp4"]


def test_bad_videos_are_reported(tmp_path, clip):
    plan = FramePlan(0.0, Fraction(4), 4)
    for name in bad_files(tmp_path, clip):
        for read in (probe, lambda path: read_frames(path, plan)):
            with pytest.raises(UserError) as caught:
                read(tmp_path / name)
            assert str(tmp_path / name) in str(caught.value) and "Expected" in str(caught.value), name


def test_a_truncated_video_is_reported(tmp_path):
    noise = torch.rand(1, 3, 20, 64, 64, generator=torch.Generator().manual_seed(0))
    path = write_video(tmp_path / "cut.mp4", noise, 10)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    plan = plan_frames(probe(path))
    with pytest.raises(UserError, match=r"cut\.mp4"):
        read_frames(path, plan)


@pytest.mark.parametrize("name", ["absent.png", ".", "text.png"])
def test_bad_images_are_reported(tmp_path, name):
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(UserError, match="image"):
        read_image(tmp_path / name)
