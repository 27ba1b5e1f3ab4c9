"""Writes what a run has learned into one file that the nodes and `./vc compose` load: `./vc export RUN -o FILE`.

Of a LoRA's run it is the LoRA, for ComfyUI's LoRA loaders; of another the network with the autoencoder and the towers.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.bundled import files
from training.encoders import gather_parts
from training.engine import checkpoints, read_state, read_weights
from training.lora import alphas_of, merge_lora, network_of, save_lora
from training.recipe import Recipe, as_plain, from_plain
from training.start import begin
from vc_core.checkpoint import TRAINING, on_meta, save_checkpoint
from vc_core.config import Config
from vc_core.errors import UserError
from vc_core.files import SUFFIXES, check_target
from vc_core.layouts import shorten
from vc_core.model.layout import to_released
from vc_core.model.unet import UNet3D
from vc_core.terminal import run_program

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
    try:
        return from_plain(state["recipe"])
    except UserError as error:
        raise UserError(f"{checkpoint}: {error}") from error


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
    parser = argparse.ArgumentParser(
        prog="vc export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the .safetensors to write")
    parser.add_argument("--raw", action="store_true", help="the last step's weights instead of the averaged ones")
    parser.add_argument("--merge", action="store_true", help="of a LoRA's run the network with the LoRA in it")
    parser.add_argument("--network-only", action="store_true", help="leave out the autoencoder and the towers")
    parser.add_argument("--dtype", default="fp16", choices=list(DTYPES), help="of the file (default: fp16)")
    given = parser.parse_args(arguments)
    return run_program(lambda: _run(given))


def _run(given: argparse.Namespace) -> None:
    if not checkpoints(given.run) and files.holds_bundled(given.run):
        if given.raw or given.merge or given.network_only or given.dtype != "fp16":
            raise UserError(
                f"{given.run} is a run of the bundled checkpoint, whose file is whole, averaged and in fp16: leave out "
                "--raw, --merge, --network-only and --dtype."
            )
        check_target(given.out)
        files.export_run(given.run, given.out)
        print(f"{given.out}: the bundled checkpoint of {given.run}")
        return
    options = {"average": not given.raw, "merge": given.merge, "network_only": given.network_only, "dtype": given.dtype}
    said = json.loads(export(given.run, given.out, **options)[TRAINING])
    print(f"{given.out}: {said['weights']} weights of step {said['step']}")


if __name__ == "__main__":
    sys.exit(main())
