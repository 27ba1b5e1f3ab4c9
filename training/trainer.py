"""The training loop: what a recipe says, from the first step to the last, or from where it was interrupted."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.data.loading import load
from training.data.opening import lengths, open_clips
from training.data.sample import Batch, Clips
from training.data.sampler import Order, Share
from training.encoders import Encoders, gather_parts
from training.engine import Engine, Outcome, checkpoints, last_step, read_state, remove_remains, step_folder
from training.lock import held_by
from training.log import Log
from training.lora import alphas_of
from training.objective import Objective, keep_for, possible_in
from training.parameters import choose_parameters
from training.precision import fast_attend
from training.ranks import Lane, World, dealt, joined, lanes_of
from training.recipe import Recipe, as_plain
from training.start import begin
from training.step import Step
from training.validation import Stopped, validate
from vc_core.atomic import written_beside
from vc_core.config import Config
from vc_core.disk import make_folder
from vc_core.errors import UserError
from vc_core.model.unet import UNet3D


@dataclass(frozen=True)
class Parts:
    """What a run is put together from.

    Attributes:
        config: of the network.
        unet: with its initial weights; what trains requires gradients.
        step: a batch's loss.
        batches: from a lane, and how many samples of its domain were taken, its batches from there on.
        validate: from the network's weights, the folder for videos, the log, and whether to stop; on the main rank.
        fresh: what the file that the run starts from lacks, in words.
    """

    config: Config
    unet: UNet3D
    step: Callable[[Batch], Outcome]
    batches: Callable[[Lane, int], Iterator[Batch]]
    validate: Callable[[Mapping[str, Tensor], Path, Log, Callable[[], bool]], Any]
    fresh: tuple[str, ...] = ()


def train(recipe: Recipe, assemble: Callable[[Recipe, World], Parts] | None = None) -> int:
    """Trains until the recipe's last step, or until a signal.

    Args:
        assemble: puts the parts together; by default `assembled`.

    Returns:
        The exit status: 0, or 130 and 143 where SIGINT (Ctrl-C) and SIGTERM ended the run, which is saved then.

    Raises:
        UserError: what the recipe says cannot be done; the message says why.
    """
    with joined(recipe.engine.device) as world, ExitStack() as stack:
        if recipe.engine.precision == "bf16" and world.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # of what is not autocast, such as the frozen encoders

        # --- Put together: the network and its data, the engine, and where an earlier start of this run left off ------
        stack.enter_context(held_by(world, make_folder(recipe.out), "./vc train"))
        own = dealt(recipe, world.size) if world.shared else recipe  # what this rank takes of each step
        parts = (assemble or assembled)(own, world)
        engine = Engine(parts.unet, parts.step, recipe, world)
        state = resume(engine, recipe)
        log = Log(recipe.out, recipe, world, parts.config.diffusion.steps, engine.steps, state["seconds"])
        stack.callback(log.leave)
        tell_start(log, engine, state, parts.fresh)

        # How many samples of each domain were taken, by all ranks: with the seed, that is all there is to know of
        # the data, as every sample and all that is random of it is a function of its number.
        taken = state["samples"]
        lanes = lanes_of(world.rank, world.size, [domain.ranks for domain in recipe.data])
        streams = {lane: parts.batches(lane, taken[lane.domain]) for lane in lanes}

        # --- Learn ----------------------------------------------------------------------------------------------------
        came = 0
        log.skip_time()
        with StopSignals() as signals:
            while engine.steps < recipe.steps and not came:
                # One rank of several reads its domain; one that is alone reads all of them in turn.
                batches = [(lane, next(streams[lane])) for lane in lanes for _ in range(own.optimizer.accumulate)]
                norms, told = engine.update(batches)
                for lane, batch in batches:
                    taken[lane.domain] = batch.after
                log.take(told, [reason for _, batch in batches for reason in batch.bad])

                # A signal may reach one rank alone, or the ranks in different steps: all leave in the same one.
                came = world.most(signals.came)
                last = engine.steps == recipe.steps or came > 0
                if last or engine.steps % recipe.watch.log_every == 0:
                    taken = shared_counts(taken, world)
                    log.write(engine.steps, norms, engine.rates_now, samples=taken)
                if last or engine.steps % recipe.engine.save_every == 0:
                    taken = shared_counts(taken, world)
                    engine.save(recipe.out, {**kept(recipe, parts.config), "samples": taken, "seconds": log.seconds})
                    log.skip_time()
                if recipe.watch.validate_every and engine.steps % recipe.watch.validate_every == 0 and not came:
                    weights = engine.weights()  # of which all ranks have a part
                    folder = Path(recipe.out) / "validation" / f"step-{engine.steps:08d}"
                    if world.main:
                        with suppress(Stopped):
                            parts.validate(weights, folder, log, lambda: signals.came > 0)
                    world.wait()
                    log.skip_time()

        log.close()
        if world.main:
            where = checkpoints(recipe.out)[-1]
            if came:
                name = signal.Signals(came).name
                print(f"vc: stopped by {name}; saved {where}. The same command goes on from there.")
            else:
                print(f"vc: {where} is done. ./vc export {recipe.out} -o FILE.safetensors makes a checkpoint of it.")
    return 128 + came if came else 0


# --- Putting together -----------------------------------------------------------------------------------------------


def assembled(recipe: Recipe, world: World) -> Parts:
    """The parts of a recipe."""
    started = begin(recipe, fast_attend(world.device))
    config, unet = started.config, started.unet
    choose_parameters(unet, recipe)
    alphas = alphas_of(unet)
    own_parts, size = gather_parts(recipe), (recipe.height, recipe.width)
    encoders = Encoders(config, own_parts, size, world.device, depth_model=recipe.depth_model)
    # Told now, and not by the first sample that keeps a style: only the cache of the scenes brings embeddings.
    if any(domain.kind != "synthetic" and "style" in possible_in(recipe, domain, config.unet.conditions)
           for domain in recipe.data):  # fmt: skip
        encoders.part("image")
    opened: dict[int, Mapping[int, Clips]] = {}

    def clips(domain: int) -> Mapping[int, Clips]:
        if domain not in opened:
            opened[domain] = open_clips(recipe.data[domain], size, config, own_parts, say_progress, recipe.out)
        return opened[domain]

    def batches(lane: Lane, count: int) -> Iterator[Batch]:
        domain = recipe.data[lane.domain]
        frames = lengths(domain)
        order = Order(recipe.seed, len(clips(lane.domain)[frames[0]]), lane.domain, len(recipe.data))
        share = Share(order, frames, domain.batch, lane.rank, lane.ranks, recipe.optimizer.accumulate)
        keep = keep_for(recipe, domain, config.unet.conditions)
        return load(clips(lane.domain), share, keep, count, recipe.engine.workers, domain.max_bad)

    # The first process of each machine fills caches and makes indices, and the others find them.
    if world.first_here:
        for domain in range(len(recipe.data)):
            clips(domain)
    world.wait()
    step = Step(unet, encoders, Objective(config.diffusion, recipe.loss), recipe)
    return Parts(
        config, unet, step, batches,
        lambda weights, *how: validate(recipe, encoders, weights, alphas, clips(0), *how), started.fresh,
    )  # fmt: skip


def say_progress(what: str, done: int, total: int) -> None:
    print(f"vc: {what}: {done} of {total}", flush=True)


# --- Going on -------------------------------------------------------------------------------------------------------


def kept(recipe: Recipe, config: Config) -> dict[str, Any]:
    """What a checkpoint says of the run beside its tensors."""
    return {"recipe": as_plain(recipe), "config": config.to_json()}


def resume(engine: Engine, recipe: Recipe) -> dict[str, Any]:
    """Loads the run's last checkpoint, where there is one. Returns what it says, or the same of a beginning."""
    out = Path(recipe.out)
    if engine.world.main:
        remove_remains(out)
    state = {"samples": [0] * len(recipe.data), "seconds": 0.0, "recipe": as_plain(recipe)}
    if last := engine.world.most(last_step(out)):  # the same on all ranks, whatever a slow disk shows each of them
        folder = step_folder(out, last)
        domains = len(read_state(folder)["samples"])
        if domains != len(recipe.data):
            raise UserError(f"{out} is a run on {domains} domains, and the recipe has {len(recipe.data)}: give another "
                            "folder with --out.")  # fmt: skip
        state = engine.load(folder)
    if engine.world.main:  # only now: a start that is refused changes nothing
        write_recipe(out / "recipe.yaml", recipe)
    engine.world.wait()
    return state


def tell_start(log: Log, engine: Engine, state: Mapping[str, Any], fresh: Sequence[str] = ()) -> None:
    """Says what is trained, from where, and by what of the recipe that is not as it was."""
    recipe, world = engine.recipe, engine.world
    trained = sum(parameter.numel() for parameter in engine.trained.values())
    total = sum(parameter.numel() for parameter in engine.unet.parameters())
    ranks = f"{world.size} ranks ({recipe.engine.parallel})" if world.size > 1 else "1 process"
    log.say(f"{trained / 1e6:.4g} M of {total / 1e6:.4g} M parameters train, on {ranks}, {world.device.type}")
    if recipe.engine.precision == "bf16" and not engine.mixed:
        log.say(f"computing in fp32: bf16 is for CUDA, and this is {world.device.type}")
    if fresh and not engine.steps:
        log.say(f"starting fresh: {', '.join(fresh)}")
    if engine.steps:
        log.say(f"going on from step {engine.steps} in {recipe.out}")
        for name, (before, now) in changed(state["recipe"], as_plain(recipe)).items():
            log.say(f"{name} was {before} until here, and is {now} now")


def changed(before: Any, now: Any, where: str = "") -> dict[str, tuple[Any, Any]]:
    """What differs of two plain recipes, by name."""
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        before, now = dict(enumerate(before)), dict(enumerate(now))
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return {} if before == now else {where: (before, now)}
    found: dict[str, tuple[Any, Any]] = {}
    for key in {**before, **now}:
        found |= changed(before.get(key), now.get(key), f"{where}.{key}" if where else str(key))
    return found


def shared_counts(taken: list[int], world: World) -> list[int]:
    """How many samples of each domain were taken: a rank knows it of its own domain alone."""
    return [world.most(count) for count in taken]


def write_recipe(path: Path, recipe: Recipe) -> None:
    import yaml

    with written_beside(path) as part:
        part.write_text(yaml.safe_dump(as_plain(recipe), sort_keys=False, allow_unicode=True), encoding="utf-8")


class StopSignals:
    """Notes SIGINT and SIGTERM instead of dying of them; a second SIGINT interrupts at once.

    Attributes:
        came: the signal's number, or 0.
    """

    def __init__(self) -> None:
        self.came, self._process = 0, os.getpid()

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        if os.getpid() != self._process:  # one that reads samples, and has inherited this until it begins
            return
        if self.came == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.came = number
