"""Layouts of the networks that users own: whose names, in whose shapes, under which prefix.

Each entry of `FORMATS` goes from the parameters of our modules (the UNet, diffusers' autoencoders, open_clip's CLIP) to
the tensors of a file and serves both ways. `released` is VideoComposer's own; `ldm` is CompVis' latent-diffusion, whose
names Stable Diffusion's checkpoints have; `diffusers`, `open_clip` and `transformers` (4 and 5) are the libraries' own;
`taesd` is what ComfyUI reads.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from torch import nn

from ..layouts import Layout, Origin, Shape, Shapes, by_modules, shapes_of
from ..model.layout import released_layout

# --- Autoencoders ---------------------------------------------------------------------------------------------------


def _taesd(module: nn.Module, file: Shapes) -> Layout:
    return {name: Origin((_taesd_name(name),), shape) for name, shape in shapes_of(module).items()}


def _taesd_name(name: str) -> str:
    """diffusers' name to TAESD's; the decoder counts from 1, because its layer 0 is the clamp."""
    part, _, index, rest = name.split(".", 3)
    return f"taesd_encoder.{index}.{rest}" if part == "encoder" else f"taesd_decoder.{int(index) + 1}.{rest}"


_ATTENTION = ("group_norm", "to_q", "to_k", "to_v", "to_out.0")
_ATTENTION_OF_LDM = ("norm", "q", "k", "v", "proj_out")
_ATTENTION_OF_OLD_DIFFUSERS = ("group_norm", "query", "key", "value", "proj_attn")


def _ldm(module: nn.Module, file: Shapes) -> Layout:
    return _kl(shapes_of(module), file, dict(_ldm_modules(module)), (1, 1))


def _ldm_modules(module: nn.Module) -> Iterator[tuple[str, str]]:
    """diffusers' module names and latent-diffusion's, which counts the decoder's levels from the finest."""
    levels, blocks = len(module.config.block_out_channels), module.config.layers_per_block
    resnets = {}
    for side in ("encoder", "decoder"):
        yield from ((f"{side}.conv_{end}", f"{side}.conv_{end}") for end in ("in", "out"))
        yield f"{side}.conv_norm_out", f"{side}.norm_out"
        yield from _attention_modules(side, f"{side}.mid.attn_1", _ATTENTION_OF_LDM)
        resnets |= {f"{side}.mid_block.resnets.{i}": f"{side}.mid.block_{i + 1}" for i in range(2)}
    for level in range(levels):
        down, down_there = f"encoder.down_blocks.{level}", f"encoder.down.{level}"
        up, up_there = f"decoder.up_blocks.{level}", f"decoder.up.{levels - 1 - level}"
        yield f"{down}.downsamplers.0.conv", f"{down_there}.downsample.conv"
        yield f"{up}.upsamplers.0.conv", f"{up_there}.upsample.conv"
        resnets |= {f"{down}.resnets.{i}": f"{down_there}.block.{i}" for i in range(blocks)}
        resnets |= {f"{up}.resnets.{i}": f"{up_there}.block.{i}" for i in range(blocks + 1)}
    for here, there in resnets.items():
        yield from ((f"{here}.{name}", f"{there}.{name}") for name in ("norm1", "conv1", "norm2", "conv2"))
        yield f"{here}.conv_shortcut", f"{there}.nin_shortcut"
    yield from ((name, name) for name in ("quant_conv", "post_quant_conv"))


def _attention_modules(side: str, there: str, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    here = f"{side}.mid_block.attentions.0"
    return ((f"{here}.{ours}", f"{there}.{theirs}") for ours, theirs in zip(_ATTENTION, names, strict=True))


def _diffusers(module: nn.Module, file: Shapes) -> Layout:
    modules = {name: name for name, _ in module.named_modules()}
    if "encoder.mid_block.attentions.0.query.weight" in file:
        for side in ("encoder", "decoder"):
            modules |= _attention_modules(side, f"{side}.mid_block.attentions.0", _ATTENTION_OF_OLD_DIFFUSERS)
    return _kl(shapes_of(module), file, modules, ())


def _kl(ours: Shapes, file: Shapes, modules: Mapping[str, str], ones: Shape) -> Layout:
    """The layout of an AutoencoderKL whose modules have other names there.

    The attention's matrices are linear layers (C, C) or 1 x 1 convolutions (C, C, 1, 1): `ones` says which the layout
    has as a rule, and a file of either layout may have the others.
    """

    def shaped(name: str, there: str, shape: Shape) -> Shape:
        if ".attentions." not in name or len(shape) != 2:
            return shape
        return file[there] if file.get(there) in (shape, (*shape, 1, 1)) else (*shape, *ones)

    return by_modules(ours, modules, shaped)


# --- Towers ---------------------------------------------------------------------------------------------------------

# Parameters of open_clip's towers -> of transformers' models, in which all blocks have the same names.
_TOWERS = {
    "text_model.": {
        "token_embedding.weight": "embeddings.token_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
        "ln_final.weight": "final_layer_norm.weight",
        "ln_final.bias": "final_layer_norm.bias",
    },
    "vision_model.": {
        "class_embedding": "embeddings.class_embedding",
        "conv1.weight": "embeddings.patch_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
        "ln_pre.weight": "pre_layrnorm.weight",  # sic
        "ln_pre.bias": "pre_layrnorm.bias",
        "ln_post.weight": "post_layernorm.weight",
        "ln_post.bias": "post_layernorm.bias",
    },
}
# What lies beside the models; the matrices are transposed.
_BESIDE = {
    "text_projection": "text_projection.weight",
    "proj": "visual_projection.weight",
    "logit_scale": "logit_scale",
}
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_IN_BLOCK = re.compile(r"^transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)$")
_BLOCK_0 = "transformer.resblocks.0.attn.in_proj_weight"
_Q_0 = "encoder.layers.0.self_attn.q_proj.weight"


def _open_clip(module: nn.Module, file: Shapes) -> Layout:
    return {name: Origin((name,), shape) for name, shape in shapes_of(module).items()}


def _transformers(model: str, module: nn.Module, file: Shapes) -> Layout:
    start = "" if _Q_0 in file else model  # see the second form of the markers
    return {name: _tower_origin(name, shape, model, start) for name, shape in shapes_of(module).items()}


def _tower_origin(name: str, shape: Shape, model: str, start: str) -> Origin:
    if name in _BESIDE:
        return Origin((_BESIDE[name],), shape[::-1], transposed=len(shape) == 2)
    if name in _TOWERS[model]:
        return Origin((start + _TOWERS[model][name],), shape)
    block, module, leaf = _IN_BLOCK.match(name).groups()
    there = f"{start}encoder.layers.{block}"
    if module == "attn.in_proj":
        queries_keys_values = tuple(f"{there}.self_attn.{letter}_proj.{leaf}" for letter in "qkv")
        return Origin(queries_keys_values, (shape[0] // 3, *shape[1:]))
    return Origin((f"{there}.{_BLOCK[module]}.{leaf}",), shape)


# --- The table ------------------------------------------------------------------------------------------------------


class Format(NamedTuple):
    """How files of one kind hold one part.

    Attributes:
        markers: names that tell it, in one or more forms of which the first that fits counts. A prefix is what stands
            before the first name; the part is there if the others follow the same prefix.
        origins: from our module and the file's shapes, both without prefix, to where the parameters lie.
        ours: the layout that files of this project hold such a part in, where it is another.
        prefix: what stands before the names in a file that others make of this layout.
    """

    markers: tuple[tuple[str, ...], ...]
    origins: Callable[[nn.Module, Shapes], Layout]
    ours: str = ""
    prefix: str = ""


FORMATS: dict[tuple[str, str], Format] = {
    # The second name tells a VideoComposer (or ModelScope) network from Stable Diffusion's.
    ("model", "released"): Format(
        (("out.2.weight", "input_blocks.0.1.proj_in.weight"),), lambda module, file: released_layout(module)
    ),
    ("vae", "taesd"): Format((("taesd_encoder.0.weight", "taesd_decoder.1.weight"),), _taesd),
    ("vae", "ldm"): Format((("encoder.down.0.block.0.norm1.weight", "decoder.up.0.block.0.norm1.weight"),), _ldm),
    ("vae", "diffusers"): Format(
        (("encoder.down_blocks.0.resnets.0.norm1.weight", "decoder.up_blocks.0.resnets.0.norm1.weight"),),
        _diffusers,
        ours="ldm",
    ),
    ("text", "open_clip"): Format((("token_embedding.weight", _BLOCK_0, "ln_final.weight"),), _open_clip),
    # transformers 5 saves a text model that has no projection without the prefix that version 4 gives it.
    ("text", "transformers"): Format(
        (
            ("text_model.embeddings.token_embedding.weight", f"text_model.{_Q_0}"),
            ("embeddings.token_embedding.weight", _Q_0),
        ),
        partial(_transformers, "text_model."),
        ours="open_clip",
    ),
    # Found without `visual.`, which is a prefix like any other.
    ("image", "open_clip"): Format((("class_embedding", "conv1.weight", _BLOCK_0),), _open_clip, prefix="visual."),
    ("image", "transformers"): Format(
        (("vision_model.embeddings.class_embedding", f"vision_model.{_Q_0}"),),
        partial(_transformers, "vision_model."),
        ours="open_clip",
    ),
}
"""(part, layout) -> how files hold it. A new layout is an entry."""


def layout_of(part: str, layout: str, module: nn.Module, file: Shapes | None = None) -> Layout:
    """Where the parameters of a part's network lie.

    Args:
        part, layout: see `FORMATS`.
        module: our UNet3D, diffusers' AutoencoderTiny (`taesd`) or AutoencoderKL, open_clip's text tower (a CLIP
            without `visual`) or its image tower (the `visual` of a CLIP); may be on meta. What it lacks, such as the
            last text block, the layout lacks too.
        file: shapes of the file's tensors without the part's prefix, to follow it where files of one layout differ;
            None for a file to be written.
    """
    return FORMATS[part, layout].origins(module, file or {})


# --- What has no place ----------------------------------------------------------------------------------------------

FOREIGN = {
    "conditioner.embedders.": "is an SDXL checkpoint, whose latents have another scale and whose text towers are "
    "others: name a Stable Diffusion 1.x or 2.x file for the autoencoder, and a 2.x or OpenCLIP ViT-H/14 file for the "
    "towers"
}
"""Starts of names in files that hold parts of the same names and shapes that mean something else."""

_IGNORED = re.compile(r"(^|\.)(position_ids|attn_mask|logit_scale|logit_bias)$|^(loss|model_ema)\.")
# A file of both towers in transformers' layout has no prefix that would part them; TAESD's constants are checked.
_BELONGS_ELSEWHERE = {
    "vae": ("vae_scale", "vae_shift"),
    "text": ("vision_model.", "visual_projection."),
    "image": ("text_model.", "text_projection."),
}


def is_ignored(name: str) -> bool:
    """Whether a tensor (its name without the part's prefix) is a known extra that nothing here needs."""
    return _IGNORED.search(name) is not None


def is_known_extra(part: str, name: str) -> bool:
    """Whether a tensor that a part's network has no place for goes without a warning."""
    return is_ignored(name) or name.startswith(_BELONGS_ELSEWHERE[part])
