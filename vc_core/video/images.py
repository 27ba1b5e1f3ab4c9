"""Images: recognize and read them, with Pillow, or with ffmpeg's decoders for formats that Pillow does not support."""

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
"""Endings of image files, in lower case. A `.gif` is a video, which may have a single frame."""

_FORMATS = "AVIF BMP DDS DIB GIF HEIF ICO JPEG JPEG2000 JXL MPO PCX PNG PPM PSD QOI SGI SUN TGA TIFF WEBP"
"""Pillow's names of the accepted formats: no scripts such as EPS, for which Pillow starts Ghostscript."""

_UNSUPPORTED = (  # first bytes of image files that are not supported, and the format's name
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
    (b"\x76\x2f\x31\x01", "an OpenEXR image (linear light)"),
    (b"#?RADIANCE", "a Radiance HDR image (linear light)"),
    (b"PF\n", "a PFM image (linear light)"),
)

_PHOTOMETRIC, _SAMPLE_FORMAT = 262, 339  # TIFF tags: in the first, 0 means "0 is white"; in the second, 3 means float

_opening = threading.Lock()


# --- What a file is -------------------------------------------------------------------------------------------------


def is_image(path: str | os.PathLike) -> bool:
    """Whether a file is an image: by its ending, and by its first bytes for formats that can also be animated.

    An animated `.webp`, `.avif`, `.heif` or `.png` is a video, and so is a folder of images.
    """
    path = Path(path)
    if path.suffix.lower() not in IMAGES or path.is_dir():
        return False
    try:
        return not (os.path.isfile(path) and is_animated(head_of(Media(str(path), path))))  # reading a pipe would block
    except OSError:
        return True  # judged by its ending; reading it reports the error


def head_of(picture: Media) -> bytes:
    with picture.file() as file:
        return file.read(HEAD)


def is_animated(head: bytes) -> bool:
    """Whether an image file with these first bytes is animated."""
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
    """Open an image as a PIL.Image without decoding it; errors name it `what`.

    Args:
        frames: the number of images stored in it, one below the other.
        formats: the accepted formats, by Pillow's names; None: all supported ones.

    Raises UserError for too many pixels, see `check_pixels`, and OSError if Pillow does not recognize the file.
    """
    from PIL import Image

    with _opening:  # Pillow's own limit is global and differs from ours
        previous, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            Image.init()
            image = Image.open(source, formats=formats or [name for name in _FORMATS.split() if name in Image.OPEN])
        finally:
            Image.MAX_IMAGE_PIXELS = previous
    with image:
        check_pixels(what, (image.height, image.width), frames)
        yield image


def read_image(path: str | os.PathLike | Media) -> Tensor:
    """Read an image as (1, 3, H, W) float32 in [0, 1]: rotated as its metadata says, with alpha blended over white.

    A HEIC or AVIF is composed from its tiles; HDR images are converted to SDR (`hdr.tone_mapped`).

    Raises UserError if the file is missing, not an image, of an unsupported format, has more pixels than `most_pixels`,
    or contains floating-point values outside 0 to 1.
    """
    from PIL import UnidentifiedImageError

    picture = _media(path)
    try:
        head = head_of(picture)
        if heif.is_heif(head) and _is_hdr(picture):
            with suppress(OSError, ValueError):  # then Pillow may be able to read it
                return _by_ffmpeg(picture)
        try:
            with picture.file() as file, opened_image(file, picture) as image:
                colour_key = image.mode == "RGB" and "transparency" in image.info
                if colour_key and any("16" in str(tile[3]) for tile in image.tile):
                    return _by_ffmpeg(picture)  # Pillow compares 8-bit pixels with the 16-bit transparent colour
                return _by_pillow(image, picture)
        except UnidentifiedImageError:
            if name := next((name for start, name in _UNSUPPORTED if head.startswith(start)), None):
                raise UserError(f"{path} is {name}, which is not supported. Save it as a PNG or JPEG.") from None
            return _by_ffmpeg(picture)
    except UserError:
        raise
    except Exception as error:  # damaged files make the libraries raise many kinds of errors
        reason = getattr(error, "strerror", None) or str(error) or repr(error)
        raise UserError(f"{path} cannot be read as an image ({reason}). Pass a complete PNG or JPEG file.") from error


def _media(path: str | os.PathLike | Media) -> Media:
    return path if isinstance(path, Media) else Media(str(path), existing(Path(path), "an image file"))


def _by_pillow(image: Any, path: Media) -> Tensor:
    from PIL import Image, ImageOps

    clear = image.info.get("transparency")  # for the stored pixels; rotation would lose it
    negative = image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0  # Pillow applies it only to 8 bits
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        levels = _levels(torch.from_numpy(np.array(image)), path)
        return 1 - levels if negative else levels
    if image.mode.startswith("I"):  # 16-bit grey: convert() would clip it at 255
        levels = torch.from_numpy(np.asarray(image).astype(np.int64))
        low, high = int(levels.min()), int(levels.max())
        if low < 0 or high > 65535:
            raise UserError(
                f"{path} contains 32-bit integers from {low} to {high}. Expected 0 to 65535. Save it with 8 or 16 bits."
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
    """Convert (H, W, 3) uint8 to (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def _levels(levels: Tensor, path: Media) -> Tensor:
    """Return floating-point levels (H, W) or (3, H, W), which must be 0 to 1 up to rounding, as (1, 3, H, W)."""
    if not torch.isfinite(levels).all():
        raise UserError(f"{path} contains values that are not finite. Expected 0 to 1. Save it with 16 bits.")
    low, high = levels.min().item(), levels.max().item()
    if low < -1e-3 or high > 1 + 1e-3:
        raise UserError(
            f"{path} contains floating-point values from {low:.4g} to {high:.4g}. Expected 0 (black) to 1 (white). "
            "Scale them, or save it with 8 or 16 bits."
        )
    return levels.float().clamp(0, 1).expand(1, 3, -1, -1).contiguous()


# --- By ffmpeg's decoders -------------------------------------------------------------------------------------------


@contextmanager
def _container(picture: Media) -> Iterator[Any]:
    """Open an image file with PyAV. Raises OSError if it is not an image."""
    import av

    with picture.file() as file:
        check_texts(picture, file)
    try:
        with demuxed(picture.open()) as container:
            if not (container.format.name.endswith("_pipe") or heif.is_heif(head_of(picture))):
                raise OSError("it is not an image")
            yield container
    except av.FFmpegError as error:
        raise OSError(error.strerror or repr(error)) from error


def decoded_frame(path: str | os.PathLike | Media) -> Any:
    """Decode an image file to an av.VideoFrame. Raises OSError if it is not an image, UserError for too many pixels."""
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
            raise OSError("it contains no image")
        check_pixels(picture, (frame.height, frame.width))
        return frame


def _by_ffmpeg(picture: Media) -> Tensor:
    frame = decoded_frame(picture)
    if not is_float(frame):
        if _says_float(picture):  # ffmpeg decodes half precision as integers
            raise OSError("its floating-point values do not have 32 bits")
        return _as_tensor(_pixels(frame))
    try:
        levels = torch.from_numpy(frame.to_ndarray())
    except ValueError as error:
        raise OSError(f"its floating-point format {frame.format.name} is not supported") from error
    if levels.ndim == 3:
        levels = levels.permute(2, 0, 1)
        if len(levels) == 4:
            levels = levels[:3] * levels[3] + 1 - levels[3]
    return _levels(levels, picture)


def _says_float(path: Media) -> bool:
    """Whether a file is a TIFF with a tag for floating-point values."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    with path.file() as file:
        head = file.read(8)
        if head[:4] not in (b"II*\0", b"MM\0*"):
            return False
        tags = ImageFileDirectory_v2(head)
        file.seek(tags.next)
        tags.load(file)
        formats = tags.get(_SAMPLE_FORMAT, 1)
    return 3 in (formats if isinstance(formats, tuple) else (formats,))


def is_float(frame: Any) -> bool:
    """Whether an av.VideoFrame contains floating-point values."""
    return bool(re.search(r"f(16|32)(le|be)?$", frame.format.name))


def _pixels(frame: Any) -> np.ndarray:
    """Return an av.VideoFrame as (H, W, 3) uint8, with alpha blended over white."""
    return over_white(as_sdr(frame)).to_ndarray(format="rgb24")


def _by_heif(picture: Media) -> np.ndarray:
    """Return the primary image of a HEIF as (H, W, 3) uint8, composed from its tiles and rotated upright."""
    with picture.file() as file:
        layout = heif.layout(file.read(2**24))  # the boxes come first and are small
    check_pixels(picture, layout.size or (0, 0))
    with _container(picture) as container:
        streams = {stream.id: stream for stream in container.streams.video if stream.codec_context is not None}
        if missing := [number for number in layout.tiles if number not in streams]:
            raise OSError(f"{counted(len(missing), 'tile')} cannot be decoded")
        parts: dict[int, np.ndarray] = {}
        for packet in container.demux([streams[number] for number in dict.fromkeys(layout.tiles)]):
            for frame in packet.decode():
                layout.grid((frame.height, frame.width))  # fail at the first tile: all tiles could fill the memory
                parts.setdefault(packet.stream.id, _pixels(frame))
    tiles = [parts.get(number) for number in layout.tiles]
    if any(tile is None or tile.shape != tiles[0].shape for tile in tiles):
        raise OSError("some of its tiles are damaged")
    rows, columns = layout.grid(tiles[0].shape[:2])
    composed = np.concatenate([np.concatenate(tiles[n * columns : (n + 1) * columns], axis=1) for n in range(rows)])
    height, width = layout.size or composed.shape[:2]
    return layout.turned(composed[:height, :width])


def _is_hdr(picture: Media) -> bool:
    """Whether a HEIF is HDR, which Pillow's decoder does not convert to SDR."""
    with suppress(OSError, ValueError), _container(picture) as container:
        codecs = [stream.codec_context for stream in container.streams.video]
        return any(codec is not None and int(codec.color_trc) in hdr.NAMES for codec in codecs)
    return False


# --- Folders of images ----------------------------------------------------------------------------------------------


def listed_images(folder: str | os.PathLike, endings: Collection[str] = IMAGES) -> list[Path]:
    """Return the images of a folder, sorted by name ("2" before "10"). Raises UserError if it is unreadable."""

    def natural(path: Path) -> list[tuple[int, str]]:
        parts = re.split(r"(\d+)", path.name.lower())
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts if part]

    try:
        paths = [path for path in Path(folder).iterdir() if path.suffix.lower() in endings and path.name[0] != "."]
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be read ({error.strerror}). Check its permissions.") from error
    return sorted(paths, key=natural)


def frame_files(folder: str | os.PathLike, frames: int, endings: Collection[str] = IMAGES) -> list[Path]:
    """`listed_images`, exactly one per frame.

    Raises UserError for another number of images, or a folder that cannot be read.
    """
    files = listed_images(folder, endings)
    if len(files) != frames:
        raise UserError(
            f"The folder {folder} contains {counted(len(files), 'image')} for {counted(frames, 'frame')}. Expected one "
            "image per frame. Pass a matching folder, or a single image for all frames."
        )
    return files
