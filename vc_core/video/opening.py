"""Open files safely, and find the stream of a file that is its video."""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from ..errors import UserError
from .heif import STILLS
from .limits import VARIABLE, check_pixels, decoder_options, most_pixels

HEAD = 4096
"""Bytes at the beginning of a file that identify its format."""


@dataclass(frozen=True)
class Pictures:
    """A sequence of images as a video."""

    kind: str  # what `VideoInfo.codec` says
    size: tuple[int, int]  # (height, width)
    time_base: Fraction  # seconds of one unit of `times`
    times: tuple[int, ...]  # when each image is shown, ascending from 0; and when the last one ends
    read: Callable[[Sequence[int]], Iterator[np.ndarray]]  # images by number, ascending, as (H, W, 3 or 4) uint8
    note: str = ""  # a sentence about what was decided for the user, or empty

    def shown(self, times: Sequence[int]) -> Iterator[Any]:
        """Yield the images that start at these times as av.VideoFrames."""
        import av

        numbers = {time: number for number, time in enumerate(self.times)}
        for time, pixels in zip(times, self.read([numbers[time] for time in times]), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba" if pixels.shape[-1] == 4 else "rgb24")
            frame.pts, frame.time_base = time, self.time_base
            yield frame


@dataclass(frozen=True)
class Media:
    """A video that can be opened as often as needed."""

    name: str  # for messages
    source: Path | bytes  # its path, or its bytes
    pictures: Pictures | None = None  # set for a sequence of images, which av.open cannot read

    def __str__(self) -> str:
        return self.name

    def open(self) -> Any:
        """Return the argument for av.open."""
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else as_url(self.source)

    def file(self) -> IO[bytes]:
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else open(self.source, "rb")


_VIDEOS = (
    "mov mp4 3gp 3g2 matroska webm avi asf asf_o flv kux live_flv mpegts mpegtsraw mpeg ogg mxf mxg nut rm ivr gxf wtv "
    "ty dv nsv nuv pva dhav hxvs luodat ifv lxf cine ser film_cpk flic roq bink smk swf vividas vivo mtv mv yop h261 "
    "h263 h264 hevc vvc evc m4v mpegvideo mjpeg mjpeg_2000 mpjpeg ingenient vc1 vc1test dirac cavsvideo avs2 avs3 "
    "dnxhd apv obu av1 ivf yuv4mpegpipe gif apng jpegxl_anim"
)
_SOUNDS = "aac ac3 aiff amr ape au caf dts dsf eac3 flac mp3 mpc mpc8 tak truehd tta voc w64 wav wv"
_IMAGES = (
    "png jpeg webp bmp tiff gif jpegxl j2k jpegls jpegxs exr pfm phm hdr dpx dds psd qoi sgi sunrast pcx pam pbm pgm "
    "ppm pgmyuv xbm xpm xwd gem cri"
)
DEMUXERS = (*_VIDEOS.split(), *_SOUNDS.split(), *(f"{name}_pipe" for name in _IMAGES.split()), "ico")
"""libavformat's names of the allowed formats: files that contain their own frames. Formats that open other files or the
network are excluded (playlists, SDP, concat, image sequences, subtitles, split clips such as mlv), as are devices,
scripts, and text, which is rendered as a video. Sounds and images are opened, so that the later error can name them.
"""


def as_url(path: Path) -> str:
    """Return a path as a URL for ffmpeg: without `file:`, ffmpeg would read a name with a colon as a protocol."""
    return f"file:{path}"


def existing(path: Path, kind: str) -> Path:
    if os.path.isdir(path):
        raise UserError(f"Expected {kind}, but {path} is a folder. Pass the path of a file.")
    if not os.path.isfile(path):  # pathlib raises for names that are too long
        raise UserError(f"Expected {kind}, but there is no file at {path}. Check the path.")
    return path


def unreadable(video: Media, reason: str) -> UserError:
    return UserError(
        f"{video} cannot be read as a video ({reason}). Expected an undamaged video file such as H.264 .mp4. Copy or "
        "export the file again."
    )


def undecodable(video: Media, decoder, error) -> UserError:
    """Return the error for a decoder's FFmpegError, which the pixel limit may have caused before the size was known."""
    reason = error.strerror or repr(error)
    if decoder.width:
        return unreadable(video, reason)
    return UserError(
        f"{video} cannot be read as a video ({reason}). Expected an undamaged video with frames of at most "
        f"{most_pixels() / 1e6:g} megapixels. Export it again, or raise the limit with --max-megapixels or the "
        f"environment variable {VARIABLE}."
    )


class _Unnamed(io.BufferedReader):
    """A file with a neutral name, which ffmpeg does not interpret."""

    name = "file"


@contextmanager
def demuxed(source: str | BinaryIO) -> Iterator:
    """Open libavformat's container of a URL from `as_url`, or of a file object. Everything that is read is opened here.

    Only this file is opened, and only by DEMUXERS, even if it refers to others: a text of a few lines, named .mp4 or
    passed as bytes, could otherwise open ports and other files. All decoders, including those that probe a stream,
    obey the pixel limit. Raises av.FFmpegError, ValueError or OSError.
    """
    import av

    with ExitStack() as stack:
        if isinstance(source, str) and re.search(r"[%*?{]", source):  # ffmpeg reads such names as image sequences
            source = stack.enter_context(_Unnamed(io.FileIO(source.removeprefix("file:"))))
        limits = decoder_options()
        options = {
            **limits,
            "format_whitelist": ",".join(DEMUXERS),
            "protocol_whitelist": "file" if isinstance(source, str) else "none",
        }
        # Some real files contain tags that are not UTF-8.
        container = stack.enter_context(av.open(source, options=options, metadata_errors="replace"))
        for stream in container.streams.video:
            if stream.codec_context is not None:
                stream.codec_context.options = limits  # the size in the container may be wrong
        yield container


@contextmanager
def opened(video: Media) -> Iterator[tuple]:
    """Yield the container and its video stream. Raises a UserError that says what the file is instead."""
    import av

    with ExitStack() as stack:

        def enter() -> Any:
            try:
                return stack.enter_context(demuxed(video.open()))
            except av.ArgumentError as error:
                raise unreadable(video, "it is not a known media format") from error
            except (av.FFmpegError, ValueError, OSError) as error:
                raise unreadable(video, getattr(error, "strerror", None) or repr(error)) from error

        container = enter()
        streams = _videos(video, container)
        number = streams[0].index
        if len(streams) > 1:
            number = _moving(container, streams)
            stack.close()  # because packets were read from it
            container = enter()
        stream = container.streams[number]
        context = stream.codec_context
        if context is None:
            raise unreadable(video, "there is no decoder for its codec")
        check_pixels(video, (context.height, context.width))
        try:
            yield container, stream
        except av.FFmpegError as error:
            raise undecodable(video, context, error) from error


def _videos(video: Media, container) -> list:
    """Return the streams that may be the video. Raises a UserError that says what the file is instead."""
    from av.stream import Disposition

    name = container.format.name
    # Covers of sound files, thumbnails of a video, and tiles and alpha of an image are not the video.
    other = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.dependent
    streams = [stream for stream in container.streams.video if not stream.disposition & other]
    decodable = [stream for stream in streams if stream.codec_context is not None]
    tiles = any(stream.disposition & Disposition.dependent for stream in container.streams.video)
    still = container.metadata.get("major_brand", "").encode() in STILLS and len(decodable) < 2
    if name.endswith("_pipe") or still or (tiles and not streams):
        raise UserError(f"{video} is an image. Expected a video. Pass another file.")
    if not streams:
        raise UserError(f"{video} contains no video stream. Expected a video. Pass another file.")
    return decodable or streams


def _moving(container, streams: Sequence, packets: int = 400) -> int:
    """Return the index of the video among several streams: the largest of those with more than half as many frames as
    the stream with the most (so no stills or thumbnails); among equals, the file's default. Reads packets."""
    import av

    counts: Counter = Counter()
    try:
        for packet in islice(container.demux(streams), packets):
            counts[packet.stream.index] += bool(packet.size)
    except av.FFmpegError:  # decoding reports it later
        pass

    def rank(stream) -> tuple[bool, int, bool]:
        lively = counts[stream.index] * 2 > max(counts.values(), default=0)
        size = stream.codec_context.width * stream.codec_context.height
        return lively, size, bool(stream.disposition & av.stream.Disposition.default)

    return max(streams, key=rank).index
