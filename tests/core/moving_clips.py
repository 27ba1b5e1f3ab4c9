"""Clips of known motion, encoded in many ways."""

import io
from fractions import Fraction
from functools import cache

import av
import numpy as np
import torch
import torch.nn.functional as F

from vc_core.extract.motion.from_video import read_motion
from vc_core.video import FramePlan

RATE = 12
PLAN = FramePlan(0.0, Fraction(4), 4)  # every third frame of a clip at RATE
OWN = {"bf": "0", "refs": "1", "g": "60"}  # H.264 whose vectors refer to the previous frame
SHOWN = slice(16, -16)  # away from the border, where new content appears


def extract_motion(source, plan, layout="points", size=(256, 256), **options) -> torch.Tensor:
    """Return only the field of `read_motion`."""
    return read_motion(source, plan, size, layout, **options).field


@cache
def scene(seed: int = 0, side: int = 320) -> np.ndarray:
    """Smooth random colours (side, side, 3), with detail at several scales."""
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.rand(1, 3, side // cell, side // cell, generator=generator) for cell in (4, 8, 16)]
    total = sum(F.interpolate(layer, size=(side, side), mode="bicubic") / 3 for layer in noise)
    return (((total - 0.5) * 1.8 + 0.5).clamp(0, 1)[0].permute(1, 2, 0) * 255).byte().numpy()


def moving(dx: int, dy: int, frames: int = 13, height: int = 96, width: int = 128, start: int = 90) -> list[np.ndarray]:
    """Frames of a window over the scene, so that the content moves by (dx, dy) per frame."""
    corners = [(start - dy * n, start - dx * n) for n in range(frames)]
    return [np.ascontiguousarray(scene()[y : y + height, x : x + width]) for y, x in corners]


def sprite(velocity: int, frames: int = 13) -> list[np.ndarray]:
    """A square of 48 pixels that starts at x = 8, in front of a static background."""
    result = []
    for n in range(frames):
        picture = scene(1)[:96, :192].copy()
        picture[24:72, 8 + velocity * n : 56 + velocity * n] = scene(2)[100:148, 100:148]
        result.append(picture)
    return result


MATRICES = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)]
MATRICES += [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)]
"""(a, b, c, d) of display matrices: the pixel stored at (x, y) is shown at (ax + cy, bx + dy). The last four mirror."""


def stored(shown: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """The stored image that players show as `shown` with a display matrix."""
    a, b, c, d = matrix
    picture = shown[:: b + d, :: a + c]
    return picture if a else picture.swapaxes(0, 1)


def woven(frames: list[np.ndarray]) -> list[np.ndarray]:
    """Interlaced frames: the even lines from one frame and the odd lines from the next."""
    result = [upper.copy() for upper in frames[::2]]
    for picture, lower in zip(result, frames[1::2], strict=True):
        picture[1::2] = lower[1::2]
    return result


INTERLACED = {
    # codec: (container, options)
    "libx264": ("mp4", {**OWN, "x264-params": "interlaced=1:ref=1:bframes=0"}),
    "mpeg2video": ("mpegts", {"b": "4000000", "flags": "+ildct+ilme"}),
}


def encode(
    target,
    frames,
    codec="libx264",
    form=None,
    pix_fmt="yuv420p",
    times=None,
    rotation=None,
    matrix=None,
    aspect=None,
    **options,
):
    """Write (H, W, 3 or 4) uint8 frames to a path, or to bytes if `target` is None."""
    buffer = io.BytesIO() if target is None else str(target)
    with av.open(buffer, "w", format=form or ("mp4" if target is None else None)) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pix_fmt
        stream.options = {"preset": "veryfast", **options} if codec.startswith("libx26") else options
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        if matrix:
            a, b, c, d = (entry << 16 for entry in matrix)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for number, pixels in enumerate(frames):
            layout = "rgba" if pixels.shape[-1] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=layout)
            frame.pts = times[number] if times else number
            frame.time_base = Fraction(1, 1000) if times else Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue() if target is None else target


def encode_streamed(path, frames: list[np.ndarray], **options):
    """Write an MP4 as `encode` does, with its index at the beginning: it can be read if its end is missing."""
    data = encode(None, frames, **options)
    with av.open(io.BytesIO(data)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.size:
                packet.stream = copy
                target.mux(packet)
    return path


def assert_moves(field: torch.Tensor, dx: float, dy: float, fraction: float = 0.8) -> None:
    """Check that all frames but the first move by (dx, dy) at most positions away from the border."""
    assert field.isfinite().all() and field[:, :, 0].abs().max() == 0
    middle = field[0, :, 1:, SHOWN, SHOWN]
    error = (middle - torch.tensor([dx, dy]).view(2, 1, 1, 1)).abs().amax(dim=0)
    assert (error < 0.75).float().mean() > fraction, middle.flatten(1).median(dim=1).values


CODECS = {
    # name: (codec, container, pixel format, options, whether its own vectors are usable)
    "h264": ("libx264", "mp4", "yuv420p", OWN, True),
    "h264 transport stream": ("libx264", "mpegts", "yuv420p", OWN, True),
    "h264 keyframes": ("libx264", "mp4", "yuv420p", {**OWN, "g": "4"}, True),
    "mpeg4": ("mpeg4", "mp4", "yuv420p", {"b": "2000000", "g": "5"}, True),
    "mpeg2": ("mpeg2video", "mpegts", "yuv420p", {"b": "2000000"}, True),
    "flv1": ("flv", "flv", "yuv420p", {"b": "2000000"}, True),
    "h264 b-frames": ("libx264", "mp4", "yuv420p", {"bf": "3", "b-adapt": "0", "g": "6"}, False),
    "h264 references": ("libx264", "mp4", "yuv420p", {"bf": "0", "refs": "3"}, False),
    "mpeg4 b-frames": ("mpeg4", "avi", "yuv420p", {"b": "2000000", "bf": "2", "g": "6"}, False),
    "mpeg2 open groups": ("mpeg2video", "mpegts", "yuv420p", {"b": "2000000", "bf": "2", "g": "6"}, False),
    "hevc": ("libx265", "mp4", "yuv420p", {"x265-params": "log-level=none:keyint=6:open-gop=1"}, False),
    "vp8": (
        "libvpx",
        "webm",
        "yuv420p",
        {"b": "2000000", "deadline": "realtime", "cpu-used": "8", "threads": "1", "g": "6"},
        False,
    ),
    "vp9": (
        "libvpx-vp9",
        "webm",
        "yuv420p",
        {"b": "2000000", "deadline": "realtime", "cpu-used": "8", "threads": "1", "g": "6"},
        False,
    ),
    "av1": ("libsvtav1", "mp4", "yuv420p", {"preset": "12", "svtav1-params": "keyint=6"}, False),
    "mjpeg": ("mjpeg", "avi", "yuvj420p", {"q": "2"}, False),
    "10 bit": ("libx264", "mp4", "yuv420p10le", OWN, True),
    "alpha": ("qtrle", "mov", "argb", {}, False),
}
