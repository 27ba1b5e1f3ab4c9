"""Named texts inside a produced file, such as the settings that it was made with: put in, and read back."""

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

# What containers say about themselves: no text of the one who wrote the file.
_OF_THE_CONTAINER = {"major_brand", "minor_version", "compatible_brands", "encoder", "creation_time", "duration"}
_LARGEST = 2**20  # bytes of one text: Pillow refuses to read more from a PNG

_EXIF, _USER_COMMENT = 0x8769, 0x9286  # the part of EXIF and its field that hold a comment
_ASCII = b"ASCII\0\0\0"  # which encoding a UserComment has


def check_metadata(metadata: Metadata) -> None:
    """Raises UserError for what one of the formats would change or lose: a key other than lower-case letters, digits
    and underscores (Matroska has no case), or that containers use; a text beyond 1 MiB, with a NUL, or no Unicode."""
    for key, text in metadata.items():
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,78}", key) or key in _OF_THE_CONTAINER:
            raise UserError(
                f"The metadata key {key!r} cannot be stored in a video: expected up to 79 lower-case letters, digits "
                f"and underscores, and none of {', '.join(sorted(_OF_THE_CONTAINER))}; choose another key."
            )
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            size = None
        if size is None or size > _LARGEST or "\0" in text:
            raise UserError(
                f"The metadata text {key!r} cannot be stored in a video: expected at most {_LARGEST} bytes of Unicode "
                "without NUL characters; shorten it or write it as JSON."
            )


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The named texts of a video, a picture or a folder of frames, as they were handed to `write_video`.

    Other programs' files are read too: the tags of a container (keys in lower case), the texts of a PNG, and the
    comment of a GIF or WebP, which is one text under the key `comment` where it is not ours.

    Raises UserError where there is nothing, no video or picture, or none that can be read or has a text.
    """
    path = Path(path)
    file = path / "00000.png" if os.path.isdir(path) else path
    if not os.path.isfile(file):
        what = "such file" if file == path else "frame 00000.png in it"
        raise UserError(f"{path}: there is no {what}, and a produced video was expected: check the path.")
    try:
        if kind := {".png": "PNG", ".gif": "GIF", ".webp": "WEBP"}.get(file.suffix.lower()):
            with opened_image(file, file, formats=[kind]) as image:
                metadata = _of_picture(image)
        else:
            with demuxed(as_url(file)) as container:
                tags = {key.lower(): text for key, text in container.metadata.items()}  # Matroska's are in upper case
            metadata = {key: text for key, text in tags.items() if key not in _OF_THE_CONTAINER}
    except UserError:
        raise
    except Exception as error:  # what a damaged file makes of the libraries' readers has no common kind
        raise UserError(
            f"{file}: cannot be read as a video or a picture ({reason(error, named=True)}): give a whole file."
        ) from error
    if not metadata:
        raise UserError(f"{path}: holds no settings, and a file that was written with them was expected: give another.")
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
    """The texts as PIL's `PngInfo`: compressed iTXt chunks, which hold any Unicode and other programs show."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, text in metadata.items():
        info.add_itxt(key, text, zip=True)
    return info


def comment(metadata: Metadata) -> bytes:
    """The texts as one comment, as of a GIF: a JSON object, in ASCII as the standards ask; empty for none."""
    return json.dumps(dict(metadata)).encode("ascii") if metadata else b""


def webp_exif(metadata: Metadata) -> bytes:
    """The texts as EXIF with a UserComment, which other programs show; empty for none."""
    from PIL import Image

    if not metadata:
        return b""
    exif = Image.Exif()
    exif.get_ifd(_EXIF)[_USER_COMMENT] = _ASCII + comment(metadata)
    return exif.tobytes()
