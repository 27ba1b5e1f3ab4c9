"""What a run of the bundled checkpoint leaves: one file at any moment, and the same in pieces, easy to carry."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.bundled import autoencoder, towers
from training.bundled.design import FILE as DESIGN
from training.precision import fast_type
from vc_core.checkpoint import TRAINING, Checkpoint, on_meta, read_checkpoint, save_checkpoint
from vc_core.config import Config
from vc_core.disk import make_folder
from vc_core.encoders.autoencoder import load_autoencoder
from vc_core.encoders.clip import load_towers
from vc_core.errors import UserError, counted
from vc_core.files import open_tensors, save_tensors
from vc_core.model.layout import to_released

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
    plain = json.loads((run / DESIGN).read_text(encoding="utf-8"))
    config = Config.from_json(json.dumps(plain["config"]))
    unet = on_meta(config)
    unet.load_state_dict(state["average"], assign=True)
    write(run, out, config, unet, state["step"], state["used"])


def write(run: Path, out: Path, config: Config, unet: nn.Module, step: int, seconds: float) -> None:
    """Writes the checkpoint of a network in training, with the run's autoencoder and towers."""
    parts = frozen_parts(run)
    plain = json.loads((run / DESIGN).read_text(encoding="utf-8"))
    plain.pop("config")
    said = {"step": step, "minutes": round(seconds / 60, 1), "weights": "averaged", "design": plain}
    with torch.no_grad():
        model = {name: tensor.detach().cpu().contiguous() for name, tensor in to_released(unet).items()}
    save_checkpoint(out, config, {"model": model, **parts}, torch.float16, {TRAINING: json.dumps(said)})


def frozen_parts(run: Path) -> dict[str, Mapping[str, Tensor]]:
    """The tensors of a run's autoencoder and towers, by part. Raises `UserError` where they are not there yet."""
    parts = [item for path in _frozen(run) for item in read_checkpoint(path).parts.items()]
    return {name: part.tensors.state() for name, part in parts}


def load_frozen_parts(run: Path, config: Config, device: torch.device) -> tuple[Any, Any]:
    """A run's autoencoder, in the fastest type, and towers, on the device."""
    vae, clip = (read_checkpoint(path) for path in _frozen(run))
    coder = load_autoencoder(vae.part("vae"), fast_type(device), device).to(memory_format=torch.channels_last)
    return coder, load_towers(config.towers, clip.part("text"), clip.part("image"), device=device)


def _frozen(run: Path) -> tuple[Path, Path]:
    return run / "autoencoder" / autoencoder.FILE, run / "towers" / towers.FILE


def take_frozen_parts(checkpoint: Checkpoint, run: Path) -> None:
    """Puts the autoencoder and the towers of a checkpoint into a run that has none, as if it had trained them."""
    for folder, file, names in (
        ("autoencoder", autoencoder.FILE, ("vae",)),
        ("towers", towers.FILE, ("text", "image")),
    ):
        path = run / folder / file
        if path.exists():
            continue
        make_folder(path.parent)
        config = Config(towers=checkpoint.config.towers)
        save_checkpoint(path, config, {name: checkpoint.part(name).tensors.state() for name in names})


def split(checkpoint: Path, folder: Path) -> list[Path]:
    """Writes a checkpoint again as pieces of at most 16 MB, each with the whole metadata. Returns their paths."""
    tensors = open_tensors(checkpoint)
    groups: list[dict[str, Tensor]] = [{}]
    room, get = PIECE_BYTES, tensors.get()
    for name in tensors.shapes:
        tensor = get(name)
        size = tensor.numel() * tensor.element_size()
        if size > room and groups[-1]:
            groups.append({})
            room = PIECE_BYTES
        groups[-1][name] = tensor
        room -= size
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
    matches = {path: _PIECE.fullmatch(path.name) for path in sorted(folder.glob("piece-*.safetensors"))}
    found = {path: match for path, match in matches.items() if match}
    counts = {int(match[2]) for match in found.values()}
    if not found:
        raise UserError(f"{folder}: holds no run and no pieces of one: name the folder of a run, or of its pieces.")
    expected = max(counts)
    if len(counts) > 1 or {int(match[1]) for match in found.values()} != set(range(1, expected + 1)):
        raise UserError(
            f"{folder}: holds {counted(len(found), 'piece')}, expected {expected} of one checkpoint: copy all of them."
        )
    pieces = [open_tensors(path) for path in found]
    metadata = [dict(piece.metadata) for piece in pieces]
    if any(other != metadata[0] for other in metadata):
        raise UserError(f"{folder}: the pieces are of different checkpoints: copy all pieces of one.")
    tensors = {name: piece.get()(name) for piece in pieces for name in piece.shapes}
    save_tensors(out, tensors, metadata[0])
