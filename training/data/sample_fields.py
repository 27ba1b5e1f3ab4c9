"""What samples are made of, whether their pictures come out of a file or a shard: only what is kept is made."""

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
"""Conditions that are made of the clip's pictures. All of them are made at one size, `Form.large`."""


@dataclass(frozen=True)
class Form:
    """What samples are to be like."""

    size: tuple[int, int] = (256, 256)  # (height, width) of the video
    frames: int = 16
    extraction: ExtractionConfig = field(default_factory=ExtractionConfig)  # how the network's conditions are made
    style_size: int = 224  # pixels of a side of style images, as the image tower takes them

    @staticmethod
    def of(config: Config, size: tuple[int, int], frames: int) -> Form:
        """As the network of a config needs it."""
        return Form(size, frames, config.extraction, config.towers.image_size)

    @property
    def large(self) -> tuple[int, int]:
        """(height, width) of the pictures that the conditions of `PICTURED` are made of, whatever the network."""
        return drawing_size(PICTURED[0], self.size)

    def at(self, name: str) -> tuple[int, int]:
        """(height, width) that the network takes a condition at."""
        return condition_size(name, self.size, self.extraction.condition_scale)

    def fitted(self, name: str, made: Tensor) -> Tensor:
        """What was drawn `(C, F, H, W)` at `drawing_size`, as the network takes it."""
        return refit(name, made[None], self.size, made.shape[1], self.extraction, self.size)[0]


def make(
    pictures: Iterable[Tensor],
    form: Form,
    kept: Collection[str],
    generator: torch.Generator,
    ready: Collection[str] = (),
    video: bool = True,
) -> dict[str, Any]:
    """What is kept of a clip, as far as its pictures tell it: `conditions` and other fields of a `Sample`.

    Args:
        pictures: the clip's frames one after the other, `(1, 3, H, W)` in [0, 1]; each is scaled and cropped as it
            arrives, so that large videos do not lie in memory.
        generator: draws which of the frames is the style, and the mask.
        ready: conditions that a cache has.
        video: the video is needed too, as no cache has its latents.
    """
    needed = [name for name in PICTURED if name in kept and name not in ready]
    count = max([form.frames if CONDITIONS[name].kind == "temporal" else 1 for name in needed], default=0)
    chosen = draw_below(form.frames, generator) if "style" in kept else None
    conditions: dict[str, Tensor] = {}
    made: dict[str, Any] = {"conditions": conditions}
    small, large = [], []
    for number, picture in enumerate(pictures):
        if video:
            small.append(fit(picture, form.size)[0])
        if number < count:
            large.append(fit(picture, form.large)[0])
        if number == chosen:
            made["style"] = fitted(picture, (form.style_size,) * 2)[0]
    if small:
        made["video"] = torch.stack(small, dim=1)
    if not needed:
        return made
    frames = torch.stack(large, dim=1)
    if "mask" in needed:
        keep = random_mask(form.frames, form.large, generator)
        conditions["mask"] = masked_video(frames[None], keep, form.at("mask"))[0]
    if "single_image" in needed:
        conditions["single_image"] = form.fitted("single_image", frames[:, :1])
    if left := [name for name in needed if name in ANNOTATED]:
        made["source"] = frames if any(CONDITIONS[name].kind == "temporal" for name in left) else frames[:, :1]
    return made


def fit(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """`resize_crop`, but of a picture that is of this size already itself."""
    return picture if tuple(picture.shape[-2:]) == tuple(size) else resize_crop(picture, size)


def no_motion(form: Form) -> Tensor:
    """The motion `(2, 1, h, w)` of an image: that of any clip's first frame, before which there is none."""
    return torch.zeros(2, 1, *form.at("motion"))


@contextmanager
def reading(what: str, *damage: type[Exception]) -> Iterator[None]:
    """Makes a BadSample, which names `what`, of a file that cannot be read; `damage` is what else tells of that.

    A full disk is no fault of the file: it stays an error, lest clip after clip be dropped.
    """
    import av

    try:
        yield
    except WriteError:
        raise
    except UserError as error:
        message = str(error)
        raise BadSample(message if what in message else f"{what}: {message}") from error
    except (OSError, av.FFmpegError, UnicodeError, *damage) as error:  # UnicodeError: of names that cannot be encoded
        if isinstance(error, OSError) and error.errno in FULL:
            raise write_error(error) from error
        raise BadSample(f"{what}: cannot be read ({reason(error, named=True)})") from error
