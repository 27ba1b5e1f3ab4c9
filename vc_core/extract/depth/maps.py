"""Depth maps from elsewhere, of 8 or 16 bits, near bright or near dark, brought into the range that networks know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...conditions import CONDITIONS
from ...errors import UserError, reason
from ...video import IMAGES, FramePlan, frame_files, is_image, planned_frames, resize_crop
from ...video.images import decoded_frame, is_float

HIGHEST = CONDITIONS["depth"].high
"""End of the released range; MiDaS's own values rarely come near it."""

USUAL = (0.0, 2.0)
"""Where `by_percentiles` puts what is far and what is near: MiDaS v3 gives about 0 for the sky and 20 to 40 for what is
near in everyday pictures, which is 0 to 2 in the released unit."""

PERCENTILES = (2.0, 98.0)
_ENDINGS = IMAGES | {".exr", ".pfm"}  # the last two only to refuse
_COLOURFUL = 0.1


def by_percentiles(values: Tensor) -> Tensor:
    """Inverse depths of an unknown scale, near large, in the released range: two percentiles land on USUAL's ends.

    Linear, and clamped only at 0 and HIGHEST. The percentiles are those of a whole clip, so that it does not flicker;
    each clip of a batch (B, ...) has its own. Where both percentiles are the same, the extremes stand for them.

    Raises:
        UserError: values that are not finite, or the same value everywhere.
    """
    clips = []
    for clip in values.split(1):
        far, near = _ends(clip)
        clips.append(USUAL[0] + (clip.float() - far) * ((USUAL[1] - USUAL[0]) / (near - far)))
    return torch.cat(clips).clamp(0, HIGHEST)


def _ends(clip: Tensor) -> tuple[float, float]:
    """The values that `by_percentiles` puts on USUAL's ends, far and near."""
    if not torch.isfinite(clip).all():
        raise UserError("The depth holds values that are not finite: make it again, or give another map.")
    # numpy's, because torch's quantile takes no more than 16 million values.
    flat = clip.detach().float().cpu().numpy()
    far, near = np.percentile(flat, PERCENTILES)
    if far == near:
        far, near = flat.min(), flat.max()
    if far == near:
        raise UserError(
            f"The depth is {far:g} everywhere: expected near and far in it; give another clip or map, or a scale."
        )
    return float(far), float(near)


def depth_from_maps(maps: Tensor, near: str = "bright", scale: float | None = None) -> Tensor:
    """Depth as the network saw it, from maps that others made.

    Args:
        maps: (B, 1 or 3, F, H, W) in [0, 1], grey.
        near: what near things are in the maps, "bright" or "dark".
        scale: the depth that the brightest (for near dark, the darkest) value stands for, thus 10 at most is of use:
            the map times `scale`. Without it, `by_percentiles` finds the scale.

    Returns:
        (B, 1, F, H, W) in 0..10 (MiDaS's inverse depth / 20), near large.

    Raises:
        UserError: another word or shape, coloured maps, a scale that is not above 0, or what `by_percentiles` raises.
    """
    if scale is not None and not 0 < scale < float("inf"):
        raise UserError(f"The scale of the depth maps is {scale}: expected a number above 0, such as 2.")
    grey = _near_bright(maps, near)
    return by_percentiles(grey) if scale is None else (grey * scale).clamp(0, HIGHEST)


def mapped_levels(maps: Tensor, near: str = "bright") -> list[tuple[float, float]]:
    """The levels of maps, of each clip, that `depth_from_maps` without a scale puts on USUAL's ends: far, near."""
    ends = [_ends(clip) for clip in _near_bright(maps, near).split(1)]
    return [(1 - far, 1 - near_) for far, near_ in ends] if near == "dark" else ends


def _near_bright(maps: Tensor, near: str) -> Tensor:
    """Maps as `depth_from_maps` takes them to (B, 1, F, H, W), near bright."""
    if near not in ("bright", "dark"):
        raise UserError(f'Near is {near!r} in the depth maps: say "bright" or "dark".')
    if maps.dim() != 5 or maps.shape[1] not in (1, 3):
        raise UserError(
            f"The depth maps have the shape {tuple(maps.shape)}: expected (batch, 1 or 3, frames, height, width)."
        )
    grey = _grey(maps, "The depth maps")
    return 1 - grey if near == "dark" else grey


def _grey(maps: Tensor, what: str) -> Tensor:
    """(B, 1 or 3, ...) -> (B, 1, ...); refuses maps that show depth in colours, whose order nobody tells."""
    if maps.shape[1] == 1:
        return maps
    if float((maps.amax(1) - maps.amin(1)).float().mean()) > _COLOURFUL:
        raise UserError(
            f"{what} show depth in colours: expected grey, near bright or near dark; save them without a colour map."
        )
    return maps.mean(dim=1, keepdim=True)


def read_depth_maps(path: str | Path, plan: FramePlan, size: tuple[int, int] | None = None) -> Tensor:
    """Depth maps (1, 1, F, H, W) float32 in [0, 1] from a file, with all of its bits; `depth_from_maps` takes them.

    Args:
        path: a video; an image, which stands for every frame; or a folder of as many images as there are frames, in
            the order of their names ("2" before "10").
        plan: that of the video that the maps belong to, so that a video of maps shows the same moments.
        size: (h, w) that they are scaled to cover and centre-cropped, as the source is; None: all are of one size.

    Raises:
        UserError: a file that is missing or unreadable, in colours, of floating-point numbers, too short; a folder
            with another number of images.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        pictures = map(_image, frame_files(path, plan.frames, _ENDINGS))
    elif path.suffix.lower() in _ENDINGS - IMAGES or is_image(path):
        pictures = [_image(path)]
    else:
        pictures = planned_frames(path, plan)
    maps = (_levels(picture, path) for picture in pictures)
    video = torch.stack([resize_crop(one, size) if size else one for one in maps], dim=2)
    return video.expand(-1, -1, plan.frames, -1, -1).contiguous()


def _image(path: Path) -> Any:
    """The av.VideoFrame of an image file. Not Pillow's reading, which leaves eight bits of sixteen in RGB files."""
    if not path.is_file():
        raise UserError(f"There is no depth map at {path}: check the path.")
    try:
        return decoded_frame(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read as an image ({reason(error)}): give a grey PNG of 8 or 16 bits."
        ) from error


def _levels(frame: Any, path: Path) -> Tensor:
    """The grey values (1, 1, H, W) in [0, 1] of an av.VideoFrame, as exact as its format has them."""
    form = frame.format
    if is_float(frame):
        raise UserError(
            f"{path} holds floating-point numbers ({form.name}): expected grey of 8 or 16 bits; save it as a 16-bit "
            "PNG."
        )
    if not form.name.startswith("gray"):
        _grey(torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)[None] / 255, str(path))
    if form.is_rgb:  # ffmpeg's way from RGB to grey rounds to eight bits
        deep = form.components[0].bits > 8
        levels = frame.to_ndarray(format="rgb48le" if deep else "rgb24")[..., 1]
    else:
        levels = frame.to_ndarray(format="gray16le")
    return torch.from_numpy(levels.astype(np.float32) / np.iinfo(levels.dtype).max)[None, None]
