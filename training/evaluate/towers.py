"""CLIP for the evaluation: the checkpoint's own towers, or an OpenCLIP that the user names."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vc_core.checkpoint import Part, read_checkpoint
from vc_core.composer import VideoComposer
from vc_core.config import TowersConfig
from vc_core.encoders.clip import encode_image, load_towers, text_layers, tokenize
from vc_core.errors import UserError

ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class Clip:
    """Both towers, and whose they are.

    Attributes:
        source: said in the table.
        missing: for each tower that is not there, why.
    """

    source: str
    model: Any = field(default=None, repr=False)
    missing: dict[str, str] = field(default_factory=dict)

    @torch.no_grad()
    def images(self, images: Tensor, batch: int = 64) -> Tensor:
        """Embeddings (N, D) of images (N, 3, H, W) in [0, 1], on the CPU."""
        return torch.cat([encode_image(self.model, part)[:, 0].float().cpu() for part in images.split(batch)])

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        """Embeddings (N, D) of texts: the last layer at the end of each, projected."""
        projection = self.model.text_projection
        tokens = tokenize(texts).to(projection.device)
        last = text_layers(self.model, tokens)[-1]
        return (last[torch.arange(len(tokens)), tokens.argmax(1)] @ projection).float().cpu()


def load_clip(named: Path | None, composer: VideoComposer, parts: Collection[Path] = ()) -> Clip:
    """The towers in a file or folder, else those of the checkpoint and of the parts that it was loaded with.

    Raises:
        UserError: what was named holds no OpenCLIP of ViT-H/14, or of the checkpoint's sizes.
    """
    files = [composer.checkpoint.path, *parts] if named is None else _files(named)
    found: dict[str, tuple[Part, TowersConfig]] = {}
    for file in files:
        checkpoint = read_checkpoint(file)
        config = checkpoint.config or (composer.config if named is None else None)
        towers = config.towers if config is not None else TowersConfig()
        for name in ("text", "image"):
            if name in checkpoint.parts:
                found.setdefault(name, (checkpoint.parts[name], towers))
    if named is not None and len(found) < 2:
        lacks = " and ".join(name for name in ("text", "image") if name not in found)
        raise UserError(f"{named}: holds no {lacks} tower: name an OpenCLIP ViT-H/14, as one file or as a folder.")
    source = f"the checkpoint's own ({composer.config.name})" if named is None else str(named)
    return _loaded(source, found, composer.device)


def _loaded(source: str, found: dict[str, tuple[Part, TowersConfig]], device: torch.device) -> Clip:
    missing = {name: f"the checkpoint brings no {name} tower" for name in ("text", "image") if name not in found}
    text, image = (found[name][0] if name in found else None for name in ("text", "image"))
    if not found:
        return Clip(source, None, missing)
    config = next(config for _, config in found.values())
    if text is not None and not {"text_projection", "text_projection.weight"} & set(text.tensors.shapes):
        missing["text"] = f"{text.tensors.source} has no text projection"
        text = None
    return Clip(source, load_towers(config, text, image, device=device, whole=True), missing)


def _files(named: Path) -> list[Path]:
    if not named.is_dir():
        return [named]
    files = sorted(path for path in named.iterdir() if path.suffix in ENDINGS)
    if not files:
        raise UserError(f"{named}: holds no file of weights ({', '.join(ENDINGS)}): name an OpenCLIP ViT-H/14.")
    return files
