"""The training loop: what a recipe says, from the first step to the last, or from where it was interrupted."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

from training.data.domains import lengths, open_clips
from training.data.loading import load
from training.data.order import Order, RankOrder
from training.data.sample import Clips
from training.engine import Learner, checkpoints, read_state, remove_remains, step_folder
from training.frozen import Encoders, gather_parts
from training.launch import StopSignals
from training.lock import locked_by_main
from training.log import Log
from training.lora import alphas_of
from training.objective import Objective, keep_for, possible_in
from training.precision import fast_attend
from training.ranks import dealt, joined, lanes_of
from training.recipe import Recipe, as_plain
from training.start import begin
from training.step import Step
from training.validation import Stopped, validate
from vc_core.disk import make_folder, written_beside
from vc_core.errors import UserError


def train(recipe: Recipe) -> int:
    """Trains until the recipe's last step, or until a signal.

    Returns:
        The exit status: 0, or 130 and 143 where SIGINT (Ctrl-C) and SIGTERM ended the run, which is saved then.

    Raises:
        UserError: what the recipe says cannot be done; the message says why.
    """
    with joined(recipe.engine.device) as world, ExitStack() as stack:
        if recipe.engine.precision == "bf16" and world.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # of what is not autocast, such as the frozen encoders

        # --- Put together: the network and its data, the learner, and where an earlier start of this run left off -----
        out = make_folder(recipe.out)
        stack.enter_context(locked_by_main(world, out, "./vc train"))
        own = dealt(recipe, world.size) if world.shared else recipe  # what this rank takes of each step
        started = begin(own, fast_attend(world.device))
        config, unet, alphas = started.config, started.unet, alphas_of(started.unet)
        parts, size = gather_parts(own), (own.height, own.width)
        encoders = Encoders(config, parts, size, world.device, own.depth_model)
        # Told now, and not by the first sample that keeps a style: only the cache of the scenes brings embeddings.
        if any(d.kind != "synthetic" and "style" in possible_in(own, d, config.unet.inputs) for d in own.data):
            encoders.part("image")

        @cache
        def clips(domain: int) -> Mapping[int, Clips]:
            return open_clips(own.data[domain], size, config, parts, say_progress, own.out)

        # The first process of each machine fills caches and makes indices, and the others find them.
        for domain in range(len(own.data)) if world.first_here else ():
            clips(domain)
        world.wait()
        learner = Learner(unet, Step(unet, encoders, Objective(config.diffusion, own.loss), own), recipe, world)
        state = resume(learner, recipe)
        log = Log(out, recipe, world, config.diffusion.steps, learner.steps, state["seconds"])
        stack.callback(log.leave)
        tell_start(log, learner, state, started.fresh)

        # How many samples of each domain were taken, by all ranks: with the seed, that is all there is to know of
        # the data, as every sample and all that is random of it is a function of its number.
        taken, streams = state["samples"], {}
        lanes = lanes_of(world.rank, world.size, [domain.ranks for domain in recipe.data])
        for lane in lanes:
            domain, of = own.data[lane.domain], clips(lane.domain)
            frames = lengths(domain)
            order = Order(own.seed, len(of[frames[0]]), lane.domain, len(own.data))
            share = RankOrder(order, frames, domain.batch, lane.rank, lane.ranks, own.optimizer.accumulate)
            keep = keep_for(own, domain, config.unet.inputs)
            streams[lane] = load(of, share, keep, taken[lane.domain], own.engine.workers, domain.max_bad)

        # --- Learn ----------------------------------------------------------------------------------------------------
        came = 0
        log.skip_time()
        with StopSignals() as signals:
            while learner.steps < recipe.steps and not came:
                # One rank of several reads its domain; one that is alone reads all of them in turn.
                batches = [(lane, next(streams[lane])) for lane in lanes for _ in range(own.optimizer.accumulate)]
                norms, outcomes = learner.update(batches)
                for lane, batch in batches:
                    taken[lane.domain] = batch.after
                log.take(batches, outcomes)

                # A signal may reach one rank alone, or the ranks in different steps: all leave in the same one.
                came = world.most(signals.came)
                last = learner.steps == recipe.steps or came > 0
                logs = last or learner.steps % recipe.watch.log_every == 0
                saves = last or learner.steps % recipe.engine.save_every == 0
                if logs or saves:
                    taken = [world.most(count) for count in taken]  # a rank knows it of its own domain alone
                if logs:
                    log.write(learner.steps, norms, learner.rates_now, samples=taken)
                if saves:
                    learner.save(out, {"config": config.to_json(), "samples": taken, "seconds": log.seconds})
                    log.skip_time()
                if recipe.watch.validate_every and learner.steps % recipe.watch.validate_every == 0 and not came:
                    weights = learner.weights()  # of which all ranks have a part
                    if world.main:
                        with suppress(Stopped):
                            validate(own, encoders, weights, alphas, clips(0), learner.steps, log, signals)
                    world.wait()
                    log.skip_time()

        log.close()
        if world.main:
            where = checkpoints(out)[-1]
            if came:
                name = signal.Signals(came).name
                print(f"vc: stopped by {name}; saved {where}. The same command goes on from there.")
            else:
                print(f"vc: {where} is done. ./vc export {out} -o FILE.safetensors makes a checkpoint of it.")
    return 128 + came if came else 0


def say_progress(what: str, done: int, total: int) -> None:
    print(f"vc: {what}: {done} of {total}", flush=True)


# --- Going on -------------------------------------------------------------------------------------------------------


def resume(learner: Learner, recipe: Recipe) -> dict[str, Any]:
    """Loads the run's last checkpoint, where there is one. Returns what it says, or the same of a beginning."""
    out, world, plain = Path(recipe.out), learner.world, as_plain(recipe)
    if world.main:
        remove_remains(out)
    state = {"samples": [0] * len(recipe.data), "seconds": 0.0, "recipe": plain}
    step = max((int(path.name[5:]) for path in checkpoints(out)), default=0)
    if last := world.most(step):  # the same on all ranks, whatever a slow disk shows each of them
        folder = step_folder(out, last)
        domains = len(read_state(folder)["samples"])
        if domains != len(recipe.data):
            raise UserError(
                f"{out} is a run on {domains} domains, and the recipe has {len(recipe.data)}: give another folder with "
                "--out."
            )
        state = learner.load(folder)
    if world.main:  # only now: a start that is refused changes nothing
        import yaml

        with written_beside(out / "recipe.yaml") as part:
            part.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
    world.wait()
    return state


def tell_start(log: Log, learner: Learner, state: Mapping[str, Any], fresh: Sequence[str] = ()) -> None:
    """Says what is trained, from where, and by what of the recipe that is not as it was."""
    recipe, world = learner.recipe, learner.world
    trained, total = (sum(p.numel() for p in of) / 1e6 for of in (learner.trained.values(), learner.unet.parameters()))
    ranks = f"{world.size} ranks ({recipe.engine.parallel})" if world.size > 1 else "1 process"
    log.say(f"{trained:.4g} M of {total:.4g} M parameters train, on {ranks}, {world.device.type}")
    if recipe.engine.precision == "bf16" and not learner.mixed:
        log.say(f"computing in fp32: bf16 is for CUDA, and this is {world.device.type}")
    if fresh and not learner.steps:
        log.say(f"starting fresh: {', '.join(fresh)}")
    if learner.steps:
        log.say(f"going on from step {learner.steps} in {recipe.out}")
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
