"""Sources of videos: a file, bytes, a stream; or a sequence of images in a folder or an animated WebP, which ffmpeg
does not decode."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import UserError, counted
from ..parsing import parse_json
from .formats import DESCRIPTION
from .images import is_animated_webp, listed_images, opened_image, read_image
from .limits import check_head, check_rate, check_texts
from .opening import HEAD, Media, Pictures, existing

USUAL = Fraction(25)
"""Frames per second of a folder without a rate, as in ffmpeg."""

_STEP = 100  # milliseconds that browsers show a frame with duration 0


VideoSource = str | os.PathLike | bytes | BinaryIO | Media
"""A path, the bytes of a file, a binary file object (seekable or not), or the result of `media`."""


@contextmanager
def media(source: VideoSource) -> Iterator[Media]:
    """Open a source as Media, valid inside the `with`.

    A file object is copied to a temporary file, from its beginning if it can seek, because decoders seek and several
    read at the same time. To use a source that cannot be read twice, such as a pipe, open it once here and pass the
    Media to `probe` and every extractor.

    Raises UserError for a path without a file, and for an object that is not a source.
    """
    if isinstance(source, Media):
        yield source
    elif isinstance(source, (bytes, bytearray, memoryview, io.BytesIO)):
        data = source.getvalue() if isinstance(source, io.BytesIO) else bytes(source)
        yield _checked(Media("The video in memory", data))
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if os.path.isdir(path):  # pathlib raises for names that are too long
            yield Media(str(path), path, folder_pictures(path))
        else:
            yield _checked(Media(str(path), existing(path, "a video file")))
    elif hasattr(source, "read"):
        with tempfile.TemporaryDirectory(prefix="video-") as folder:
            path = Path(folder) / "video"
            _copy(source, path)
            yield _checked(Media(f"The video stream {getattr(source, 'name', '')}".rstrip(), path))
    else:
        raise UserError(
            f"Expected a video source, got {type(source).__name__}. Pass a path, the bytes of a file or a binary file "
            "object."
        )


def _checked(video: Media) -> Media:
    """Return the Media, with `pictures` if ffmpeg does not decode it. Raises UserError if it could fill the memory."""
    try:
        with video.file() as file:
            head = file.read(HEAD)
            check_head(video, head)
            file.seek(0)
            check_texts(video, file)
    except OSError as error:
        raise UserError(
            f"{video} cannot be read ({error.strerror or repr(error)}). Check its permissions and its disk."
        ) from error
    return replace(video, pictures=webp_pictures(video)) if is_animated_webp(head) else video


def _copy(stream: BinaryIO, path: Path, block: int = 2**20) -> None:
    if getattr(stream, "seekable", lambda: False)():
        stream.seek(0)
    with open(path, "wb") as file:
        while data := stream.read(block):
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise UserError(
                    "Expected bytes from the video stream, but it returns text. Open the file in binary mode ('rb')."
                )
            file.write(data)


# --- A folder -------------------------------------------------------------------------------------------------------


def folder_pictures(folder: Path) -> Pictures:
    """Return the images of a folder, sorted by name, at the rate in its video.json, or else at 25 per second.

    Raises UserError for no images, images of several kinds, or another number than in its video.json.
    """
    files = listed_images(folder)
    if not files:
        raise UserError(
            f"Expected a video, but {folder} is a folder without images. Pass a video file, or a folder with one image "
            "per frame."
        )
    if len(kinds := sorted({file.suffix.lower() for file in files})) > 1:
        raise UserError(
            f"Expected a video, but {folder} contains images of several kinds ({', '.join(kinds)}). Pass a video "
            "file, or a folder with one image per frame, all of one kind."
        )
    rate = _described(folder, len(files))
    note = ""
    if rate is None:
        rate = USUAL
        note = (
            f"{folder} is read as {counted(len(files), 'image')} in the order of their names, at {USUAL} frames per "
            f'second. To set another rate, save {{"frames": {len(files)}, "rate": 30}} as {DESCRIPTION} in the folder.'
        )

    def read(numbers: Sequence[int]) -> Iterator[np.ndarray]:
        for number in numbers:
            pixels = (read_image(files[number])[0] * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
            if pixels.shape[:2] != size:
                raise UserError(
                    f"{files[number]} is {pixels.shape[1]} by {pixels.shape[0]} pixels, but {files[0].name} is "
                    f"{size[1]} by {size[0]}. Save all images of a video at one size."
                )
            yield pixels

    size = tuple(read_image(files[0]).shape[-2:])
    return Pictures(kinds[0][1:], size, 1 / rate, tuple(range(len(files) + 1)), read, note)


def _described(folder: Path, count: int) -> Fraction | None:
    """Return the rate in a folder's description; None without a description."""
    path = folder / DESCRIPTION
    if not path.is_file():
        return None
    try:
        description = parse_json(path.read_text(encoding="utf-8-sig"))
        frames, rate = description["frames"], Fraction(str(description["rate"]))
    except (OSError, ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        raise UserError(
            f'{path} does not describe the images in its folder. Expected {{"frames": {count}, "rate": 25}}.'
        ) from error
    if frames != count:
        raise UserError(
            f"{folder} contains {counted(count, 'image')}, but its {DESCRIPTION} says {str(frames)[:20]}. Restore the "
            "missing images or correct the number."
        )
    check_rate(f"{path}: The rate", rate)
    return rate


# --- Animated WebP --------------------------------------------------------------------------------------------------


def webp_pictures(video: Media) -> Pictures:
    """Return the frames of an animated WebP. Raises UserError if it is damaged or the frames have too many pixels."""

    def pictures(until: int | None = None) -> Iterator[tuple[np.ndarray, int]]:
        """Yield (pixels, milliseconds) of the frames; Pillow reports a frame's duration after decoding it."""
        try:
            with video.file() as file, opened_image(file, video) as image:
                for number in range(image.n_frames if until is None else until):
                    image.seek(number)
                    image.load()
                    yield np.array(image), int(image.info.get("duration", 0)) or _STEP
        except UserError:
            raise
        except Exception as error:  # damaged files make Pillow raise many kinds of errors
            raise UserError(f"{video} cannot be read as a video ({error}). Pass a complete animated WebP.") from error

    durations = _webp_durations(video)
    if durations:
        size = next(pictures(1))[0].shape[:2]
    else:
        frames = [(pixels.shape[:2], duration) for pixels, duration in pictures()]
        size, durations = frames[0][0], [duration for _, duration in frames]

    def read(numbers: Sequence[int]) -> Iterator[np.ndarray]:
        requested = set(numbers)
        for number, (pixels, _) in enumerate(pictures(max(requested, default=-1) + 1)):
            if number in requested:
                yield pixels

    return Pictures("webp", size, Fraction(1, 1000), (0, *accumulate(durations)), read)


def _webp_durations(video: Media) -> list[int]:
    """Return the duration of each frame in milliseconds from a WebP's chunk headers; empty if these are damaged."""
    durations = []
    with video.file() as file:
        end = file.seek(0, 2)
        at = file.seek(12)
        while len(head := file.read(8)) == 8:
            length = int.from_bytes(head[4:], "little")
            if head[:4] == b"ANMF":
                durations.append(int.from_bytes(file.read(15)[12:15], "little") or _STEP)
            at = file.seek(at + 8 + length + length % 2)
            if at > end + 1:
                return []
    return durations
