"""The training loop: trains by a recipe from the first step, or from where the run was interrupted, to the last."""

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
from training.distillation import ConsistencyStep
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
from training.start import begin, check_downloads
from training.step import Step
from training.validation import Stopped, validate
from vc_core.disk import make_folder, written_beside
from vc_core.errors import UserError, counted


def train(recipe: Recipe) -> int:
    """Train until the recipe's last step, or until a signal.

    Returns:
        The exit status: 0, or 130 or 143 if SIGINT (Ctrl-C) or SIGTERM ended the run; the run is then saved.

    Raises:
        UserError: the recipe cannot be run; the message says why.
    """
    check_downloads(recipe)
    with joined(recipe.engine.device) as world, ExitStack() as stack:
        if recipe.engine.precision == "bf16" and world.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # for code without autocast, such as frozen encoders

        # --- Set up: the network and its data, the learner, and the last checkpoint of an earlier start --------------
        out = make_folder(recipe.out)
        stack.enter_context(locked_by_main(world, out, "./vc train"))
        own = dealt(recipe, world.size) if world.shared else recipe  # this rank's part of each step
        started = begin(own, fast_attend(world.device))
        config, unet, alphas = started.config, started.unet, alphas_of(started.unet)
        parts, size = gather_parts(own), (own.height, own.width)
        encoders = Encoders(config, parts, size, world.device, own.depth_model)
        # Fail now, and not at the first sample that keeps a style: only the scenes' cache contains style embeddings.
        if any(d.kind != "synthetic" and "style" in possible_in(own, d, config.unet.inputs) for d in own.data):
            encoders.part("image")
        extracted = [possible_in(own, d, config.unet.inputs) for d in own.data if d.kind == "folder"]
        noise = torch.Generator().manual_seed(0)  # not torch's own, on which dropout depends
        for name in ("depth", "sketch", "single_sketch"):
            if any(name in names for names in extracted):
                encoders.condition(name, torch.rand(1, 3, 1, *size, generator=noise))  # loads its network

        @cache
        def clips(domain: int) -> Mapping[int, Clips]:
            return open_clips(own.data[domain], size, config, parts, print_progress, own.out)

        # The first process of each machine fills caches and writes indices; the others then read them.
        for domain in range(len(own.data)) if world.first_here else ():
            clips(domain)
        world.wait()
        if own.distils:
            step = ConsistencyStep(unet, encoders, own, started.guidance)
            learner = Learner(unet, step, recipe, world)
            step.attach(learner)
        else:
            learner = Learner(unet, Step(unet, encoders, Objective(config.diffusion, own.loss), own), recipe, world)
        state = resume(learner, recipe)
        log = Log(out, recipe, world, config.diffusion.steps, learner.steps, state["seconds"])
        stack.callback(log.leave)
        report_start(log, learner, state, started.fresh)

        # The number of samples of each domain that all ranks have used. With the seed, this is the complete position
        # in the data, because every sample and its random values depend only on its number.
        used, streams = state["samples"], {}
        lanes = lanes_of(world.rank, world.size, [domain.ranks for domain in recipe.data])
        for lane in lanes:
            domain, by_length = own.data[lane.domain], clips(lane.domain)
            frames = lengths(domain)
            order = Order(own.seed, len(by_length[frames[0]]), lane.domain, len(own.data))
            part = RankOrder(order, frames, domain.batch, lane.rank, lane.ranks, own.optimizer.accumulate)
            keep = keep_for(own, domain, config.unet.inputs)
            streams[lane] = load(by_length, part, keep, used[lane.domain], own.engine.workers, domain.max_bad)

        # --- Learn ----------------------------------------------------------------------------------------------------
        stop = 0
        log.skip_time()
        with StopSignals() as signals:
            while learner.steps < recipe.steps and not stop:
                # One of several ranks reads one domain; a single process reads all of them in turn.
                batches = [(lane, next(streams[lane])) for lane in lanes for _ in range(own.optimizer.accumulate)]
                norms, outcomes = learner.update(batches)
                for lane, batch in batches:
                    used[lane.domain] = batch.after
                log.take(batches, outcomes)

                # A signal may reach only one rank, or the ranks in different steps; they must all stop in the same.
                stop = world.most(signals.came)
                last = learner.steps == recipe.steps or stop > 0
                logs = last or learner.steps % recipe.watch.log_every == 0
                saves = last or learner.steps % recipe.engine.save_every == 0
                if logs or saves:
                    used = [world.most(count) for count in used]  # a rank counts only its own domain
                if logs:
                    log.write(learner.steps, norms, learner.rates_now, samples=used)
                if saves:
                    learner.save(out, {"config": config.to_json(), "samples": used, "seconds": log.seconds})
                    log.skip_time()
                if recipe.watch.validate_every and learner.steps % recipe.watch.validate_every == 0 and not stop:
                    weights = learner.weights()  # on all ranks, because each may have only a shard
                    if world.main:
                        with suppress(Stopped):
                            validate(own, encoders, weights, alphas, clips(0), learner.steps, log, signals)
                    world.wait()
                    log.skip_time()

        log.close()
        if world.main:
            checkpoint = checkpoints(out)[-1]
            if stop:
                name = signal.Signals(stop).name
                print(f"vc: stopped by {name}; saved {checkpoint}. Run the same command to continue.")
            else:
                print(f"vc: {checkpoint} is complete. Export it with: ./vc export {out} -o FILE.safetensors")
    return 128 + stop if stop else 0


def print_progress(what: str, done: int, total: int) -> None:
    print(f"vc: {what}: {done} of {total}", flush=True)


# --- Resuming -------------------------------------------------------------------------------------------------------


def resume(learner: Learner, recipe: Recipe) -> dict[str, Any]:
    """Load the run's last checkpoint, if there is one. Returns its state, or the state of a new run."""
    out, world, plain = Path(recipe.out), learner.world, as_plain(recipe)
    if world.main:
        remove_remains(out)
    state = {"samples": [0] * len(recipe.data), "seconds": 0.0, "recipe": plain}
    step = max((int(path.name[5:]) for path in checkpoints(out)), default=0)
    if last := world.most(step):  # the same on all ranks, even if a network disk shows different files
        folder = step_folder(out, last)
        domains = len(read_state(folder)["samples"])
        if domains != len(recipe.data):
            raise UserError(
                f"The run in {out} has {counted(domains, 'domain')}, but the recipe has {len(recipe.data)}. Pass "
                "another folder with --out."
            )
        state = learner.load(folder)
    if world.main:  # not earlier, so that a refused start changes nothing
        import yaml

        with written_beside(out / "recipe.yaml") as part:
            part.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
    world.wait()
    return state


def report_start(log: Log, learner: Learner, state: Mapping[str, Any], fresh: Sequence[str] = ()) -> None:
    """Print what is trained, where the run starts, and what has changed in its recipe."""
    recipe, world = learner.recipe, learner.world
    trained, total = (sum(p.numel() for p in of) / 1e6 for of in (learner.trained.values(), learner.unet.parameters()))
    ranks = f"{world.size} ranks ({recipe.engine.parallel})" if world.size > 1 else "1 process"
    log.say(f"training {trained:.4g} M of {total:.4g} M parameters on {ranks}, {world.device.type}")
    if recipe.engine.precision == "bf16" and not learner.mixed:
        log.say(f"using fp32, because bf16 requires CUDA and the device is {world.device.type}")
    if fresh and not learner.steps:
        log.say(f"new weights: {', '.join(fresh)}")
    if learner.steps:
        log.say(f"continuing from step {learner.steps} in {recipe.out}")
        for name, (before, now) in changed(state["recipe"], as_plain(recipe)).items():
            log.say(f"{name} changed from {before} to {now}")


def changed(before: Any, now: Any, where: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the differences of two plain recipes: name -> (before, now)."""
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        before, now = dict(enumerate(before)), dict(enumerate(now))
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return {} if before == now else {where: (before, now)}
    result: dict[str, tuple[Any, Any]] = {}
    for key in {**before, **now}:
        result |= changed(before.get(key), now.get(key), f"{where}.{key}" if where else str(key))
    return result
