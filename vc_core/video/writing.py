"""Write videos in the format of their name's ending, with the settings inside; complete or not at all."""

import math
import os
from contextlib import ExitStack
from fractions import Fraction
from itertools import count
from numbers import Integral, Real
from pathlib import Path

from torch import Tensor

from ..disk import written_beside
from ..errors import UserError, check_type
from ..progress import Progress
from .formats import FOLDER, FORMATS, VideoFormat, VideoToWrite, as_bytes
from .limits import SLOWEST
from .metadata import Metadata, check_metadata, png_text
from .sound import Sound


def write_video(
    path: str | os.PathLike,
    video: Tensor,
    rate: float | Fraction,
    scale: int = 1,
    metadata: Metadata | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write one video, `([1,] 3 or 1, F, H, W)`, as `write_videos` does, and return its path."""
    check_type("The video", video, Tensor, "a torch tensor (3, frames, height, width)")
    videos = video[None] if video.dim() == 4 else video
    if len(videos) != 1:
        raise UserError(
            f"The video for {path} has the shape {tuple(video.shape)}. Expected one video, (3, frames, height, width)."
        )
    return write_videos(path, videos, rate, scale, metadata, progress)[0]


def write_videos(
    path: str | os.PathLike,
    videos: Tensor,
    rate: float | Fraction,
    scale: int = 1,
    metadata: Metadata | None = None,
    progress: Progress | None = None,
    sound: Sound | None = None,
) -> list[Path]:
    """Write a batch of videos, each to its own file, and return their paths. If anything fails, no file is created and
    older files stay. The same video gives the same bytes with the same library versions.

    Args:
        path: for a batch of more than one video, see `numbered`. Its ending chooses the format. `.mp4` (H.264) and
            `.webm` (VP9) are 4:2:0; an odd side is extended by repeating its last line. `.gif` (256 colours for the
            video, times in steps of 10 ms) and `.webp` (lossless) loop, and store equal consecutive frames as one. No
            ending, or an existing folder: a folder of lossless `00000.png` etc., and `video.json` with the rate.
        videos: `(B, 3 or 1, F, H, W)` in [0, 1] (clamped).
        rate: frames per second, from 0.01 to 1000; at most 50 for `.gif` and 90 for `.webp`, because players slow down
            faster files.
        scale: enlarges each pixel by this factor in width and height, so that tiny videos can be viewed.
        metadata: texts to store in each file for `read_metadata`, see `check_metadata`.
        progress: called as `progress("writing", done, total)`, counting the frames of all files.
        sound: sound of every file, as AAC in `.mp4` and Opus in `.webm`. The other formats have none and ignore it.

    Raises UserError for wrong types or shapes, another ending, an encoder that is not installed, a rate, size or
    metadata that the format does not support, a folder with other files in it, a path that cannot be written, or NaN
    values.
    """
    check_type("path", path, str | os.PathLike, "the path of a file")
    check_type("videos", videos, Tensor, "a torch tensor (batch, 3, frames, height, width)")
    check_type("rate", rate, Real, "a number of frames per second")
    check_type("scale", scale, Integral, "an integer of at least 1")
    if videos.dim() != 5 or videos.shape[1] not in (1, 3) or 0 in videos.shape:
        raise UserError(
            f"The video for {path} has the shape {tuple(videos.shape)}. Expected (batch, 3 or 1, frames, height, "
            "width)."
        )
    if scale < 1:
        raise UserError(f"scale is {scale}. Expected an integer of at least 1.")
    form, metadata = check_format(path, rate), dict(metadata or {})
    check_metadata(metadata)
    sides = [side * scale for side in videos.shape[3:]]
    if max(sides) > form.largest:
        raise UserError(
            f"The video for {path} is {sides[1]} by {sides[0]} pixels. This format allows at most {form.largest} "
            "pixels per side. Choose a smaller scale or size, or another format."
        )
    if videos.isnan().any():
        raise UserError(
            f"The video for {path} contains values that are not numbers (NaN). Generate it again in float32."
        )
    total, done = videos.shape[0] * videos.shape[2], count(1)

    def after_frame() -> None:
        if progress is not None:
            progress("writing", next(done), total)

    # Enough precision for 30000/1001, and a time base that every container can store.
    exact = Fraction(rate).limit_denominator(1001)
    paths = numbered(path, len(videos))
    with ExitStack() as stack:  # all files are written before the first is renamed
        temporaries = []
        for target in paths:
            form.check(target)
            temporaries.append(stack.enter_context(form.beside(target)))
        for temporary, video in zip(temporaries, videos, strict=True):
            form.write(
                temporary, VideoToWrite(video, exact, scale, metadata, after_frame, sound if form.sound else None)
            )
    return paths


def numbered(path: str | os.PathLike, videos: int) -> list[Path]:
    """Return the paths of a batch: `path` itself for one video, otherwise name_0.mp4, name_1.mp4 etc. next to it."""
    path = Path(path)
    if videos == 1:
        return [path]
    named = path if path.name else path.absolute()  # "." has no name
    ending = named.suffix if named.suffix.lower() in FORMATS else ""
    return [named.with_name(f"{named.name.removesuffix(ending)}_{i}{ending}") for i in range(videos)]


def check_format(path: str | os.PathLike, rate: float | Fraction | None = None) -> VideoFormat:
    """Return the format of a path. Raises `UserError` if it is not installed or does not support this rate."""
    path = Path(path)
    form = FORMATS.get(path.suffix.lower()) or (FORMATS[FOLDER] if path.is_dir() else None)
    if form is None:
        endings = ", ".join(filter(None, FORMATS))
        raise UserError(
            f"{path} ends in {path.suffix}, which is not a supported video format. Use a name that ends in {endings}, "
            "or a folder."
        )
    if not form.installed():
        raise UserError(f"Writing {path} requires {form.needs}, which is not installed. Choose another format.")
    if rate is not None and not SLOWEST <= rate <= form.fastest:
        kind = path.suffix.lower() or "a folder of images"
        raise UserError(
            f"{path} cannot be written at {float(rate):g} frames per second. Use 0.01 to {form.fastest} frames per "
            f"second for {kind}."
        )
    return form


def check_videos(path: Path, videos: int = 1, rate: float | None = None) -> None:
    """Raise the `UserError` that `write_videos` would raise later for a path and a rate."""
    form = check_format(path, rate)
    for target in numbered(path, videos):
        form.check(target)


def write_contact_sheet(
    path: str | os.PathLike,
    rows: list[tuple[str, Tensor]],
    columns: int = 8,
    cell: int = 128,
    title: str = "",
    metadata: Metadata | None = None,
) -> Path:
    """Write a .png with a labelled strip of frames per row on white, e.g. a network's inputs and outputs.

    Args:
        rows: label and `([1,] 3 or 1, F, H, W)` in [0, 1]. At most `columns` frames are shown, evenly spaced from
            the first to the last; a single frame fills one cell.
        cell: the height of all cells in pixels, rounded up to a multiple of the smallest frames' height, so that
            small frames are enlarged without blur.
        metadata: texts to store in the file, see `write_videos`.

    Raises UserError for a path that cannot be written, or metadata that cannot be stored.
    """
    from PIL import Image, ImageDraw, ImageFont

    check_metadata(metadata or {})
    path, gap, size = Path(path), 6, 15
    font = ImageFont.load_default(size)
    videos = [as_bytes(video[0] if video.dim() == 5 else video) for _, video in rows]
    smallest = min(video.shape[1] for video in videos)
    height = math.ceil(cell / smallest) * smallest if smallest < cell else cell
    strips = []
    for video in videos:
        shown = min(len(video), columns)
        images = [Image.fromarray(video[round(i * (len(video) - 1) / max(1, shown - 1))]) for i in range(shown)]
        width = max(1, round(images[0].width * height / images[0].height))
        filter = Image.NEAREST if height >= images[0].height else Image.LANCZOS
        strips.append([image.resize((width, height), filter) for image in images])
    margin = max(int(font.getbbox(label)[2]) for label, _ in rows) + 2 * gap
    top = gap + (size + 2 * gap if title else 0)
    width = margin + max(sum(image.width + gap for image in strip) for strip in strips)
    sheet = Image.new("RGB", (width, top + len(strips) * (height + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, gap), title, fill="black", font=font)
    for row, ((label, _), strip) in enumerate(zip(rows, strips, strict=True)):
        y = top + row * (height + gap)
        draw.text((gap, y + height / 2), label, fill="black", font=font, anchor="lm")
        for column, image in enumerate(strip):
            sheet.paste(image, (margin + column * (image.width + gap), y))
    with written_beside(path) as temporary:
        sheet.save(temporary, format="PNG", pnginfo=png_text(metadata or {}))
    return path
