"""Writes what a run has learned into one file that the nodes and `./vc compose` load: `./vc export RUN -o FILE`.

Of a LoRA's run it is the LoRA, for ComfyUI's LoRA loaders; of another the network with the autoencoder and the towers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from training.bundled import export as files
from training.engine import checkpoints, read_state, read_weights
from training.frozen import gather_parts
from training.lora import alphas_of, merge_lora, network_of, save_lora
from training.recipe import Recipe, as_plain, from_plain
from training.start import begin
from vc_core.checkpoint.files import SUFFIXES, check_target
from vc_core.checkpoint.loading import on_meta
from vc_core.checkpoint.reading import TRAINING, save_checkpoint
from vc_core.checkpoint.released import to_released
from vc_core.config import Config
from vc_core.errors import UserError, about, shorten
from vc_core.model.unet import UNet3D
from vc_core.terminal import argument, option, parsed, run_program

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def export(
    run: str | Path,
    out: str | Path,
    *,
    average: bool = True,
    merge: bool = False,
    network_only: bool = False,
    dtype: str = "fp16",
) -> dict[str, str]:
    """Writes what the last checkpoint of a run holds to `out`, a `.safetensors`. Returns what it says of the training.

    Args:
        average: the averaged weights, where the run keeps them, instead of those of the last step.
        merge: of a LoRA's run the whole network, with the LoRA in its weights, instead of the LoRA.
        network_only: without the autoencoder and the towers that the run was made with.
        dtype: of the network's file, one of `DTYPES`; a LoRA is written in fp32, as it is small.

    Raises:
        UserError: no run there, one whose recipe or files are gone, or a path that cannot be written.
    """
    run, out = Path(run), Path(out)
    check_target(out)
    if out.suffix.lower() != SUFFIXES[0]:
        raise UserError(f"{out} has no room for the config: give a name that ends in {SUFFIXES[0]}.")
    if dtype not in DTYPES:
        raise UserError(f"The dtype '{dtype}' is unknown: expected one of {', '.join(DTYPES)}.")
    found = checkpoints(run)
    if not found:
        raise UserError(f"{run} holds no checkpoint of a run: name the folder that the recipe's `out` names.")
    checkpoint, state = found[-1], read_state(found[-1])
    recipe = recipe_of(state, checkpoint)
    # Of the machine's folders the file says nothing.
    weights = "averaged" if average and recipe.optimizer.ema > 0 else "raw"
    said = {"step": state["step"], "weights": weights, "recipe": as_plain(recipe, whole_paths=False)}
    metadata = {TRAINING: json.dumps(said)}
    config, unet = trained_network(checkpoint, state, recipe, read_weights(checkpoint, average))
    if recipe.train.what == "lora" and not merge:
        save_lora(out, unet, metadata)
        return metadata
    merge_lora(unet)
    parts = {} if network_only else {name: part.tensors.state() for name, part in gather_parts(recipe).items()}
    save_checkpoint(out, config, {"model": to_released(unet), **parts}, DTYPES[dtype], metadata)
    return metadata


def recipe_of(state: Mapping[str, object], checkpoint: Path) -> Recipe:
    """The recipe that a checkpoint was made by. Raises `UserError`."""
    if "recipe" not in state:
        raise UserError(
            f"{checkpoint} does not say by which recipe it was made: it is of another version; train on from it, and "
            "export then."
        )
    with about(checkpoint):
        return from_plain(state["recipe"])


def trained_network(
    checkpoint: Path, state: Mapping[str, Any], recipe: Recipe, weights: Mapping[str, Tensor]
) -> tuple[Config, UNet3D]:
    """The network that a run has made of the one that it began with, and its config. Raises `UserError` where `weights`
    are not those that the recipe trains; the message lists what differs."""
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    if "config" in state:
        config = Config.from_json(state["config"])
        if shapes == {name: p.shape for name, p in on_meta(config).named_parameters()}:
            return config, network_of(config, weights, {})  # what the run began with need not be there any more
    started = begin(recipe)
    trained = {name: p.shape for name, p in started.unet.named_parameters() if p.requires_grad}
    if wrong := [name for name in {**trained, **shapes} if trained.get(name) != shapes.get(name)]:
        raise UserError(
            f"{checkpoint} does not fit the run's recipe: {len(wrong)} tensors differ ({shorten(wrong)}); the recipe "
            "or the file that it starts from has changed."
        )
    return started.config, network_of(started.config, {**started.unet.state_dict(), **weights}, alphas_of(started.unet))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns its exit status: 0, or 2 for what the user can mend."""
    return run_program(parsed(program, arguments, "vc export", __doc__))


def program(
    run: argument(Path, "folder of the run", "RUN"),
    out: option(Path, "the .safetensors to write", "-o"),
    raw: option(bool, "the last step's weights instead of the averaged ones") = False,
    merge: option(bool, "of a LoRA's run the network with the LoRA in it") = False,
    network_only: option(bool, "leave out the autoencoder and the towers") = False,
    dtype: option(Literal["fp32", "fp16", "bf16"], "of the file (default: fp16)") = "fp16",
) -> None:
    if not checkpoints(run) and files.holds_bundled(run):
        if raw or merge or network_only or dtype != "fp16":
            raise UserError(
                f"{run} is a run of the bundled checkpoint, whose file is whole, averaged and in fp16: leave out "
                "--raw, --merge, --network-only and --dtype."
            )
        check_target(out)
        files.export_run(run, out)
        print(f"{out}: the bundled checkpoint of {run}")
        return
    said = json.loads(export(run, out, average=not raw, merge=merge, network_only=network_only, dtype=dtype)[TRAINING])
    print(f"{out}: {said['weights']} weights of step {said['step']}")


if __name__ == "__main__":
    sys.exit(main())
