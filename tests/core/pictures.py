"""Clips and helpers for tests of annotators."""

from fractions import Fraction

import torch
import torch.nn.functional as F

from vc_core.extract.annotators import per_frame
from vc_core.extract.depth.networks import MIDAS_UNIT, DepthModel, load_depth_model
from vc_core.extract.depth.networks import depth as extracted_depth
from vc_core.extract.mask import load_mask, mask_of
from vc_core.extract.sketch.methods import load_sketcher
from vc_core.video import FramePlan, is_image, probe, read_image


def clip(height: int = 24, width: int = 32, frames: int = 3, batch: int = 1) -> torch.Tensor:
    """Smooth random colours (batch, 3, frames, height, width) in [0, 1]."""
    coarse = torch.rand(batch * frames, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
    fine = F.interpolate(coarse, (height, width), mode="bilinear")
    return fine.unflatten(0, (batch, frames)).transpose(1, 2)


def plan(frames: int) -> FramePlan:
    """A plan of `frames` frames, for sources that are not videos."""
    return FramePlan(0.0, Fraction(8), frames)


def read_mask(path, frames, white: str = "paint", size=None) -> torch.Tensor:
    """The keep map of a file, for a number of frames or a plan; by default at the file's size."""
    if size is None:
        first = sorted(path.iterdir())[0] if path.is_dir() else path
        size = tuple(read_image(first).shape[-2:]) if is_image(first) else (probe(path).height, probe(path).width)
    return load_mask(path, plan(frames) if isinstance(frames, int) else frames, white, size).keep


def as_mask(picture: torch.Tensor, white: str = "paint", frames: int | None = None, size=None) -> torch.Tensor:
    """The keep map of an image (B, C, H, W) or a video."""
    video = picture[:, :, None] if picture.ndim == 4 else picture
    return mask_of(video, white, frames or video.shape[2], size or tuple(video.shape[-2:])).keep


def sketch(video, method="auto", models=None, at_once=4, progress=None) -> tuple[torch.Tensor, str]:
    """The sketch of a video and the method used."""
    sketcher = load_sketcher(method, models=models)
    return per_frame(sketcher.draw, video, "sketch", at_once, progress), sketcher.which


class Greys:
    """A fake depth network: darker is farther."""

    which, values = "midas", "midas"

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.mean(1, keepdim=True) * MIDAS_UNIT


def depth(video, model=None, models=None, **options) -> tuple[torch.Tensor, str]:
    """The depth of a video and the network used."""
    model = model if isinstance(model, DepthModel) else load_depth_model(model, models=models)
    return extracted_depth(video, model, **options), model.which
