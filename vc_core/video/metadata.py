"""Store named texts, such as the settings of a run, in produced files, and read them back."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError, reason
from ..parsing import parse_json
from .images import opened_image
from .opening import as_url, demuxed

Metadata = Mapping[str, str]

# Keys that containers use themselves, not texts from the writer of the file.
_OF_THE_CONTAINER = {"major_brand", "minor_version", "compatible_brands", "encoder", "creation_time", "duration"}
_LARGEST = 2**20  # bytes of one text: Pillow refuses to read more from a PNG

_EXIF, _USER_COMMENT = 0x8769, 0x9286  # the EXIF section and its field with the comment
_ASCII = b"ASCII\0\0\0"  # the prefix of a UserComment that names its encoding


def check_metadata(metadata: Metadata) -> None:
    """Raise UserError for metadata that some format would change or lose: a key with anything but lower-case letters,
    digits and underscores (Matroska ignores case), or one that containers use; a text above 1 MiB, with a NUL, or not
    valid Unicode."""
    for key, text in metadata.items():
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,78}", key) or key in _OF_THE_CONTAINER:
            raise UserError(
                f"The metadata key {key!r} cannot be stored in a video. Expected up to 79 lower-case letters, digits "
                f"and underscores, but not {', '.join(sorted(_OF_THE_CONTAINER))}. Choose another key."
            )
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            size = None
        if size is None or size > _LARGEST or "\0" in text:
            raise UserError(
                f"The metadata text {key!r} cannot be stored in a video. Expected at most {_LARGEST} bytes of Unicode "
                "without NUL characters. Shorten it or write it as JSON."
            )


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Return the named texts of a video, an image or a folder of frames, as they were passed to `write_video`.

    Files from other programs are read too: the tags of a container (keys in lower case), the texts of a PNG, and the
    comment of a GIF or WebP, as one text under the key `comment` if it is not ours.

    Raises UserError if the file is missing, not a video or image, unreadable, or without texts.
    """
    path = Path(path)
    file = path / "00000.png" if os.path.isdir(path) else path
    if not os.path.isfile(file):
        problem = f"there is no file at {path}" if file == path else f"{path} contains no frame {file.name}"
        raise UserError(f"Expected a video or an image with settings, but {problem}. Check the path.")
    try:
        if kind := {".png": "PNG", ".gif": "GIF", ".webp": "WEBP"}.get(file.suffix.lower()):
            with opened_image(file, file, formats=[kind]) as image:
                metadata = _of_picture(image)
        else:
            with demuxed(as_url(file)) as container:
                tags = {key.lower(): text for key, text in container.metadata.items()}  # Matroska stores upper case
            metadata = {key: text for key, text in tags.items() if key not in _OF_THE_CONTAINER}
    except UserError:
        raise
    except Exception as error:  # damaged files make the libraries raise many kinds of errors
        raise UserError(
            f"{file} cannot be read as a video or an image ({reason(error, named=True)}). Pass a complete file."
        ) from error
    if not metadata:
        raise UserError(f"{path} contains no settings. Pass a file that was written with its settings.")
    return metadata


def _of_picture(image: Any) -> dict[str, str]:
    if image.format == "PNG":
        return {key: str(text) for key, text in image.text.items()}
    if image.format == "GIF":
        comment = image.info.get("comment", b"")
    else:
        comment = image.getexif().get_ifd(_EXIF).get(_USER_COMMENT, b"")[len(_ASCII) :]
    text = comment.decode(errors="replace")
    try:
        metadata = parse_json(text)
    except ValueError:
        metadata = None
    if isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values()):
        return metadata
    return {"comment": text} if text else {}


def png_text(metadata: Metadata) -> Any:
    """Return the texts as PIL's `PngInfo`: compressed iTXt chunks (any Unicode; other programs show them)."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, text in metadata.items():
        info.add_itxt(key, text, zip=True)
    return info


def comment(metadata: Metadata) -> bytes:
    """Return the texts as one comment, e.g. for a GIF: JSON in ASCII, as the standards require; empty for none."""
    return json.dumps(dict(metadata)).encode("ascii") if metadata else b""


def webp_exif(metadata: Metadata) -> bytes:
    """Return the texts as EXIF with a UserComment, which other programs show; empty for none."""
    from PIL import Image

    if not metadata:
        return b""
    exif = Image.Exif()
    exif.get_ifd(_EXIF)[_USER_COMMENT] = _ASCII + comment(metadata)
    return exif.tobytes()
