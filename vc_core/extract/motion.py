"""Block vectors out of a re-encode of the plan's clip, and motion fields out of block vectors.

A motion field is (1, 2, F, H, W): dx, dy in pixels that content moved from the previous frame to this one; right and
down positive; frame 0 is zero. Two layouts exist, and a checkpoint's config says which one it was trained with:

    points   as released: MPEG-4's vectors, each at one pixel, in source pixels
    dense    H.264's vectors, filling their blocks, in pixels of the target
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..video import FramePlan, planned_frames, resize_crop

# One row per block: the frame it was decoded in, the block's centre and extent, and the displacement of its content
# from the previous frame to this one. Everything in source pixels.
VECTOR = np.dtype(
    [("frame", "i4"), ("dst_x", "i4"), ("dst_y", "i4"), ("w", "i4"), ("h", "i4"), ("dx", "f4"), ("dy", "f4")]
)


@dataclass(frozen=True)
class BlockVectors:
    """The block vectors of a clip: `rows` of VECTOR, in decoding order, for a clip of this size and length.

    `kinds` has one letter a frame, I or P; I-frames have no rows, nor have blocks coded without reference.
    """

    rows: np.ndarray
    height: int
    width: int
    frames: int
    kinds: str

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the source."""
        return self.height, self.width


@dataclass(frozen=True)
class Reencode:
    """How the clip is encoded anew in memory, only to have its block vectors exported on decoding."""

    codec: str
    even: bool  # 4:2:0 H.264 takes even sizes only
    options: dict[str, str] = field(default_factory=dict)

    def for_frames(self, frames: int) -> dict[str, str]:
        """The encoder's options for a clip of this many frames."""
        return {key: value.format(beyond=frames + 1) for key, value in self.options.items()}


# `points`: the ffmpeg program's defaults, as golden values were made with. Without the rate and its tolerance most
# vectors differ, and the number of slices decides on them too (each starts its prediction afresh): the program
# takes a slice per thread, so here the number is fixed, and the machine's does not matter.
# `dense`: one reference, which is the previous frame; no I-frame inside the window; no weighted prediction, which
# would doubly list that reference; one thread, so that all machines agree; and a thorough search.
REENCODE = {
    "points": Reencode(
        "mpeg4",
        even=False,
        options={"b": "200000", "bt": "4000000", "g": "12", "slices": "3"},
    ),
    "dense": Reencode(
        "libx264",
        even=True,
        options={
            "crf": "18",
            "preset": "medium",
            "x264-params": "bframes=0:ref=1:keyint={beyond}:min-keyint={beyond}:scenecut=0:weightp=0:me=umh:subme=7:"
            "merange=32:rc-lookahead=0:mbtree=0:threads=1",
        },
    ),
}


def extract_motion(
    path: str | os.PathLike, plan: FramePlan, layout: str = "points", size: tuple[int, int] = (256, 256)
) -> Tensor:
    """The motion field (1, 2, F, h, w) of the plan's clip, scaled to cover `size` (h, w) and centre-cropped.

    Layout "points" keeps magnitudes in source pixels, as the released network saw them; "dense" gives them in pixels
    of `size`. Raises UserError where the file cannot be read.
    """
    if layout not in RASTERISE:
        raise UserError(f"motion layout {layout!r} is unknown: choose one of {', '.join(RASTERISE)}.")
    vectors = block_vectors(path, plan, layout)
    return RASTERISE[layout](vectors, vectors.size, plan.frames, size)


def block_vectors(path: str | os.PathLike, plan: FramePlan, layout: str = "points") -> BlockVectors:
    """Block vectors of the plan's clip, from the re-encode that the layout is made from. Nothing touches the disk.

    Raises UserError where the file cannot be read.
    """
    settings = REENCODE[layout]
    # The scaler brings any pixel format and range to the limited range that MPEG-4 and H.264 expect.
    filters = [("scale", "out_range=limited"), ("format", "yuv420p")]
    if settings.even:
        filters.insert(0, ("crop", "trunc(iw/2)*2:trunc(ih/2)*2:0:0"))
    return reencode(planned_frames(path, plan, *filters), plan.rate, plan.frames, settings)


def reencode(frames: Iterable, rate: Fraction, count: int, settings: Reencode) -> BlockVectors:
    """Encode av.VideoFrames (yuv420p) in memory, decode them again, and collect the exported block vectors."""
    import av
    from av.codec.context import Flags2

    decoder = av.CodecContext.create("h264" if settings.codec == "libx264" else settings.codec, "r")
    decoder.thread_type = "NONE"  # frame threads corrupt exported vectors
    decoder.flags2 |= Flags2.export_mvs  # takes effect only before the first decode
    encoder, decoded = None, []

    def decode(packets):
        for packet in packets:
            for frame in decoder.decode(packet):
                decoded.append((av.video.frame.PictureType(frame.pict_type).name, _exported(frame, len(decoded))))

    for number, frame in enumerate(frames):
        if encoder is None:
            encoder = av.CodecContext.create(settings.codec, "w")
            encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, "yuv420p"
            encoder.time_base, encoder.framerate = 1 / rate, rate
            encoder.options = settings.for_frames(count)
        frame.pts, frame.time_base = number, 1 / rate
        frame.pict_type = av.video.frame.PictureType.NONE  # else the source's I-frames would be kept as such
        decode(encoder.encode(frame))
    decode(encoder.encode(None))
    decode([None])
    if len(decoded) != count:
        raise RuntimeError(f"{settings.codec} gave {len(decoded)} frames back for {count}")
    rows = np.concatenate([rows for _, rows in decoded])
    return BlockVectors(rows, encoder.height, encoder.width, count, "".join(kind for kind, _ in decoded))


def _exported(frame, number: int) -> np.ndarray:
    """The VECTOR rows of one decoded frame; none where ffmpeg exports none, as on I-frames."""
    exported = frame.side_data.get("MOTION_VECTORS")
    if exported is None:
        return np.empty(0, VECTOR)
    raw = exported.to_ndarray()  # a view into the frame; what follows copies out of it
    rows = np.empty(len(raw), VECTOR)
    rows["frame"] = number
    for name in ("dst_x", "dst_y", "w", "h"):
        rows[name] = raw[name]
    # ffmpeg's motion points from this block to where its content was, and `source` is -1 for the past: the product
    # is where the content went.
    direction = raw["source"] / raw["motion_scale"].astype(np.float64)
    rows["dx"], rows["dy"] = direction * raw["motion_x"], direction * raw["motion_y"]
    return rows


# ---------------------------------------------------------------------------------------------------------------
# From vectors to a field
# ---------------------------------------------------------------------------------------------------------------


def rasterise_points(vectors: BlockVectors, source_size: tuple[int, int], frames: int, size: tuple[int, int]) -> Tensor:
    """The released map (1, 2, F, h, w) in source pixels (tools/videocomposer/datasets.py).

    Every vector stands at one pixel of the source, its block's centre clipped into the frame, the last one winning;
    all else is zero. That map is scaled bilinearly without antialiasing to cover `size` and centre-cropped.
    """
    height, width = source_size

    def draw(rows: np.ndarray) -> np.ndarray:
        canvas = np.zeros((2, height, width), np.float32)
        y, x = rows["dst_y"].clip(0, height - 1), rows["dst_x"].clip(0, width - 1)
        canvas[:, y, x] = rows["dx"], rows["dy"]
        return canvas

    return _field(draw, vectors.rows, frames, size, antialias=False)


_CELL = 4  # H.264 blocks are multiples of 4 pixels wide and high, and stand on multiples of 4


def rasterise_dense(vectors: BlockVectors, source_size: tuple[int, int], frames: int, size: tuple[int, int]) -> Tensor:
    """The dense map (1, 2, F, h, w) in pixels of `size`: blocks filled with their vectors, others zero, antialiased."""
    height, width = source_size
    scale = max(size[0] / height, size[1] / width)  # one source pixel in target pixels, as resize_crop scales
    # A margin for blocks that overhang the frame, cut off below.
    cells = (-(-height // _CELL) + 16, -(-width // _CELL) + 16)

    def draw(rows: np.ndarray) -> np.ndarray:
        canvas = np.zeros((2, *cells), np.float32)
        for w, h in {(int(w), int(h)) for w, h in np.unique(rows[["w", "h"]])}:
            blocks = rows[(rows["w"] == w) & (rows["h"] == h)]
            top, left = (blocks["dst_y"] - h // 2) // _CELL, (blocks["dst_x"] - w // 2) // _CELL
            for down in range(h // _CELL):
                for right in range(w // _CELL):
                    canvas[:, top + down, left + right] = blocks["dx"], blocks["dy"]
        pixels = canvas.repeat(_CELL, axis=1).repeat(_CELL, axis=2)
        return pixels[:, :height, :width] * scale

    return _field(draw, vectors.rows, frames, size, antialias=True)


def _field(draw, rows: np.ndarray, frames: int, size: tuple[int, int], antialias: bool) -> Tensor:
    """Draw each frame's rows at source size and resize at once: one source-sized map in memory, whatever F is."""
    maps = []
    for number in range(frames):
        canvas = torch.from_numpy(np.ascontiguousarray(draw(rows[rows["frame"] == number])))
        maps.append(resize_crop(canvas[None], size, antialias=antialias))
    return torch.stack(maps, dim=2)


RASTERISE = {"points": rasterise_points, "dense": rasterise_dense}
