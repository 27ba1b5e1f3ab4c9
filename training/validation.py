"""Videos that show where a run is: from fixed seeds, by the averaged weights, through `compose()`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from training.data.sample import BadSample, Clips, Sample
from training.data.sampler import generator_for
from training.encoders import Encoders
from training.log import Log
from training.lora import merge_lora, network_of
from training.objective import possible_names
from training.recipe import Recipe
from vc_core.conditions import ANNOTATED, Condition
from vc_core.disk import make_folder
from vc_core.pipeline import compose
from vc_core.video import write_video


class Stopped(Exception):
    """Validation was told to stop."""


def validate(
    recipe: Recipe,
    encoders: Encoders,
    weights: Mapping[str, Tensor],
    alphas: Mapping[str, float],
    clips: Mapping[int, Clips],
    folder: Path,
    log: Log,
    stop: Callable[[], bool] = lambda: False,
) -> list[Path]:
    """Composes the recipe's prompts, and the conditions of some samples, each with every seed. Returns the files.

    Args:
        weights: the network's, as `Engine.weights` gives them.
        alphas: of its LoRA, see `training.lora.network_of`.
        clips: the first domain's; its first samples' conditions are used, but for those that a network has to make.
        folder: where the videos go, as `0-seed0.mp4` for the prompts and `sample0-seed0.mp4`.
        stop: asked at every step of sampling.

    Raises:
        Stopped: when `stop` said so.
    """

    def report(*_: object) -> None:
        if stop():
            raise Stopped

    config, watch = encoders.config, recipe.watch
    unet = network_of(config, weights, alphas)
    merge_lora(unet)
    composer = encoders.composer(unet.eval().requires_grad_(False).to(encoders.device))
    make_folder(folder)
    wanted = [(str(number), prompt, ()) for number, prompt in enumerate(watch.prompts)]
    longest = max(clips)
    left_out = {*ANNOTATED, *recipe.data[0].without}
    possible = [n for n in possible_names(recipe.stage, longest, config.unet.conditions) if n not in left_out]
    for index in range(min(watch.samples, len(clips[longest]))):
        try:
            sample = clips[longest].sample(index, set(possible), generator_for(recipe.seed, index, "validation"))
        except BadSample as reason:
            log.say(f"no validation by sample {index}: {reason}")
            continue
        wanted.append((f"sample{index}", sample.text, conditions_of(sample)))
    made = []
    for name, text, conditions in wanted:
        for seed in watch.seeds:
            # Of images too a video is composed, where nothing says how they move.
            frames = longest if conditions else config.frames
            video = compose(composer, text, conditions=conditions, frames=frames, seed=seed, progress=report)
            made.append(write_video(folder / f"{name}-seed{seed}.mp4", video, config.rate))
            log.video(f"validation/{name}-seed{seed}", video[0], int(folder.name.rpartition("-")[2]))
    if encoders.device.type == "cuda":
        del composer
        torch.cuda.empty_cache()
    return made


def conditions_of(sample: Sample) -> tuple[Condition, ...]:
    """A sample's conditions as `compose()` takes them."""
    return tuple(Condition(name, tensor[None].float()) for name, tensor in sample.conditions.items())
