"""The bundled checkpoint's network, on scenes that are always new."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from training.bundled.design import NetworkPlan
from training.bundled.replayed import Replayed
from training.bundled.ring import Ring, padded, windows
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
"""Beside a run's state: the averaged weights that had the lowest held-out loss."""
APART = 2.5
"""So many times the lowest held-out loss tells that a run has come apart."""
MANY = 2**16
"""Samples by which shares are estimated."""
LOG_EVERY, TEST_EVERY = 20, 300.0
"""Steps between lines of the log, and seconds, at most, between looks at held-out scenes."""


class NetworkStep:
    """The loss of a batch of scenes of a ring.

    What decides how much work there is is drawn on the host, by `drawn`; the rest on the device that trains.

    Args:
        empty: tokens of the empty prompt `(1, 77, D)`.
        fixed: whether as many samples as there may be are made of each condition in every step, those that there are
            not counting nothing: all steps of one number of frames have equal shapes then.
    """

    def __init__(self, unet: UNet3D, config: Config, plan: NetworkPlan, empty: Tensor, fixed: bool = False):
        self.unet, self.plan, self.empty, self.fixed = unet, plan, empty, fixed
        self.objective = Objective(config.diffusion, Loss(moving_gain=plan.moving_gain))
        self.objective.alphas_cumprod = self.objective.alphas_cumprod.to(empty.device)
        self.names = config.unet.conditions
        self.scale, self.timesteps = config.autoencoder.scale, config.diffusion.steps
        often = draw_kept(MANY, torch.Generator().manual_seed(0), plan.lone)
        self._shares = {name: often[name].float().mean().item() for name in self.names}

    def room(self, name: str, batch: int) -> int | None:
        """How many samples of a batch keep a condition at most: in one batch of some thousands there would be more,
        which go without it. None for as many as there are."""
        share = self._shares[name]
        return min(batch, math.ceil(share * batch + 4 * math.sqrt(share * batch))) if self.fixed else None

    def drawn(self, scenes: int, batch: int, lots: torch.Generator) -> dict[str, Tensor]:
        """What a step is made of, drawn from a generator on the CPU.

        Returns:
            "clips" `(batch,)` of the `scenes`; "text" and, in most steps, "style" `(batch,)`, which samples keep it;
            of each condition that any sample keeps the "rows" (n,) that do, what each "counts" (n,), see `padded`,
            and which of them are outlines as people draw them, "by hand" (n,).
        """
        kept = draw_kept(batch, lots, self.plan.lone)
        found = {"clips": torch.randint(scenes, (batch,), generator=lots), "text": kept["text"]}
        if float(torch.rand((), generator=lots)) >= self.plan.no_style:
            found["style"] = kept["style"]
        for name in self.names:
            rows, counts = padded(kept[name].nonzero(as_tuple=True)[0], self.room(name, batch))
            if len(rows):
                by_hand = torch.rand(len(rows), generator=lots) < DRAWN
                found |= {f"{name} rows": rows, f"{name} counts": counts, f"{name} by hand": by_hand}
        return found

    def __call__(
        self, ring: Ring, frames: int, given: Mapping[str, Tensor], generator: torch.Generator | None = None
    ) -> Tensor:
        """The loss of clips of `frames` frames.

        Args:
            given: as `drawn` gives it, on the device.
            generator: on the device; None for the device's own.
        """
        clips, device = given["clips"], self.empty.device
        batch = len(clips)
        numbers, stride = windows(CLIP_FRAMES, frames, batch, device, generator)
        latents = ring.take("latents", clips, numbers).float().transpose(1, 2) * self.scale
        text = self._one_of("text", CAPTIONS, ring, clips, generator)
        style = self._one_of("style", STILLS, ring, clips, generator)[:, None] if "style" in given else None
        context = make_context(self.unet, text, self.empty, style, given)

        rows = {name: given[f"{name} rows"] for name in self.names if f"{name} rows" in given}
        counts = {name: given[f"{name} counts"] for name in rows}
        conditions = {}
        for name, row in rows.items():
            own = numbers[row] if CONDITIONS[name].kind == "temporal" else numbers[row, :1]
            sketched = name in ("sketch", "single_sketch")
            stored = ("outline", "edges") if sketched else stored_for(name)
            taken = {each: ring.take(each, clips[row], own) for each in stored}
            if sketched:
                taken = {name: torch.where(given[f"{name} by hand"].view(-1, 1, 1, 1, 1), *taken.values())}
            conditions[name] = spoiled(name, taken, stride[row], generator).transpose(1, 2)
        size = tuple(latents.shape[-2:])
        stc = embed_conditions(self.unet, conditions, rows, batch, size, frames, counts)

        spread = (torch.rand((), device=device, generator=generator) + torch.arange(batch, device=device) / batch) % 1
        timesteps = (spread * self.timesteps).long().clamp(max=self.timesteps - 1)
        noise = torch.randn(latents.shape, device=device, generator=generator)
        noisy, target = self.objective.noised(latents, noise, timesteps)
        return self.objective.losses(self.unet(noisy, timesteps, context, stc), target, latents, timesteps).mean()

    def _one_of(self, name: str, count: int, ring: Ring, clips: Tensor, generator: torch.Generator | None) -> Tensor:
        which = torch.randint(count, clips.shape, device=clips.device, generator=generator)
        return ring.take(name, clips, which[:, None])[:, 0].float()


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
    """Trains for `minutes`, or goes on with what is in `out`. The averaged weights are the run's `average`.

    Args:
        autoencoder, towers: frozen, on the device.
        start: the network to begin with, instead of fresh weights.
    """
    device, on_gpu = world.device, world.device.type == "cuda"
    torch.manual_seed(0)
    unet = UNet3D(config.unet, attend=fast_attend(device))
    initialise(unet)
    if start is not None:
        unet.load_state_dict(start.state_dict())
    # Convolutions of a GPU's tensor cores take channels last.
    unet = unet.to(device, memory_format=torch.channels_last if on_gpu else torch.preserve_format).train()
    optimizer = Muon(unet.parameters(), plan.learning_rate, weight_decay=plan.weight_decay)
    run = TimedRun(out, unet, optimizer, minutes, decay=0.9999, world=world, say=say)

    per_rank = max(plan.batch[device.type] // world.size, 1)
    capacity = max(plan.scenes[device.type] // world.size, per_rank)
    due = per_rank / plan.uses[device.type]  # new scenes a step
    drawn = int(run.more.get("drawn", run.step * due))
    make_ring = partial(Ring, autoencoder, towers, size=config.height, scale=config.extraction.condition_scale)
    ring = make_ring(TRAIN_SEED, capacity, start=drawn, rank=world.rank, ranks=world.size)
    beginning = min(max(8 * per_rank, 64), capacity)
    before = drawn + beginning - run.step * due
    empty = encode_text(towers, [""]).float()
    held_out: Ring | None = None
    generator, lots = torch.Generator(device), torch.Generator()
    tested, seen, mark = run.used, 0, run.used
    network_step = NetworkStep(unet, config, plan, empty, fixed=on_gpu)
    dtype = fast_type(device)

    def loss_of(frames: int, given: Mapping[str, Tensor]) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return network_step(ring, frames, given, None if on_gpu else generator)

    torch.manual_seed(run.step)
    replayed = Replayed(loss_of, unet, optimizer) if on_gpu else None
    for step in run:
        if not len(ring):
            ring.draw(beginning)
        ring.keep_up(before + step * due)
        run.more["drawn"] = ring.drawn
        # Of one length on all ranks, as they wait for each other.
        frames = plan.lengths[int(torch.randint(len(plan.lengths), (), generator=lots.manual_seed(step)))]
        seed = step * world.size + world.rank
        batch = per_rank * CLIP_FRAMES // frames
        given = network_step.drawn(len(ring), batch, lots.manual_seed(seed))
        if replayed is None:
            generator.manual_seed(seed)
            torch.manual_seed(seed)
            loss = loss_of(frames, given)
            norm = run.update(loss)
        else:
            loss, norm = replayed(frames, given)
            run.count(norm)
        seen += batch * frames * world.size
        if step % LOG_EVERY == LOG_EVERY - 1:
            more = {"frames_per_second": round(seen / max(run.used - mark, 1e-9), 1)}
            seen, mark = 0, run.used
            if world.main and run.used - tested > min(TEST_EVERY, run.budget / 5):
                if held_out is None:  # scenes that are never trained on
                    held_out = make_ring(TEST_SEED, 32)
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
    """The loss on the scenes of a ring, always with the same noise."""
    device, losses = step.empty.device, []
    for number in range(8):
        generator, lots = torch.Generator(device).manual_seed(number), torch.Generator().manual_seed(number)
        given = {name: tensor.to(device) for name, tensor in step.drawn(len(ring), 8, lots).items()}
        losses.append(step(ring, CLIP_FRAMES, given, generator))
    return round(torch.stack(losses).mean().item(), 5)


def keep_best(run: TimedRun, held_out: float) -> None:
    """Keeps the averaged weights that have the lowest held-out loss so far, beside the run's state.

    Raises:
        UserError: the loss is `APART` times as high as it was; what is saved are the best weights again.
    """
    path = run.out / BEST
    best = run.more.get("best", math.inf) if path.exists() else math.inf
    if held_out < best:
        run.more["best"] = held_out
        run.on_disk(lambda: save_tensors(path, run.average.state_dict()))
    elif not held_out < APART * best:
        run.return_to(load_file(path))
        raise UserError(
            f"{run.out}: the held-out loss was {best} at its best and is {held_out} now: the run has come apart. Its "
            "best weights are saved in place of the last ones: the same command goes on from them, and ./vc export "
            "writes them."
        )
