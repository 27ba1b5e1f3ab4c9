"""Layouts of the networks that users have: tensor names, shapes and prefixes.

Each entry of `FORMATS` maps the parameters of our modules (the UNet, diffusers' autoencoders, open_clip's CLIP) to the
tensors of a file, and works in both directions. `released` is VideoComposer's layout; `ldm` is that of CompVis'
latent-diffusion and of Stable Diffusion's checkpoints; `diffusers`, `open_clip` and `transformers` (4 and 5) are those
of the libraries; `taesd` is the layout that ComfyUI reads.
"""

import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import NamedTuple

from torch import nn

from ..errors import UserError
from .diffusers_unet import diffusers_layout
from .foreign import foreign_family
from .origins import Layout, Origin, Shape, Shapes, shapes_of
from .released import released_layout

# --- Autoencoders ---------------------------------------------------------------------------------------------------


def _taesd(module: nn.Module, file: Shapes) -> Layout:
    return {name: Origin((_taesd_name(name),), shape) for name, shape in shapes_of(module).items()}


def _taesd_name(name: str) -> str:
    """Return TAESD's name for diffusers' name. The decoder counts from 1, because its layer 0 is the clamp."""
    part, _, index, rest = name.split(".", 3)
    return f"taesd_encoder.{index}.{rest}" if part == "encoder" else f"taesd_decoder.{int(index) + 1}.{rest}"


# Pieces of diffusers' names -> pieces of latent-diffusion's names, and of the names in diffusers' first files.
_LDM = {
    "conv_norm_out": "norm_out",
    "mid_block.resnets.0.": "mid.block_1.",
    "mid_block.resnets.1.": "mid.block_2.",
    "mid_block.attentions.0.": "mid.attn_1.",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "down_blocks.": "down.",
    "up_blocks.": "up.",
    "resnets.": "block.",
    "conv_shortcut": "nin_shortcut",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
}
_OLD_DIFFUSERS = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def _ldm(module: nn.Module, file: Shapes) -> Layout:
    last = len(module.config.block_out_channels) - 1

    def renamed(name: str) -> str:
        # Latent-diffusion counts the decoder's levels from the finest one.
        name = re.sub(r"(?<=up_blocks\.)\d+", lambda level: str(last - int(level[0])), name)
        return _replaced(name, _LDM)

    return _kl(module, file, renamed, (1, 1))


def _diffusers(module: nn.Module, file: Shapes) -> Layout:
    old = _OLD_DIFFUSERS if "encoder.mid_block.attentions.0.query.weight" in file else {}
    return _kl(module, file, partial(_replaced, names=old), ())


def _replaced(name: str, names: Mapping[str, str]) -> str:
    for ours, theirs in names.items():
        name = re.sub(rf"(?<![^.]){re.escape(ours)}", theirs, name)
    return name


def _kl(module: nn.Module, file: Shapes, renamed: Callable[[str], str], ones: Shape) -> Layout:
    """Return the layout of an AutoencoderKL; `renamed` gives the file's name of a parameter.

    The attention's matrices are linear layers (C, C) or 1 x 1 convolutions (C, C, 1, 1). `ones` is the usual form in
    this layout, but a file of either layout may have the other form.
    """
    layout = {}
    for name, shape in shapes_of(module).items():
        theirs = renamed(name)
        if ".attentions." in name and len(shape) == 2:
            shape = file[theirs] if file.get(theirs) in (shape, (*shape, 1, 1)) else (*shape, *ones)
        layout[name] = Origin((theirs,), shape)
    return layout


# --- Towers ---------------------------------------------------------------------------------------------------------

# open_clip's names -> transformers': of tensors outside the two models, where the matrices are transposed,
_OUTSIDE = {
    "text_projection": "text_projection.weight",
    "proj": "visual_projection.weight",
    "logit_scale": "logit_scale",
}
# of parameters, and of modules, including those of all blocks.
_PARAMETERS = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
}
_MODULES = {
    "token_embedding": "embeddings.token_embedding",
    "ln_final": "final_layer_norm",
    "conv1": "embeddings.patch_embedding",
    "ln_pre": "pre_layrnorm",  # sic
    "ln_post": "post_layernorm",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_IN_MODULE = re.compile(r"^(?:transformer\.resblocks\.(\d+)\.)?(.+)[._](weight|bias)$")
_BLOCK_0 = "transformer.resblocks.0.attn.in_proj_weight"
_Q_0 = "encoder.layers.0.self_attn.q_proj.weight"


def _open_clip(module: nn.Module, file: Shapes) -> Layout:
    return {name: Origin((name,), shape) for name, shape in shapes_of(module).items()}


def _transformers(model: str, module: nn.Module, file: Shapes) -> Layout:
    start = "" if _Q_0 in file else model  # see the second form of the markers
    return {name: _tower_origin(name, shape, start) for name, shape in shapes_of(module).items()}


def _tower_origin(name: str, shape: Shape, start: str) -> Origin:
    if name in _OUTSIDE:
        return Origin((_OUTSIDE[name],), shape[::-1], transposed=len(shape) == 2)
    if name in _PARAMETERS:
        return Origin((start + _PARAMETERS[name],), shape)
    block, module, leaf = _IN_MODULE.match(name).groups()
    prefix = start if block is None else f"{start}encoder.layers.{block}."
    if module == "attn.in_proj":
        queries_keys_values = tuple(f"{prefix}self_attn.{letter}_proj.{leaf}" for letter in "qkv")
        return Origin(queries_keys_values, (shape[0] // 3, *shape[1:]))
    return Origin((f"{prefix}{_MODULES[module]}.{leaf}",), shape)


# --- The table ------------------------------------------------------------------------------------------------------


class Format(NamedTuple):
    """How one kind of file stores one part.

    Attributes:
        markers: names by which the part is recognized, in one or more forms; the first form that matches is used. The
            text before the first name is the prefix; the part exists if the other names have the same prefix.
        origins: a function of our module and the file's shapes, both without prefix, that returns the `Layout`.
        ours: the layout in which files of this project store the part; equal `ours` means the same network.
        prefix: the text before the names in files of this layout that other programs write.
    """

    markers: tuple[tuple[str, ...], ...]
    origins: Callable[[nn.Module, Shapes], Layout]
    ours: str
    prefix: str = ""


FORMATS: dict[tuple[str, str], Format] = {
    # The second name distinguishes a VideoComposer (or ModelScope) network from Stable Diffusion's.
    ("model", "released"): Format(
        (("out.2.weight", "input_blocks.0.1.proj_in.weight"),), lambda module, file: released_layout(module), "released"
    ),
    # ModelScope's text-to-video network, which is VideoComposer's for text only.
    ("model", "diffusers"): Format(
        (("conv_norm_out.weight", "transformer_in.proj_in.weight"),), diffusers_layout, "released"
    ),
    ("vae", "taesd"): Format((("taesd_encoder.0.weight", "taesd_decoder.1.weight"),), _taesd, "taesd"),
    ("vae", "ldm"): Format(
        (("encoder.down.0.block.0.norm1.weight", "decoder.up.0.block.0.norm1.weight"),), _ldm, "ldm"
    ),
    ("vae", "diffusers"): Format(
        (("encoder.down_blocks.0.resnets.0.norm1.weight", "decoder.up_blocks.0.resnets.0.norm1.weight"),),
        _diffusers,
        "ldm",
    ),
    ("text", "open_clip"): Format((("token_embedding.weight", _BLOCK_0, "ln_final.weight"),), _open_clip, "open_clip"),
    # transformers 5 saves a text model without projection without the prefix that version 4 writes.
    ("text", "transformers"): Format(
        (
            ("text_model.embeddings.token_embedding.weight", f"text_model.{_Q_0}"),
            ("embeddings.token_embedding.weight", _Q_0),
        ),
        partial(_transformers, "text_model."),
        "open_clip",
    ),
    # The markers do not include `visual.`, which is a prefix like any other.
    ("image", "open_clip"): Format(
        (("class_embedding", "conv1.weight", _BLOCK_0),), _open_clip, "open_clip", prefix="visual."
    ),
    ("image", "transformers"): Format(
        (("vision_model.embeddings.class_embedding", f"vision_model.{_Q_0}"),),
        partial(_transformers, "vision_model."),
        "open_clip",
    ),
}
"""(part, layout) -> how files store it. To add a layout, add an entry."""


def layout_of(part: str, layout: str, module: nn.Module, file: Shapes | None = None) -> Layout:
    """Return where the parameters of a part's network are in a file, see `FORMATS`.

    Args:
        module: our UNet3D, diffusers' AutoencoderTiny (`taesd`) or AutoencoderKL, open_clip's text tower (a CLIP
            without `visual`) or its image tower (the `visual` of a CLIP); may be on meta. Layers that it does not have,
            such as the last text block, are not in the layout either.
        file: shapes of the file's tensors without the part's prefix, needed because files of one layout may differ.
    """
    return FORMATS[part, layout].origins(module, file or {})


# --- Finding parts --------------------------------------------------------------------------------------------------

_IGNORED = re.compile(r"(^|\.)(position_ids|attn_mask|logit_scale|logit_bias)$|^(loss|model_ema)\.")
# A file with both towers in transformers' layout has no prefix for each tower; TAESD's constants are checked elsewhere.
_BELONGS_ELSEWHERE = {
    "vae": ("vae_scale", "vae_shift"),
    "text": ("vision_model.", "visual_projection."),
    "image": ("text_model.", "text_projection."),
}


def find_parts(names: Collection[str], source: str = "The file") -> dict[str, tuple[str, str]]:
    """Find the parts among the names of a file: part -> (layout, prefix of its names). A separate SDXL autoencoder is
    not distinguished from Stable Diffusion's. Raises `UserError`, which calls the file `source`, for a file of another
    family, because its parts may only look like supported ones."""
    if message := foreign_family(names):
        raise UserError(f"{source} is {message}.")
    parts: dict[str, tuple[str, str]] = {}
    for (part, layout), kind in FORMATS.items():
        for prefix in (find_prefix(names, markers) for markers in kind.markers):
            if prefix is not None:
                parts.setdefault(part, (layout, prefix))
    return parts


def find_prefix(names: Collection[str], markers: tuple[str, ...]) -> str | None:
    """Return the prefix that all markers have in a file: `model.` if it is one, else the shortest; None if there is
    none."""
    first, *others = markers
    starts = {name[: -len(first)] for name in names if name.endswith(first)}
    matches = [s for s in starts if (not s or s.endswith(".")) and all(s + other in names for other in others)]
    return min(matches, key=lambda start: (start != "model.", len(start), start), default=None)


def is_known_extra(part: str, name: str) -> bool:
    """Whether a tensor (name without the part's prefix) that a part's network does not use needs no warning."""
    return _IGNORED.search(name) is not None or name.startswith(_BELONGS_ELSEWHERE[part])
