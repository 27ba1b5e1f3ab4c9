"""Load the networks of a checkpoint's parts: built on meta, then filled, with views of the mapped file if possible."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..config import Config, TowersConfig
from ..encoders.autoencoder import WIDTHS, new_autoencoder
from ..encoders.clip import LENGTH, new_towers
from ..errors import UserError, counted, shorten
from ..model.blocks import Attend, attend
from ..model.unet import UNet3D
from ..progress import Progress
from .formats import is_known_extra, layout_of
from .lora import read_lora, warn_unused, with_changes
from .origins import check, fill, names_of, part, unused
from .reading import Checkpoint, Part
from .tensors import StateDict, Tensors

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny
    from open_clip.model import CLIP

    Autoencoder = AutoencoderTiny | AutoencoderKL


def load_unet(
    checkpoint: Checkpoint,
    operations: Any = nn,
    attend: Attend = attend,
    dtype: torch.dtype | Callable[[str, tuple[int, ...]], torch.dtype] = torch.float32,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    loras: Mapping[str | Path, float] | None = None,
) -> UNet3D:
    """Load the network of a checkpoint, in eval mode. Its weights are mapped if dtype and device allow it.

    `loras`: LoRA files and their strengths (any numbers); their changes are added to the weights, and a warning lists
    changes that are not used. For the other arguments see `UNet3D` and `fill`. Raises `UserError` if tensors are
    missing or have another shape, and as `read_lora` does.
    """
    part = checkpoint.part("model")
    unet, tensors = on_meta(checkpoint.config, operations, attend), part.tensors
    layout = layout_of("model", part.layout, unet, tensors.shapes)
    if loras:
        check(layout, tensors, "its network")
        read = [(read_lora(path, unet), strength) for path, strength in loras.items()]
        for lora, _ in read:
            warn_unused(lora)
        tensors = with_changes(tensors, layout, read)
    fill(unet, layout, tensors, "its network", dtype, device, progress)
    return unet.eval().requires_grad_(False)


def on_meta(config: Config, operations: Any = nn, attend: Attend = attend) -> UNet3D:
    """Build the network of a config on meta, without memory for its weights."""
    with torch.device("meta"):
        return UNet3D(config.unet, operations, attend)


def load_autoencoder(
    source: Part,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    widths: tuple[int, ...] = WIDTHS,
    progress: Progress | None = None,
) -> Autoencoder:
    """Load the autoencoder of a file's part `vae`, in eval mode, without gradients, as views of the mapped file if
    dtype and device allow it.

    Raises `UserError` if tensors are missing, have another shape or belong to another model, or if the file requires
    another scale or shift.
    """
    tensors = source.tensors
    what = "TAESD's autoencoder" if source.layout == "taesd" else "Stable Diffusion's autoencoder"
    model = new_autoencoder(source.layout, widths, "meta")
    layout = layout_of("vae", source.layout, model, tensors.shapes)
    modules = {name.split(".")[0] for name in names_of(layout)}
    ignored = {name for name in tensors.shapes if is_known_extra("vae", name)}
    extra = [name for name in unused(layout, tensors) if name.split(".")[0] in modules and name not in ignored]
    if extra:
        raise UserError(
            f"{tensors.source} has {counted(len(extra), 'tensor')} that {what} does not have ({shorten(extra)}). The "
            "file belongs to another model. Pass a file with this autoencoder."
        )
    check_scalars(tensors)
    fill(model, layout, tensors, what, dtype, device, progress, ignored)
    return model.eval().requires_grad_(False)


SCALARS = {"vae_scale": 1.0, "vae_shift": 0.0}
"""Scalars that TAESD files may contain in addition to their parameters -> the values that need no scaling."""


def check_scalars(tensors: Tensors) -> None:
    """Raise `UserError` if a TAESD file requires a scale or shift of the latents, which is not supported."""
    for name, expected in SCALARS.items():
        if name in tensors.shapes and abs((value := tensors.get()(name).item()) - expected) > 1e-6:
            raise UserError(
                f"{tensors.source} has a {name} of {value:g}, but only {expected:g} is supported. Fold it into the "
                "weights, or use a TAESD file without it."
            )


def to_taesd_layout(model: AutoencoderTiny) -> StateDict:
    """Return the weights under TAESD's names, with the scalars `vae_scale` = 1 and `vae_shift` = 0 for ComfyUI."""
    state = part(model.state_dict(), layout_of("vae", "taesd", model))
    return state | {name: torch.tensor(value) for name, value in SCALARS.items()}


def load_towers(
    config: TowersConfig,
    text: Part | None,
    image: Part | None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    complete: bool = False,
    progress: Progress | None = None,
) -> CLIP:
    """Load the text and image towers from the parts `text` and `image` of files, in eval mode, without gradients, as
    views of the mapped files if dtype and device allow it. A tower without a file is left out; `encode_text` or
    `encode_image` then raises an error.

    Args:
        complete: also load layers that encoding never uses, but training does: the last text block, the text projection
            and the logit scale. Stable Diffusion 2.x's text encoder in transformers' layout does not have them.

    Raises `UserError` if tensors are missing or have another shape; the message lists them. If an entire tower has
    another width, the message says that instead.
    """
    model = new_towers(config, "meta")
    visual, model.visual = model.visual, None
    unused: set[str] = set()  # names of tensors that are left out on purpose; other unused tensors cause a warning

    def fill_tower(tower: nn.Module, part: Part, wide: str) -> None:
        """Fill a tower with the tensors of a part. `wide`: a parameter whose last dimension is the tower's width."""
        tensors, name = part.tensors, part.name
        layout = layout_of(name, part.layout, tower, tensors.shapes)
        shape, expected = tensors.shapes.get(layout[wide].names[0]), layout[wide].shape[-1]
        if shape and shape[-1] != expected:
            raise UserError(
                f"{tensors.source} belongs to another model: its {name} tower has width {shape[-1]}, expected "
                f"{expected} (Stable Diffusion 1.x and SDXL have other widths). Use the tower that the checkpoint was "
                "trained with; for the released network this is OpenCLIP's ViT-H/14."
            )
        ignored = {extra for extra in tensors.shapes if extra in unused or is_known_extra(name, extra)}
        fill(tower, layout, tensors, f"the {name} tower", dtype, device, progress, ignored)

    if text is not None:
        unused = names_of(layout_of("text", text.layout, model, text.tensors.shapes))
        if not complete:
            del model.transformer.resblocks[-1]
    left_out = [] if complete and text else ["text_projection", "logit_scale"]
    left_out += [] if text else ["token_embedding", "positional_embedding", "transformer", "ln_final", "attn_mask"]
    for name in left_out:  # modules, parameters and buffers; torch treats None as absent
        setattr(model, name, None)
    if text is not None:
        fill_tower(model, text, "token_embedding.weight")
        mask = torch.full((LENGTH, LENGTH), float("-inf")).triu(1)
        model.attn_mask = mask.to(device, dtype)  # a token (row) does not attend to tokens (columns) after it
    if image is not None:
        unused = set()
        fill_tower(visual, image, "class_embedding")
        model.visual = visual
    return model.eval().requires_grad_(False)
