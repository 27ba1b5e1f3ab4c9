"""Where a video comes from: a file, bytes, a stream; or a row of pictures, in a folder or an animated WebP, which
ffmpeg does not decode."""

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
"""Frames a second of a folder that does not say it, as ffmpeg takes them."""

_STEP = 100  # milliseconds that browsers show a picture which is to be shown for none


VideoSource = str | os.PathLike | bytes | BinaryIO | Media
"""A path, the bytes of a file, a binary file object (seekable or not), or an opened `media`."""


@contextmanager
def media(source: VideoSource) -> Iterator[Media]:
    """A source as Media, for as long as the `with` lasts.

    A file object that can seek is read from its beginning, another one from where it stands, to its end and into a
    temporary file: decoders seek, and several of them read at once. What cannot be read twice, such as a pipe, is
    opened here once and the Media handed to `probe` and to every extractor.

    Raises UserError for a path that is no file and for what is no source.
    """
    if isinstance(source, Media):
        yield source
    elif isinstance(source, (bytes, bytearray, memoryview, io.BytesIO)):
        data = source.getvalue() if isinstance(source, io.BytesIO) else bytes(source)
        yield _looked_at(Media("The video in memory", data))
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if os.path.isdir(path):  # pathlib raises for names that are too long
            yield Media(str(path), path, folder_pictures(path))
        else:
            yield _looked_at(Media(str(path), existing(path, "a video")))
    elif hasattr(source, "read"):
        with tempfile.TemporaryDirectory(prefix="video-") as folder:
            path = Path(folder) / "video"
            _copy(source, path)
            yield _looked_at(Media(f"The video stream {getattr(source, 'name', '')}".rstrip(), path))
    else:
        raise UserError(
            f"A {type(source).__name__} is no video source: expected a path, the bytes of a file or a binary file "
            "object."
        )


def _looked_at(video: Media) -> Media:
    """A file's Media: as a row of pictures where ffmpeg does not decode it. Raises UserError for what would fill the
    memory."""
    try:
        with video.file() as file:
            head = file.read(HEAD)
            check_head(video, head)
            file.seek(0)
            check_texts(video, file)
    except OSError as error:
        raise UserError(
            f"{video}: cannot be read ({error.strerror or repr(error)}): check its permissions and its disk."
        ) from error
    return replace(video, pictures=webp_pictures(video)) if is_animated_webp(head) else video


def _copy(stream: BinaryIO, path: Path, block: int = 2**20) -> None:
    if getattr(stream, "seekable", lambda: False)():
        stream.seek(0)
    with open(path, "wb") as file:
        while data := stream.read(block):
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise UserError(
                    "The video stream gives text, and bytes were expected: open the file in binary mode, with 'rb'."
                )
            file.write(data)


# --- A folder -------------------------------------------------------------------------------------------------------


def folder_pictures(folder: Path) -> Pictures:
    """The images of a folder, in the order of their names, at the rate that its video.json says, else 25 a second.

    Raises UserError for no images, images of several kinds, or another number than its video.json says.
    """
    files = listed_images(folder)
    if not files:
        raise UserError(
            f"{folder}: is a folder without images, and a video was expected: give a video file, or a folder of "
            "images, one a frame."
        )
    if len(kinds := sorted({file.suffix.lower() for file in files})) > 1:
        raise UserError(
            f"{folder}: is a folder with images of several kinds ({', '.join(kinds)}), and a video was expected: give "
            "a video file, or a folder of images of one kind, one a frame."
        )
    rate = _described(folder, len(files))
    note = ""
    if rate is None:
        rate = USUAL
        note = (
            f"{folder}: {counted(len(files), 'image')} in the order of their names, taken as {USUAL} frames a second; "
            f'a {DESCRIPTION} in it with {{"frames": {len(files)}, "rate": 30}} says another rate.'
        )

    def read(numbers: Sequence[int]) -> Iterator[np.ndarray]:
        for number in numbers:
            pixels = (read_image(files[number])[0] * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
            if pixels.shape[:2] != size:
                raise UserError(
                    f"{files[number]}: is {pixels.shape[1]} by {pixels.shape[0]} pixels, and {files[0].name} "
                    f"{size[1]} by {size[0]}: make the images of a video of one size."
                )
            yield pixels

    size = tuple(read_image(files[0]).shape[-2:])
    return Pictures(kinds[0][1:], size, 1 / rate, tuple(range(len(files) + 1)), read, note)


def _described(folder: Path, count: int) -> Fraction | None:
    """The rate in a folder's description; None where there is none."""
    path = folder / DESCRIPTION
    if not path.is_file():
        return None
    try:
        found = parse_json(path.read_text(encoding="utf-8-sig"))
        frames, rate = found["frames"], Fraction(str(found["rate"]))
    except (OSError, ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        raise UserError(
            f'{path}: does not say how the pictures beside it are shown: expected {{"frames": {count}, "rate": 25}}.'
        ) from error
    if frames != count:
        raise UserError(
            f"{folder}: has {counted(count, 'image')}, and its {DESCRIPTION} says {str(frames)[:20]}: put the missing "
            "ones back, or mend the number."
        )
    check_rate(f"{path}: the rate", rate)
    return rate


# --- Animated WebP --------------------------------------------------------------------------------------------------


def webp_pictures(video: Media) -> Pictures:
    """The pictures of an animated WebP. Raises UserError where it is damaged, or they have too many pixels."""

    def pictures(until: int | None = None) -> Iterator[tuple[np.ndarray, int]]:
        """(pixels, milliseconds) of the pictures; Pillow says how long one is shown once it is decoded."""
        try:
            with video.file() as file, opened_image(file, video) as image:
                for number in range(image.n_frames if until is None else until):
                    image.seek(number)
                    image.load()
                    yield np.array(image), int(image.info.get("duration", 0)) or _STEP
        except UserError:
            raise
        except Exception as error:  # what a damaged file makes of Pillow has no common kind
            raise UserError(f"{video}: cannot be read as a video ({error}): give a whole animated WebP.") from error

    durations = _webp_durations(video)
    if durations:
        size = next(pictures(1))[0].shape[:2]
    else:
        found = [(pixels.shape[:2], each) for pixels, each in pictures()]
        size, durations = found[0][0], [each for _, each in found]

    def read(numbers: Sequence[int]) -> Iterator[np.ndarray]:
        wanted = set(numbers)
        for number, (pixels, _) in enumerate(pictures(max(wanted, default=-1) + 1)):
            if number in wanted:
                yield pixels

    return Pictures("webp", size, Fraction(1, 1000), (0, *accumulate(durations)), read)


def _webp_durations(video: Media) -> list[int]:
    """Milliseconds of each picture, from the heads of a WebP's chunks; empty where these are damaged."""
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
