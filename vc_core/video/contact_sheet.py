"""Contact sheets: what a network saw and what it made, as strips of frames on one picture."""

import math
import os
from pathlib import Path

import numpy as np
from torch import Tensor

from ..atomic import written_beside
from .formats import as_bytes
from .metadata import Metadata, check_metadata, png_text


def write_contact_sheet(
    path: str | os.PathLike,
    rows: list[tuple[str, Tensor]],
    columns: int = 8,
    cell: int = 128,
    title: str = "",
    metadata: Metadata | None = None,
) -> Path:
    """Writes a .png with one labelled strip of frames a row, on white.

    Args:
        rows: label and `([1,] 3 or 1, F, H, W)` in [0, 1]. At most `columns` frames are shown, evenly spaced from
            the first to the last; a single frame fills one cell.
        cell: all cells are this many pixels high, or the next whole multiple of the smaller frames' height, so that
            small frames are enlarged without blur.
        metadata: texts to store in the file, see `write_videos`.

    Raises:
        UserError: a path that cannot be written, or metadata that no format could hold.
    """
    from PIL import Image, ImageDraw, ImageFont

    check_metadata(metadata or {})
    path, gap, size = Path(path), 6, 15
    strips = [(label, as_bytes(_one(strip))) for label, strip in rows]
    smallest = min(strip.shape[1] for _, strip in strips)
    height = math.ceil(cell / smallest) * smallest if smallest < cell else cell
    font = ImageFont.load_default(size)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    margin = max(int(measure.textbbox((0, 0), label, font=font)[2]) for label, _ in rows) + 2 * gap
    images = [(label, [_cell(strip[i], height) for i in _spread(len(strip), columns)]) for label, strip in strips]
    top = gap + (size + 2 * gap if title else 0)
    width = margin + max(sum(image.width + gap for image in strip) for _, strip in images)
    sheet = Image.new("RGB", (width, top + len(images) * (height + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, gap), title, fill="black", font=font)
    for row, (label, strip) in enumerate(images):
        y, x = top + row * (height + gap), margin
        draw.text((gap, y + height / 2), label, fill="black", font=font, anchor="lm")
        for image in strip:
            sheet.paste(image, (x, y))
            x += image.width + gap
    with written_beside(path) as temporary:
        sheet.save(temporary, format="PNG", pnginfo=png_text(metadata or {}))
    return path


def _one(video: Tensor) -> Tensor:
    """`([1,] C, F, H, W)` -> `(C, F, H, W)`, C 3 or 1."""
    one = video[0] if video.dim() == 5 and video.shape[0] == 1 else video
    if one.dim() != 4 or one.shape[0] not in (1, 3):
        raise ValueError(f"expected one video (3, F, H, W), got {tuple(video.shape)}")
    return one


def _cell(frame: np.ndarray, height: int):
    """One frame (H, W, 3) as an image of this height, enlarged by whole pixels or reduced smoothly."""
    from PIL import Image

    image = Image.fromarray(frame)
    width = max(1, round(image.width * height / image.height))
    return image.resize((width, height), Image.NEAREST if height >= image.height else Image.LANCZOS)


def _spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` indices of `count`, evenly spaced, the first and the last among them."""
    wanted = min(count, wanted)
    return [round(i * (count - 1) / max(1, wanted - 1)) for i in range(wanted)]
