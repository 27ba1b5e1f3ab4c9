"""Training of the bundled checkpoint's network, on scenes that are always new."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from training.bundled.design import NetworkPlan
from training.bundled.replayed import Replayed
from training.bundled.ring import Ring, Supply, padded, windows
from training.data.synthetic.clips import CAPTIONS, DRAWN, STILLS, spoiled, stored_for
from training.data.synthetic.scenes import CLIP_FRAMES
from training.muon import Muon
from training.objective import Objective, draw_kept, embed_conditions, make_context
from training.precision import fast_attend, fast_type
from training.ranks import World
from training.recipe import Loss
from training.start import initialise
from training.timed import TimedRun
from vc_core.checkpoint.files import save_tensors
from vc_core.conditions import CONDITIONS
from vc_core.config import Config
from vc_core.encoders.clip import encode_text
from vc_core.errors import UserError
from vc_core.model.unet import UNet3D

TRAIN_SEED, TEST_SEED = 1234, 4321
BEST = "best.safetensors"
"""In the run's folder: the averaged weights with the lowest held-out loss."""
DIVERGED = 2.5
"""A run has diverged if the held-out loss is this many times its lowest value."""
MANY = 2**16
"""Number of samples for estimating how often a condition is kept."""
LOG_EVERY, TEST_EVERY = 20, 300.0
"""Steps between lines of the log, and maximum seconds between tests on held-out scenes."""


class NetworkStep:
    """Computes the loss of a batch of scenes from a ring.

    Random values that decide the shapes of tensors are drawn on the host, by `draw`; all others on the training device.

    Args:
        empty: tokens of the empty prompt `(1, 77, D)`.
        fixed: pad each condition to a fixed number of samples, where padding has weight 0. All steps with the same
            number of frames then have equal shapes.
    """

    def __init__(self, unet: UNet3D, config: Config, plan: NetworkPlan, empty: Tensor, fixed: bool = False):
        self.unet, self.plan, self.empty, self.fixed = unet, plan, empty, fixed
        self.objective = Objective(config.diffusion, Loss(moving_gain=plan.moving_gain))
        self.objective.alphas_cumprod = self.objective.alphas_cumprod.to(empty.device)
        self.names = config.unet.conditions
        self.scale, self.timesteps = config.autoencoder.scale, config.diffusion.steps
        kept = draw_kept(MANY, torch.Generator().manual_seed(0), plan.lone)
        self._fractions = {name: kept[name].float().mean().item() for name in self.names}

    def room(self, name: str, batch: int) -> int | None:
        """Return the maximum number of samples in a batch that keep a condition, or None for no limit. About one batch
        in thousands would have more; these then lose the condition."""
        fraction = self._fractions[name]
        return min(batch, math.ceil(fraction * batch + 4 * math.sqrt(fraction * batch))) if self.fixed else None

    def draw(self, scenes: int, batch: int, lots: torch.Generator) -> dict[str, Tensor]:
        """Draw the random inputs of a step from a generator on the CPU.

        Returns:
            "clips" `(batch,)`: indices of scenes. "text" and, in most steps, "style" `(batch,)`: which samples keep it.
            For each condition that any sample keeps: "rows" (n,), the indices of these samples; "counts" (n,), their
            weights, see `padded`; "by hand" (n,), which sketches are outlines as people draw them.
        """
        kept = draw_kept(batch, lots, self.plan.lone)
        inputs = {"clips": torch.randint(scenes, (batch,), generator=lots), "text": kept["text"]}
        if float(torch.rand((), generator=lots)) >= self.plan.no_style:
            inputs["style"] = kept["style"]
        for name in self.names:
            rows, counts = padded(kept[name].nonzero(as_tuple=True)[0], self.room(name, batch))
            if len(rows):
                by_hand = torch.rand(len(rows), generator=lots) < DRAWN
                inputs |= {f"{name} rows": rows, f"{name} counts": counts, f"{name} by hand": by_hand}
        return inputs

    def __call__(
        self, ring: Ring, frames: int, inputs: Mapping[str, Tensor], generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the loss of clips of `frames` frames. For the arguments see `encoded`."""
        latents, text, style, stc = self.encoded(ring, frames, inputs, generator)
        context = make_context(self.unet, text, self.empty, style, inputs)
        timesteps = (self.spread(len(latents), generator) * self.timesteps).long().clamp(max=self.timesteps - 1)
        noise = torch.randn(latents.shape, device=latents.device, generator=generator)
        noisy, target = self.objective.noised(latents, noise, timesteps)
        return self.objective.losses(self.unet(noisy, timesteps, context, stc), target, latents, timesteps).mean()

    def encoded(
        self, ring: Ring, frames: int, inputs: Mapping[str, Tensor], generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Return clips of `frames` frames: their latents, text tokens, style embeddings or None, and the sum of their
        STC embeddings.

        Args:
            inputs: from `draw`, on the device.
            generator: on the device; None for the device's default generator.
        """
        clips, device = inputs["clips"], self.empty.device
        batch = len(clips)
        numbers, stride = windows(CLIP_FRAMES, frames, batch, device, generator)
        latents = ring.take("latents", clips, numbers).float().transpose(1, 2) * self.scale
        text = self._random_item("text", CAPTIONS, ring, clips, generator)
        style = self._random_item("style", STILLS, ring, clips, generator)[:, None] if "style" in inputs else None

        rows = {name: inputs[f"{name} rows"] for name in self.names if f"{name} rows" in inputs}
        counts = {name: inputs[f"{name} counts"] for name in rows}
        conditions = {}
        for name, row in rows.items():
            own = numbers[row] if CONDITIONS[name].kind == "temporal" else numbers[row, :1]
            sketched = name in ("sketch", "single_sketch")
            stored = ("outline", "edges") if sketched else stored_for(name)
            tensors = {key: ring.take(key, clips[row], own) for key in stored}
            if sketched:
                tensors = {name: torch.where(inputs[f"{name} by hand"].view(-1, 1, 1, 1, 1), *tensors.values())}
            conditions[name] = spoiled(name, tensors, stride[row], generator).transpose(1, 2)
        size = tuple(latents.shape[-2:])
        return latents, text, style, embed_conditions(self.unet, conditions, rows, batch, size, frames, counts)

    def spread(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Return numbers from 0 to below 1, `(batch,)`, at equal distances from a random start."""
        device = self.empty.device
        return (torch.rand((), device=device, generator=generator) + torch.arange(batch, device=device) / batch) % 1

    def _random_item(
        self, name: str, count: int, ring: Ring, clips: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        which = torch.randint(count, clips.shape, device=clips.device, generator=generator)
        return ring.take(name, clips, which[:, None])[:, 0].float()


def make_supply(
    run: TimedRun, per_rank: int, seed: int, config: Config, plan: NetworkPlan, coders: tuple[Any, Any], world: World
) -> Supply:
    """Return the scenes of a run.

    Args:
        per_rank: clips of all frames per step and rank.
        coders: autoencoder and towers, frozen, on the device.
    """
    kind = world.device.type
    capacity = max(plan.scenes[kind] // world.size, per_rank)
    due = per_rank / plan.uses[kind]  # new scenes per step
    drawn = int(run.more.get("drawn", run.step * due))
    position = {"start": drawn, "rank": world.rank, "ranks": world.size}
    ring = Ring(*coders, seed, capacity, **position, size=config.height, scale=config.extraction.condition_scale)
    return Supply(ring, run, min(max(8 * per_rank, 64), capacity), due)


def length_of(plan: NetworkPlan, step: int) -> int:
    """Return the number of frames of a step's clips. It is the same on all ranks, because they wait for each other."""
    lots = torch.Generator().manual_seed(step)
    return plan.lengths[int(torch.randint(len(plan.lengths), (), generator=lots))]


def train(
    out: Path,
    minutes: float,
    config: Config,
    plan: NetworkPlan,
    autoencoder: Any,
    towers: Any,
    world: World,
    start: UNet3D | None = None,
    say: Callable[[str], None] = print,
) -> TimedRun:
    """Train for `minutes`, or continue the run in `out`. The averaged weights are the run's `average`.

    Args:
        autoencoder, towers: frozen, on the device.
        start: the network to start from, instead of new weights.
    """
    device, on_gpu = world.device, world.device.type == "cuda"
    torch.manual_seed(0)
    unet = UNet3D(config.unet, attend=fast_attend(device))
    initialise(unet)
    if start is not None:
        unet.load_state_dict(start.state_dict())
    # Convolutions on a GPU's tensor cores use channels last.
    unet = unet.to(device, memory_format=torch.channels_last if on_gpu else torch.preserve_format).train()
    optimizer = Muon(unet.parameters(), plan.learning_rate, weight_decay=plan.weight_decay)
    run = TimedRun(out, unet, optimizer, minutes, decay=0.9999, world=world, say=say)

    per_rank = max(plan.batch[device.type] // world.size, 1)
    supply = make_supply(run, per_rank, TRAIN_SEED, config, plan, (autoencoder, towers), world)
    ring = supply.ring
    empty = encode_text(towers, [""]).float()
    held_out: Ring | None = None
    generator, lots = torch.Generator(device), torch.Generator()
    tested, count, mark = run.used, 0, run.used
    network_step = NetworkStep(unet, config, plan, empty, fixed=on_gpu)
    dtype = fast_type(device)

    def loss_of(frames: int, inputs: Mapping[str, Tensor]) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return network_step(ring, frames, inputs, None if on_gpu else generator)

    torch.manual_seed(run.step)
    replayed = Replayed(loss_of, unet, optimizer) if on_gpu else None
    for step in run:
        supply.keep_up()
        frames = length_of(plan, step)
        seed = step * world.size + world.rank
        batch = per_rank * CLIP_FRAMES // frames
        inputs = network_step.draw(len(ring), batch, lots.manual_seed(seed))
        if replayed is None:
            generator.manual_seed(seed)
            torch.manual_seed(seed)
            loss = loss_of(frames, inputs)
            norm = run.update(loss)
        else:
            loss, norm = replayed(frames, inputs)
            run.count(norm)
        count += batch * frames * world.size
        if step % LOG_EVERY == LOG_EVERY - 1:
            more = {"frames_per_second": round(count / max(run.used - mark, 1e-9), 1)}
            count, mark = 0, run.used
            if world.main and run.used - tested > min(TEST_EVERY, run.budget / 5):
                if held_out is None:  # scenes that are never trained on
                    scale = config.extraction.condition_scale
                    held_out = Ring(autoencoder, towers, TEST_SEED, 32, size=config.height, scale=scale)
                    held_out.draw(32)
                more["held_out"] = held_out_loss(NetworkStep(run.average, config, plan, empty), held_out)
                tested = run.used
                keep_best(run, more["held_out"])
            run.log(
                loss=round(loss.item(), 5),
                gradient=round(norm.item(), 4),
                scenes=ring.drawn * world.size,
                rate=float(optimizer.param_groups[0]["lr"]),
                **more,
            )
    return run


@torch.no_grad()
def held_out_loss(step: NetworkStep, ring: Ring) -> float:
    """Return the loss on the scenes of a ring, always with the same noise."""
    device, losses = step.empty.device, []
    for number in range(8):
        generator, lots = torch.Generator(device).manual_seed(number), torch.Generator().manual_seed(number)
        inputs = {name: tensor.to(device) for name, tensor in step.draw(len(ring), 8, lots).items()}
        losses.append(step(ring, CLIP_FRAMES, inputs, generator))
    return round(torch.stack(losses).mean().item(), 5)


def keep_best(run: TimedRun, held_out: float) -> None:
    """Save the averaged weights with the lowest held-out loss so far, in the run's folder.

    Raises:
        UserError: the loss is `DIVERGED` times its lowest value; the run is then saved with its best weights.
    """
    path = run.out / BEST
    best = run.more.get("best", math.inf) if path.exists() else math.inf
    if held_out < best:
        run.more["best"] = held_out
        run.on_disk(lambda: save_tensors(path, run.average.state_dict()))
    elif not held_out < DIVERGED * best:
        run.return_to(load_file(path))
        raise UserError(
            f"The run in {run.out} has diverged: its held-out loss was {best} at best, and is {held_out} now. The best "
            "weights replace the last ones. Run the same command to continue from them, or ./vc export to write them."
        )
