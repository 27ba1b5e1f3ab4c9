"""Convert stored frames to what players show: rotation, mirroring, pixel aspect, interlacing, transparency, HDR."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import UserError
from . import hdr
from .limits import check_pixels, check_size
from .opening import Media, opened, unreadable

SQUARE = Fraction(1)
_UNNAMED, _MATRIX_2020 = 2, 9  # numbers of H.273: unspecified, and the matrix of BT.2020
_ROWS = 64  # rows of an HDR frame that are converted at a time, to limit memory


class Turn(NamedTuple):
    """How to turn a stored frame upright: first rows become columns, then the order of rows or columns is reversed."""

    transposed: bool = False
    rows: bool = False  # upside down
    columns: bool = False  # left to right

    def axes(self, pair: tuple[int, int]) -> tuple[int, int]:
        """Convert (vertical, horizontal) of the stored frame to those of the upright frame."""
        return pair[::-1] if self.transposed else pair

    @property
    def filters(self) -> list[tuple[str, str]]:
        """The same operation as ffmpeg filters."""
        if self.transposed:
            return [("transpose", ("cclock_flip", "clock", "cclock", "clock_flip")[2 * self.rows + self.columns])]
        return [(name, "") for name, needed in (("vflip", self.rows), ("hflip", self.columns)) if needed]


UPRIGHT = Turn()


class Colour(NamedTuple):
    """A container's colour tags, as numbers of H.273. They apply if the frames have no tags of their own."""

    transfer: int = _UNNAMED
    primaries: int = _UNNAMED

    @staticmethod
    def of(stream: Any) -> Colour:
        """The tags of a stream before decoding, because decoders overwrite them."""
        return Colour(int(stream.codec_context.color_trc), int(stream.codec_context.color_primaries))

    def of_frame(self, frame: Any) -> Colour:
        own = Colour(int(frame.color_trc), int(frame.color_primaries))
        return Colour(*(default if tag == _UNNAMED else tag for tag, default in zip(own, self, strict=True)))


UNSPECIFIED = Colour()


@dataclass(frozen=True)
class Picture:
    """How a video's frames are stored, and how players show them."""

    size: tuple[int, int]  # (height, width) as stored
    square: tuple[int, int]  # (height, width) after scaling to square pixels
    turn: Turn = UPRIGHT  # applied after scaling
    transfer: int = _UNNAMED  # the function from light to signal, by its number in ITU-T H.273
    codec: str = ""  # the decoder

    @property
    def shown(self) -> tuple[int, int]:
        """(height, width) as players show the frames."""
        return self.turn.axes(self.square)


def stored_picture(video: Media) -> Picture:
    """Describe a video's first frame. Raises UserError without a frame, or if its rotation or size is not supported."""
    with opened(video) as (container, stream):
        colour = Colour.of(stream)
        frame = next(container.decode(stream), None)
        if frame is None:
            raise unreadable(video, "it contains no frame")
        size = frame.height, frame.width
        check_pixels(video, size)
        square, transfer = _square(video, size, pixel_aspect(stream)), colour.of_frame(frame).transfer
        return Picture(size, square, _turn(video, frame), transfer, stream.codec_context.name)


def pixel_aspect(stream) -> Fraction:
    """Return a stored pixel's width divided by its height, from the container or the codec; 1 if neither says it."""
    return stream.sample_aspect_ratio or SQUARE


def _square(video: object, size: tuple[int, int], aspect: Fraction) -> tuple[int, int]:
    height, width = size
    wide = round(width * aspect)
    if abs(wide - width) * 100 < width:  # containers round; scaling all frames by a line or two is useless
        return size
    check_size(f"{video}: Its pixels are {float(aspect):g} times as wide as high, so its frame", (height, wide))
    return height, wide


def _turn(video: object, frame) -> Turn:
    """Read the display matrix of a frame: the pixel stored at (x, y) is shown at (ax + cy, bx + dy)."""
    from av.sidedata.sidedata import SideDataContainer

    matrix = SideDataContainer(frame).get("DISPLAYMATRIX")  # frame.side_data would create a reference cycle
    if matrix is None:
        return UPRIGHT
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), "=i4").tolist()
    straight, across = max(abs(a), abs(d)), max(abs(b), abs(c))
    if min(straight, across) * 50 > max(straight, across):  # more than about one degree from a multiple of 90
        raise UserError(
            f"{video} has a {math.degrees(math.atan2(-b, a)):.0f}° rotation tag. Only multiples of 90° are "
            "supported. Re-encode it upright."
        )
    return Turn(transposed=across > straight, rows=b + d < 0, columns=a + c < 0)


def filtering(
    video: Media | str,
    filters: Sequence[tuple[str, str]],
    aspect: Fraction | None = SQUARE,
    colour: Colour = UNSPECIFIED,
) -> Callable[[Any], Any]:
    """Return a function that converts an av.VideoFrame to the shown and filtered frame, for one sequence of frames.

    Each frame is converted independently: HDR (PQ, HLG) to SDR; transparency blended over white, as for images;
    interlaced frames to their upper field, at full height; square pixels; rotated upright; then the further ffmpeg
    filters.

    swscale converts to RGB with the matrix tagged in the file, or BT.601 without a tag, also for HD, which some players
    treat as BT.709. The released pipeline, ffmpeg and ComfyUI's own loader do the same, and a video must have the same
    colours in all of them.

    Args:
        aspect: a stored pixel's width divided by its height; None: leave frames as stored.
        colour: the container's colour tags.
    """
    import av

    graphs: dict[bool, Any] = {}  # for progressive and for interlaced frames; some streams contain both
    shape = None

    def run(frame):
        nonlocal shape
        current = frame.width, frame.height, frame.format.name
        shape = shape or current
        if current != shape:
            raise UserError(
                f"The frame size or pixel format changes partway through {video}. Re-encode it at one size."
            )
        interlaced = aspect is not None and frame.interlaced_frame
        picture = over_white(as_sdr(frame, colour))
        if interlaced not in graphs:
            upright = [] if aspect is None else _as_shown(video, frame, interlaced, aspect)
            graphs[interlaced] = _graph(picture, [*upright, *filters])
        try:
            graphs[interlaced].push(picture)
            return graphs[interlaced].pull()
        except av.FFmpegError as error:
            raise UserError(
                f"{video}: A frame of {current[0]} by {current[1]} pixels cannot be scaled or converted "
                f"({error.strerror or error!r}). Scale it down or crop it first."
            ) from error

    return run


def _as_shown(video: object, frame, interlaced: bool, aspect: Fraction) -> list[tuple[str, str]]:
    """Return the filters that convert frames like this one to what is shown."""
    size = frame.height, frame.width
    check_pixels(video, size)
    height, width = square = _square(video, size, aspect)
    # Only the lines of one field: better deinterlacers need the neighbouring frames, which are not decoded here.
    field = [("field", "type=top")] if interlaced else []
    scale = [("scale", f"{width}:{height}")] if interlaced or square != size else []
    return [*field, *scale, *_turn(video, frame).filters]


def over_white(frame):
    """Return the av.VideoFrame itself, or, if it has a (straight) alpha channel, an rgb24 frame blended over white."""
    if not any(component.is_alpha for component in frame.format.components):
        return frame
    rgba = frame.to_ndarray(format="rgba")
    colour, alpha = rgba[..., :3].astype(np.uint16), rgba[..., 3:].astype(np.uint16)
    return _replacing(frame, (255 - ((255 - colour) * alpha + 127) // 255).astype(np.uint8))


def as_sdr(frame, colour: Colour = UNSPECIFIED):
    """Return the av.VideoFrame itself if it is SDR, or else an rgb24 frame. `colour`: the container's tags."""
    transfer, primaries = colour.of_frame(frame)
    if transfer not in hdr.NAMES:
        return frame
    if int(frame.colorspace) == _UNNAMED and not frame.format.is_rgb:
        frame.colorspace = _MATRIX_2020
    signal = rgb48(frame)
    parts = (signal[top : top + _ROWS].astype(np.int32) for top in range(0, len(signal), _ROWS))
    mapped = [(hdr.tone_mapped(torch.from_numpy(part), transfer, primaries) * 255).round().byte() for part in parts]
    return _replacing(frame, torch.cat(mapped).numpy())


def rgb48(frame) -> np.ndarray:
    """Return the pixels of an av.VideoFrame as (H, W, 3) uint16 full-range RGB, with the matrix in its tags."""
    graph = _graph(frame, [("scale", "flags=accurate_rnd"), ("format", "rgb48le")])  # otherwise 8 bits are rounded down
    graph.push(frame)
    pixels = graph.pull().to_ndarray()
    # ffmpeg converts YUV's white to 255 * 256.
    return pixels if frame.format.is_rgb else np.minimum(pixels * np.uint32(65535) // 65280, 65535).astype(np.uint16)


def _replacing(frame, pixels: np.ndarray):
    """Return pixels (H, W, 3) uint8 as an av.VideoFrame with the time of `frame`."""
    import av

    result = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    result.pts, result.time_base = frame.pts, frame.time_base
    return result


def _graph(frame, chain: list[tuple[str, str]]):
    """Return a filter graph for frames like this one, with a buffer sink at the end."""
    import av

    graph = av.filter.Graph()
    first = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    nodes = [graph.add(name, options or None) for name, options in [*chain, ("buffersink", "")]]
    graph.link_nodes(first, *nodes).configure()
    return graph
