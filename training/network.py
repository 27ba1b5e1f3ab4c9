"""Trains the small VideoComposer network on synthetic scenes, on a CPU or one GPU.

    python -m training.network --out runs/network --autoencoder runs/autoencoder/autoencoder.safetensors \\
        --towers runs/towers/towers.safetensors --minutes 60

The run resumes where it was interrupted; `--export FILE` at the end writes the one file that everything loads.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from training.data.batches import Batch, draw_batch
from training.data.cache import ClipCache, build, made_with
from training.muon import Muon
from training.objective import Objective, embed_conditions, make_context, moving_weight
from training.start import initialise
from training.timed import TimedRun
from training.towers import SIZES
from vc_core.checkpoint import Part, read_checkpoint, save_checkpoint
from vc_core.config import AutoencoderConfig, Config, ExtractionConfig, UNetConfig
from vc_core.encoders.autoencoder import load_autoencoder
from vc_core.encoders.clip import encode_text, load_towers
from vc_core.model.layout import to_released
from vc_core.model.unet import UNet3D

DEFAULT = Config()
CONFIG = dataclasses.replace(
    DEFAULT,
    name="VideoComposer small (synthetic scenes)",
    height=64,
    width=64,
    guidance=2.0,
    unet=UNetConfig(
        width=32, multipliers=(1, 3, 3), res_blocks=1, attention_levels=(0, 1, 2), head_dim=16, temporal_in_heads=4,
        context_dim=64, dropout=0.0, stc_dropout=0.0,
    ),
    diffusion=dataclasses.replace(DEFAULT.diffusion, prediction="v_prediction"),
    extraction=ExtractionConfig(motion_layout="dense", motion_unit="pixels", sketch="edges", depth="relative"),
    autoencoder=AutoencoderConfig(layout="taesd", scale=1.0),
    towers=SIZES,
)  # fmt: skip
"""The bundled checkpoint: 6.2 M parameters, 64 x 64 pixels, 16 frames."""

FRAMES, SHARES = (4, 8, 16), torch.tensor([0.35, 0.25, 0.4])
"""Clip lengths and how often each is trained: no code tells frames apart, so short clips teach most of it."""
MOVING_GAIN = 6.0
"""How much more moving content counts, see `moving_weight`."""
NO_STYLE = 0.3
"""How many batches have no style token at all, as when no style is wired."""


def loss_of(unet: UNet3D, objective: Objective, batch: Batch, empty: torch.Tensor, generator: torch.Generator,
            device: str) -> torch.Tensor:  # fmt: skip
    """The mean squared error of the network's prediction on one batch."""
    latents = batch.latents.to(device)
    count, frames, size = len(latents), latents.shape[2], tuple(latents.shape[-2:])
    # One timestep from each of `count` equal parts of the schedule: the same mean, less variance.
    lots = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    timesteps = (lots * len(objective.alphas_cumprod)).long().to(device)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    noisy, target = objective.noised(latents, noise, timesteps)
    style = None if torch.rand((), generator=generator) < NO_STYLE else batch.style.to(device)
    context = make_context(unet, batch.text.to(device), empty.to(device), style, batch.kept)
    tensors = {name: tensor.to(device) for name, tensor in batch.conditions.items()}
    stc = embed_conditions(unet, tensors, batch.kept, size, frames)
    error = (unet(noisy, timesteps, context, stc).float() - target).square()
    return (error * moving_weight(latents, MOVING_GAIN)).mean()


def train(arguments: argparse.Namespace) -> None:
    out, device = Path(arguments.out), arguments.device
    parts = encoder_parts(arguments)
    autoencoder = load_autoencoder(parts["vae"])
    towers = load_towers(SIZES, parts["text"], parts["image"])
    folder = out / f"cache-{made_with(arguments.autoencoder, arguments.towers)}"
    with torch.inference_mode():
        # Encoding is most of the cost of the cache; bfloat16 halves it and is far finer than the noise that the
        # decoder was trained to tolerate.
        autoencoder.encoder.to(torch.bfloat16)
        shards = build(folder, seed=1, start=0, count=arguments.clips, autoencoder=autoencoder, towers=towers)
        empty = encode_text(towers, [""]).clone()
    cache = ClipCache(shards)
    torch.manual_seed(arguments.seed)
    unet = UNet3D(CONFIG.unet)
    initialise(unet)
    unet = unet.to(device).train()
    optimizer = Muon(unet.parameters(), lr=arguments.learning_rate, weight_decay=0.01)
    objective = Objective(CONFIG.diffusion)
    run = TimedRun(out, unet, optimizer, arguments.minutes, decay=0.9985)
    for step in run:
        # Everything random in a step is a function of the seed and the step, so a resumed run goes on with new data.
        generator = torch.Generator().manual_seed(arguments.seed * 1_000_003 + step)
        frames = FRAMES[int(torch.multinomial(SHARES, 1, generator=generator))]
        batch = draw_batch(
            cache, max(arguments.frames_per_batch // frames, 1), frames, generator, arguments.lone_motion
        )
        loss = loss_of(unet, objective, batch, empty, generator, device)
        norm = run.update(loss)
        if step % 20 == 0:
            run.log(loss=loss.item(), norm=norm, frames=frames)
    export(Path(arguments.export or out / "small.safetensors"), run.average, arguments)


def encoder_parts(arguments: argparse.Namespace) -> dict[str, Part]:
    """The autoencoder and the towers as the trainings before this one wrote them."""
    return {**read_checkpoint(arguments.autoencoder).parts, **read_checkpoint(arguments.towers).parts}


def export(path: Path, unet: UNet3D, arguments: argparse.Namespace) -> None:
    """Network, autoencoder and towers in one file, in half precision."""
    parts = {name: part.tensors.state() for name, part in encoder_parts(arguments).items()}
    save_checkpoint(path, CONFIG, {"model": to_released(unet), **parts}, torch.float16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/network", help="folder of the run")
    parser.add_argument("--autoencoder", default="runs/autoencoder/autoencoder.safetensors")
    parser.add_argument("--towers", default="runs/towers/towers.safetensors")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--clips", type=int, default=2560, help="clips in the cache")
    parser.add_argument("--frames-per-batch", type=int, default=128)
    parser.add_argument("--lone-motion", type=float, default=0.0, help="share of samples whose one sequence is motion")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export", help="where the finished checkpoint goes (default: small.safetensors in --out)")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
