"""The frozen networks of a run: they make, of what a data set gives, what the network takes.

Each is loaded when it is first needed, so a data set with caches needs fewer files.
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
    """The autoencoder and the towers of the recipe's files; the first file that brings one gives it. Raises `UserError`
    for a file that cannot be read, or one of `start.parts` that holds none of them."""
    start, found = recipe.start, {}
    for path in filter(None, (start.checkpoint, *start.parts)):
        # A 2D UNet's own file, which no reader of ours knows, holds no parts and need not.
        opened = map(open_tensors, files_of(path))
        if path != start.checkpoint or any(find_parts(tensors.shapes, str(path)) for tensors in opened):
            found = {**read_checkpoint(path).parts, **found}
    return {name: found[name] for name in PARTS if name in found and name != "model"}


class Encoders:
    """The autoencoder, the towers and the annotators of one run, on one device.

    Args:
        config: of the network that is trained, which says how its conditions are made.
        parts: the autoencoder and the towers, see `gather_parts`. They compute as they do to compose, fp16 on CUDA.
        size: (height, width) of the videos in pixels.
        depth_model: see `vc_core.extract.depth.networks.load_depth_model`; None for the released one, if it is found.
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
        self.options = Options(  # as trained: `auto` would draw edges where the networks of a run are missing
            sketch_method=config.extraction.sketch, depth_model=depth_model, device=device, at_once=CHUNK, loaded={}
        )
        self.dtype = choose_dtypes(self.device, "auto", "auto")[1]

    def part(self, name: str) -> Part:
        """One of the frozen networks' files. Raises `UserError` where the recipe brings none."""
        if name not in self.parts:
            without = ", or train with style in the domains' `without`" if name == "image" else ""
            raise UserError(
                f"The run needs {PARTS[name]}, and neither the recipe's start.checkpoint nor its start.parts bring it: "
                f"add a file of it to start.parts{without}."
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
        """Tokens of the empty prompt, `(1, 77, D)`."""
        return self.text([""])

    def latents(self, video: Tensor) -> Tensor:
        """Scaled latents `(B, 4, F, h, w)` of videos `(B, 3, F, H, W)` in [0, 1]."""
        from vc_core.encoders.autoencoder import Tiling, encode

        return encode(self.autoencoder, video.to(self.device), Tiling(CHUNK)) * self.config.autoencoder.scale

    def text(self, prompts: Sequence[str]) -> Tensor:
        """Tokens `(B, 77, D)` of prompts."""
        from vc_core.encoders.clip import encode_text

        return encode_text(self.towers, list(prompts)).float()

    def style(self, image: Tensor) -> Tensor:
        """Embeddings `(B, 1, D)` of images `(B, 3, H, W)` in [0, 1]."""
        from vc_core.encoders.clip import encode_image

        self.part("image")
        return encode_image(self.towers, image.to(self.device)).float()

    def condition(self, name: str, source: Tensor) -> Tensor:
        """A condition, `(B, C, F, H', W')`, of the frames `(B, 3, F, H, W)` in [0, 1] that it is of."""
        extraction, frames = self.config.extraction, source.to(self.device, torch.float32).clamp(0, 1)
        try:
            made = extract_condition(name, Source(frames, None, self.size, extraction), self.options)
            if name == "depth" and extraction.depth == "midas" and made.how["model"] != "midas":
                raise UserError(
                    f"{self.options.depth_model} is {made.how['model']}, and the network's depth is MiDaS's: give that "
                    "as depth_model, or say extraction.depth relative in start.network."
                )
        except UserError as error:
            advice = f"or train without it, with {name} in the domain's `without`."
            raise UserError(f"{str(error).rstrip('.')}; {advice}") from error
        return made.tensor
