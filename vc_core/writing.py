"""Writing videos and contact sheets: beside the target first, then renamed, so that nothing half-written remains."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import UserError


@contextmanager
def written_beside(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on any failure."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder, and a file to write was expected: give a file name.")
    if not path.parent.is_dir():
        raise UserError(f"{path}: its folder does not exist: make the folder {path.parent} or choose another one.")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_video(path: str | os.PathLike, video: Tensor, rate: float | Fraction, scale: int = 1) -> Path:
    """Write an H.264 4:2:0 .mp4 that plays everywhere.

    video: (1, 3, F, H, W) or (3, F, H, W) in [0, 1] (clamped). `scale` enlarges every pixel that many times, so
    that tiny videos can be looked at. An odd side is extended by repeating its last line. Raises UserError where
    the path cannot be written.
    """
    import av

    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise UserError(f"{path}: videos are written as .mp4: give a name that ends in .mp4.")
    frames = _as_bytes(video)
    frames = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    _, height, width, _ = frames.shape
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with written_beside(path) as temporary:
        try:
            with av.open(str(temporary), "w", options={"movflags": "+faststart"}) as container:
                stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
                stream.height, stream.width = frames.shape[1:3]
                stream.pix_fmt = "yuv420p"
                stream.options = {"crf": "16", "preset": "medium"}
                # Limited range, BT.601 at small sizes and BT.709 from 720 lines on: what players assume untagged.
                matrix = "ITU709" if frames.shape[1] >= 720 else "ITU601"
                for pixels in frames:
                    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                    container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=matrix)))
                container.mux(stream.encode(None))
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}): check the folder and the space.") from error
    return path


def write_contact_sheet(
    path: str | os.PathLike, rows: list[tuple[str, Tensor]], columns: int = 8, cell: int = 128, title: str = ""
) -> Path:
    """Write a .png with one labelled strip of frames a row, on white.

    rows: (label, (3|1, F, H, W) in [0, 1]). At most `columns` frames are shown, evenly spaced from the first to
    the last; a single frame fills one cell. All cells are `cell` pixels high, or the next whole multiple of the
    smaller frames' height, so that small frames are enlarged without blur.
    """
    from PIL import Image, ImageDraw, ImageFont

    path, gap, size = Path(path), 6, 15
    strips = [(label, _as_bytes(strip)) for label, strip in rows]
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
        sheet.save(temporary, format="PNG")
    return path


def _as_bytes(video: Tensor) -> np.ndarray:
    """(1, C, F, H, W) or (C, F, H, W) in [0, 1], C 3 or 1 -> (F, H, W, 3) uint8."""
    if video.dim() == 5 and video.shape[0] == 1:
        video = video[0]
    if video.dim() != 4 or video.shape[0] not in (1, 3):
        raise ValueError(f"expected one video (3, F, H, W), got {tuple(video.shape)}")
    video = video.detach().float().cpu().clamp(0, 1).expand(3, -1, -1, -1)
    return (video * 255).round().to(torch.uint8).permute(1, 2, 3, 0).contiguous().numpy()


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
