"""Still pictures: which files are some, and their pixels. By Pillow, and by ffmpeg's decoders where Pillow has none."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, counted
from . import hdr, heif
from .limits import check_pixels, check_texts
from .opening import HEAD, Media, demuxed, existing
from .showing import as_sdr, over_white

IMAGES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".jxl", ".jp2"}
    | {".tga", ".ppm", ".pgm", ".psd", ".qoi"}
)
"""Endings that stand for a still picture, in lower case. A `.gif` is a video, which may have a single frame."""

_FORMATS = "AVIF BMP DDS DIB GIF HEIF ICO JPEG JPEG2000 JXL MPO PCX PNG PPM PSD QOI SGI SUN TGA TIFF WEBP"
"""Pillow's names of what may be read: no scripts, such as EPS, for which it starts Ghostscript."""

_UNREAD = (  # how files begin whose pictures are not read, and what they are
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\x76\x2f\x31\x01", "OpenEXR, which holds linear light"),
    (b"#?RADIANCE", "Radiance HDR, which holds linear light"),
    (b"PF\n", "PFM, which holds linear light"),
)

_PHOTOMETRIC, _SAMPLE_FORMAT = 262, 339  # tags of a TIFF: 0 for white of the first, 3 for floating point of the second

_opening = threading.Lock()


# --- What a file is -------------------------------------------------------------------------------------------------


def is_image(path: str | os.PathLike) -> bool:
    """Whether a file is a still picture: by its ending, where that also stands for animations by how it begins.

    An animated `.webp`, `.avif`, `.heif` or `.png` is a video, and so is a folder of pictures.
    """
    path = Path(path)
    if path.suffix.lower() not in IMAGES or path.is_dir():
        return False
    try:
        return not (os.path.isfile(path) and is_animated(head_of(Media(str(path), path))))  # a pipe would be waited for
    except OSError:
        return True  # the ending is all that is known; whoever reads it says more


def head_of(picture: Media) -> bytes:
    with picture.file() as file:
        return file.read(HEAD)


def is_animated(head: bytes) -> bool:
    """Whether a picture's file that begins so says that it moves."""
    if head[4:8] == b"ftyp":
        return head[8:12] not in heif.STILLS
    return is_animated_webp(head) or (head.startswith(b"\x89PNG") and b"acTL" in head.partition(b"IDAT")[0])


def is_animated_webp(head: bytes) -> bool:
    extended = head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X"
    return extended and len(head) > 20 and bool(head[20] & 2)


# --- Reading --------------------------------------------------------------------------------------------------------


@contextmanager
def opened_image(
    source: str | os.PathLike | IO[bytes], what: object, frames: int = 1, formats: Sequence[str] | None = None
) -> Iterator[Any]:
    """The PIL.Image of a file, of which nothing is decoded yet; errors call it `what`.

    Args:
        frames: so many pictures are in it, one below the other.
        formats: those of Pillow's that it may have; None: all that are read.

    Raises UserError for too many pixels, see `check_pixels`, and OSError where Pillow does not know the file.
    """
    from PIL import Image

    with _opening:  # Pillow's own limit is the whole program's, and another one
        theirs, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            Image.init()
            image = Image.open(source, formats=formats or [name for name in _FORMATS.split() if name in Image.OPEN])
        finally:
            Image.MAX_IMAGE_PIXELS = theirs
    with image:
        check_pixels(what, (image.height, image.width), frames)
        yield image


def read_image(path: str | os.PathLike | Media) -> Tensor:
    """An image (1, 3, H, W) float32 in [0, 1]: turned upright as it asks for, alpha laid over white.

    A HEIC or AVIF is put together from its tiles; HDR ones are brought to SDR (`hdr.tone_mapped`).

    Raises UserError where the file is missing, no image, of a format that is not read here, of more pixels than
    `most_pixels`, or holds floating-point numbers outside 0 to 1.
    """
    from PIL import UnidentifiedImageError

    picture = _media(path)
    try:
        head = head_of(picture)
        if heif.is_heif(head) and _is_hdr(picture):
            with suppress(OSError, ValueError):  # Pillow may still read it
                return _by_ffmpeg(picture)
        try:
            with picture.file() as file, opened_image(file, picture) as image:
                cleared = image.mode == "RGB" and "transparency" in image.info
                if cleared and any("16" in str(tile[3]) for tile in image.tile):
                    return _by_ffmpeg(picture)  # Pillow compares 8 bits of its pixels with 16 of the colour
                return _by_pillow(image, picture)
        except UnidentifiedImageError:
            if name := next((name for start, name in _UNREAD if head.startswith(start)), None):
                raise UserError(f"{path}: is {name}, and is not read here: save it as a PNG or JPEG.") from None
            return _by_ffmpeg(picture)
    except UserError:
        raise
    except Exception as error:  # what a damaged file makes of the readers has no common kind
        reason = getattr(error, "strerror", None) or str(error) or repr(error)
        raise UserError(f"{path}: cannot be read as an image ({reason}): give a whole PNG or JPEG file.") from error


def _media(path: str | os.PathLike | Media) -> Media:
    return path if isinstance(path, Media) else Media(str(path), existing(Path(path), "an image"))


def _by_pillow(image: Any, path: Media) -> Tensor:
    from PIL import Image, ImageOps

    clear = image.info.get("transparency")  # of the file's own pixels; turning would lose it
    negative = image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0  # Pillow heeds it for 8 bits alone
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        levels = _levels(torch.from_numpy(np.array(image)), path)
        return 1 - levels if negative else levels
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
        levels = torch.from_numpy(np.asarray(image).astype(np.int64))
        low, high = int(levels.min()), int(levels.max())
        if low < 0 or high > 65535:
            raise UserError(
                f"{path}: holds whole numbers of 32 bits, as which {low} to {high} were read, and 0 to 65535 is "
                "expected: save it with 8 or 16 bits."
            )
        grey = levels.float() / 65535
        if negative:
            grey = 1 - grey
        if isinstance(clear, int):
            grey = torch.where(levels == clear, 1.0, grey)
        return grey.expand(1, 3, -1, -1).contiguous()
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return _as_tensor(np.array(image.convert("RGB")))


def _as_tensor(pixels: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def _levels(levels: Tensor, path: Media) -> Tensor:
    """Floating-point levels (H, W) or (3, H, W) as (1, 3, H, W), which must be from 0 to 1 but for rounding."""
    if not torch.isfinite(levels).all():
        raise UserError(f"{path}: holds numbers that are not finite, and 0 to 1 are expected: save it with 16 bits.")
    low, high = levels.min().item(), levels.max().item()
    if low < -1e-3 or high > 1 + 1e-3:
        raise UserError(
            f"{path}: holds floating-point numbers from {low:.4g} to {high:.4g}, and 0 for black to 1 for white is "
            "expected: scale them, or save it with 8 or 16 bits."
        )
    return levels.float().clamp(0, 1).expand(1, 3, -1, -1).contiguous()


# --- By ffmpeg's decoders -------------------------------------------------------------------------------------------


@contextmanager
def _container(picture: Media) -> Iterator[Any]:
    """A picture's file as PyAV opens it. Raises OSError where it is none."""
    import av

    with picture.file() as file:
        check_texts(picture, file)
    try:
        with demuxed(picture.open()) as container:
            if not (container.format.name.endswith("_pipe") or heif.is_heif(head_of(picture))):
                raise OSError("it is no picture")
            yield container
    except av.FFmpegError as error:
        raise OSError(error.strerror or repr(error)) from error


def decoded_frame(path: str | os.PathLike | Media) -> Any:
    """The picture of an image's file as an av.VideoFrame. Raises OSError where it is none, and `UserError` where it has
    too many pixels."""
    import av

    picture = _media(path)
    if heif.is_heif(head_of(picture)):
        try:
            return av.VideoFrame.from_ndarray(_by_heif(picture), format="rgb24")
        except ValueError as error:
            raise OSError(str(error)) from error
    with _container(picture) as container:
        frame = next(container.decode(video=0), None)
        if frame is None:
            raise OSError("it holds no picture")
        check_pixels(picture, (frame.height, frame.width))
        return frame


def _by_ffmpeg(picture: Media) -> Tensor:
    frame = decoded_frame(picture)
    if not is_float(frame):
        if _says_float(picture):  # ffmpeg takes half precision for whole numbers
            raise OSError("its floating-point numbers are not of 32 bits")
        return _as_tensor(_pixels(frame))
    try:
        levels = torch.from_numpy(frame.to_ndarray())
    except ValueError as error:
        raise OSError(f"its floating-point format, {frame.format.name}, is not known") from error
    if levels.ndim == 3:
        levels = levels.permute(2, 0, 1)
        if len(levels) == 4:
            levels = levels[:3] * levels[3] + 1 - levels[3]
    return _levels(levels, picture)


def _says_float(path: Media) -> bool:
    """Whether a file is a TIFF that says that its numbers are floating-point ones."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    with path.file() as file:
        head = file.read(8)
        if head[:4] not in (b"II*\0", b"MM\0*"):
            return False
        tags = ImageFileDirectory_v2(head)
        file.seek(tags.next)
        tags.load(file)
        found = tags.get(_SAMPLE_FORMAT, 1)
    return 3 in (found if isinstance(found, tuple) else (found,))


def is_float(frame: Any) -> bool:
    """Whether an av.VideoFrame holds floating-point numbers."""
    return bool(re.search(r"f(16|32)(le|be)?$", frame.format.name))


def _pixels(frame: Any) -> np.ndarray:
    """An av.VideoFrame as (H, W, 3) uint8, alpha over white."""
    return over_white(as_sdr(frame)).to_ndarray(format="rgb24")


def _by_heif(picture: Media) -> np.ndarray:
    """The primary picture of a HEIF (H, W, 3) uint8, put together from its tiles, and turned upright."""
    with picture.file() as file:
        found = heif.layout(file.read(2**24))  # the boxes come first, and are small
    check_pixels(picture, found.size or (0, 0))
    with _container(picture) as container:
        streams = {stream.id: stream for stream in container.streams.video if stream.codec_context is not None}
        if missing := [number for number in found.tiles if number not in streams]:
            raise OSError(f"{counted(len(missing), 'part')} of its picture cannot be decoded")
        parts: dict[int, np.ndarray] = {}
        for packet in container.demux([streams[number] for number in dict.fromkeys(found.tiles)]):
            for frame in packet.decode():
                found.grid((frame.height, frame.width))  # at the first tile: others, of any size, would fill the memory
                parts.setdefault(packet.stream.id, _pixels(frame))
    tiles = [parts.get(number) for number in found.tiles]
    if any(tile is None or tile.shape != tiles[0].shape for tile in tiles):
        raise OSError("some of the tiles of its picture are damaged")
    rows, columns = found.grid(tiles[0].shape[:2])
    whole = np.concatenate([np.concatenate(tiles[n * columns : (n + 1) * columns], axis=1) for n in range(rows)])
    height, width = found.size or whole.shape[:2]
    return found.turned(whole[:height, :width])


def _is_hdr(picture: Media) -> bool:
    """Whether a HEIF is HDR, which Pillow's decoder does not bring to SDR."""
    with suppress(OSError, ValueError), _container(picture) as container:
        codecs = [stream.codec_context for stream in container.streams.video]
        return any(codec is not None and int(codec.color_trc) in hdr.NAMES for codec in codecs)
    return False


# --- Folders of them ------------------------------------------------------------------------------------------------


def listed_images(folder: str | os.PathLike, endings: Collection[str] = IMAGES) -> list[Path]:
    """The images of a folder in the order of their names ("2" before "10"). Raises UserError where it is unreadable."""

    def natural(path: Path) -> list[tuple[int, str]]:
        parts = re.split(r"(\d+)", path.name.lower())
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts if part]

    try:
        found = [path for path in Path(folder).iterdir() if path.suffix.lower() in endings and path.name[0] != "."]
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be read ({error.strerror}): check it.") from error
    return sorted(found, key=natural)


def frame_files(folder: str | os.PathLike, frames: int, endings: Collection[str] = IMAGES) -> list[Path]:
    """`listed_images`, one for each of so many frames.

    Raises UserError for another number of images, or a folder that cannot be read.
    """
    files = listed_images(folder, endings)
    if len(files) != frames:
        raise UserError(
            f"{folder}: the folder has {counted(len(files), 'image')} for {counted(frames, 'frame')}: expected one "
            "image a frame; or give a single image for all."
        )
    return files
