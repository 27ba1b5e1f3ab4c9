"""A tiny network that learns from random samples, on one rank or several, for the tests of the engine.

As a program, `python ranks.py FOLDER NAME...` with torchrun's variables: runs some of `SCENARIOS` on its ranks and
writes the resulting weights to FOLDER.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from training.data.order import Order, RankOrder, generator_for
from training.data.sample import Batch, Sample
from training.engine import Learner, checkpoints
from training.ranks import joined, lanes_of
from training.recipe import Domain, Engine, Optimizer, Recipe, Start
from training.start import choose_parameters
from training.step import leave_out_for_images
from vc_core.config import UNetConfig
from vc_core.model.unet import UNet3D

CONFIG = UNetConfig(
    width=32, multipliers=(1, 1), res_blocks=1, attention_levels=(1,), head_dim=16, temporal_in_heads=1, context_dim=16,
    dropout=0.0, stc_dropout=0.0, conditions=("motion", "depth"),
)  # fmt: skip
CHANNELS = {"motion": 2, "depth": 1}
SIZE = 4
STEPS = 2


def make_recipe(batches=(2,), frames=(3,), ranks=None, **optimizer):
    ratios = ranks or [1] * len(batches)
    data = [Domain(batch=b, frames=f, ranks=r, weight=1.0 + i) for i, (b, f, r) in
            enumerate(zip(batches, frames, ratios, strict=True))]  # fmt: skip
    settings = {"learning_rate": 1e-3, "warmup": 0, "ema": 0.9, **optimizer}
    return Recipe(start=Start(), steps=100, data=tuple(data), optimizer=Optimizer(**settings),
                  engine=Engine(device="cpu"))  # fmt: skip


def make_unet(dtype=torch.float64):
    torch.manual_seed(0)
    return leave_out_for_images(UNet3D(CONFIG)).to(dtype)


def make_batch(recipe, slot, order, dtype=torch.float64, clips=None):
    """Samples that depend on their numbers. Every third keeps the motion, every second the depth."""
    numbers = [order.number(count) for count in slot.counts]
    samples, kept = [], {"motion": torch.tensor([n % 3 == 0 for n in numbers]),
                         "depth": torch.tensor([n % 2 == 0 for n in numbers])}  # fmt: skip
    for number in numbers:
        clip = number if clips is None else number % clips
        draw = generator_for(recipe.seed, clip, "sample")
        latents = torch.randn(4, slot.frames, SIZE, SIZE, generator=draw).to(dtype)
        tokens = torch.randn(5, CONFIG.context_dim, generator=draw).to(dtype)
        large = {n: torch.randn(c, slot.frames, 4 * SIZE, 4 * SIZE, generator=draw) for n, c in CHANNELS.items()}
        samples.append(Sample(str(clip), latents=latents, text_tokens=tokens,
                              conditions={n: t.to(dtype) for n, t in large.items()}))  # fmt: skip
    return Batch(samples, kept, numbers, slot.after)


class Step:
    """A loss like the real one, without its encoders. `seen` are the samples' numbers."""

    def __init__(self, unet, seed=0):
        self.unet, self.seed, self.seen = unet, seed, []

    def __call__(self, batch):
        self.seen += batch.numbers
        latents = torch.stack([sample.latents for sample in batch.samples])
        context = torch.stack([sample.text_tokens for sample in batch.samples])
        draws = [generator_for(self.seed, number, "noise") for number in batch.numbers]
        timesteps = torch.stack([torch.randint(1000, (), generator=draw) for draw in draws])
        noise = torch.stack([torch.randn(latents.shape[1:], generator=draw) for draw in draws]).to(latents)
        stc = latents.new_zeros(len(latents), CONFIG.stc_channels, *latents.shape[2:])
        for name in CONFIG.conditions:
            rows = batch.rows(name)
            if rows:
                tensor = torch.stack([batch.samples[row].conditions[name] for row in rows])
                embedding = self.unet.encode_condition(name, tensor, (SIZE, SIZE)).to(stc)
                stc = stc.index_add(0, torch.tensor(rows), embedding)
        noisy = 0.6 * latents + 0.8 * noise
        context = self.unet.encode_style(context)
        losses = (self.unet(noisy, timesteps, context, stc) - noise).square().mean((1, 2, 3, 4))
        return losses, timesteps


class Run:
    """A few steps of a recipe, from the start or from a checkpoint."""

    def __init__(self, recipe, world, dtype=torch.float64, clips=None):
        unet = make_unet(dtype)
        choose_parameters(unet, recipe)
        self.step = Step(unet, recipe.seed)
        self.engine = Learner(unet, self.step, recipe, world)
        self.recipe, self.dtype, self.clips = recipe, dtype, clips
        self.lanes = lanes_of(world.rank, world.size, [domain.ranks for domain in recipe.data])
        self.counts = [0] * len(recipe.data)

    def learn(self, steps=STEPS):
        """Run some steps. Returns the norms and the mean losses on this rank, one of each per step."""
        norms, means = [], []
        for _ in range(steps):
            batches = []
            for lane in self.lanes:
                domain = self.recipe.data[lane.domain]
                order = Order(self.recipe.seed, 1000, lane.domain, len(self.recipe.data))
                own = RankOrder(order, (domain.frames,), domain.batch, lane.rank, lane.ranks,
                                self.recipe.optimizer.accumulate)  # fmt: skip
                slots = own.step(self.counts[lane.domain])
                batches += [(lane, make_batch(self.recipe, s, order, self.dtype, self.clips)) for s in slots]
                self.counts[lane.domain] = slots[-1].after
            step_norms, outcomes = self.engine.update(batches)
            norms.append(step_norms["all"])
            means.append(float(torch.cat([losses for losses, _ in outcomes]).mean()))
        return norms, means

    def save(self, out):
        return self.engine.save(out, {"counts": self.counts})

    def load(self, out):
        self.counts = self.engine.load(checkpoints(out)[-1])["counts"]


TWO, FOUR = make_recipe(), make_recipe(batches=(1,))
IMAGES = make_recipe(batches=(2, 3), frames=(3, 1))
SCENARIOS = {
    "ddp": TWO,
    "accumulated": replace(make_recipe(batches=(1,)), optimizer=replace(TWO.optimizer, accumulate=2)),
    "fsdp2": replace(TWO, engine=replace(TWO.engine, parallel="fsdp2")),
    "fsdp2_accumulated": replace(make_recipe(batches=(1,)), optimizer=replace(TWO.optimizer, accumulate=2),
                                 engine=replace(TWO.engine, parallel="fsdp2", checkpointing=True)),
    "hsdp": replace(TWO, engine=replace(TWO.engine, parallel="hsdp")),
    "fsdp2_four": replace(FOUR, engine=replace(FOUR.engine, parallel="fsdp2")),
    "hsdp_four": replace(FOUR, engine=replace(FOUR.engine, parallel="hsdp")),
    "bf16": replace(TWO, engine=replace(TWO.engine, weights="bf16")),
    "images": IMAGES,
    "images_fsdp2": replace(IMAGES, engine=replace(IMAGES.engine, parallel="fsdp2")),
}  # fmt: skip
SAVED = ("fsdp2", "fsdp2_four", "hsdp_four")
"""Scenarios that save a checkpoint."""


def main(folder, names):
    with joined("cpu") as world:
        torch.save(world.gathered([f"bad on rank {world.rank}"]), folder / f"gathered.{world.rank}.pt")
        for name in names:
            # Autocast, which weights in bf16 require, does not convert float64.
            run = Run(SCENARIOS[name], world, torch.float32 if name == "bf16" else torch.float64)
            norms, _ = run.learn()
            if name in SAVED:
                run.save(folder / name)
            weights = {"weights": run.engine.weights(False), "average": run.engine.weights(), "norms": norms}
            parameters = [p.to_local() if isinstance(p, DTensor) else p for p in run.engine.unet.parameters()]
            state = {"seen": run.step.seen, "elements": sum(p.numel() for p in parameters),
                     "sum": float(sum(p.detach().double().abs().sum() for p in parameters))}  # fmt: skip
            torch.save(state, folder / f"{name}.{world.rank}.pt")
            if world.main:
                torch.save(weights, folder / f"{name}.pt")
        if "fsdp2" in names:
            resumed = Run(SCENARIOS["fsdp2"], world)  # a checkpoint of one rank, loaded by two
            resumed.load(folder / "one")
            resumed.learn()
            weights = resumed.engine.weights(False)
            if world.main:
                torch.save(weights, folder / "resumed.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
