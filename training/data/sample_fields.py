"""Compute the fields of samples from frames of a file or a shard. Only requested fields are computed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from training.data.order import draw_below
from training.data.sample import BadSample
from vc_core.conditions import ANNOTATED, CONDITIONS, condition_size, drawing_size
from vc_core.config import Config, ExtractionConfig
from vc_core.disk import FULL, WriteError, write_error
from vc_core.encoders.clip import fitted
from vc_core.errors import UserError, reason
from vc_core.extract.mask import masked_video, random_mask
from vc_core.extract.refit import refit
from vc_core.video import resize_crop

PICTURED = ("mask", "single_image", *ANNOTATED)
"""Conditions that are computed from the clip's frames, all at one size, `Form.large`."""


@dataclass(frozen=True)
class Form:
    """Size and kind of the samples."""

    size: tuple[int, int] = (256, 256)  # (height, width) of the video
    frames: int = 16
    extraction: ExtractionConfig = field(default_factory=ExtractionConfig)  # how the network's conditions are computed
    style_size: int = 224  # pixels of a side of style images, for the image tower

    @staticmethod
    def of(config: Config, size: tuple[int, int], frames: int) -> Form:
        """The form that the network of a config requires."""
        return Form(size, frames, config.extraction, config.towers.image_size)

    @property
    def large(self) -> tuple[int, int]:
        """(height, width) of the frames for the conditions of `PICTURED`, the same for all networks."""
        return drawing_size(PICTURED[0], self.size)

    def at(self, name: str) -> tuple[int, int]:
        """(height, width) of a condition at the network's input."""
        return condition_size(name, self.size, self.extraction.condition_scale)

    def fitted(self, name: str, field: Tensor) -> Tensor:
        """Convert a condition `(C, F, H, W)` from `drawing_size` to the network's size and units."""
        return refit(name, field[None], self.size, field.shape[1], self.extraction, self.size)[0]


def make(
    pictures: Iterable[Tensor],
    form: Form,
    inputs: Collection[str],
    generator: torch.Generator,
    ready: Collection[str] = (),
    video: bool = True,
) -> dict[str, Any]:
    """Compute the requested inputs that depend on a clip's frames: `conditions` and other fields of a `Sample`.

    Args:
        pictures: the clip's frames, each `(1, 3, H, W)` in [0, 1]. Each is scaled and cropped when it arrives, so that
            large videos do not fill the memory.
        inputs: names of the requested inputs.
        generator: draws the frame for the style, and the mask.
        ready: conditions that a cache contains.
        video: also return the video, because no cache contains its latents.
    """
    needed = [name for name in PICTURED if name in inputs and name not in ready]
    count = max([form.frames if CONDITIONS[name].kind == "temporal" else 1 for name in needed], default=0)
    chosen = draw_below(form.frames, generator) if "style" in inputs else None
    conditions: dict[str, Tensor] = {}
    result: dict[str, Any] = {"conditions": conditions}
    small, large = [], []
    for number, picture in enumerate(pictures):
        if video:
            small.append(fit(picture, form.size)[0])
        if number < count:
            large.append(fit(picture, form.large)[0])
        if number == chosen:
            result["style"] = fitted(picture, (form.style_size,) * 2)[0]
    if small:
        result["video"] = torch.stack(small, dim=1)
    if not needed:
        return result
    frames = torch.stack(large, dim=1)
    if "mask" in needed:
        keep = random_mask(form.frames, form.large, generator)
        conditions["mask"] = masked_video(frames[None], keep, form.at("mask"))[0]
    if "single_image" in needed:
        conditions["single_image"] = form.fitted("single_image", frames[:, :1])
    if annotated := [name for name in needed if name in ANNOTATED]:
        result["source"] = frames if any(CONDITIONS[name].kind == "temporal" for name in annotated) else frames[:, :1]
    return result


def fit(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """`resize_crop`, except that a picture of this size is returned unchanged."""
    return picture if tuple(picture.shape[-2:]) == tuple(size) else resize_crop(picture, size)


def no_motion(form: Form) -> Tensor:
    """The motion `(2, 1, h, w)` of an image: zero, like that of every clip's first frame."""
    return torch.zeros(2, 1, *form.at("motion"))


@contextmanager
def reading(what: str, *damage: type[Exception], advice: str = "Replace or remove it.") -> Iterator[None]:
    """Turn errors from reading a file into a BadSample that names `what`; `damage` lists further error types, and
    `advice` says what to do.

    A full disk is not the file's fault: it remains an error, so that clips are not dropped one after the other.
    """
    import av

    try:
        yield
    except WriteError:
        raise
    except UserError as error:
        message = str(error)
        raise BadSample(message if what in message else f"{what}: {message}") from error
    except (OSError, av.FFmpegError, UnicodeError, *damage) as error:  # UnicodeError: a file name cannot be encoded
        if isinstance(error, OSError) and error.errno in FULL:
            raise write_error(error) from error
        raise BadSample(f"{what} cannot be read ({reason(error, named=True)}). {advice}") from error
