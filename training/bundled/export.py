"""The files of a run of the bundled checkpoint: one checkpoint at any time, and the same in small pieces."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.bundled import autoencoder, towers
from training.bundled.design import FILE as DESIGN
from training.precision import fast_type
from vc_core.checkpoint.files import open_tensors, save_tensors
from vc_core.checkpoint.loading import load_autoencoder, load_towers, on_meta
from vc_core.checkpoint.reading import TRAINING, Checkpoint, read_checkpoint, save_checkpoint
from vc_core.checkpoint.released import to_released
from vc_core.config import Config
from vc_core.disk import make_folder
from vc_core.errors import UserError, counted

CHECKPOINT = "bundled.safetensors"
STUDENT = "bundled_few_steps.safetensors"
PIECES = "pieces"
PIECE_BYTES = 15 << 20
_PIECE = re.compile(r"piece-(\d+)-of-(\d+)\.safetensors")


def is_bundled(run: Path) -> bool:
    """Whether a folder is a run of `./vc train bundled`, or contains pieces of its file."""
    return (run / DESIGN).is_file() or any(run.glob("piece-*.safetensors"))


def export_run(run: Path, out: Path) -> None:
    """Write the averaged weights of a run's last checkpoint, with the autoencoder and the towers, in half precision.

    Args:
        run: folder of a run, or of its pieces.
        out: a `.safetensors`.

    Raises:
        UserError: the run has not reached the network yet, or a piece is missing or from another run.
    """
    if not (run / DESIGN).is_file():
        return join(run, out)
    state_path = run / "network" / "state.pt"
    if not state_path.is_file():
        raise UserError(
            f"The run in {run} has not started to train its network: {state_path} does not exist. Continue the run."
        )
    state = torch.load(state_path, map_location="cpu", weights_only=True)
    design = json.loads((run / DESIGN).read_text(encoding="utf-8"))
    config = Config.from_json(json.dumps(design.pop("config")))
    unet = on_meta(config)
    unet.load_state_dict(state["average"], assign=True)
    with torch.no_grad():
        parts = {"model": {name: tensor.detach().contiguous() for name, tensor in to_released(unet).items()}}
    for frozen in frozen_files(run).values():
        parts |= {name: part.tensors.state() for name, part in read_checkpoint(frozen).parts.items()}
    training = {"step": state["step"], "minutes": round(state["used"] / 60, 1), "weights": "averaged", "design": design}
    save_checkpoint(out, config, parts, torch.float16, {TRAINING: json.dumps(training)})


def frozen_files(run: Path) -> dict[str, Path]:
    """Return the files of the parts that are complete before a run trains its network."""
    return {"autoencoder": run / "autoencoder" / autoencoder.FILE, "towers": run / "towers" / towers.FILE}


def load_frozen_parts(run: Path, config: Config, device: torch.device) -> tuple[Any, Any]:
    """Load a run's autoencoder, in the fastest dtype, and towers onto the device."""
    vae, clip = map(read_checkpoint, frozen_files(run).values())
    coder = load_autoencoder(vae.part("vae"), fast_type(device), device).to(memory_format=torch.channels_last)
    return coder, load_towers(config.towers, clip.part("text"), clip.part("image"), device=device)


def take_frozen_parts(checkpoint: Checkpoint, run: Path) -> None:
    """Copy the autoencoder and the towers of a checkpoint into a run without them, as if the run had trained them."""
    for path, names in zip(frozen_files(run).values(), (("vae",), ("text", "image")), strict=True):
        if not path.exists():
            make_folder(path.parent)
            parts = {name: checkpoint.part(name).tensors.state() for name in names}
            save_checkpoint(path, Config(towers=checkpoint.config.towers), parts)


def split(checkpoint: Path, folder: Path) -> list[Path]:
    """Write a checkpoint as pieces of at most 16 MB, each with all of the metadata. Returns their paths."""
    tensors = open_tensors(checkpoint)
    groups: list[dict[str, Tensor]] = []
    room, get = -1, tensors.get()
    for name in tensors.shapes:
        tensor = get(name)
        if tensor.nbytes > room:
            groups.append({})
            room = PIECE_BYTES
        groups[-1][name] = tensor
        room -= tensor.nbytes
    make_folder(folder)
    paths = [folder / f"piece-{i + 1}-of-{len(groups)}.safetensors" for i in range(len(groups))]
    for path, group in zip(paths, groups, strict=True):
        save_tensors(path, group, dict(tensors.metadata))
    for old in set(folder.glob("piece-*.safetensors")) - set(paths):
        old.unlink()
    return paths


def join(folder: Path, out: Path) -> None:
    """Join the pieces of a checkpoint into one file.

    Raises:
        UserError: there are no pieces, some are missing, or they are from different checkpoints.
    """
    matches = [(path, _PIECE.fullmatch(path.name)) for path in sorted(folder.glob("piece-*.safetensors"))]
    numbers = {path: (int(match[1]), int(match[2])) for path, match in matches if match}
    if not numbers:
        raise UserError(
            f"{folder} contains neither a run nor pieces of one. Pass the folder of a run or of its pieces."
        )
    expected = max(count for _, count in numbers.values())
    if {*numbers.values()} != {(number + 1, expected) for number in range(expected)}:
        raise UserError(
            f"Expected {expected} pieces of one checkpoint in {folder}, but it contains "
            f"{counted(len(numbers), 'piece')}. Copy all of them."
        )
    pieces = [open_tensors(path) for path in numbers]
    metadata = [dict(piece.metadata) for piece in pieces]
    if any(other != metadata[0] for other in metadata):
        raise UserError(f"The pieces in {folder} are from different checkpoints. Copy all pieces of one checkpoint.")
    tensors = {name: piece.get()(name) for piece in pieces for name in piece.shapes}
    save_tensors(out, tensors, metadata[0])
