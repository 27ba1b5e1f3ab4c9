"""`every_frame`: all frames of a video of any length, a window at a time."""

import av
import numpy as np
import pytest
import torch

from tests.core.moving_clips import OWN, RATE, encode, encode_streamed, moving, scene
from vc_core.errors import UserError
from vc_core.video import FramePlan, every_frame, frames, planned_frames, probe, write_video

RGB = ("format", "rgb24")


def grey(count):
    """Frames of brightness 4 n, which identify themselves."""
    return [np.full((48, 64, 3), 4 * n, np.uint8) for n in range(count)]


def seen(source, **part):
    return [
        (round(time * RATE, 3), frame.to_ndarray().mean().round()) for time, frame in every_frame(source, RGB, **part)
    ]


@pytest.fixture
def short_windows(monkeypatch):
    monkeypatch.setattr(frames, "WINDOW", 1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", OWN),
        ("gops.mp4", {"g": "5", "bf": "2"}),
        ("a.mkv", {"g": "7"}),
        ("a.ts", {"g": "10"}),
        ("a.avi", {"codec": "mpeg4", "bf": "2"}),
        ("a.h264", {"form": "h264", "g": "10"}),  # without times, so it is always read from its beginning
    ],
)
def test_windows_give_the_frames_of_one_plan_each_once(tmp_path, short_windows, name, options):
    path = encode(tmp_path / name, moving(2, 1, 40), **options)
    plan = FramePlan(0.0, probe(path).rate, 40)
    expected = [frame.to_ndarray() for frame in planned_frames(path, plan, RGB)]
    actual = [(time, frame.to_ndarray()) for time, frame in every_frame(path, RGB)]
    assert len(actual) == 40
    for number, ((time, pixels), planned) in enumerate(zip(actual, expected, strict=True)):
        assert time == pytest.approx(number / plan.rate, abs=0.002) and np.array_equal(pixels, planned)


def test_only_frames_that_start_inside_the_part_are_read(tmp_path, short_windows):
    path = encode(tmp_path / "a.mp4", grey(60), g="7")
    complete = seen(path)
    assert [time for time, _ in complete] == list(range(60))
    assert seen(path, start=1.5, end=3.25) == complete[18:39]
    assert seen(path, start=1.51) == complete[19:]
    assert seen(path, start=7.0) == [] and seen(path, start=2.0, end=2.0) == []


def test_the_index_of_a_window_does_not_grow_with_the_length(tmp_path, short_windows, monkeypatch):
    sizes, planned_index = [], frames.planned_index
    monkeypatch.setattr(
        frames, "planned_index", lambda *args: sizes.append(planned_index(*args)) or sizes[-1]
    )  # fmt: skip
    path = encode(tmp_path / "a.mp4", grey(60) * 4, g="12")
    assert len(seen(path)) == 240
    assert len(sizes) == 20 and max(len(table.packets) for table in sizes) < 80
    sizes.clear()  # one keyframe only: windows grow, so that the work does not grow with the square of the length
    path = encode(tmp_path / "b.mp4", grey(60) * 4, **{**OWN, "g": "1000"})
    assert len(seen(path)) == 240
    assert len(sizes) <= 7


def test_images_are_read_like_videos(tmp_path, short_windows):
    write_video(tmp_path / "images", torch.rand(1, 3, 30, 16, 16), 10)
    assert [round(time, 3) for time, _ in every_frame(tmp_path / "images")] == [n / 10 for n in range(30)]


def test_filters_see_each_frame_upright(tmp_path):
    path = encode(tmp_path / "a.mp4", [scene(1)[:96, :128]] * 3, rotation=90)
    assert [(frame.width, frame.height) for _, frame in every_frame(path, ("scale", "48:64"))] == [(48, 64)] * 3
    assert [(frame.width, frame.height) for _, frame in every_frame(path)] == [(96, 128)] * 3


def truncated(path, fraction):
    """An MP4 with its index at the beginning, cut off."""
    encode_streamed(path, moving(1, 1, 60), g="6", bf="0")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


@pytest.mark.parametrize("fraction", [0.5, 0.55, 0.6])
def test_frames_before_the_damage_are_given_before_the_error(tmp_path, short_windows, fraction):
    path, times = truncated(tmp_path / "a.mp4", fraction), []
    with pytest.raises(UserError, match=r"truncated or shorter than it says|cannot be read"):
        for time, _ in every_frame(path):
            times.append(round(time * RATE))
    assert times == list(range(len(times))) and 10 < len(times) < 50
    assert len(seen(path, end=0.5)) == 6  # an earlier part is complete


def test_a_last_frame_that_stays_long_is_not_taken_for_damage(tmp_path):
    path = encode(tmp_path / "a.mkv", grey(5), times=[0, 100, 200, 300, 400])
    assert len(seen(path)) == 5
    with av.open(str(tmp_path / "slow.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number, pixels in enumerate(grey(5)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number if number < 4 else 40
            for packet in stream.encode(frame):
                container.mux(packet)
        container.mux(stream.encode(None))
    assert len(seen(tmp_path / "slow.mp4")) == 5
