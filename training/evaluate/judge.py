"""CLIP for the evaluation: the checkpoint's own towers, or an OpenCLIP chosen by the user."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vc_core.checkpoint.loading import load_towers
from vc_core.checkpoint.reading import Part, read_checkpoint
from vc_core.composer import VideoComposer
from vc_core.config import TowersConfig
from vc_core.encoders.clip import encode_image, text_layers, tokenize
from vc_core.errors import UserError

ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class Judge:
    """Both towers of a CLIP, and their source."""

    source: str  # description for the table
    model: Any = field(default=None, repr=False)
    missing: dict[str, str] = field(default_factory=dict)  # missing tower -> reason

    @torch.no_grad()
    def images(self, images: Tensor, batch: int = 64) -> Tensor:
        """Return embeddings (N, D) of images (N, 3, H, W) in [0, 1], on the CPU."""
        return torch.cat([encode_image(self.model, part)[:, 0].float().cpu() for part in images.split(batch)])

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        """Return embeddings (N, D) of texts: the last layer at the end token, projected."""
        projection = self.model.text_projection
        tokens = tokenize(texts).to(projection.device)
        last = text_layers(self.model, tokens)[-1]
        return (last[torch.arange(len(tokens)), tokens.argmax(1)] @ projection).float().cpu()


def load_judge(path: Path | None, composer: VideoComposer, parts: Collection[Path] = ()) -> Judge:
    """Load the towers of a file or folder, or those of the checkpoint and its parts.

    Raises:
        UserError: the file or folder contains no OpenCLIP ViT-H/14, nor one of the checkpoint's sizes.
    """
    towers: dict[str, Part] = {}
    configs: list[TowersConfig] = []
    for file in [composer.checkpoint.path, *parts] if path is None else _files(path):
        checkpoint = read_checkpoint(file)
        config = checkpoint.config or (composer.config if path is None else None)
        for name in {"text", "image"} & {*checkpoint.parts} - {*towers}:
            towers[name] = checkpoint.parts[name]
            configs.append(config.towers if config is not None else TowersConfig())
    absent = [name for name in ("text", "image") if name not in towers]
    if path is not None and absent:
        raise UserError(
            f"{path} contains no {' and '.join(absent)} tower. Pass an OpenCLIP ViT-H/14, as one file or as a folder."
        )
    source = f"the checkpoint's own ({composer.config.name})" if path is None else str(path)
    missing = {name: f"the checkpoint contains no {name} tower" for name in absent}
    if not towers:
        return Judge(source, None, missing)
    text = towers.get("text")
    if text is not None and not {"text_projection", "text_projection.weight"} & set(text.tensors.shapes):
        missing["text"] = f"{text.tensors.source} has no text projection"
        text = None
    model = load_towers(configs[0], text, towers.get("image"), device=composer.device, complete=True)
    return Judge(source, model, missing)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in ENDINGS)
    if not files:
        raise UserError(f"{path} contains no file of weights ({', '.join(ENDINGS)}). Pass an OpenCLIP ViT-H/14.")
    return files
