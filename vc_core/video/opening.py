"""The opening of files: what may be opened, and which stream of a file is its video."""

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
"""Bytes at the beginning of a file that tell what it is."""


@dataclass(frozen=True)
class Pictures:
    """A row of pictures as a video."""

    kind: str  # what `VideoInfo.codec` says
    size: tuple[int, int]  # (height, width)
    time_base: Fraction  # seconds of one unit of `times`
    times: tuple[int, ...]  # when each picture is shown, ascending from 0; and when the last one ends
    read: Callable[[Sequence[int]], Iterator[np.ndarray]]  # pictures by number, ascending, as (H, W, 3 or 4) uint8
    note: str = ""  # what was decided for the user, a sentence or empty

    def shown(self, times: Sequence[int]) -> Iterator[Any]:
        """The pictures that begin at these times as av.VideoFrames."""
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
    pictures: Pictures | None = None  # what it is made of, where it is a row of pictures and nothing for av.open

    def __str__(self) -> str:
        return self.name

    def open(self) -> Any:
        """What av.open takes."""
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
"""libavformat's names of what may be opened: files that hold their pictures themselves. Left out are those that open
others or the network (playlists, SDP, concat, sequences of images, subtitles, clips in parts such as mlv), devices,
scripts, and text, which is drawn as a video of letters. Sounds and images are told by what they are, and refused later.
"""


def as_url(path: Path) -> str:
    """A path as ffmpeg opens it: without `file:`, a name with a colon would stand for a protocol."""
    return f"file:{path}"


def existing(path: Path, kind: str) -> Path:
    if os.path.isdir(path):
        raise UserError(f"{path}: is a folder, and {kind} was expected: give the path of a file.")
    if not os.path.isfile(path):  # pathlib raises for names that are too long
        raise UserError(f"{path}: no such file, and {kind} was expected: check the path.")
    return path


def unreadable(video: Media, reason: str) -> UserError:
    return UserError(
        f"{video}: cannot be read as a video ({reason}), an undamaged video file such as H.264 .mp4 is expected: "
        "copy or export the file again."
    )


def undecodable(video: Media, decoder, error) -> UserError:
    """Of an FFmpegError of a decoder, which may have been stopped by the limit of pixels before it told a size."""
    reason = error.strerror or repr(error)
    if decoder.width:
        return unreadable(video, reason)
    return UserError(
        f"{video}: cannot be read as a video ({reason}): it is damaged, or its frames have more than "
        f"{most_pixels() / 1e6:g} megapixels, and an undamaged video of smaller ones is expected: export it again, or "
        f"raise the limit with --max-megapixels or the environment variable {VARIABLE}."
    )


class _Unnamed(io.BufferedReader):
    """A file whose name nobody reads anything into."""

    name = "file"


@contextmanager
def demuxed(source: str | BinaryIO) -> Iterator:
    """libavformat's container of a URL by `as_url`, or of a file object: whatever is read, is opened here.

    The file alone is opened, whatever it names, by DEMUXERS alone: a text of a few lines, called .mp4 or handed over as
    bytes, could otherwise open ports and other files. Decoders keep to the limit of pixels, also those that find out
    what a stream is. Raises av.FFmpegError, ValueError or OSError.
    """
    import av

    with ExitStack() as stack:
        if isinstance(source, str) and re.search(r"[%*?{]", source):  # by name it would stand for a sequence of images
            source = stack.enter_context(_Unnamed(io.FileIO(source.removeprefix("file:"))))
        limits = decoder_options()
        options = {
            **limits,
            "format_whitelist": ",".join(DEMUXERS),
            "protocol_whitelist": "file" if isinstance(source, str) else "none",
        }
        # Real files carry tags that are not UTF-8.
        container = stack.enter_context(av.open(source, options=options, metadata_errors="replace"))
        for stream in container.streams.video:
            if stream.codec_context is not None:
                stream.codec_context.options = limits  # what the container says of the size need not be so
        yield container


@contextmanager
def opened(video: Media) -> Iterator[tuple]:
    """The container and the stream that is its video, or a UserError that says what the file is instead."""
    import av

    with ExitStack() as stack:

        def enter() -> Any:
            try:
                return stack.enter_context(demuxed(video.open()))
            except av.ArgumentError as error:
                raise unreadable(video, "its format is not one of media files") from error
            except (av.FFmpegError, ValueError, OSError) as error:
                raise unreadable(video, getattr(error, "strerror", None) or repr(error)) from error

        container = enter()
        streams = _videos(video, container)
        number = streams[0].index
        if len(streams) > 1:
            number = _moving(container, streams)
            stack.close()  # packets were read from it
            container = enter()
        stream = container.streams[number]
        context = stream.codec_context
        if context is None:
            raise unreadable(video, "no decoder for its codec is built in")
        check_pixels(video, (context.height, context.width))
        try:
            yield container, stream
        except av.FFmpegError as error:
            raise undecodable(video, context, error) from error


def _videos(video: Media, container) -> list:
    """The streams that may be the video, or a UserError that says what the file is instead."""
    from av.stream import Disposition

    name = container.format.name
    # The cover of a sound file, thumbnails along a video, and tiles and alpha of a picture are no video.
    other = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.dependent
    streams = [stream for stream in container.streams.video if not stream.disposition & other]
    known = [stream for stream in streams if stream.codec_context is not None]
    tiles = any(stream.disposition & Disposition.dependent for stream in container.streams.video)
    still = container.metadata.get("major_brand", "").encode() in STILLS and len(known) < 2
    if name.endswith("_pipe") or still or (tiles and not streams):
        raise UserError(f"{video}: is an image, and a video was expected: give a video file.")
    if not streams:
        raise UserError(f"{video}: holds no video stream, and a video was expected: give a video file.")
    return known or streams


def _moving(container, streams: Sequence, packets: int = 400) -> int:
    """The index of the stream that is the video among several: the largest of those with about as many pictures as any,
    so that it is no still and no thumbnails; of equal ones that which the file prefers. Reads packets."""
    import av

    seen: Counter = Counter()
    try:
        for packet in islice(container.demux(streams), packets):
            seen[packet.stream.index] += bool(packet.size)
    except av.FFmpegError:  # whoever decodes it says so
        pass

    def rank(stream) -> tuple[bool, int, bool]:
        lively = seen[stream.index] * 2 > max(seen.values(), default=0)
        size = stream.codec_context.width * stream.codec_context.height
        return lively, size, bool(stream.disposition & av.stream.Disposition.default)

    return max(streams, key=rank).index
