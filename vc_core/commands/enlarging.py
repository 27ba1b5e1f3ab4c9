"""Enlarge videos before the second pass: with bicubic interpolation, or with any upscale model that spandrel reads."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoint.files import open_tensors
from ..errors import UserError
from ..progress import Progress


@torch.inference_mode()
def enlarged(
    videos: Tensor, size: tuple[int, int], model: Path | None, device: torch.device, progress: Progress | None = None
) -> Tensor:
    """Return videos `(B, 3, F, H, W)` in [0, 1] at another (height, width), float32 on the CPU.

    Args:
        model: file of a network that enlarges images; None for bicubic interpolation.
        progress: called as `progress("enlarging", done, total)` in frames, if there is a model.

    Raises:
        UserError: spandrel is not installed, or the file is not an upscale model.
    """
    frames = videos.transpose(1, 2).flatten(0, 1)
    if model is not None:
        network, results = _network(model, device), []
        for i, frame in enumerate(frames, 1):
            results.append(network(frame[None].to(device)).float().cpu())
            if progress is not None:
                progress("enlarging", i, len(frames))
        frames = torch.cat(results)
    frames = F.interpolate(frames, size, mode="bicubic", antialias=True).clamp(0, 1)
    return frames.unflatten(0, (len(videos), -1)).transpose(1, 2)


def _network(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    try:
        from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError
    except ImportError as error:
        raise UserError(
            "--upscale-model requires the library spandrel. Run: pip install 'spandrel>=0.4,<0.5'."
        ) from error
    tensors = open_tensors(path)
    get = tensors.get()
    try:
        model = ModelLoader(device).load_from_state_dict({name: get(name) for name in tensors.shapes})
    except UnsupportedModelError as error:
        raise UserError(f"--upscale-model: {path} is not an upscale model that spandrel can read.") from error
    if not isinstance(model, ImageModelDescriptor) or (model.input_channels, model.output_channels) != (3, 3):
        raise UserError(f"--upscale-model: {path} is not a network that enlarges RGB images. Choose another file.")
    return model.eval()
