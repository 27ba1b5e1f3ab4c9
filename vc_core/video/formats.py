"""The video formats that can be written, as a table. The same video always gives the same bytes."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..disk import check_folder, check_place, folder_beside, written_beside
from ..errors import UserError
from ..folders import is_system_file
from ..parsing import parse_json
from .metadata import Metadata, comment, png_text, webp_exif
from .opening import as_url
from .sound import RATE, Sound

FOLDER = ""
"""The key in FORMATS of a folder of images: a name without an ending."""


@dataclass(frozen=True)
class VideoToWrite:
    """A video and how to write it."""

    video: Tensor  # (3 or 1, F, H, W), in [0, 1] (clamped)
    rate: Fraction  # frames per second
    scale: int  # every pixel becomes scale x scale pixels
    metadata: Metadata  # texts to store in the file
    after_frame: Callable[[], None]  # called after each written frame
    sound: Sound | None = None  # for formats that have a codec for it

    def frames(self) -> Iterator[np.ndarray]:
        """Yield the frames (H, W, 3) uint8 one by one: a second copy of a long video would not fit into memory."""
        for frame in self.video.unbind(1):
            yield as_bytes(frame[:, None])[0].repeat(self.scale, axis=0).repeat(self.scale, axis=1)

    def durations(self, milliseconds: int) -> list[int]:
        """Return how long each frame is shown: multiples of `milliseconds` as close to the exact times as possible."""
        count = self.video.shape[1]
        times = [round(1000 * i / self.rate / milliseconds) * milliseconds for i in range(count + 1)]
        return [end - start for start, end in pairwise(times)]


@dataclass(frozen=True)
class VideoFormat:
    """How to write a video to a path."""

    write: Callable[[Path, VideoToWrite], None]
    sound: str = ""  # codec of the sound; empty if the format has none
    fastest: int = 1000  # frames per second; above it, players show each frame for a tenth of a second
    largest: int = 65535  # pixels per side
    needs: str = ""  # an optional part of a library, in words
    installed: Callable[[], bool] = lambda: True  # whether that part is installed
    check: Callable[[Path], None] = check_place  # raises UserError for paths that cannot be written
    beside: Callable[[Path], AbstractContextManager[Path]] = written_beside


def as_bytes(video: Tensor) -> np.ndarray:
    """`(C, F, H, W)` in [0, 1] (clamped), C 3 or 1 -> (F, H, W, 3) uint8."""
    video = video.detach().float().cpu().clamp(0, 1).expand(3, -1, -1, -1)
    return (video * 255).round().to(torch.uint8).permute(1, 2, 3, 0).contiguous().numpy()


# --- Containers with a codec, by PyAV -------------------------------------------------------------------------------

# swscale's name and the number stored in the file. If a file does not say it, players assume BT.601 at small sizes and
# BT.709 from 720 lines on. Our files say it, because some readers always assume BT.601.
_BT601, _BT709 = ("ITU601", 6), ("ITU709", 1)
_LIMITED_RANGE = 1


def _encode(
    codec: str,
    options: Mapping[str, str],
    container_options: Mapping[str, str],
    sound_codec: str,
    path: Path,
    clip: VideoToWrite,
) -> None:
    """Encode as 4:2:0 (one colour per 2x2 pixels): an odd side is extended by repeating its last line."""
    import av

    # bitexact: no date, no random identifier and no version in the container.
    with av.open(as_url(path), "w", options={"fflags": "+bitexact", **container_options}) as container:
        container.metadata.update(clip.metadata)
        stream = container.add_stream(codec, rate=clip.rate)
        context = stream.codec_context
        height, width = (side * clip.scale for side in clip.video.shape[2:])
        context.height, context.width = height + height % 2, width + width % 2
        context.pix_fmt, context.options = "yuv420p", dict(options)
        matrix, context.colorspace = _BT709 if context.height >= 720 else _BT601
        context.color_range = _LIMITED_RANGE
        sound: Iterator[tuple[Fraction, Any]] = iter(())
        if clip.sound is not None:
            heard = container.add_stream(sound_codec, rate=RATE)
            heard.codec_context.layout, heard.codec_context.options = "stereo", {"flags": "+bitexact"}
            sound = clip.sound.packets(heard)

        def frames() -> Iterator[Any]:
            for pixels in clip.frames():
                pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                yield frame.reformat(format="yuv420p", dst_colorspace=matrix)
            yield None  # flushes the encoder

        waiting = next(sound, None)
        for frame in frames():
            for packet in context.encode_lazy(frame):
                packet.stream = stream
                while waiting is not None and waiting[0] <= packet.dts * packet.time_base:
                    container.mux(waiting[1])
                    waiting = next(sound, None)
                container.mux(packet)
                clip.after_frame()
        for _, packet in ([waiting] if waiting else []) + [*sound]:
            container.mux(packet)


def _x264_options() -> dict[str, str]:
    """Use a fixed number of threads, because the bytes depend on it, and no AVX-512.

    x264's AVX-512 routines (core 165) read uninitialized memory, so the same frames give different bytes each time;
    its AVX2 routines always give the bytes of its plain C code. Requesting routines that the processor does not have
    would crash, so AVX2 is requested only if torch detects it.
    """
    options = {"crf": "16", "preset": "medium", "threads": "4"}
    has_avx2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return {**options, "x264-params": "asm=avx2"} if has_avx2 else options


def _coded(codec: str, options: Mapping[str, str], container_options: Mapping[str, str], sound: str) -> VideoFormat:
    def installed() -> bool:
        import av

        try:
            return bool(av.Codec(codec, "w"))
        except av.codec.codec.UnknownCodecError:
            return False

    write = partial(_encode, codec, options, container_options, sound)
    needs = f"a build of PyAV with the encoder {codec}"
    return VideoFormat(write, sound, largest=16384, needs=needs, installed=installed)


# --- Animated pictures, by Pillow -----------------------------------------------------------------------------------


def _images(clip: VideoToWrite) -> Iterator[Any]:
    from PIL import Image

    for pixels in clip.frames():
        yield Image.fromarray(pixels)
        clip.after_frame()


def _write_gif(path: Path, clip: VideoToWrite) -> None:
    """Write with one palette of 256 colours for all frames, so that colours do not flicker, and without dithering, so
    that no pattern crawls. The palette is fitted to a sample of at most 65,536 pixels.

    A video with at most 256 colours keeps them, but Pillow may merge two that differ by less than 8 of 255.
    """
    from PIL import Image

    step = math.ceil(math.sqrt(clip.video[0].numel() / 2**16))
    sample = Image.fromarray(np.concatenate(as_bytes(clip.video[:, :, ::step, ::step])))
    palette = sample.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=1)
    images = (image.quantize(palette=palette, dither=Image.Dither.NONE) for image in _images(clip))
    # The files are smaller without Pillow's optimization.
    options = {"duration": clip.durations(10), "optimize": False, "comment": comment(clip.metadata)}
    next(images).save(path, format="GIF", save_all=True, append_images=images, loop=0, **options)


def _write_webp(path: Path, clip: VideoToWrite) -> None:
    """Write losslessly: the only single file with the exact pixels. The effort is low, because a higher one needs ten
    times as long for a tenth less size."""
    first, *others = _images(clip)
    options = {"duration": clip.durations(1), "lossless": True, "quality": 0, "method": 0}
    exif = webp_exif(clip.metadata)
    first.save(path, format="WEBP", save_all=True, append_images=others, loop=0, exif=exif, **options)


def _has_webp() -> bool:
    from PIL import features

    return features.check("webp")


# --- A folder of images ---------------------------------------------------------------------------------------------

DESCRIPTION = "video.json"
"""The file in a folder of images with the number of frames, and the rate: a number or a fraction like `30000/1001`."""


def _write_folder(folder: Path, clip: VideoToWrite) -> None:
    """Store the metadata in every image, so that a single copied image still says how it was generated."""
    text = png_text(clip.metadata)
    for number, image in enumerate(_images(clip)):
        image.save(folder / f"{number:05d}.png", format="PNG", pnginfo=text)
    description = {"frames": clip.video.shape[1], "rate": str(clip.rate)}
    (folder / DESCRIPTION).write_text(json.dumps(description) + "\n")


def check_replaceable(folder: Path) -> None:
    """Raise UserError as `folder_beside` does, and for a folder with files that are not part of an earlier result."""
    check_folder(folder)
    if not folder.is_dir():
        return
    foreign = sorted(path.name for path in folder.iterdir() if not is_system_file(path.name))
    try:
        described = set(parse_json((folder / DESCRIPTION).read_text())) == {"frames", "rate"}
    except (OSError, ValueError, TypeError):
        described = False
    if described:
        own = re.compile(rf"\d{{5,}}\.png|{re.escape(DESCRIPTION)}")
        foreign = [name for name in foreign if not (own.fullmatch(name) and (folder / name).is_file())]
    if foreign:
        raise UserError(
            f"{folder} contains {foreign[0]}, which is not part of an earlier result and would be lost. Choose a new "
            "or an empty folder."
        )


# --- The table ------------------------------------------------------------------------------------------------------

FORMATS: dict[str, VideoFormat] = {
    # use_metadata_tags keeps each key under its own name, as ComfyUI's video nodes write and its page reads it;
    # without it, only iTunes' own keys survive.
    ".mp4": _coded("libx264", _x264_options(), {"movflags": "+faststart+use_metadata_tags"}, "aac"),
    # libvpx's bytes depend on the number of threads only with row-mt.
    ".webm": _coded(
        "libvpx-vp9",
        {"crf": "16", "b": "0", "deadline": "good", "cpu-used": "4", "threads": "4", "row-mt": "0"},
        {},
        "libopus",
    ),
    ".gif": VideoFormat(_write_gif, fastest=50),
    ".webp": VideoFormat(
        _write_webp, fastest=90, largest=16383, needs="a build of Pillow with WebP", installed=_has_webp
    ),
    FOLDER: VideoFormat(_write_folder, check=check_replaceable, beside=folder_beside),
}
