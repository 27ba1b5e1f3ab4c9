"""What a run of the bundled checkpoint leaves: one file at any moment, and the same in pieces, easy to carry."""

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
PIECES = "pieces"
PIECE_BYTES = 15 << 20
_PIECE = re.compile(r"piece-(\d+)-of-(\d+)\.safetensors")


def holds_bundled(run: Path) -> bool:
    """Whether a folder is one of `./vc train bundled`, or of the pieces of its file."""
    return (run / DESIGN).is_file() or any(run.glob("piece-*.safetensors"))


def export_run(run: Path, out: Path) -> None:
    """Writes the averaged weights of a run's last checkpoint, with the autoencoder and the towers, in half precision.

    Args:
        run: folder of a run, or of the pieces of one.
        out: a `.safetensors`.

    Raises:
        UserError: the run has not come to its network yet, or a piece is missing or of another run.
    """
    if not (run / DESIGN).is_file():
        return join(run, out)
    state_path = run / "network" / "state.pt"
    if not state_path.is_file():
        raise UserError(f"{run}: its network was not begun yet: expected {state_path}; let the run go on.")
    state = torch.load(state_path, map_location="cpu", weights_only=True)
    design = json.loads((run / DESIGN).read_text(encoding="utf-8"))
    config = Config.from_json(json.dumps(design.pop("config")))
    unet = on_meta(config)
    unet.load_state_dict(state["average"], assign=True)
    with torch.no_grad():
        parts = {"model": {name: tensor.detach().contiguous() for name, tensor in to_released(unet).items()}}
    for frozen in frozen_files(run).values():
        parts |= {name: part.tensors.state() for name, part in read_checkpoint(frozen).parts.items()}
    said = {"step": state["step"], "minutes": round(state["used"] / 60, 1), "weights": "averaged", "design": design}
    save_checkpoint(out, config, parts, torch.float16, {TRAINING: json.dumps(said)})


def frozen_files(run: Path) -> dict[str, Path]:
    """The files of the parts that are complete before a run's network begins."""
    return {"autoencoder": run / "autoencoder" / autoencoder.FILE, "towers": run / "towers" / towers.FILE}


def load_frozen_parts(run: Path, config: Config, device: torch.device) -> tuple[Any, Any]:
    """A run's autoencoder, in the fastest type, and towers, on the device."""
    vae, clip = map(read_checkpoint, frozen_files(run).values())
    coder = load_autoencoder(vae.part("vae"), fast_type(device), device).to(memory_format=torch.channels_last)
    return coder, load_towers(config.towers, clip.part("text"), clip.part("image"), device=device)


def take_frozen_parts(checkpoint: Checkpoint, run: Path) -> None:
    """Puts the autoencoder and the towers of a checkpoint into a run that has none, as if it had trained them."""
    for path, names in zip(frozen_files(run).values(), (("vae",), ("text", "image")), strict=True):
        if not path.exists():
            make_folder(path.parent)
            parts = {name: checkpoint.part(name).tensors.state() for name in names}
            save_checkpoint(path, Config(towers=checkpoint.config.towers), parts)


def split(checkpoint: Path, folder: Path) -> list[Path]:
    """Writes a checkpoint again as pieces of at most 16 MB, each with the whole metadata. Returns their paths."""
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
    """Writes the pieces of a checkpoint as one file again.

    Raises:
        UserError: no pieces there, some are missing, or they are of different checkpoints.
    """
    named = [(path, _PIECE.fullmatch(path.name)) for path in sorted(folder.glob("piece-*.safetensors"))]
    found = {path: (int(match[1]), int(match[2])) for path, match in named if match}
    if not found:
        raise UserError(f"{folder}: holds no run and no pieces of one: name the folder of a run, or of its pieces.")
    expected = max(count for _, count in found.values())
    if {*found.values()} != {(number + 1, expected) for number in range(expected)}:
        raise UserError(
            f"{folder}: holds {counted(len(found), 'piece')}, expected {expected} of one checkpoint: copy all of them."
        )
    pieces = [open_tensors(path) for path in found]
    metadata = [dict(piece.metadata) for piece in pieces]
    if any(other != metadata[0] for other in metadata):
        raise UserError(f"{folder}: the pieces are of different checkpoints: copy all pieces of one.")
    tensors = {name: piece.get()(name) for piece in pieces for name in piece.shapes}
    save_tensors(out, tensors, metadata[0])
