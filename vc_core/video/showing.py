"""How pictures are stored and how players show them: turned, mirrored, with pixels that are not square, interlaced,
transparent, of HDR."""

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
_UNNAMED, _MATRIX_2020 = 2, 9  # of H.273
_ROWS = 64  # of an HDR picture that are computed at a time, which bounds memory


class Turn(NamedTuple):
    """What makes a stored picture upright: rows become columns first, then the order of either is reversed."""

    transposed: bool = False
    rows: bool = False  # upside down
    columns: bool = False  # left to right

    def axes(self, pair: tuple[int, int]) -> tuple[int, int]:
        """(vertical, horizontal) of the stored picture as those of the upright one."""
        return pair[::-1] if self.transposed else pair

    @property
    def filters(self) -> list[tuple[str, str]]:
        """The same as ffmpeg filters."""
        if self.transposed:
            return [("transpose", ("cclock_flip", "clock", "cclock", "clock_flip")[2 * self.rows + self.columns])]
        return [(name, "") for name, needed in (("vflip", self.rows), ("hflip", self.columns)) if needed]


UPRIGHT = Turn()


class Colour(NamedTuple):
    """What a container says of its pictures' colours, in numbers of H.273; it counts where the pictures do not say."""

    transfer: int = _UNNAMED
    primaries: int = _UNNAMED

    @staticmethod
    def of(stream: Any) -> Colour:
        """Of a stream, of which nothing was decoded: decoders write over it."""
        return Colour(int(stream.codec_context.color_trc), int(stream.codec_context.color_primaries))

    def of_frame(self, frame: Any) -> Colour:
        own = Colour(int(frame.color_trc), int(frame.color_primaries))
        return Colour(*(told if mine == _UNNAMED else mine for mine, told in zip(own, self, strict=True)))


UNTOLD = Colour()


@dataclass(frozen=True)
class Picture:
    """A video's pictures as they are stored, and how players show them."""

    size: tuple[int, int]  # (height, width) as stored
    square: tuple[int, int]  # (height, width) to which they are scaled so that their pixels are square
    turn: Turn = UPRIGHT  # what makes them upright then
    transfer: int = _UNNAMED  # the function from light to signal, by its number in ITU-T H.273
    codec: str = ""  # their decoder

    @property
    def shown(self) -> tuple[int, int]:
        """(height, width) as players show them."""
        return self.turn.axes(self.square)


def stored_picture(video: Media) -> Picture:
    """A video's first picture. Raises UserError where there is none, or it is shown as no picture can be read."""
    with opened(video) as (container, stream):
        colour = Colour.of(stream)
        frame = next(container.decode(stream), None)
        if frame is None:
            raise unreadable(video, "it holds no frame")
        size = frame.height, frame.width
        check_pixels(video, size)
        square, transfer = _square(video, size, pixel_aspect(stream)), colour.of_frame(frame).transfer
        return Picture(size, square, _turn(video, frame), transfer, stream.codec_context.name)


def pixel_aspect(stream) -> Fraction:
    """A stored pixel's width over its height, as the container says, else the codec; 1 where neither does."""
    return stream.sample_aspect_ratio or SQUARE


def _square(video: object, size: tuple[int, int], aspect: Fraction) -> tuple[int, int]:
    height, width = size
    wide = round(width * aspect)
    if abs(wide - width) * 100 < width:  # containers round; scaling all pictures by a line or two gains nothing
        return size
    check_size(f"{video}: with pixels {float(aspect):g} times as wide as high, its picture", (height, wide))
    return height, wide


def _turn(video: object, frame) -> Turn:
    """What the display matrix of a frame asks for: what is stored at (x, y) is shown at (ax + cy, bx + dy)."""
    from av.sidedata.sidedata import SideDataContainer

    matrix = SideDataContainer(frame).get("DISPLAYMATRIX")  # frame.side_data would tie the frame to itself
    if matrix is None:
        return UPRIGHT
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), "=i4").tolist()
    straight, across = max(abs(a), abs(d)), max(abs(b), abs(c))
    if min(straight, across) * 50 > max(straight, across):  # more than about a degree off
        raise UserError(
            f"{video}: is to be shown turned by {math.degrees(math.atan2(-b, a)):.0f} degrees, and a multiple of 90 is "
            "expected: re-encode it upright."
        )
    return Turn(transposed=across > straight, rows=b + d < 0, columns=a + c < 0)


def filtering(
    video: Media | str,
    filters: Sequence[tuple[str, str]],
    aspect: Fraction | None = SQUARE,
    colour: Colour = UNTOLD,
) -> Callable[[Any], Any]:
    """A function from an av.VideoFrame to the filtered one, for one run of frames.

    A frame comes out as it is shown, each by itself: HDR ones (PQ, HLG) brought to SDR; transparent ones over white, as
    images are; interlaced ones as their upper field, at full height; with square pixels; turned upright; then through
    the further ffmpeg filters.

    RGB is made by swscale with the matrix that the file names, and with BT.601 where it names none, also for HD, which
    some players take for BT.709: so do the released pipeline, ffmpeg and ComfyUI's own loader, and a video must
    have the same colours on all of these ways.

    Args:
        aspect: a stored pixel's width over its height; None: frames are left as they are stored.
        colour: what the container says of it.
    """
    import av

    graphs: dict[bool, Any] = {}  # of whole frames and of interlaced ones; some streams hold both
    shape = None

    def run(frame):
        nonlocal shape
        now = frame.width, frame.height, frame.format.name
        shape = shape or now
        if now != shape:
            raise UserError(
                f"{video}: its picture changes size or format on the way, and one size is expected: "
                "re-encode it to a single size."
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
                f"{video}: a picture of {now[0]} by {now[1]} pixels cannot be scaled or converted "
                f"({error.strerror or error!r}): scale it down or crop it first."
            ) from error

    return run


def _as_shown(video: object, frame, interlaced: bool, aspect: Fraction) -> list[tuple[str, str]]:
    """The filters that bring frames like this one to what is shown."""
    size = frame.height, frame.width
    check_pixels(video, size)
    height, width = square = _square(video, size, aspect)
    # The field's lines alone: what deinterlaces better looks at the frames beside, which are not decoded here.
    field = [("field", "type=top")] if interlaced else []
    scale = [("scale", f"{width}:{height}")] if interlaced or square != size else []
    return [*field, *scale, *_turn(video, frame).filters]


def over_white(frame):
    """The av.VideoFrame itself, or, where it has an alpha channel (taken as straight), rgb24 of it laid over white."""
    if not any(component.is_alpha for component in frame.format.components):
        return frame
    rgba = frame.to_ndarray(format="rgba")
    colour, alpha = rgba[..., :3].astype(np.uint16), rgba[..., 3:].astype(np.uint16)
    return _instead(frame, (255 - ((255 - colour) * alpha + 127) // 255).astype(np.uint8))


def as_sdr(frame, told: Colour = UNTOLD):
    """The av.VideoFrame itself where it is SDR, else one of rgb24. `told`: by the container."""
    transfer, primaries = told.of_frame(frame)
    if transfer not in hdr.NAMES:
        return frame
    if int(frame.colorspace) == _UNNAMED and not frame.format.is_rgb:
        frame.colorspace = _MATRIX_2020
    signal = rgb48(frame)
    parts = (signal[top : top + _ROWS].astype(np.int32) for top in range(0, len(signal), _ROWS))
    mapped = [(hdr.tone_mapped(torch.from_numpy(part), transfer, primaries) * 255).round().byte() for part in parts]
    return _instead(frame, torch.cat(mapped).numpy())


def rgb48(frame) -> np.ndarray:
    """The pixels of an av.VideoFrame, (H, W, 3) uint16 RGB of the full range, by the matrix that it names."""
    graph = _graph(frame, [("scale", "flags=accurate_rnd"), ("format", "rgb48le")])  # else 8 bits are rounded down
    graph.push(frame)
    pixels = graph.pull().to_ndarray()
    # Of YUV's white ffmpeg makes 255 times 256.
    return pixels if frame.format.is_rgb else np.minimum(pixels * np.uint32(65535) // 65280, 65535).astype(np.uint16)


def _instead(frame, pixels: np.ndarray):
    """Pixels (H, W, 3) uint8 as an av.VideoFrame at the time of another one."""
    import av

    made = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    made.pts, made.time_base = frame.pts, frame.time_base
    return made


def _graph(frame, chain: list[tuple[str, str]]):
    """A filter graph for frames like this one, ended by a buffer sink."""
    import av

    graph = av.filter.Graph()
    first = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    nodes = [graph.add(name, options or None) for name, options in [*chain, ("buffersink", "")]]
    graph.link_nodes(first, *nodes).configure()
    return graph
