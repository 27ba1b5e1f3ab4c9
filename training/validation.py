"""Validation videos that show a run's progress: from fixed seeds, with the averaged weights, by `compose()`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from training.data.order import generator_for
from training.data.sample import BadSample, Clips
from training.frozen import Encoders
from training.launch import StopSignals
from training.log import Log
from training.lora import merge_lora, network_of
from training.objective import possible_in
from training.recipe import Recipe
from vc_core.checkpoint.reading import Checkpoint
from vc_core.composer import VideoComposer
from vc_core.conditions import ANNOTATED, Condition
from vc_core.disk import make_folder
from vc_core.pipeline import compose
from vc_core.video import write_video


class Stopped(Exception):
    """Validation was stopped by a signal."""


def validate(
    recipe: Recipe,
    encoders: Encoders,
    weights: Mapping[str, Tensor],
    alphas: Mapping[str, float],
    clips: Mapping[int, Clips],
    step: int,
    log: Log,
    signals: StopSignals,
) -> None:
    """Compose videos from the recipe's prompts and from the conditions of some samples, with every seed, and write them
    to `validation/step-N/0-seed0.mp4` and `sample0-seed0.mp4` in the run's folder.

    Args:
        weights: the network's weights, from `Learner.weights`.
        alphas: of its LoRA, see `training.lora.network_of`.
        clips: of the first domain. Conditions of its first samples are used, except those that need a network.
        signals: a signal stops the validation within one sampling step.

    Raises:
        Stopped: a signal arrived.
    """

    def report(*_: object) -> None:
        if signals.came:
            raise Stopped

    config, watch, device = encoders.config, recipe.watch, encoders.device
    unet = network_of(config, weights, alphas)
    merge_lora(unet)
    unet = unet.eval().requires_grad_(False).to(device)
    checkpoint = Checkpoint(Path(encoders.part("vae").tensors.source), config, encoders.parts)
    composer = VideoComposer(config, unet, encoders.autoencoder, encoders.towers, checkpoint, device, torch.float32)
    folder = make_folder(recipe.out / "validation" / f"step-{step:08d}")
    videos = [(str(number), prompt, ()) for number, prompt in enumerate(watch.prompts)]
    longest = max(clips)
    possible = possible_in(recipe, recipe.data[0], config.unet.inputs) - set(ANNOTATED)
    for index in range(min(watch.samples, len(clips[longest]))):
        try:
            sample = clips[longest].sample(index, possible, generator_for(recipe.seed, index, "validation"))
        except BadSample as reason:
            log.say(f"no validation video from sample {index}: {reason}")
            continue
        conditions = tuple(Condition(name, tensor[None].float()) for name, tensor in sample.conditions.items())
        videos.append((f"sample{index}", sample.text, conditions))
    for name, text, conditions in videos:
        for seed in watch.seeds:
            # Without conditions, compose a video even if the run trains on images.
            frames = longest if conditions else config.frames
            video = compose(composer, text, conditions=conditions, frames=frames, seed=seed, progress=report)
            write_video(folder / f"{name}-seed{seed}.mp4", video, config.rate)
            log.video(f"validation/{name}-seed{seed}", video[0], step)
    if device.type == "cuda":
        del composer, unet
        torch.cuda.empty_cache()
