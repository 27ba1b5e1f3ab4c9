"""Read depth maps of 8 or 16 bits, near bright or near dark, and bring them into the range of the training data."""

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
"""End of the released range; MiDaS's values rarely come near it."""

USUAL = (0.0, 2.0)
"""The depths to which `by_percentiles` maps far and near: MiDaS v3 predicts about 0 for the sky and 20 to 40 for near
objects in everyday photos, which is 0 to 2 in the released unit."""

PERCENTILES = (2.0, 98.0)
_ENDINGS = IMAGES | {".exr", ".pfm"}  # the last two are recognized only to refuse them
_COLOURFUL = 0.1


def by_percentiles(values: Tensor) -> Tensor:
    """Map inverse depths of an unknown scale, near large, into the released range: two percentiles become USUAL.

    The map is linear, and clamped only at 0 and HIGHEST. The percentiles are taken over the entire clip, so that it
    does not flicker; each clip of a batch (B, ...) has its own. If both percentiles are equal, the extremes replace
    them.

    Raises:
        UserError: values that are not finite, or a constant depth.
    """
    clips = []
    for clip in values.split(1):
        far, near = _ends(clip)
        clips.append(USUAL[0] + (clip.float() - far) * ((USUAL[1] - USUAL[0]) / (near - far)))
    return torch.cat(clips).clamp(0, HIGHEST)


def _ends(clip: Tensor) -> tuple[float, float]:
    """The values, far and near, that `by_percentiles` maps to USUAL."""
    if not torch.isfinite(clip).all():
        raise UserError("The depth contains values that are not finite. Create it again, or use another map.")
    # numpy's, because torch's quantile takes no more than 16 million values.
    flat = clip.detach().float().cpu().numpy()
    far, near = np.percentile(flat, PERCENTILES)
    if far == near:
        far, near = flat.min(), flat.max()
    if far == near:
        raise UserError(
            f"The depth is constant ({far:g} everywhere). Use a clip or map with variation, or set a scale."
        )
    return float(far), float(near)


def depth_from_maps(maps: Tensor, near: str = "bright", scale: float | None = None) -> Tensor:
    """Convert depth maps of any origin to the depth condition.

    Args:
        maps: (B, 1 or 3, F, H, W) in [0, 1], grey.
        near: whether near is "bright" or "dark" in the maps.
        scale: depth of level 1 (level 0 if near is dark), up to 10: the map is multiplied by it. None:
            `by_percentiles`.

    Returns:
        (B, 1, F, H, W) in 0..10 (MiDaS's inverse depth / 20), near large.

    Raises:
        UserError: another word or shape, coloured maps, a scale that is not above 0, or an error of `by_percentiles`.
    """
    if scale is not None and not 0 < scale < float("inf"):
        raise UserError(f"The scale of the depth maps must be above 0, such as 2, got {scale}.")
    grey = _near_bright(maps, near)
    return by_percentiles(grey) if scale is None else (grey * scale).clamp(0, HIGHEST)


def mapped_levels(maps: Tensor, near: str = "bright") -> list[tuple[float, float]]:
    """Return the levels (far, near) of each clip that `depth_from_maps` without a scale maps to USUAL."""
    ends = [_ends(clip) for clip in _near_bright(maps, near).split(1)]
    return [(1 - far, 1 - near_) for far, near_ in ends] if near == "dark" else ends


def _near_bright(maps: Tensor, near: str) -> Tensor:
    """Convert maps, see `depth_from_maps`, to (B, 1, F, H, W), near bright."""
    if near not in ("bright", "dark"):
        raise UserError(f'Near in the depth maps must be "bright" or "dark", got {near!r}.')
    if maps.dim() != 5 or maps.shape[1] not in (1, 3):
        raise UserError(
            f"The depth maps have shape {tuple(maps.shape)}. Expected (batch, 1 or 3, frames, height, width)."
        )
    grey = _grey(maps, "The depth maps")
    return 1 - grey if near == "dark" else grey


def _grey(maps: Tensor, what: str) -> Tensor:
    """(B, 1 or 3, ...) -> (B, 1, ...). Refuses coloured maps: the order of their colours is unknown."""
    if maps.shape[1] == 1:
        return maps
    if float((maps.amax(1) - maps.amin(1)).float().mean()) > _COLOURFUL:
        raise UserError(
            f"{what} show depth in colours. Expected grey, near bright or near dark. Save them without a colour map."
        )
    return maps.mean(dim=1, keepdim=True)


def read_depth_maps(path: str | Path, plan: FramePlan, size: tuple[int, int] | None = None) -> Tensor:
    """Read depth maps (1, 1, F, H, W), float32 in [0, 1], at the file's full bit depth, for `depth_from_maps`.

    Args:
        path: a video; an image, which applies to every frame; or a folder with one image per frame, in natural order of
            their names ("2" before "10").
        plan: the frame plan of the maps' source, so that a video of maps is read at the same times.
        size: (h, w) to cover and centre-crop to, like the source; None: all maps already have one size.

    Raises:
        UserError: a file that is missing, unreadable, coloured, floating-point or too short; a folder with another
            number of images.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        frames = map(_image, frame_files(path, plan.frames, _ENDINGS))
    elif path.suffix.lower() in _ENDINGS - IMAGES or is_image(path):
        frames = [_image(path)]
    else:
        frames = planned_frames(path, plan)
    maps = (_levels(frame, path) for frame in frames)
    video = torch.stack([resize_crop(levels, size) if size else levels for levels in maps], dim=2)
    return video.expand(-1, -1, plan.frames, -1, -1).contiguous()


def _image(path: Path) -> Any:
    """The av.VideoFrame of an image file. Pillow would keep only 8 of 16 bits of RGB files."""
    if not path.is_file():
        raise UserError(f"There is no depth map at {path}. Check the path.")
    try:
        return decoded_frame(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read as an image ({reason(error)}). Use a grey PNG of 8 or 16 bits."
        ) from error


def _levels(frame: Any, path: Path) -> Tensor:
    """The grey values (1, 1, H, W) in [0, 1] of an av.VideoFrame, with the full precision of its format."""
    form = frame.format
    if is_float(frame):
        raise UserError(
            f"{path} contains floating-point numbers ({form.name}). Expected 8- or 16-bit grey. Save it as a 16-bit "
            "PNG."
        )
    if not form.name.startswith("gray"):
        _grey(torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)[None] / 255, str(path))
    if form.is_rgb:  # ffmpeg's conversion from RGB to grey rounds to 8 bits
        deep = form.components[0].bits > 8
        levels = frame.to_ndarray(format="rgb48le" if deep else "rgb24")[..., 1]
    else:
        levels = frame.to_ndarray(format="gray16le")
    return torch.from_numpy(levels.astype(np.float32) / np.iinfo(levels.dtype).max)[None, None]
