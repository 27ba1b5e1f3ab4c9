"""Layouts of the networks that users own: whose names, in whose shapes, under which prefix.

Each entry of `FORMATS` goes from the parameters of our modules (the UNet, diffusers' autoencoders, open_clip's CLIP) to
the tensors of a file and serves both ways. `released` is VideoComposer's own; `ldm` is CompVis' latent-diffusion, whose
names Stable Diffusion's checkpoints have; `diffusers`, `open_clip` and `transformers` (4 and 5) are the libraries' own;
`taesd` is what ComfyUI reads.
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
    """diffusers' name to TAESD's; the decoder counts from 1, because its layer 0 is the clamp."""
    part, _, index, rest = name.split(".", 3)
    return f"taesd_encoder.{index}.{rest}" if part == "encoder" else f"taesd_decoder.{int(index) + 1}.{rest}"


# Pieces of diffusers' names -> of latent-diffusion's, and of those that diffusers' first files had.
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
        # Latent-diffusion counts the decoder's levels from the finest.
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
    """The layout of an AutoencoderKL whose parameters have other names there.

    The attention's matrices are linear layers (C, C) or 1 x 1 convolutions (C, C, 1, 1): `ones` says which the layout
    has as a rule, and a file of either layout may have the others.
    """
    layout = {}
    for name, shape in shapes_of(module).items():
        there = renamed(name)
        if ".attentions." in name and len(shape) == 2:
            shape = file[there] if file.get(there) in (shape, (*shape, 1, 1)) else (*shape, *ones)
        layout[name] = Origin((there,), shape)
    return layout


# --- Towers ---------------------------------------------------------------------------------------------------------

# open_clip's names -> transformers': of what lies beside the two models, where the matrices are transposed,
_BESIDE = {
    "text_projection": "text_projection.weight",
    "proj": "visual_projection.weight",
    "logit_scale": "logit_scale",
}
# of parameters, and of modules, those of all blocks among them.
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
    if name in _BESIDE:
        return Origin((_BESIDE[name],), shape[::-1], transposed=len(shape) == 2)
    if name in _PARAMETERS:
        return Origin((start + _PARAMETERS[name],), shape)
    block, module, leaf = _IN_MODULE.match(name).groups()
    there = start if block is None else f"{start}encoder.layers.{block}."
    if module == "attn.in_proj":
        queries_keys_values = tuple(f"{there}self_attn.{letter}_proj.{leaf}" for letter in "qkv")
        return Origin(queries_keys_values, (shape[0] // 3, *shape[1:]))
    return Origin((f"{there}{_MODULES[module]}.{leaf}",), shape)


# --- The table ------------------------------------------------------------------------------------------------------


class Format(NamedTuple):
    """How files of one kind hold one part.

    Attributes:
        markers: names that tell it, in one or more forms of which the first that fits counts. A prefix is what stands
            before the first name; the part is there if the others follow the same prefix.
        origins: from our module and the file's shapes, both without prefix, to where the parameters lie.
        ours: the layout that files of this project hold it in; of equal ones the network is one.
        prefix: what stands before the names in a file that others make of this layout.
    """

    markers: tuple[tuple[str, ...], ...]
    origins: Callable[[nn.Module, Shapes], Layout]
    ours: str
    prefix: str = ""


FORMATS: dict[tuple[str, str], Format] = {
    # The second name tells a VideoComposer (or ModelScope) network from Stable Diffusion's.
    ("model", "released"): Format(
        (("out.2.weight", "input_blocks.0.1.proj_in.weight"),), lambda module, file: released_layout(module), "released"
    ),
    # ModelScope's text-to-video network, which is that of VideoComposer for text alone.
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
    # transformers 5 saves a text model that has no projection without the prefix that version 4 gives it.
    ("text", "transformers"): Format(
        (
            ("text_model.embeddings.token_embedding.weight", f"text_model.{_Q_0}"),
            ("embeddings.token_embedding.weight", _Q_0),
        ),
        partial(_transformers, "text_model."),
        "open_clip",
    ),
    # Found without `visual.`, which is a prefix like any other.
    ("image", "open_clip"): Format(
        (("class_embedding", "conv1.weight", _BLOCK_0),), _open_clip, "open_clip", prefix="visual."
    ),
    ("image", "transformers"): Format(
        (("vision_model.embeddings.class_embedding", f"vision_model.{_Q_0}"),),
        partial(_transformers, "vision_model."),
        "open_clip",
    ),
}
"""(part, layout) -> how files hold it. A new layout is an entry."""


def layout_of(part: str, layout: str, module: nn.Module, file: Shapes | None = None) -> Layout:
    """Where the parameters of a part's network lie, see `FORMATS`.

    Args:
        module: our UNet3D, diffusers' AutoencoderTiny (`taesd`) or AutoencoderKL, open_clip's text tower (a CLIP
            without `visual`) or its image tower (the `visual` of a CLIP); may be on meta. What it lacks, such as the
            last text block, the layout lacks too.
        file: shapes of the file's tensors without the part's prefix, to follow it where files of one layout differ.
    """
    return FORMATS[part, layout].origins(module, file or {})


# --- Finding parts --------------------------------------------------------------------------------------------------

_IGNORED = re.compile(r"(^|\.)(position_ids|attn_mask|logit_scale|logit_bias)$|^(loss|model_ema)\.")
# A file of both towers in transformers' layout has no prefix that would part them; TAESD's constants are checked.
_BELONGS_ELSEWHERE = {
    "vae": ("vae_scale", "vae_shift"),
    "text": ("vision_model.", "visual_projection."),
    "image": ("text_model.", "text_projection."),
}


def find_parts(names: Collection[str], source: str = "The file") -> dict[str, tuple[str, str]]:
    """The parts among the names of a file: part -> its layout, and what stands before its names. A standalone SDXL
    autoencoder passes for Stable Diffusion's. Raises `UserError`, which calls the file `source`, for one of another
    family, whose parts may only look like the ones that fit."""
    if said := foreign_family(names):
        raise UserError(f"{source} is {said}.")
    found: dict[str, tuple[str, str]] = {}
    for (part, layout), kind in FORMATS.items():
        for prefix in (find_prefix(names, markers) for markers in kind.markers):
            if prefix is not None:
                found.setdefault(part, (layout, prefix))
    return found


def find_prefix(names: Collection[str], markers: tuple[str, ...]) -> str | None:
    """What stands before all markers in a file: `model.` where that does, else the shortest; None for nothing."""
    first, *others = markers
    starts = {name[: -len(first)] for name in names if name.endswith(first)}
    found = [s for s in starts if (not s or s.endswith(".")) and all(s + other in names for other in others)]
    return min(found, key=lambda start: (start != "model.", len(start), start), default=None)


def is_known_extra(part: str, name: str) -> bool:
    """Whether a tensor (its name without the part's prefix) that a part's network has no place for goes without a
    warning: nothing here needs it."""
    return _IGNORED.search(name) is not None or name.startswith(_BELONGS_ELSEWHERE[part])
