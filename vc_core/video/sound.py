"""The sound of a video, cut to the frames that are used of it, for the file that is written from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from ..errors import UserError
from .opening import Media, demuxed

RATE = 48000
"""Samples per second of sound that is written: the only rate that all its codecs support."""
_GAP = RATE // 10
"""Samples. Shorter gaps between packets are rounded times, longer ones are silence."""


@dataclass(frozen=True)
class Sound:
    """A part of a source's sound.

    Attributes:
        source: the video that contains it.
        start: seconds from the source's first frame.
        seconds: length of the part, at most.
    """

    source: Media
    start: float
    seconds: float

    def samples(self) -> Iterator[np.ndarray]:
        """Yield the samples in parts, (2, N) float32 at `RATE`.

        Raises:
            UserError: the sound cannot be decoded.
        """
        import av

        needed, position = round(self.seconds * RATE), 0
        with demuxed(self.source.open()) as container:
            stream, frames = container.streams.audio[0], container.streams.video[0]
            begin = float((frames.start_time or 0) * frames.time_base) + self.start
            if self.start > 1:  # a second earlier, because the first samples need the packets before them
                container.seek(int((begin - 1) / stream.time_base), stream=stream)
            resampler = av.AudioResampler(format="fltp", layout="stereo", rate=RATE)
            try:
                for part in (part for frame in _decoded(container, stream) for part in resampler.resample(frame)):
                    samples = part.to_ndarray()
                    late = 0 if part.time is None else round((part.time - begin) * RATE) - position
                    if late < 0 or (position and late <= _GAP):
                        # Before the start, or already written: the times of packets are rounded.
                        samples = samples[:, -late if position == 0 else 0 :]
                        late = 0
                    samples = np.pad(samples, ((0, 0), (late, 0)))[:, : needed - position]
                    position += samples.shape[1]
                    if samples.shape[1]:
                        yield samples
                    if position >= needed:
                        return
            except av.error.FFmpegError as error:
                raise UserError(
                    f"The sound of {self.source} cannot be read ({error.strerror or repr(error)}). Convert its sound "
                    "to AAC, or remove it."
                ) from error

    def packets(self, stream: Any) -> Iterator[tuple[Fraction, Any]]:
        """Encode the sound for a stream of an output file; yield (time in seconds, packet) in order."""
        import av

        context, position = stream.codec_context, 0

        def encoded(frame: Any) -> Iterator[tuple[Fraction, Any]]:
            for packet in context.encode(frame):
                packet.stream = stream
                yield (packet.dts or 0) * packet.time_base, packet

        for samples in self.samples():
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout="stereo")
            frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), position
            position += samples.shape[1]
            yield from encoded(frame)
        yield from encoded(None)


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the frames of a stream, then None, which flushes what reads them."""
    yield from container.decode(stream)
    yield None


def sound_of(source: Media, start: float, seconds: float) -> Sound | None:
    """Return a part of a source's sound; None if it has no sound."""
    if source.pictures:
        return None
    with demuxed(source.open()) as container:
        return Sound(source, start, seconds) if container.streams.audio else None
