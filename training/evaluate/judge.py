"""CLIP for the evaluation: the checkpoint's own towers, or an OpenCLIP that the user names."""

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
    """Both towers of a CLIP, and whose they are."""

    source: str  # said in the table
    model: Any = field(default=None, repr=False)
    missing: dict[str, str] = field(default_factory=dict)  # for each tower that is not there, why

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


def load_judge(named: Path | None, composer: VideoComposer, parts: Collection[Path] = ()) -> Judge:
    """The towers in a file or folder, else those of the checkpoint and of the parts that it was loaded with.

    Raises:
        UserError: what was named holds no OpenCLIP of ViT-H/14, or of the checkpoint's sizes.
    """
    found: dict[str, Part] = {}
    configs: list[TowersConfig] = []
    for file in [composer.checkpoint.path, *parts] if named is None else _files(named):
        checkpoint = read_checkpoint(file)
        config = checkpoint.config or (composer.config if named is None else None)
        for name in {"text", "image"} & {*checkpoint.parts} - {*found}:
            found[name] = checkpoint.parts[name]
            configs.append(config.towers if config is not None else TowersConfig())
    lacks = [name for name in ("text", "image") if name not in found]
    if named is not None and lacks:
        raise UserError(
            f"{named}: holds no {' and '.join(lacks)} tower: name an OpenCLIP ViT-H/14, as one file or as a folder."
        )
    source = f"the checkpoint's own ({composer.config.name})" if named is None else str(named)
    missing = {name: f"the checkpoint brings no {name} tower" for name in lacks}
    if not found:
        return Judge(source, None, missing)
    text = found.get("text")
    if text is not None and not {"text_projection", "text_projection.weight"} & set(text.tensors.shapes):
        missing["text"] = f"{text.tensors.source} has no text projection"
        text = None
    model = load_towers(configs[0], text, found.get("image"), device=composer.device, complete=True)
    return Judge(source, model, missing)


def _files(named: Path) -> list[Path]:
    if not named.is_dir():
        return [named]
    files = sorted(path for path in named.iterdir() if path.suffix in ENDINGS)
    if not files:
        raise UserError(f"{named}: holds no file of weights ({', '.join(ENDINGS)}): name an OpenCLIP ViT-H/14.")
    return files
