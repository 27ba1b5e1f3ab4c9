"""Motion fields out of any video.

A motion field is (1, 2, F, H, W): dx, dy in pixels that content moved from the previous frame to this one; right and
down positive; frame 0 is zero. Two layouts exist, and a checkpoint's config says which one it was trained with:

    points   as released: a block's vector at one pixel, in source pixels
    dense    vectors filling their blocks, in pixels of the target

and two modes of coming by vectors:

    released   what the network was trained on: the plan's frames are encoded anew, as MPEG-4 for points (the released
               pipeline) and as H.264 for dense, and the encoder's vectors taken
    stream     the file's own vectors at its own rate, followed along the frames that the plan skips
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..progress import Progress
from ..video.frames import FramePlan, chosen_times, pictures, planned_frames, planned_index
from ..video.limits import check_size
from ..video.opening import Media
from ..video.packets import Index
from ..video.sequences import VideoSource, media
from ..video.showing import Picture, filtering, stored_picture
from .reencode import LOWEST, REENCODE, Reencode, reencode, reencoded
from .stream import CELL, Obstacle, between_ticks, encoded_steps, obstacle, own_rows, own_steps
from .vectors import (
    VECTOR,
    BlockMeans,
    BlockVectors,
    CellMap,
    PointMap,
    covering_scale,
    fill,
    rasterise_dense,
    rasterise_points,
)

__all__ = [
    "REENCODE",
    "VECTOR",
    "BlockVectors",
    "Motion",
    "block_vectors",
    "extract_motion",
    "rasterise_dense",
    "rasterise_points",
    "read_motion",
    "reencode",
]

UNITS = {"points": "source_pixels", "dense": "pixels"}  # what each layout was trained in
MODES = ("released", "stream")


@dataclass(frozen=True)
class Motion:
    """A motion field and how it was come by.

    Attributes:
        field: (1, 2, F, h, w) float32.
        mode: as asked for.
        reencoded: the codec whose encoder made the vectors, or None where they are the file's own.
        why: why a file's own vectors were not taken in the mode `stream`, else None.
        repeated: frames of the plan that show the same frame of the source as the one before, as where a file has
            fewer frames a second than the plan, or a gap. Nothing moves there.
    """

    field: Tensor
    mode: Literal["released", "stream"]
    reencoded: str | None = None
    why: str | None = None
    repeated: int = 0

    @property
    def note(self) -> str:
        """One sentence for users."""
        still = f"; {self.repeated} frames repeat the one before, and nothing moves there" if self.repeated else ""
        if self.reencoded is None:
            return f"Motion: the file's own block vectors{still}."
        because = f", because {self.why}" if self.why else ""
        return f"Motion: block vectors of an encoding as {self.reencoded} in memory{because}{still}."


def extract_motion(
    source: VideoSource | Tensor, plan: FramePlan, layout: str = "points", size: tuple[int, int] = (256, 256), **options
) -> Tensor:
    """The field (1, 2, F, h, w) of `read_motion`, which takes the same options, alone."""
    return read_motion(source, plan, size, layout, **options).field


def read_motion(
    source: VideoSource | Tensor,
    plan: FramePlan,
    size: tuple[int, int] = (256, 256),
    layout: str = "points",
    unit: str | None = None,
    mode: str = "released",
    nominal_height: int | None = None,
    progress: Progress | None = None,
) -> Motion:
    """The motion field (1, 2, F, h, w) of the plan's clip, scaled to cover `size` (h, w) and centre-cropped.

    The result is the same to the bit at every run. What moves is the picture as players
    show it: with square pixels, turned and mirrored as the file asks for, deinterlaced.

    Args:
        source: a path, bytes, a binary file object, or the plan's frames themselves, (F, 3, H, W) or (1, 3, F, H, W)
            in [0, 1].
        layout: "points" or "dense"; see above. In the mode "stream", points are the mean vectors of 16 x 16 blocks.
        unit: "source_pixels" or "pixels" (of `size`); by default as the layout was trained.
        mode: "released" or "stream". A stream whose vectors do not tell the motion from each frame to the next, and
            a tensor, is encoded anew at its own rate, without B-frames and I-frames; the result says so.
        nominal_height: the source is scaled to this height first, for instance 336, which the released network was
            trained on (default: as it is; an odd one loses its last line).
        progress: called as `progress("motion", frames done, frames)`.

    Raises UserError for an option that is not in these lists, a size with a side above 16384, and where the source
    cannot be read.
    """
    _check("motion layout", layout, UNITS)
    _check("motion unit", unit := unit or UNITS[layout], UNITS.values())
    _check("motion mode", mode, MODES)
    if nominal_height is not None and not LOWEST <= nominal_height <= 8192:
        raise UserError(f"The nominal height is {nominal_height}: expected 16 to 8192 pixels, 336 as trained.")
    check_size("The size of the motion field", size)
    job = _Job("The tensor of frames", plan, tuple(size), layout, unit, nominal_height, progress)
    if isinstance(source, Tensor):
        frames = tensor_pictures(source, plan)
        if mode == "released":
            return job.released(lambda filters: filtered(frames, filters))
        counts = [1] * (plan.frames - 1)
        return job.encoded(lambda filters: filtered(frames, filters), counts, plan.rate, "frames alone have no vectors")
    with media(source) as video:
        job = replace(job, name=str(video))
        table = planned_index(video, plan)
        chosen = chosen_times(video, table, plan)
        if mode == "released":
            motion = job.released(lambda filters: pictures(video, table, chosen, filters))
        else:
            motion = job.stream(video, table, chosen)
        return replace(motion, repeated=sum(a == b for a, b in pairwise(chosen)))


def block_vectors(
    source: VideoSource | Tensor, plan: FramePlan, layout: str = "points", mode: str = "released"
) -> BlockVectors:
    """Block vectors of the plan's clip, as it is shown in the mode "released"; nothing touches the disk.

    In the mode "released" from the re-encode that the layout is made from. In the mode "stream" the file's own at
    its own rate, of all frames from the plan's first to its last one, as they are stored: an I-frame has none.

    Raises UserError where the source cannot be read, and for a stream whose vectors do not tell the motion from each
    frame to the next.
    """
    _check("motion layout", layout, UNITS)
    _check("motion mode", mode, MODES)
    if mode == "released":
        settings = REENCODE[layout]
        if isinstance(source, Tensor):
            frames = filtered(tensor_pictures(source, plan), settings.filters)
            return reencode(frames, plan.rate, plan.frames, settings, "The tensor of frames")
        with media(source) as video:
            frames = planned_frames(video, plan, *settings.filters)
            return reencode(frames, plan.rate, plan.frames, settings, video)
    with media(source) as video:
        table = planned_index(video, plan)
        times = _window(table, chosen_times(video, table, plan))
        try:
            if reason := obstacle(table):
                raise Obstacle(reason)
            found = [(letter, rows) for _, letter, rows in own_rows(video, table, times)]
        except Obstacle as error:
            raise UserError(
                f"{video}: its own block vectors do not tell its motion, because {error}, and frames that refer to "
                "the one before are expected: use the mode 'released'."
            ) from error
        for number, (_, rows) in enumerate(found):
            rows["frame"] = number
        height, width = stored_picture(video).size
        kinds = "".join(letter for letter, _ in found)
        return BlockVectors(np.concatenate([rows for _, rows in found]), height, width, len(found), kinds)


def _check(what: str, value: str, known: Iterable[str]) -> None:
    if value not in (known := tuple(known)):
        raise UserError(f"{what} {value!r} is unknown: choose one of {', '.join(known)}.")


def _window(table: Index, chosen: list[int]) -> list[int]:
    """All times from the first chosen frame to the last one."""
    return [time for time in table.times if chosen[0] <= time <= chosen[-1]]


# ---------------------------------------------------------------------------------------------------------------
# Pictures that are no file
# ---------------------------------------------------------------------------------------------------------------


def tensor_pictures(frames: Tensor, plan: FramePlan) -> Iterator:
    """The frames of a tensor (F, 3, H, W) or (1, 3, F, H, W) in [0, 1] as av.VideoFrames.

    Raises UserError where it has another shape or number of frames than the plan, or numbers that are not finite.
    """
    import av

    if frames.dim() == 5 and frames.shape[:2] == (1, 3):
        frames = frames[0].transpose(0, 1)
    if frames.dim() != 4 or frames.shape[1] != 3 or len(frames) != plan.frames or not frames.is_floating_point():
        raise UserError(
            f"The tensor of frames is {tuple(frames.shape)} of {frames.dtype}: expected floating-point (F, 3, H, W) or "
            f"(1, 3, F, H, W) with the plan's F = {plan.frames}."
        )
    if not torch.isfinite(frames).all():
        raise UserError("The tensor of frames holds numbers that are not finite: expected colours in [0, 1].")

    def run() -> Iterator:
        for picture in frames:
            pixels = (picture.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous()
            yield av.VideoFrame.from_ndarray(pixels.cpu().numpy(), format="rgb24")

    return run()


def filtered(frames: Iterable, filters: list[tuple[str, str]]) -> Iterator:
    """The frames through ffmpeg filters."""
    run = filtering("The tensor of frames", filters)
    for number, frame in enumerate(frames):
        frame.pts, frame.time_base = number, Fraction(1, 25)
        yield run(frame)


# ---------------------------------------------------------------------------------------------------------------
# From pictures or streams to a field
# ---------------------------------------------------------------------------------------------------------------

Pictures = Callable[[list[tuple[str, str]]], Iterator]  # frames through such filters


@dataclass(frozen=True)
class _Job:
    name: str  # for messages
    plan: FramePlan
    size: tuple[int, int]
    layout: str
    unit: str
    nominal_height: int | None
    progress: Progress | None

    def released(self, frames: Pictures) -> Motion:
        settings = REENCODE[self.layout]
        source, found = _peeked(frames(self._filters(settings)))
        draw = {"points": PointMap, "dense": CellMap}[self.layout](source, self.size)
        scale = self._unit(source)
        # Drawn once the decoder is done: rows take less than maps.
        rows = [each for _, each in self._told(reencoded(found, self.plan.rate, self.plan.frames, settings, self.name))]
        field = fill((draw(each) * scale for each in rows), self.plan.frames, self.size)
        return Motion(field, "released", settings.codec)

    def stream(self, video: Media, table: Index, chosen: list[int]) -> Motion:
        times = _window(table, chosen)
        position = {time: number for number, time in enumerate(times)}
        counts = [position[b] - position[a] for a, b in pairwise(chosen)]
        try:
            if reason := obstacle(table):
                raise Obstacle(reason)
            picture = stored_picture(video)
            steps = own_steps(video, table, times, picture.size)
            return Motion(self._along(steps, counts, picture, self._nominal(picture.shown)), "stream")
        except Obstacle as error:
            why = str(error)
        rate = Fraction(max(1, round(1 / (table.step * table.time_base))))
        return self.encoded(lambda filters: pictures(video, table, times, filters), counts, rate, why)

    def encoded(self, frames: Pictures, counts: list[int], rate: Fraction, why: str) -> Motion:
        """As `stream`, where the vectors must be made."""
        settings = REENCODE["steps"]
        source, found = _peeked(frames(self._filters(settings)))
        with ExitStack() as stack:
            steps = encoded_steps(found, rate, sum(counts) + 1, source, self.name)
            stack.callback(steps.close)
            return Motion(self._along(steps, counts, Picture(source, source), source), "stream", settings.codec, why)

    def _filters(self, settings: Reencode) -> list[tuple[str, str]]:
        if self.nominal_height is None:
            return settings.filters
        return [("scale", f"-2:{_even(self.nominal_height)}"), *settings.filters]

    def _nominal(self, shown: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) that these filters make of a picture that is shown at (height, width)."""
        if self.nominal_height is None:
            return shown
        height = _even(self.nominal_height)
        return height, 2 * round(height * shown[1] / shown[0] / 2)

    def _unit(self, shown: tuple[int, int]) -> float:
        """What vectors in pixels of a picture of (height, width) are multiplied by."""
        return covering_scale(shown, self.size) if self.unit == "pixels" else 1.0

    def _along(self, steps: Iterator, counts: list[int], picture: Picture, shown: tuple[int, int]) -> Tensor:
        """The field of steps, so many of them from each of the plan's frames to the next.

        The steps are those of the picture as it is stored; the field is that of it at the size `shown`, and upright.
        """
        turn = picture.turn
        source, backward = turn.axes(picture.size), (turn.rows, turn.columns)
        dense = CellMap(source, self.size, CELL, shown, backward)
        points, blocks = PointMap(shown, self.size), BlockMeans(source, shown, CELL, backward)
        down, right = (
            (-to if reverse else to) / length for to, reverse, length in zip(shown, backward, source, strict=True)
        )
        scale = np.array([right, down], np.float32).reshape(2, 1, 1)

        def drawn() -> Iterator[Tensor]:
            yield torch.zeros(2, *self.size)
            for grid in between_ticks(steps, counts):
                if grid is None:
                    yield torch.zeros(2, *self.size)
                    continue
                if turn.transposed:
                    grid = grid[::-1].swapaxes(1, 2)
                grid = np.ascontiguousarray(grid * scale)
                yield dense.spread(grid) if self.layout == "dense" else points(blocks(grid))

        maps = (each * self._unit(shown) for each in self._told(drawn()))
        return fill(maps, self.plan.frames, self.size)

    def _told(self, items: Iterable) -> Iterator:
        """The items, one a frame, as they come, with the progress told."""
        for number, each in enumerate(items):
            yield each
            if self.progress is not None:
                self.progress("motion", number + 1, self.plan.frames)


def _even(side: int) -> int:
    return side // 2 * 2


def _peeked(frames: Iterator) -> tuple[tuple[int, int], Iterator]:
    """The (height, width) of the first frame, and all of them."""
    first = next(frames)
    return (first.height, first.width), chain([first], frames)
