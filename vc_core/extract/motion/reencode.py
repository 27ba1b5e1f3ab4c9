"""Re-encode frames in memory, because decoders can export the encoder's block vectors. Nothing is written to disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ...errors import UserError
from ...progress import Progress
from .vectors import BlockVectors, exported

NOMINAL = 336
"""Shorter side, in pixels, of the released network's training clips (about 596 x 336)."""

LOWEST = 16
"""The least nominal height."""


@dataclass(frozen=True)
class Reencode:
    """How a clip is re-encoded."""

    codec: str
    largest: int  # largest side in pixels that the encoder supports
    even: bool  # 4:2:0 H.264 supports only even sizes
    options: dict[str, str]

    def check(self, what: object, height: int, width: int) -> None:
        """Raise UserError, which begins with `what`, if a frame is too large for the encoder."""
        if max(height, width) <= self.largest:
            return
        fitting = min(NOMINAL, (self.largest - 1) * height // width) // 2 * 2
        advice = f"Set a nominal height, for example --nominal-height {fitting} (in ComfyUI nominal_height)"
        if fitting < LOWEST or fitting * width < height:  # too narrow a strip for any height
            advice = "Crop it"
        raise UserError(
            f"{what}: Motion would be extracted at {width} by {height} pixels. The encoder {self.codec} supports at "
            f"most {self.largest} pixels per side. {advice}."
        )

    def filters(self, nominal_height: int | None = None) -> list[tuple[str, str]]:
        """ffmpeg filters for frames of any format. The scaler converts format and range for the encoder."""
        nominal = [] if nominal_height is None else [("scale", f"-2:{nominal_height // 2 * 2}")]
        even = [("crop", "trunc(iw/2)*2:trunc(ih/2)*2:0:0")] if self.even else []
        return [*nominal, *even, ("scale", "out_range=limited"), ("format", "yuv420p")]


def _x264(preset: str, search: str) -> Reencode:
    # One reference, the previous frame; no I-frame inside the window; no weighted prediction, which would list that
    # reference twice; one thread, so that all machines give the same result.
    alone = "bframes=0:ref=1:keyint={beyond}:min-keyint={beyond}:scenecut=0:weightp=0:rc-lookahead=0:mbtree=0:threads=1"
    return Reencode("libx264", 16384, True, {"crf": "18", "preset": preset, "x264-params": f"{alone}:{search}"})


# `points`: the ffmpeg program's defaults, as for the golden values. Without the rate and its tolerance, most vectors
# differ. The number of slices matters too (each restarts its prediction): the program uses one slice per
# thread, so the number is fixed here and does not depend on the machine.
# `dense`: a thorough search.
# `steps`: for a source's own rate, with smaller displacements and more frames.
REENCODE = {
    "points": Reencode("mpeg4", 8191, False, {"b": "200000", "bt": "4000000", "g": "12", "slices": "3"}),
    "dense": _x264("medium", "me=umh:subme=7:merange=32"),
    "steps": _x264("superfast", "me=hex:subme=2:merange=16"),
}


def reencoded(
    frames: Iterable, rate: Fraction, count: int, settings: Reencode, what: object = "The video"
) -> Iterator[np.ndarray]:
    """Encode and decode av.VideoFrames (yuv420p), and yield the VECTOR rows of each, in order.

    `count` is the number of frames; the I-frame distance depends on it if the settings allow only one I-frame. Raises
    UserError, which begins with `what`, if frames are too large for the encoder.
    """
    import av
    from av.codec.context import Flags2

    decoder = av.CodecContext.create("h264" if settings.codec == "libx264" else settings.codec, "r")
    decoder.thread_type, decoder.thread_count = "NONE", 1  # frame threads corrupt exported vectors
    decoder.flags2 |= Flags2.export_mvs  # takes effect only before the first decode
    decoder.options = {"skip_loop_filter": "all"}  # vectors do not depend on the filter
    encoder, decoded = None, 0

    def decode(packets) -> Iterator[np.ndarray]:
        nonlocal decoded
        for packet in packets:
            for frame in decoder.decode(packet):
                yield exported(frame, decoded)
                decoded += 1

    for number, frame in enumerate(frames):
        if encoder is None:
            settings.check(what, frame.height, frame.width)
            encoder = av.CodecContext.create(settings.codec, "w")
            encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, "yuv420p"
            encoder.thread_type, encoder.thread_count = "SLICE", 1  # otherwise one slice per core
            encoder.time_base, encoder.framerate = 1 / rate, rate
            encoder.options = {key: value.format(beyond=count + 1) for key, value in settings.options.items()}
        frame.pts, frame.time_base = number, 1 / rate
        frame.pict_type = av.video.frame.PictureType.NONE  # otherwise the source's I-frames would stay I-frames
        yield from decode(encoder.encode(frame))
    if encoder is not None:
        yield from decode(encoder.encode(None))
        yield from decode([None])
    if decoded != count:
        raise RuntimeError(f"{settings.codec} returned {decoded} frames for {count}")


def reencode(
    frames: Iterable, rate: Fraction, count: int, settings: Reencode, what: object, progress: Progress | None = None
) -> BlockVectors:
    """Collect all rows of `reencoded`; progress is called as `progress("motion", frames done, frames)`."""
    size = (0, 0)

    def watched() -> Iterator:
        nonlocal size
        for frame in frames:
            size = frame.height, frame.width
            yield frame

    rows = []
    for each in reencoded(watched(), rate, count, settings, what):
        rows.append(each)
        if progress is not None:
            progress("motion", len(rows), count)
    return BlockVectors(np.concatenate(rows), *size, count)
