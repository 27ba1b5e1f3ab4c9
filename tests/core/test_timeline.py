"""Videos whose containers are wrong about their pictures: times, keyframes, numbers, rates; by the pictures' own
bar codes."""

import io
import math
import struct
from collections.abc import Callable
from fractions import Fraction
from functools import cache

import av
import numpy as np
import pytest
import torch

from tests.core.moving_clips import scene
from vc_core.extract import read_motion
from vc_core.video import FramePlan, plan_frames, probe, read_frames
from vc_core.video.opening import media
from vc_core.video.timeline import index

RATE, COUNT = 30, 90
HEIGHT, WIDTH = 96, 128
QUICK = {"preset": "veryfast", "crf": "12"}
X264 = {**QUICK, "bf": "3", "b-adapt": "0", "g": "24"}
X265 = {"preset": "ultrafast", "x265-params": "log-level=none:keyint=24:bframes=3:crf=12:open-gop=0"}
PART2 = {"b": "4000000", "bf": "2", "g": "24"}


def picture(number: int) -> np.ndarray:
    """Its number as a bar code of eight bits, above a texture that moves 2 pixels to the right a frame."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for bit in range(8):
        pixels[:32, bit * 16 : bit * 16 + 16] = 255 * (number >> bit & 1)
    pixels[32:] = scene()[100:164, 190 - 2 * number % 190 :][:, :WIDTH]
    return pixels


def number(image: torch.Tensor) -> int:
    """The bar code of a picture (3, H, W)."""
    return sum(int(image[:, 16, bit * 16 + 8].mean() > 0.5) << bit for bit in range(8))


def numbers(data: bytes, start: float, rate: Fraction, count: int) -> list[int]:
    return [number(image) for image in read_frames(data, FramePlan(start, rate, count))[0].transpose(0, 1)]


def expected(start: float, rate: Fraction, count: int, own: Fraction = Fraction(RATE)) -> list[int]:
    """What the `fps` filter shows of a clip of a fixed rate: the last frame that is nearest to the tick or before."""
    ticks = [
        math.floor((n / own - Fraction(start).limit_denominator(1000)) * rate + Fraction(1, 2)) for n in range(COUNT)
    ]
    return [max(n for n, tick in enumerate(ticks) if tick <= k) for k in range(count)]


@cache
def clip(codec: str, form: str, rate: Fraction = Fraction(RATE), **options) -> bytes:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt, stream.options = HEIGHT, WIDTH, "yuv420p", options
        for n in range(COUNT):
            frame = av.VideoFrame.from_ndarray(picture(n), format="rgb24")
            frame.pts, frame.time_base = n, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def muxed(data: bytes, form: str, change: Callable[[list], list] = list) -> bytes:
    """The packets of a video in another container, or changed on the way."""
    file = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(file, "w", format=form) as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in change([packet for packet in source.demux(video=0) if packet.size]):
            packet.stream = stream
            container.mux(packet)
    return file.getvalue()


def decode_times(packets: list) -> list:
    """Each picture said to be shown when it is decoded (OpenCV's and VirtualDub's files)."""
    for packet in packets:
        packet.pts = packet.dts
    return packets


def packed(packets: list) -> list:
    """As XviD and DivX store B-frames: the first one with the frame before it, the others one packet later, and at
    last a packet of a few bytes that holds none."""
    code = b"\0\0\1\xb6"
    held = [bytes(packet).replace(code, b"\0\0\1\xb2DivX503b1393p" + code) for packet in packets]
    later = [data[data.find(code) + 4] >> 6 == 2 for data in held]
    n = 0
    while n < len(held) - 1:
        n += 1
        if later[n] and not later[n - 1]:
            last = next((m for m in range(n, len(held)) if not later[m]), len(held)) - 1
            held[n - 1 : last + 1] = [held[n - 1] + held[n], *held[n + 1 : last + 1], code + b"\x50\x4f"]
    return [replaced(packet, data) for packet, data in zip(packets, held, strict=True)]


def replaced(packet, data: bytes):
    found = av.Packet(data)
    found.pts, found.dts, found.time_base = packet.pts, packet.dts, packet.time_base
    found.duration, found.is_keyframe = packet.duration, packet.is_keyframe
    return found


def assert_right(data: bytes, own: Fraction = Fraction(RATE)) -> None:
    for start, rate, count in ((0.0, own, 16), (0.5, Fraction(10), 12), (1.21, own, 30), (2.0, Fraction(7), 5)):
        assert numbers(data, start, rate, count) == expected(start, rate, count, own), (start, rate)


ORDERED = {
    # name: (codec, container, options)
    **{f"h264 {form}": ("libx264", form, X264) for form in ("mp4", "avi", "asf", "mxf", "matroska", "mpegts", "flv")},
    "h264 bare": ("libx264", "h264", X264),
    "h264 no B-frames, avi": ("libx264", "avi", {**X264, "bf": "0"}),
    "h264 B-frames that are referred to, avi": ("libx264", "avi", {**X264, "b-pyramid": "normal", "bf": "8"}),
    "h264 open groups, avi": ("libx264", "avi", {**X264, "x264-params": "open-gop=1"}),
    "h264 intra refresh, bare": ("libx264", "h264", {**X264, "x264-params": "intra-refresh=1"}),
    **{f"hevc {form}": ("libx265", form, X265) for form in ("mp4", "matroska", "mpegts", "flv")},
    "hevc bare": ("libx265", "hevc", X265),
    **{f"mpeg4 {form}": ("mpeg4", form, PART2) for form in ("mp4", "avi", "asf", "matroska", "mpegts", "m4v")},
    **{f"mpeg2 {form}": ("mpeg2video", form, PART2) for form in ("mp4", "avi", "mxf", "matroska", "mpegts", "mpeg")},
    "mpeg2 bare": ("mpeg2video", "mpeg2video", PART2),
}
