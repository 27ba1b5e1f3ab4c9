"""Extract motion fields from any video.

A motion field is (1, 2, F, H, W): dx, dy, the displacement of content in pixels from the previous frame to this one;
right and down are positive; frame 0 is zero. There are two layouts; a checkpoint's config says which one it expects:

    points   as released: a block's vector at one pixel, in source pixels
    dense    vectors fill their blocks, in pixels of the target

and two modes, which say where the vectors come from:

    released   as in training: the plan's frames are re-encoded, as MPEG-4 for points (the released pipeline) and as
               H.264 for dense, and the encoder's vectors are used
    stream     the file's own vectors at its own rate, added up along the frames that the plan skips
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ...errors import UserError, counted
from ...progress import Progress
from ...video.frames import FramePlan
from ...video.limits import check_size
from ...video.sequences import VideoSource
from ..drawing import chosen
from .clip import Clip, opened_clip
from .reencode import LOWEST, REENCODE, reencode
from .stream import stream_field
from .vectors import BlockVectors, rasterise_dense, rasterise_points

LAYOUTS = {"points": rasterise_points, "dense": rasterise_dense}
MODES = ("released", "stream")


@dataclass(frozen=True)
class Motion:
    """A motion field and where it comes from.

    Attributes:
        field: (1, 2, F, h, w) float32.
        reencoded: the codec whose encoder computed the vectors; None if they are the file's own.
        why: why the file's own vectors were not used in the mode `stream`; else None.
        repeated: number of frames of the plan that repeat the previous frame, for example if the file has fewer frames
            per second than the plan, or a gap. Nothing moves there.
    """

    field: Tensor
    reencoded: str | None = None
    why: str | None = None
    repeated: int = 0

    @property
    def note(self) -> str:
        """A sentence for users."""
        still = (
            f"; {counted(self.repeated, 'frame repeats', 'frames repeat')} the previous frame, so nothing moves there"
            if self.repeated
            else ""
        )
        if self.reencoded is None:
            return f"Motion: the file's own motion vectors{still}."
        because = f", because {self.why}" if self.why else ""
        return f"Motion: motion vectors of the frames re-encoded with {self.reencoded}{because}{still}."


def read_motion(
    source: VideoSource | Tensor,
    plan: FramePlan,
    size: tuple[int, int] = (256, 256),
    layout: str = "points",
    mode: str = "released",
    nominal_height: int | None = None,
    progress: Progress | None = None,
) -> Motion:
    """Extract the motion field (1, 2, F, h, w) of the plan's clip, scaled to cover `size` (h, w) and centre-cropped.

    Every run gives the same bits. The motion is that of the video as players show it: with square pixels, rotated and
    mirrored as the file says, deinterlaced.

    Args:
        source: a path, bytes, a binary file object, or the plan's frames themselves, (F, 3, H, W) or (1, 3, F, H, W)
            in [0, 1].
        layout: "points" or "dense"; see above. In the mode "stream", points are the mean vectors of 16 x 16 blocks.
        mode: "released" or "stream". A stream whose vectors do not give the motion from each frame to the next, and a
            tensor, are re-encoded at their own rate, without B-frames and I-frames; the result says so.
        nominal_height: height to which the source is scaled first; the released network was trained with 336
            (default: not scaled; an odd height loses its last row).
        progress: called as `progress("motion", frames done, frames)`.

    Raises UserError for an unknown option, a size with a side above 16384, or a source that cannot be read.
    """
    chosen("motion layout", layout, LAYOUTS)
    chosen("motion mode", mode, MODES)
    if nominal_height is not None and not LOWEST <= nominal_height <= 8192:
        raise UserError(f"The nominal height must be 16 to 8192 pixels (336 as in training), got {nominal_height}.")
    check_size("The size of the motion field", size)
    size = tuple(size)
    with opened_clip(source, plan) as clip:
        repeated = sum(a == b for a, b in pairwise(clip.times))
        if mode == "released":
            field = LAYOUTS[layout](_encoded(clip, layout, nominal_height, progress), size)
            return Motion(field, REENCODE[layout].codec, None, repeated)
        field, why = stream_field(clip, size, layout, nominal_height, progress)
        return Motion(field, REENCODE["steps"].codec if why else None, why, repeated)


def block_vectors(
    source: VideoSource | Tensor, plan: FramePlan, layout: str = "points", nominal_height: int | None = None
) -> BlockVectors:
    """The block vectors of the plan's clip as displayed, from the encoder of the layout.

    Raises UserError if the source cannot be read.
    """
    with opened_clip(source, plan) as clip:
        return _encoded(clip, layout, nominal_height)


def _encoded(clip: Clip, layout: str, nominal_height: int | None, progress: Progress | None = None) -> BlockVectors:
    settings, plan = REENCODE[layout], clip.plan
    return reencode(clip.shown(settings.filters(nominal_height)), plan.rate, plan.frames, settings, clip.name, progress)
