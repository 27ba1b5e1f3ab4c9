"""The frozen networks of a run. They turn samples of a data set into inputs of the network.

Each is loaded on first use, so a data set with caches needs fewer files.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.recipe import Recipe
from vc_core.checkpoint.files import files_of, open_tensors
from vc_core.checkpoint.formats import find_parts
from vc_core.checkpoint.reading import PARTS, Part, read_checkpoint
from vc_core.composer import choose_dtypes
from vc_core.config import Config
from vc_core.errors import UserError
from vc_core.extract.sources import Options, Source, extract_condition

CHUNK = 16
"""Frames at a time."""


def gather_parts(recipe: Recipe) -> dict[str, Part]:
    """Return the autoencoder and the towers from the recipe's files; the first file with a part is used. Raises
    `UserError` if a file cannot be read, or a file in `start.parts` contains none of them."""
    start, parts = recipe.start, {}
    for path in filter(None, (start.checkpoint, *start.parts)):
        # A file with only a 2D UNet contains no parts that our readers recognize; that is fine for start.checkpoint.
        files = map(open_tensors, files_of(path))
        if path != start.checkpoint or any(find_parts(tensors.shapes, str(path)) for tensors in files):
            parts = {**read_checkpoint(path).parts, **parts}
    return {name: parts[name] for name in PARTS if name in parts and name != "model"}


class Encoders:
    """The autoencoder, the towers and the annotators of one run, on one device.

    Args:
        config: of the trained network; it says how conditions are extracted.
        parts: the autoencoder and the towers, see `gather_parts`. Same precision as in `compose`: fp16 on CUDA.
        size: (height, width) of the videos in pixels.
        depth_model: see `vc_core.extract.depth.networks.load_depth_model`; None for the released one, if it exists.
    """

    def __init__(
        self,
        config: Config,
        parts: dict[str, Part],
        size: tuple[int, int],
        device: str | torch.device = "cpu",
        depth_model: Path | None = None,
    ):
        self.config, self.parts, self.size = config, parts, size
        self.device = torch.device(device)
        self.options = Options(  # not `auto`, which would draw edges if the sketch networks are missing
            sketch_method=config.extraction.sketch, depth_model=depth_model, device=device, at_once=CHUNK, loaded={}
        )
        self.dtype = choose_dtypes(self.device, "auto", "auto")[1]

    def part(self, name: str) -> Part:
        """Return the part `name`. Raises `UserError` if none of the recipe's files contains it."""
        if name not in self.parts:
            without = ", or add style to `without` of each domain" if name == "image" else ""
            raise UserError(
                f"The run requires {PARTS[name]}, but the files in start.checkpoint and start.parts do not contain it. "
                f"Add a file with it to start.parts{without}."
            )
        return self.parts[name]

    @cached_property
    def autoencoder(self) -> Any:
        from vc_core.checkpoint.loading import load_autoencoder

        return load_autoencoder(self.part("vae"), self.dtype, self.device)

    @cached_property
    def towers(self) -> Any:
        from vc_core.checkpoint.loading import load_towers

        parts = (self.part("text"), self.parts.get("image"))
        return load_towers(self.config.towers, *parts, self.dtype, self.device)

    @cached_property
    def empty(self) -> Tensor:
        """Tokens `(1, 77, D)` of the empty prompt."""
        return self.text([""])

    def latents(self, video: Tensor) -> Tensor:
        """Return scaled latents `(B, 4, F, h, w)` of videos `(B, 3, F, H, W)` in [0, 1]."""
        from vc_core.encoders.autoencoder import Tiling, encode

        return encode(self.autoencoder, video.to(self.device), Tiling(CHUNK)) * self.config.autoencoder.scale

    def text(self, prompts: Sequence[str]) -> Tensor:
        """Return tokens `(B, 77, D)` of prompts."""
        from vc_core.encoders.clip import encode_text

        return encode_text(self.towers, list(prompts)).float()

    def style(self, image: Tensor) -> Tensor:
        """Return embeddings `(B, 1, D)` of images `(B, 3, H, W)` in [0, 1]."""
        from vc_core.encoders.clip import encode_image

        self.part("image")
        return encode_image(self.towers, image.to(self.device)).float()

    def condition(self, name: str, source: Tensor) -> Tensor:
        """Extract a condition `(B, C, F, H', W')` from frames `(B, 3, F, H, W)` in [0, 1]."""
        extraction, frames = self.config.extraction, source.to(self.device, torch.float32).clamp(0, 1)
        try:
            result = extract_condition(name, Source(frames, None, self.size, extraction), self.options)
            if name == "depth" and extraction.depth == "midas" and result.how["model"] != "midas":
                raise UserError(
                    f"The network was trained with depth from MiDaS, but {self.options.depth_model} is "
                    f"{result.how['model']}. Set depth_model to MiDaS, or set extraction.depth to relative in the "
                    "config of start.network."
                )
        except UserError as error:
            raise UserError(
                f"{error} Or train without it: add {name} to the domain's `without` (--data.0.without {name})."
            ) from error
        return result.tensor
