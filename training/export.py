"""Export a training run as one file for the nodes and `./vc compose`: `./vc export RUN -o FILE`.

A LoRA run is exported as a LoRA for ComfyUI's LoRA loaders; any other run as the network with
autoencoder and towers.
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
from vc_core.checkpoint.lora import FEW_STEPS
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
    """Write the last checkpoint of a run to `out`, a `.safetensors`. Returns the metadata about its training.

    Args:
        average: write the averaged weights, if the run has them, instead of those of the last step.
        merge: for a LoRA run, write the complete network with the LoRA merged in, instead of the LoRA.
        network_only: leave out the run's autoencoder and towers.
        dtype: one of `DTYPES`, for a network. A LoRA is small and always written in fp32.

    Raises:
        UserError: there is no run, its recipe or files are missing, or the path cannot be written.
    """
    run, out = Path(run), Path(out)
    check_target(out)
    if out.suffix.lower() != SUFFIXES[0]:
        raise UserError(f"{out} cannot store the config. Use a name that ends in {SUFFIXES[0]}.")
    if dtype not in DTYPES:
        raise UserError(f"Unknown dtype '{dtype}'. Expected one of {', '.join(DTYPES)}.")
    paths = checkpoints(run)
    if not paths:
        raise UserError(f"{run} contains no checkpoint of a run. Pass the folder that the recipe's `out` names.")
    checkpoint, state = paths[-1], read_state(paths[-1])
    recipe = recipe_of(state, checkpoint)
    weights = "averaged" if average and recipe.optimizer.ema > 0 else "raw"
    # No full paths: the file must not contain this machine's folders.
    training = {"step": state["step"], "weights": weights, "recipe": as_plain(recipe, full_paths=False)}
    metadata = {TRAINING: json.dumps(training)}
    config, unet = trained_network(checkpoint, state, recipe, read_weights(checkpoint, average))
    if recipe.train.what == "lora" and not merge:
        save_lora(out, unet, {**metadata, FEW_STEPS: "yes"} if recipe.distils else metadata)
        return metadata
    merge_lora(unet)
    parts = {} if network_only else {name: part.tensors.state() for name, part in gather_parts(recipe).items()}
    save_checkpoint(out, config, {"model": to_released(unet), **parts}, DTYPES[dtype], metadata)
    return metadata


def recipe_of(state: Mapping[str, object], checkpoint: Path) -> Recipe:
    """Return the recipe of a checkpoint. Raises `UserError`."""
    if "recipe" not in state:
        raise UserError(
            f"{checkpoint} does not contain its recipe, because an older version wrote it. Continue its training for "
            "one checkpoint, then export."
        )
    with about(checkpoint):
        return from_plain(state["recipe"])


def trained_network(
    checkpoint: Path, state: Mapping[str, Any], recipe: Recipe, weights: Mapping[str, Tensor]
) -> tuple[Config, UNet3D]:
    """Return the trained network of a run and its config. Raises `UserError` if `weights` are not those that the
    recipe trains; the message lists what differs."""
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    if "config" in state:
        config = Config.from_json(state["config"])
        if shapes == {name: p.shape for name, p in on_meta(config).named_parameters()}:
            return config, network_of(config, weights, {})  # the file that the run started from is not needed
    started = begin(recipe)
    trained = {name: p.shape for name, p in started.unet.named_parameters() if p.requires_grad}
    if wrong := [name for name in {**trained, **shapes} if trained.get(name) != shapes.get(name)]:
        raise UserError(
            f"{checkpoint} does not match the run's recipe: {len(wrong)} tensors differ ({shorten(wrong)}). Restore "
            "the recipe, or the file that it starts from, as it was during training."
        )
    return started.config, network_of(started.config, {**started.unet.state_dict(), **weights}, alphas_of(started.unet))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns its exit status: 0, or 2 for user errors."""
    return run_program(parsed(program, arguments, "vc export", __doc__))


def program(
    run: argument(Path, "folder of the run", "RUN"),
    out: option(Path, "the .safetensors file to write", "-o"),
    raw: option(bool, "export the last step's weights instead of the averaged ones") = False,
    merge: option(bool, "for a LoRA run: export the network with the LoRA merged in") = False,
    network_only: option(bool, "leave out the autoencoder and the towers") = False,
    dtype: option(Literal["fp32", "fp16", "bf16"], "dtype of the file (default: fp16)") = "fp16",
) -> None:
    if not checkpoints(run) and files.is_bundled(run):
        if raw or merge or network_only or dtype != "fp16":
            raise UserError(
                f"{run} is a run of the bundled checkpoint, which is always exported complete, averaged and in fp16. "
                "Leave out --raw, --merge, --network-only and --dtype."
            )
        check_target(out)
        files.export_run(run, out)
        print(f"{out}: the bundled checkpoint of {run}")
        return
    metadata = export(run, out, average=not raw, merge=merge, network_only=network_only, dtype=dtype)
    training = json.loads(metadata[TRAINING])
    print(f"{out}: {training['weights']} weights of step {training['step']}")


if __name__ == "__main__":
    sys.exit(main())
