"""The networks of a checkpoint's parts, built on meta and filled: views of the mapped file where that can be."""

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
from .lora import read_lora, tell_unused, with_changes
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
    """The network of a checkpoint, in eval mode. Built on meta, its weights mapped where type and device allow it.

    `loras`: files of LoRAs whose changes are added to the weights, and their strengths, any numbers; warns of what in
    them is not used. For the other arguments see `UNet3D` and `fill`. Raises `UserError` for tensors that are missing
    or of another shape, and as `read_lora` does.
    """
    part = checkpoint.part("model")
    unet, tensors = on_meta(checkpoint.config, operations, attend), part.tensors
    layout = layout_of("model", part.layout, unet, tensors.shapes)
    if loras:
        check(layout, tensors, "its network")
        read = [(read_lora(path, unet), strength) for path, strength in loras.items()]
        for lora, _ in read:
            tell_unused(lora)
        tensors = with_changes(tensors, layout, read)
    fill(unet, layout, tensors, "its network", dtype, device, progress)
    return unet.eval().requires_grad_(False)


def on_meta(config: Config, operations: Any = nn, attend: Attend = attend) -> UNet3D:
    """The network of a config, without memory for its weights."""
    with torch.device("meta"):
        return UNet3D(config.unet, operations, attend)


def load_autoencoder(
    source: Part,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    widths: tuple[int, ...] = WIDTHS,
    progress: Progress | None = None,
) -> Autoencoder:
    """The autoencoder of a file's part `vae`, in evaluation mode, without gradients; views of the mapped file where
    type and device allow it.

    Raises `UserError` where tensors are missing, of another shape or of another model, or the file asks for another
    scale or shift.
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
            f"{tensors.source} has {counted(len(extra), 'tensor')} that {what} has no place for "
            f"({shorten(extra)}): the file is of another model."
        )
    check_scalars(tensors)
    fill(model, layout, tensors, what, dtype, device, progress, ignored)
    return model.eval().requires_grad_(False)


SCALARS = {"vae_scale": 1.0, "vae_shift": 0.0}
"""What TAESD files may ask for beside their parameters, and the values that nothing has to be done for."""


def check_scalars(tensors: Tensors) -> None:
    """Refuses a scale and a shift of latents, which TAESD files may ask for: nothing here applies them."""
    for name, expected in SCALARS.items():
        if name in tensors.shapes and abs((value := tensors.get()(name).item()) - expected) > 1e-6:
            raise UserError(
                f"{tensors.source} has a {name} of {value:g} where {expected:g} was expected: fold it into the weights "
                "or give a TAESD file without it."
            )


def to_taesd_layout(model: AutoencoderTiny) -> StateDict:
    """The weights under TAESD's names, with the scalars `vae_scale` = 1 and `vae_shift` = 0 that ComfyUI reads."""
    state = part(model.state_dict(), layout_of("vae", "taesd", model))
    return state | {name: torch.tensor(value) for name, value in SCALARS.items()}


def load_towers(
    config: TowersConfig,
    text: Part | None,
    image: Part | None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    whole: bool = False,
    progress: Progress | None = None,
) -> CLIP:
    """The text and image towers of files' parts `text` and `image`, in evaluation mode, without gradients; views of
    the mapped files where type and device allow it. One without a file is left out: `encode_text` or `encode_image`
    then refuses.

    Args:
        whole: also what encoding never uses, the last text block, the text projection and the logit scale, as training
            needs. Stable Diffusion 2.x's text encoder in transformers' layout comes without.

    Raises `UserError` where tensors are missing or of another shape; the message lists them, and says so first where a
    whole tower is of another width.
    """
    model = new_towers(config, "meta")
    visual, model.visual = model.visual, None
    unused: set[str] = set()  # names of what is left out on purpose; any other that has no place is warned of

    def fill_tower(tower: nn.Module, part: Part, wide: str) -> None:
        """`wide` is a parameter whose last dimension is the tower's width."""
        tensors, name = part.tensors, part.name
        layout = layout_of(name, part.layout, tower, tensors.shapes)
        found, expected = tensors.shapes.get(layout[wide].names[0]), layout[wide].shape[-1]
        if found and found[-1] != expected:
            raise UserError(
                f"{tensors.source} is of another model: its {name} tower is {found[-1]} wide, expected {expected} "
                "(Stable Diffusion 1.x and SDXL have others); name a file of the tower that the checkpoint was trained "
                "with, for the released network OpenCLIP's ViT-H/14."
            )
        ignored = {extra for extra in tensors.shapes if extra in unused or is_known_extra(name, extra)}
        fill(tower, layout, tensors, f"the {name} tower", dtype, device, progress, ignored)

    if text is not None:
        unused = names_of(layout_of("text", text.layout, model, text.tensors.shapes))
        if not whole:
            del model.transformer.resblocks[-1]
    left_out = [] if whole and text else ["text_projection", "logit_scale"]
    left_out += [] if text else ["token_embedding", "positional_embedding", "transformer", "ln_final", "attn_mask"]
    for name in left_out:  # modules, parameters and buffers, which torch counts as absent where they are None
        setattr(model, name, None)
    if text is not None:
        fill_tower(model, text, "token_embedding.weight")
        mask = torch.full((LENGTH, LENGTH), float("-inf")).triu(1)
        model.attn_mask = mask.to(device, dtype)  # a token (row) attends to none (column) after it
    if image is not None:
        unused = set()
        fill_tower(visual, image, "class_embedding")
        model.visual = visual
    return model.eval().requires_grad_(False)
