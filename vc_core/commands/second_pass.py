"""The second pass of `--upscale`: how videos are enlarged before it, and how it is sampled."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoint.files import open_tensors
from ..config import Config
from ..diffusion.samplers import Sampling, starting_at
from ..diffusion.tiles import Tiles
from ..errors import UserError
from ..progress import Progress

SPANDREL = "spandrel>=0.4,<0.5"


def second_pass(sampling: Sampling, denoise: float, config: Config) -> Sampling:
    """Return how the enlarged video is sampled: from the timestep at the fraction `denoise` of the schedule, with that
    fraction of the first pass's steps, in tiles of the size that the checkpoint was trained for.

    Args:
        sampling: that of the first pass, filled in with the checkpoint's values.
    """
    steps = max(1, math.ceil(sampling.steps * denoise))
    return starting_at(replace(sampling, steps=steps, tiles=Tiles.trained(config)), denoise, config.diffusion)


@torch.inference_mode()
def enlarged(
    videos: Tensor,
    size: tuple[int, int],
    network: Callable[[Tensor], Tensor] | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Return videos `(B, 3, F, H, W)` in [0, 1] at another (height, width), float32 on the CPU.

    Args:
        network: enlarges images first, see `load_upscale_model`. The rest is bicubic interpolation.
        progress: called as `progress("enlarging", done, total)` in frames, if there is a network.
    """
    frames = videos.transpose(1, 2).flatten(0, 1)
    if network is not None:
        results = []
        for i, frame in enumerate(frames, 1):
            results.append(network(frame[None]))
            if progress is not None:
                progress("enlarging", i, len(frames))
        frames = torch.cat(results)
    frames = F.interpolate(frames, size, mode="bicubic", antialias=True).clamp(0, 1)
    return frames.unflatten(0, (len(videos), -1)).transpose(1, 2)


def load_upscale_model(path: Path, upscale: float, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return the network of an upscale model's file: from an image `(1, 3, H, W)` in [0, 1] to a larger one, float32
    on the CPU.

    Raises:
        UserError: spandrel is not installed, the file is not an upscale model for RGB, or it enlarges less than
            `upscale` times.
    """
    try:
        from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError
    except ImportError as error:
        raise UserError(f"--upscale-model requires the package spandrel. Run: pip install '{SPANDREL}'.") from error
    tensors = open_tensors(path)
    get = tensors.get()
    try:
        model = ModelLoader(device).load_from_state_dict({name: get(name) for name in tensors.shapes})
    except UnsupportedModelError as error:
        raise UserError(
            f"{path} is not an upscale model that spandrel reads. Choose another --upscale-model."
        ) from error
    if not isinstance(model, ImageModelDescriptor) or (model.input_channels, model.output_channels) != (3, 3):
        raise UserError(f"{path} does not enlarge RGB images. Choose another --upscale-model.")
    if model.scale < upscale:
        raise UserError(
            f"The --upscale-model {path} enlarges {model.scale} times, but --upscale is {upscale:g}. Choose a "
            f"smaller --upscale or another model."
        )
    model.eval()
    return lambda image: model(image.to(device)).float().cpu()
