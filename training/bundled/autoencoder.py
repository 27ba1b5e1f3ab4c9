"""The bundled checkpoint's autoencoder, in TAESD's layout, on frames of synthetic scenes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from training.data.render import render
from training.data.scenes import sample_scenes, scene_seeds
from training.evaluate.objects import find_objects, shapes_of
from training.muon import Muon
from training.precision import fast_type
from training.ranks import World
from training.timed import TimedRun
from vc_core.atomic import written_beside
from vc_core.encoders.autoencoder import decode_frames, new_autoencoder, to_taesd_layout
from vc_core.files import save_tensors

SIZE = 64
RENDER_SIZES = (64, 64, 64, 64, 64, 64, 64, 96, 64, 128)
"""Sizes at which successive batches are rendered, to be cropped to SIZE: grain and large shapes are seen too."""
TRAIN_SEED, TEST_SEED = 1, 2
FILE = "autoencoder.safetensors"
SHAPE_WEIGHT = 12.0
LATENT_NOISE = 0.08
"""Standard deviation of the noise on latents in training, so that the decoder forgives small errors."""


@dataclass(frozen=True)
class Settings:
    """How the autoencoder is trained: `batch` frames in a step, of all ranks together, by the type of the device."""

    batch: dict[str, int]
    learning_rate: float


def random_frames(
    seed: int, start: int, count: int, size: int = SIZE, crop: int = SIZE, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """One random frame of each of `count` scenes rendered at `size`, at a random crop: (count, 4, crop, crop).

    Three channels of RGB, and the objects' outlines.
    """
    seeds = scene_seeds(seed, start, count)
    result = render(sample_scenes(seeds.to(device)), size, 1, seeds.remainder(16), ("video", "outline"))
    frames = torch.cat([result.video, result.outline], dim=1)[:, :, 0]
    if size == crop:
        return frames
    top, left = int(seeds[0].remainder(size - crop + 1)), int(seeds[-1].remainder(size - crop + 1))
    return frames[:, :, top : top + crop, left : left + crop].contiguous()


def psnr(result: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each image (N, C, H, W) with values in [0, 1]; (N,)."""
    error = (result.clamp(0, 1).float() - target.float()).square().flatten(1).mean(1)
    return -10.0 * error.clamp_min(1e-10).log10()


def _edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def shape_weight(outline: torch.Tensor) -> torch.Tensor:
    """What each pixel (N, 1, H, W) counts, 1 on average: more within three pixels of the objects' outlines.

    Objects cover a tenth of a frame; without this their shapes are the last thing that is learned.
    """
    weight = 1.0 + SHAPE_WEIGHT * F.max_pool2d(outline, 5, stride=1, padding=2)
    return weight / weight.mean()


def reconstruction_loss(result: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted L1 and squared error of pixels (N, 3, H, W), and L1 of their differences, for sharp edges."""
    across, down = (
        ((a - b).abs() * w).mean()
        for a, b, w in zip(_edges(result), _edges(target), (weight[..., 1:], weight[..., 1:, :]), strict=True)
    )
    error = result - target
    return (error.abs() * weight).mean() + 4.0 * (error.square() * weight).mean() + 0.5 * (across + down)


def latent_penalty(latents: torch.Tensor) -> torch.Tensor:
    """Zero where each channel of latents (N, 4, h, w) has mean 0 and variance 1 and nothing exceeds 2.5.

    The decoder's soft clamp at 3 loses what lies further out.
    """
    variance, mean = torch.var_mean(latents, dim=(0, 2, 3))
    far = F.relu(latents.abs() - 2.5).square().mean()
    return mean.square().mean() + variance.clamp_min(1e-6).log().square().mean() + far


def initialize(model: nn.Module) -> nn.Module:
    """Start with blocks that pass their input on, layers that keep its variance and a grey picture. In place."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            # The convolutions without a bias change the resolution and have no activation after them.
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu" if layer.bias is not None else "linear")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for block in model.modules():
        if type(block).__name__ == "AutoencoderTinyBlock":
            nn.init.zeros_(block.conv[-1].weight)
    nn.init.kaiming_normal_(model.encoder.layers[-1].weight, nonlinearity="linear")
    last = model.decoder.layers[-1]
    nn.init.constant_(last.bias, 0.5)
    with torch.no_grad():
        last.weight.mul_(0.2)
    return model


def training_loss(
    model: nn.Module, frames: torch.Tensor, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and the reconstruction of `random_frames` (N, 4, H, W)."""
    bf16 = dtype != torch.float32
    weight = shape_weight(frames[:, 3:])
    frames = frames[:, :3].contiguous(memory_format=torch.channels_last)
    with torch.autocast(frames.device.type, torch.bfloat16, enabled=bf16):
        latents = model.encoder.layers(frames)
    latents = latents.float()
    noisy = latents + LATENT_NOISE * torch.randn_like(latents)
    with torch.autocast(frames.device.type, torch.bfloat16, enabled=bf16):
        result = decode_frames(model, noisy)
    result = result.float()
    return reconstruction_loss(result, frames, weight) + 0.05 * latent_penalty(latents), result


@torch.no_grad()
def evaluate(model: nn.Module, count: int = 256) -> dict[str, object]:
    """PSNR over held-out frames and the latents' statistics, in float32."""
    frames, outline = random_frames(TEST_SEED, 0, count).split([3, 1], dim=1)
    latents = torch.cat([model.encoder.layers(piece) for piece in frames.split(32)])
    results = torch.cat([decode_frames(model, piece) for piece in latents.split(32)])
    noisy = latents + 0.1 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    from_noisy = torch.cat([decode_frames(model, piece) for piece in noisy.split(32)])
    ratios = psnr(results, frames)
    near = F.max_pool2d(outline, 5, stride=1, padding=2)
    shape_error = ((results - frames).square() * near).sum() / (3 * near.sum())
    larger = random_frames(TEST_SEED, count, 8, size=256, crop=256)[:, :3]
    larger_result = decode_frames(model, model.encoder.layers(larger))
    return {
        "psnr": ratios.mean().item(),
        "psnr_worst": ratios.min().item(),
        "psnr_outlines": -10.0 * shape_error.log10().item(),
        "psnr_noise_0.1": psnr(from_noisy, frames).mean().item(),
        "psnr_256": psnr(larger_result, larger).mean().item(),
        "latent_mean": latents.mean((0, 2, 3)).tolist(),
        "latent_std": latents.std((0, 2, 3)).tolist(),
        "latent_beyond_2.5": (latents.abs() > 2.5).float().mean().item(),
    }


@torch.no_grad()
def save_comparison(model: nn.Module, path: Path, count: int = 12) -> None:
    """A sheet of held-out frames, each above its reconstruction, enlarged three times."""
    from PIL import Image

    frames = random_frames(TEST_SEED, 1000, count)[:, :3]
    results = decode_frames(model, model.encoder.layers(frames)).clamp(0, 1)
    sheet = torch.cat([torch.cat(list(row), dim=-1) for row in (frames, results)], dim=-2)
    sheet = F.interpolate(sheet[None], scale_factor=3.0)[0]
    image = Image.fromarray((sheet.permute(1, 2, 0) * 255).round().byte().numpy())
    with written_beside(path) as part:
        image.save(part, format="PNG")


@torch.no_grad()
def told_right(model: nn.Module, scenes: int = 256, device: torch.device | str = "cpu") -> dict[str, float]:
    """Of how many held-out scenes with one object its colour and shape are told right, through the autoencoder."""
    chosen = sample_scenes(scene_seeds(TEST_SEED, 20_000, scenes))
    chosen = chosen[(chosen.count == 1).nonzero(as_tuple=True)[0]]
    video = render(chosen.to(device), SIZE, 4, 4, ("video",)).video
    frames = video.transpose(1, 2).flatten(0, 1)
    results = torch.cat([decode_frames(model, model.encoder.layers(piece)) for piece in frames.split(32)])
    found = find_objects(results.clamp(0, 1).unflatten(0, (len(chosen), -1)).transpose(1, 2).cpu())
    return {
        "color_told": (found.color == chosen.color[:, 0]).float().mean().item(),
        "shape_told": (shapes_of(found.mask) == chosen.shape[:, 0]).float().mean().item(),
    }


def train(out: Path, minutes: float, settings: Settings, world: World, say: Callable[[str], None] = print) -> TimedRun:
    """Trains for `minutes`, or goes on with what is in `out`.

    Once the time is up OUT/autoencoder.safetensors (TAESD's layout), OUT/report.json and OUT/comparison.png are there.
    """
    device, batch = world.device, max(settings.batch[world.device.type] // world.size, 1)
    torch.manual_seed(0)
    model = initialize(new_autoencoder()).to(device, memory_format=torch.channels_last).train()
    # In a budget of about 2000 steps Muon is worth 2 dB over AdamW.
    optimizer = Muon(model.parameters(), settings.learning_rate)
    run = TimedRun(out, model, optimizer, minutes, decay=0.999, world=world, say=say)
    dtype = fast_type(device)
    for step in run:
        number = step * world.size + world.rank
        torch.manual_seed(number)
        size = RENDER_SIZES[step % len(RENDER_SIZES)]
        frames = random_frames(TRAIN_SEED, number * batch, batch, size, device=device)
        loss, result = training_loss(model, frames, dtype)
        norm = run.update(loss)
        if step % 20 == 0:
            run.log(
                loss=loss.item(),
                psnr=psnr(result.detach(), frames[:, :3]).mean().item(),
                size=size,
                gradient=norm.item(),
            )
    if world.main and not run.came:
        model = run.average.cpu().to(memory_format=torch.contiguous_format).eval()
        save_comparison(model, out / "comparison.png")
        run.report(**evaluate(model), **told_right(model), batch=batch * world.size)
        save_tensors(out / FILE, to_taesd_layout(model.float()))
    return run
