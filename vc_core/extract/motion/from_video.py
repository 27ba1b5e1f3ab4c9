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

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ...errors import UserError
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
    """A motion field and how it was come by.

    Attributes:
        field: (1, 2, F, h, w) float32.
        reencoded: the codec whose encoder made the vectors, or None where they are the file's own.
        why: why a file's own vectors were not taken in the mode `stream`, else None.
        repeated: frames of the plan that show the same frame of the source as the one before, as where a file has
            fewer frames a second than the plan, or a gap. Nothing moves there.
    """

    field: Tensor
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


def read_motion(
    source: VideoSource | Tensor,
    plan: FramePlan,
    size: tuple[int, int] = (256, 256),
    layout: str = "points",
    mode: str = "released",
    nominal_height: int | None = None,
    progress: Progress | None = None,
) -> Motion:
    """The motion field (1, 2, F, h, w) of the plan's clip, scaled to cover `size` (h, w) and centre-cropped.

    The result is the same to the bit at every run. What moves is the picture as players show it: with square pixels,
    turned and mirrored as the file asks for, deinterlaced.

    Args:
        source: a path, bytes, a binary file object, or the plan's frames themselves, (F, 3, H, W) or (1, 3, F, H, W)
            in [0, 1].
        layout: "points" or "dense"; see above. In the mode "stream", points are the mean vectors of 16 x 16 blocks.
        mode: "released" or "stream". A stream whose vectors do not tell the motion from each frame to the next, and
            a tensor, is encoded anew at its own rate, without B-frames and I-frames; the result says so.
        nominal_height: the source is scaled to this height first, for instance 336, which the released network was
            trained on (default: as it is; an odd one loses its last line).
        progress: called as `progress("motion", frames done, frames)`.

    Raises UserError for an option that is not in these lists, a size with a side above 16384, and where the source
    cannot be read.
    """
    chosen("motion layout", layout, LAYOUTS)
    chosen("motion mode", mode, MODES)
    if nominal_height is not None and not LOWEST <= nominal_height <= 8192:
        raise UserError(f"The nominal height is {nominal_height}: expected 16 to 8192 pixels, 336 as trained.")
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
    """Block vectors of the plan's clip as it is shown, from the encoding that the layout is made from.

    Raises UserError where the source cannot be read.
    """
    with opened_clip(source, plan) as clip:
        return _encoded(clip, layout, nominal_height)


def _encoded(clip: Clip, layout: str, nominal_height: int | None, progress: Progress | None = None) -> BlockVectors:
    settings, plan = REENCODE[layout], clip.plan
    return reencode(clip.shown(settings.filters(nominal_height)), plan.rate, plan.frames, settings, clip.name, progress)
