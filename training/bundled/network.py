"""The bundled checkpoint's network, on scenes that are always new."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.bundled.ring import Ring, rows_of, windows
from training.data.cache import CAPTIONS, STILLS
from training.data.synthetic import CLIP, needed_for, spoiled
from training.muon import Muon
from training.objective import Objective, draw_kept, embed_conditions, make_context
from training.precision import fast_attend, fast_type
from training.ranks import World
from training.recipe import Loss
from training.start import initialise
from training.timed import TimedRun
from vc_core.conditions import CONDITIONS
from vc_core.config import Config
from vc_core.encoders.clip import encode_text
from vc_core.model.unet import UNet3D

TRAIN_SEED, TEST_SEED = 1234, 4321
LOG_EVERY, TEST_EVERY = 20, 300.0
"""Steps between lines of the log, and seconds, at most, between looks at held-out scenes."""


@dataclass(frozen=True)
class Settings:
    """How the network is trained.

    Attributes:
        lengths: numbers of frames of which each step draws one; shorter clips are as many more.
        batch: clips of all 16 frames in a step, of all ranks together, by the type of the device.
        scenes: that are kept at a time, of all ranks together, by the type of the device.
        uses: clips' worth of frames that are taken of each scene before it gives way, about, by the type of the
            device; of the first ones more.
        learning_rate, weight_decay: of Muon.
        lone: see `training.objective.draw_kept`.
        moving_gain, no_style: see `training.recipe.Loss`.
    """

    lengths: tuple[int, ...]
    batch: dict[str, int]
    scenes: dict[str, int]
    uses: dict[str, float]
    learning_rate: float
    weight_decay: float
    lone: dict[str, float]
    moving_gain: float
    no_style: float


class NetworkStep:
    """The loss of a batch of scenes of a ring. Everything random in it is drawn on the device that trains.

    Args:
        empty: tokens of the empty prompt `(1, 77, D)`.
    """

    def __init__(self, unet: UNet3D, config: Config, settings: Settings, empty: Tensor):
        self.unet, self.settings, self.empty = unet, settings, empty
        self.objective = Objective(config.diffusion, Loss(moving_gain=settings.moving_gain))
        self.objective.alphas_cumprod = self.objective.alphas_cumprod.to(empty.device)
        self.names = config.unet.conditions
        self.scale, self.timesteps = config.autoencoder.scale, config.diffusion.steps

    def __call__(
        self, ring: Ring, frames: int, batch: int, generator: torch.Generator, lots: torch.Generator
    ) -> Tensor:
        """The loss of `batch` clips of `frames` frames.

        Args:
            generator: on the device; lots: on the CPU, for what decides which work is done at all.
        """
        device = generator.device
        clips = torch.randint(len(ring), (batch,), device=device, generator=generator)
        numbers, stride = windows(CLIP, frames, batch, generator)
        kept = draw_kept(batch, lots, self.settings.lone)
        latents = ring.take("latents", clips, numbers).float().transpose(1, 2) * self.scale

        rows = rows_of(kept, self.names, device)
        conditions = {}
        for name, row in rows.items():
            own = numbers[row] if CONDITIONS[name].kind == "temporal" else numbers[row, :1]
            given = {stored: ring.take(stored, clips[row], own) for stored in needed_for(name, lots)}
            conditions[name] = spoiled(name, given, stride[row], generator).transpose(1, 2)
        text = self._one_of("text", CAPTIONS, ring, clips, generator)
        style = self._one_of("style", STILLS, ring, clips, generator)[:, None]
        no_style = float(torch.rand((), generator=lots)) < self.settings.no_style

        context = make_context(self.unet, text, self.empty, None if no_style else style, kept)
        stc = embed_conditions(self.unet, conditions, kept, tuple(latents.shape[-2:]), frames)
        spread = (torch.rand((), device=device, generator=generator) + torch.arange(batch, device=device) / batch) % 1
        timesteps = (spread * self.timesteps).long().clamp(max=self.timesteps - 1)
        noise = torch.randn(latents.shape, device=device, generator=generator)
        noisy, target = self.objective.noised(latents, noise, timesteps)
        return self.objective.losses(self.unet(noisy, timesteps, context, stc), target, latents, timesteps).mean()

    def _one_of(self, name: str, count: int, ring: Ring, clips: Tensor, generator: torch.Generator) -> Tensor:
        which = torch.randint(count, clips.shape, device=clips.device, generator=generator)
        return ring.take(name, clips, which[:, None])[:, 0].float()


def train(
    out: Path,
    minutes: float,
    config: Config,
    settings: Settings,
    autoencoder: Any,
    towers: Any,
    world: World,
    start: UNet3D | None = None,
    say: Callable[[str], None] = print,
) -> TimedRun:
    """Trains for `minutes`, or goes on with what is in `out`. The averaged weights are the run's `average`.

    Args:
        autoencoder, towers: frozen, on the device.
        start: the network to begin with, instead of fresh weights.
    """
    device = world.device
    torch.manual_seed(0)
    unet = UNet3D(config.unet, attend=fast_attend(device))
    initialise(unet)
    if start is not None:
        unet.load_state_dict(start.state_dict())
    unet = unet.to(device).train()
    dtype = fast_type(device)
    optimizer = Muon(unet.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, dtype=dtype)
    run = TimedRun(out, unet, optimizer, minutes, decay=0.9999, world=world, say=say)

    per_rank = max(settings.batch[device.type] // world.size, 1)
    capacity = max(settings.scenes[device.type] // world.size, per_rank)
    places = {"size": config.height, "scale": config.extraction.condition_scale}
    due = per_rank / settings.uses[device.type]  # new scenes a step
    drawn = run.more.get("drawn", int(run.step * due))
    ring = Ring(autoencoder, towers, TRAIN_SEED, capacity, start=drawn, rank=world.rank, ranks=world.size, **places)
    beginning = min(max(8 * per_rank, 64), capacity)
    before = drawn + beginning - run.step * due
    empty = encode_text(towers, [""]).float()
    test: HeldOut | None = None
    generator, lots = torch.Generator(device), torch.Generator()
    tested, seen, mark = run.used, 0, run.used
    step_loss = NetworkStep(unet, config, settings, empty)
    for step in run:
        if not len(ring):
            ring.draw(beginning)
        ring.keep_up(before + step * due)
        run.more["drawn"] = ring.drawn
        seed = step * world.size + world.rank
        generator.manual_seed(seed)
        torch.manual_seed(seed)
        # Of one length on all ranks, as they wait for each other.
        frames = settings.lengths[int(torch.randint(len(settings.lengths), (), generator=lots.manual_seed(step)))]
        lots.manual_seed(seed)
        batch = per_rank * CLIP // frames
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = step_loss(ring, frames, batch, generator, lots)
        norm = run.update(loss)
        seen += batch * frames * world.size
        if step % LOG_EVERY == LOG_EVERY - 1:
            more = {"frames_per_second": round(seen / max(run.used - mark, 1e-9), 1)}
            seen, mark = 0, run.used
            if world.main and run.used - tested > min(TEST_EVERY, run.budget / 8):
                test = test or HeldOut(autoencoder, towers, config, settings, empty, places)
                more |= test(run.average)
                tested = run.used
            run.log(loss=round(loss.item(), 5), gradient=round(norm.item(), 4), rate=optimizer.param_groups[0]["lr"],
                    scenes=ring.drawn * world.size, **more)  # fmt: skip
    return run


class HeldOut:
    """The averaged network's loss on scenes that are never trained on, always with the same noise."""

    def __init__(self, autoencoder: Any, towers: Any, config: Config, settings: Settings, empty: Tensor,
                 places: dict[str, Any], count: int = 32):  # fmt: skip
        self.config, self.settings, self.empty = config, settings, empty
        self.ring = Ring(autoencoder, towers, TEST_SEED, count, **places)
        self.ring.draw(count)

    @torch.no_grad()
    def __call__(self, unet: UNet3D) -> dict[str, float]:
        device = self.empty.device
        step = NetworkStep(unet, self.config, self.settings, self.empty)
        losses = []
        for number in range(8):
            generator, lots = torch.Generator(device).manual_seed(number), torch.Generator().manual_seed(number)
            losses.append(step(self.ring, CLIP, 8, generator, lots))
        return {"held_out": round(torch.stack(losses).mean().item(), 5)}
