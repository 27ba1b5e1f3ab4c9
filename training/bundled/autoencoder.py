"""The bundled checkpoint's autoencoder, in TAESD's layout, on frames of synthetic scenes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.bundled.design import PartPlan
from training.data.synthetic.render import render
from training.data.synthetic.scenes import sample_scenes, scene_seeds
from training.evaluate.objects import find_objects, shapes_of
from training.muon import Muon
from training.precision import fast_type
from training.ranks import World
from training.timed import TimedRun
from vc_core.checkpoint.files import save_tensors
from vc_core.checkpoint.loading import to_taesd_layout
from vc_core.encoders.autoencoder import decode_frames, new_autoencoder
from vc_core.video import write_contact_sheet

SIZE = 64
RENDER_SIZES = (64, 64, 64, 64, 64, 64, 64, 96, 64, 128)
"""Sizes at which successive batches are rendered before cropping to SIZE, for grain and large shapes."""
TRAIN_SEED, TEST_SEED = 1, 2
FILE = "autoencoder.safetensors"
SHAPE_WEIGHT = 12.0
LATENT_NOISE = 0.08
"""Standard deviation of the noise on latents in training, so that the decoder forgives small errors."""


def random_frames(
    seed: int, start: int, count: int, size: int = SIZE, crop: int = SIZE, device: torch.device | str = "cpu"
) -> Tensor:
    """Return one random frame of each of `count` scenes, rendered at `size` and randomly cropped: (count, 4, crop,
    crop). The channels are RGB and the objects' outlines.
    """
    seeds = scene_seeds(seed, start, count)
    result = render(sample_scenes(seeds.to(device)), size, 1, seeds.remainder(16), ("video", "outline"))
    frames = torch.cat([result.video, result.outline], dim=1)[:, :, 0]
    top, left = (int(lot.remainder(size - crop + 1)) for lot in (seeds[0], seeds[-1]))
    return frames[:, :, top : top + crop, left : left + crop].contiguous()


def psnr(result: Tensor, target: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, (N,), of images (N, C, H, W) in [0, 1]."""
    error = (result.clamp(0, 1).float() - target.float()).square().flatten(1).mean(1)
    return -10.0 * error.clamp_min(1e-10).log10()


def _near(outline: Tensor) -> Tensor:
    """Return a mask (N, 1, H, W) of the pixels within three pixels of the objects' outlines."""
    return F.max_pool2d(outline, 5, stride=1, padding=2)


def reconstruction_loss(result: Tensor, target: Tensor, outline: Tensor) -> Tensor:
    """Return the weighted L1 and squared error of pixels (N, 3, H, W), plus L1 of their differences, for sharp edges.

    Pixels near the objects' outlines weigh more: objects cover a tenth of a frame, and without this their shapes are
    learned last.
    """
    weight = 1.0 + SHAPE_WEIGHT * _near(outline)
    weight = weight / weight.mean()
    across, down = (
        ((result.diff(dim=dim) - target.diff(dim=dim)).abs() * weight.narrow(dim, 1, weight.shape[dim] - 1)).mean()
        for dim in (-1, -2)
    )
    error = result - target
    return (error.abs() * weight).mean() + 4.0 * (error.square() * weight).mean() + 0.5 * (across + down)


def latent_penalty(latents: Tensor) -> Tensor:
    """Return a penalty, 0 if each channel of latents (N, 4, h, w) has mean 0, variance 1 and no value above 2.5.

    The decoder's soft clamp at 3 loses larger values.
    """
    variance, mean = torch.var_mean(latents, dim=(0, 2, 3))
    far = F.relu(latents.abs() - 2.5).square().mean()
    return mean.square().mean() + variance.clamp_min(1e-6).log().square().mean() + far


def initialize(model: nn.Module) -> nn.Module:
    """Initialise, in place: blocks are the identity, layers keep the variance, and the output is grey."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            # Convolutions without bias change the resolution and have no activation after them.
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


def training_loss(model: nn.Module, frames: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return the loss and the reconstruction of `random_frames` (N, 4, H, W)."""
    frames, outline = frames.split([3, 1], dim=1)
    frames = frames.contiguous(memory_format=torch.channels_last)
    fast = torch.autocast(frames.device.type, torch.bfloat16, enabled=dtype != torch.float32)
    with fast:
        latents = model.encoder.layers(frames)
    latents = latents.float()
    noisy = latents + LATENT_NOISE * torch.randn_like(latents)
    with fast:
        result = decode_frames(model, noisy)
    result = result.float()
    return reconstruction_loss(result, frames, outline) + 0.05 * latent_penalty(latents), result


def _decoded(model: nn.Module, latents: Tensor) -> Tensor:
    return torch.cat([decode_frames(model, piece) for piece in latents.split(32)])


def _encoded(model: nn.Module, frames: Tensor) -> Tensor:
    return torch.cat([model.encoder.layers(piece) for piece in frames.split(32)])


@torch.no_grad()
def evaluate(model: nn.Module, count: int = 256) -> dict[str, object]:
    """Measure PSNR on held-out frames, and statistics of the latents, in float32."""
    frames, outline = random_frames(TEST_SEED, 0, count).split([3, 1], dim=1)
    latents = _encoded(model, frames)
    results = _decoded(model, latents)
    noisy = latents + 0.1 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    ratios, near = psnr(results, frames), _near(outline)
    shape_error = ((results - frames).square() * near).sum() / (3 * near.sum())
    larger = random_frames(TEST_SEED, count, 8, size=256, crop=256)[:, :3]
    return {
        "psnr": ratios.mean().item(),
        "psnr_worst": ratios.min().item(),
        "psnr_outlines": -10.0 * shape_error.log10().item(),
        "psnr_noise_0.1": psnr(_decoded(model, noisy), frames).mean().item(),
        "psnr_256": psnr(_decoded(model, _encoded(model, larger)), larger).mean().item(),
        "latent_mean": latents.mean((0, 2, 3)).tolist(),
        "latent_std": latents.std((0, 2, 3)).tolist(),
        "latent_beyond_2.5": (latents.abs() > 2.5).float().mean().item(),
    }


@torch.no_grad()
def recognition(model: nn.Module) -> dict[str, float]:
    """Measure in how many reconstructed held-out scenes with one object its colour and shape are recognized."""
    chosen = sample_scenes(scene_seeds(TEST_SEED, 20_000, 256))
    chosen = chosen[(chosen.count == 1).nonzero(as_tuple=True)[0]]
    frames = render(chosen, SIZE, 4, 4, ("video",)).video.transpose(1, 2).flatten(0, 1)
    results = _decoded(model, _encoded(model, frames)).clamp(0, 1)
    objects = find_objects(results.unflatten(0, (len(chosen), -1)).transpose(1, 2))
    return {
        "color_matches": (objects.color == chosen.color[:, 0]).float().mean().item(),
        "shape_matches": (shapes_of(objects.mask) == chosen.shape[:, 0]).float().mean().item(),
    }


@torch.no_grad()
def save_comparison(model: nn.Module, path: Path) -> None:
    """Write a contact sheet of held-out frames above their reconstructions, enlarged three times."""
    frames = random_frames(TEST_SEED, 1000, 12)[:, :3]
    rows = {"held out": frames, "reconstructed": _decoded(model, _encoded(model, frames))}
    strips = [(label, strip.transpose(0, 1)) for label, strip in rows.items()]
    write_contact_sheet(path, strips, columns=len(frames), cell=3 * SIZE)


def train(out: Path, minutes: float, plan: PartPlan, world: World, say: Callable[[str], None] = print) -> TimedRun:
    """Train for `minutes`, or continue the run in `out`.

    At the end it writes OUT/autoencoder.safetensors (TAESD's layout), OUT/report.json and OUT/comparison.png.
    """
    device, batch = world.device, max(plan.batch[world.device.type] // world.size, 1)
    torch.manual_seed(0)
    model = initialize(new_autoencoder()).to(device, memory_format=torch.channels_last).train()
    # With about 2000 steps, Muon reaches 2 dB more than AdamW.
    optimizer = Muon(model.parameters(), plan.learning_rate)
    run = TimedRun(out, model, optimizer, minutes, decay=0.999, world=world, say=say)
    for step in run:
        number = step * world.size + world.rank
        torch.manual_seed(number)
        size = RENDER_SIZES[step % len(RENDER_SIZES)]
        frames = random_frames(TRAIN_SEED, number * batch, batch, size, device=device)
        loss, result = training_loss(model, frames, fast_type(device))
        norm = run.update(loss)
        if step % 20 == 0:
            ratio = psnr(result.detach(), frames[:, :3]).mean()
            run.log(loss=loss.item(), psnr=ratio.item(), size=size, gradient=norm.item())
    if world.main and not run.came:
        model = run.average.cpu().to(memory_format=torch.contiguous_format).eval()
        save_comparison(model, out / "comparison.png")
        run.report(**evaluate(model), **recognition(model), batch=batch * world.size)
        save_tensors(out / FILE, to_taesd_layout(model.float()))
    return run
