"""Re-encoding in memory, only to have the block vectors exported on decoding. Nothing touches the disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from ..errors import UserError
from .vectors import BlockVectors, exported

NOMINAL = 336
"""Pixels of height that the released network's clips had."""

LOWEST = 16
"""The least nominal height."""


@dataclass(frozen=True)
class Reencode:
    """How a clip is encoded anew."""

    codec: str
    largest: int  # pixels of a side that the encoder takes
    even: bool  # 4:2:0 H.264 takes even sizes only
    options: dict[str, str] = field(default_factory=dict)

    def for_frames(self, frames: int) -> dict[str, str]:
        """The encoder's options for a clip of this many frames."""
        return {key: value.format(beyond=frames + 1) for key, value in self.options.items()}

    def check(self, what: object, height: int, width: int) -> None:
        """Raises UserError, which begins with `what`, for a picture that the encoder does not take."""
        if max(height, width) <= self.largest:
            return
        fitting = min(NOMINAL, (self.largest - 1) * height // width) // 2 * 2
        advice = f"give a nominal height, in ComfyUI nominal_height, for instance --nominal-height {fitting}"
        if fitting < LOWEST or fitting * width < height:  # a strip of which nothing would be left
            advice = "crop it"
        raise UserError(
            f"{what}: motion is taken from {width} by {height} pixels, and the encoder {self.codec} takes at most "
            f"{self.largest} a side: {advice}."
        )

    @property
    def filters(self) -> list[tuple[str, str]]:
        """ffmpeg filters for frames of any kind. The scaler brings any format and range to what encoders expect."""
        even = [("crop", "trunc(iw/2)*2:trunc(ih/2)*2:0:0")] if self.even else []
        return [*even, ("scale", "out_range=limited"), ("format", "yuv420p")]


# One reference, which is the previous frame; no I-frame inside the window; no weighted prediction, which would doubly
# list that reference; one thread, so that all machines agree.
_X264 = "bframes=0:ref=1:keyint={beyond}:min-keyint={beyond}:scenecut=0:weightp=0:rc-lookahead=0:mbtree=0:threads=1"

# `points`: the ffmpeg program's defaults, as golden values were made with. Without the rate and its tolerance most
# vectors differ, and the number of slices decides on them too (each starts its prediction afresh): the program
# takes a slice per thread, so here the number is fixed, and the machine's does not matter.
# `dense`: a thorough search.
# `steps`: for a source's own rate, where less moves from frame to frame and there are more frames.
REENCODE = {
    "points": Reencode("mpeg4", 8191, even=False, options={"b": "200000", "bt": "4000000", "g": "12", "slices": "3"}),
    "dense": Reencode(
        "libx264",
        16384,
        even=True,
        options={"crf": "18", "preset": "medium", "x264-params": f"{_X264}:me=umh:subme=7:merange=32"},
    ),
    "steps": Reencode(
        "libx264",
        16384,
        even=True,
        options={"crf": "18", "preset": "superfast", "x264-params": f"{_X264}:me=hex:subme=2:merange=16"},
    ),
}


def reencoded(
    frames: Iterable, rate: Fraction, count: int, settings: Reencode, what: object = "The video"
) -> Iterator[tuple[str, np.ndarray]]:
    """(kind, VECTOR rows) of each av.VideoFrame (yuv420p), in order, as it is encoded and decoded again.

    `count` is the number of frames: there are no further I-frames where the settings have none. Raises UserError, which
    begins with `what`, for pictures that are larger than the encoder takes.
    """
    import av
    from av.codec.context import Flags2

    decoder = av.CodecContext.create("h264" if settings.codec == "libx264" else settings.codec, "r")
    decoder.thread_type, decoder.thread_count = "NONE", 1  # frame threads corrupt exported vectors
    decoder.flags2 |= Flags2.export_mvs  # takes effect only before the first decode
    decoder.options = {"skip_loop_filter": "all"}  # vectors do not depend on the pictures
    encoder, decoded = None, 0

    def decode(packets) -> Iterator[tuple[str, np.ndarray]]:
        nonlocal decoded
        for packet in packets:
            for frame in decoder.decode(packet):
                yield kind(frame), exported(frame, decoded)
                decoded += 1

    for number, frame in enumerate(frames):
        if encoder is None:
            settings.check(what, frame.height, frame.width)
            encoder = av.CodecContext.create(settings.codec, "w")
            encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, "yuv420p"
            encoder.thread_type, encoder.thread_count = "SLICE", 1  # else as many slices as the machine has cores
            encoder.time_base, encoder.framerate = 1 / rate, rate
            encoder.options = settings.for_frames(count)
        frame.pts, frame.time_base = number, 1 / rate
        frame.pict_type = av.video.frame.PictureType.NONE  # else the source's I-frames would be kept as such
        yield from decode(encoder.encode(frame))
    if encoder is not None:
        yield from decode(encoder.encode(None))
        yield from decode([None])
    if decoded != count:
        raise RuntimeError(f"{settings.codec} gave {decoded} frames back for {count}")


def kind(frame) -> str:
    """I, P or B."""
    import av

    return av.video.frame.PictureType(frame.pict_type).name


def reencode(
    frames: Iterable, rate: Fraction, count: int, settings: Reencode, what: object = "The video"
) -> BlockVectors:
    """Encode av.VideoFrames (yuv420p) in memory, decode them again, and collect the exported block vectors.

    Raises UserError, which begins with `what`, for pictures that are larger than the encoder takes.
    """
    size = (0, 0)

    def watched() -> Iterator:
        nonlocal size
        for frame in frames:
            size = frame.height, frame.width
            yield frame

    found = list(reencoded(watched(), rate, count, settings, what))
    rows = []
    for number, (_, each) in enumerate(found):
        each["frame"] = number
        rows.append(each)
    return BlockVectors(np.concatenate(rows), *size, count, "".join(kind for kind, _ in found))
