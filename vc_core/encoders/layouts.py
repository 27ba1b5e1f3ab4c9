"""Layouts of the autoencoders and towers that users own: whose names, in whose shapes, under which prefix.

Each table goes from the parameters of our modules (diffusers' autoencoders, open_clip's CLIP) to the tensors of a file
and serves both ways. `ldm` is CompVis' latent-diffusion, whose names Stable Diffusion's checkpoints have; `diffusers`,
`open_clip` and `transformers` (4 and 5) are the libraries' own; `taesd` is what ComfyUI reads.
"""

import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import NamedTuple

from torch import nn

from ..errors import UserError
from ..layouts import Layout, Origin

Shapes = Mapping[str, tuple[int, ...]]


class Found(NamedTuple):
    """A part of a file: which one (`vae`, `text` or `image`), in whose layout, and what stands before its names."""

    part: str
    layout: str
    prefix: str


# --- Finding parts --------------------------------------------------------------------------------------------------

_BLOCK_0 = "transformer.resblocks.0.attn.in_proj_weight"
_Q_0 = "encoder.layers.0.self_attn.q_proj.weight"

SIGNATURES: dict[tuple[str, str], tuple[tuple[str, ...], ...]] = {
    ("vae", "taesd"): (("taesd_encoder.0.weight", "taesd_decoder.1.weight"),),
    ("vae", "ldm"): (("encoder.down.0.block.0.norm1.weight", "decoder.up.0.block.0.norm1.weight"),),
    ("vae", "diffusers"): (
        ("encoder.down_blocks.0.resnets.0.norm1.weight", "decoder.up_blocks.0.resnets.0.norm1.weight"),
    ),
    ("text", "open_clip"): (("token_embedding.weight", _BLOCK_0, "ln_final.weight"),),
    # transformers 5 saves a text model that has no projection without the prefix that version 4 gives it.
    ("text", "transformers"): (
        ("text_model.embeddings.token_embedding.weight", f"text_model.{_Q_0}"),
        ("embeddings.token_embedding.weight", _Q_0),
    ),
    # Without `visual.`, which is a prefix like any other.
    ("image", "open_clip"): (("class_embedding", "conv1.weight", _BLOCK_0),),
    ("image", "transformers"): (("vision_model.embeddings.class_embedding", f"vision_model.{_Q_0}"),),
}
"""(part, layout) -> its markers, in one or more forms of which the first that fits counts. A prefix is what stands
before the first marker; the part is there if the other markers follow the same prefix."""

# What holds parts of the same names and shapes that mean something else.
_FOREIGN = {
    "conditioner.embedders.": (
        "is an SDXL checkpoint, whose latents have another scale and whose text towers are others: name a Stable "
        "Diffusion 1.x or 2.x file for the autoencoder, and a 2.x or OpenCLIP ViT-H/14 file for the towers"
    ),
}

_IGNORED = re.compile(r"(^|\.)(position_ids|attn_mask|logit_scale|logit_bias)$|^(loss|model_ema)\.")


def find_parts(names: Collection[str], source: str = "The file") -> list[Found]:
    """The autoencoders and towers among the names of a file, of each part and layout the shortest prefix first.

    A standalone SDXL autoencoder has the names and shapes of Stable Diffusion's and passes for it.

    Args:
        source: what errors call the file.

    Raises:
        UserError: the names are those of a checkpoint whose parts only look like the ones that fit.
    """
    for start, reason in _FOREIGN.items():
        if any(name.startswith(start) for name in names):
            raise UserError(f"{source} {reason}.")
    names = frozenset(names)
    found = []
    for (part, layout), forms in SIGNATURES.items():
        prefixes = next((fits for markers in forms if (fits := _prefixes(names, markers))), [])
        found += [Found(part, layout, prefix) for prefix in prefixes]
    return found


def _prefixes(names: Collection[str], markers: tuple[str, ...]) -> list[str]:
    first, *others = markers
    starts = {name[: -len(first)] for name in names if name.endswith(first)}
    fits = [s for s in starts if (not s or s.endswith(".")) and all(s + other in names for other in others)]
    return sorted(fits, key=lambda start: (len(start), start))


def is_ignored(name: str) -> bool:
    """Whether a tensor (its name without the part's prefix) is a known extra that nothing here needs."""
    return _IGNORED.search(name) is not None


# A file of both towers in transformers' layout has no prefix that would part them; TAESD's constants are checked.
_BELONGS_ELSEWHERE = {
    "vae": ("vae_scale", "vae_shift"),
    "text": ("vision_model.", "visual_projection."),
    "image": ("text_model.", "text_projection."),
}


def is_known_extra(part: str, name: str) -> bool:
    """Whether a tensor that a part's network has no place for goes without a warning."""
    return is_ignored(name) or name.startswith(_BELONGS_ELSEWHERE[part])


# --- Autoencoders ---------------------------------------------------------------------------------------------------


def _taesd(ours: Shapes, file: Shapes) -> Layout:
    return {name: Origin((_taesd_name(name),), shape) for name, shape in ours.items()}


def _taesd_name(name: str) -> str:
    """diffusers' name to TAESD's; the decoder counts from 1, because its layer 0 is the clamp."""
    part, _, index, rest = name.split(".", 3)
    return f"taesd_encoder.{index}.{rest}" if part == "encoder" else f"taesd_decoder.{int(index) + 1}.{rest}"


_ATTENTION = ("group_norm", "to_q", "to_k", "to_v", "to_out.0")
_ATTENTION_OF_LDM = ("norm", "q", "k", "v", "proj_out")
_ATTENTION_OF_OLD_DIFFUSERS = ("group_norm", "query", "key", "value", "proj_attn")


def _ldm(ours: Shapes, file: Shapes) -> Layout:
    return _modules_renamed(ours, file, _ldm_modules(ours), (1, 1))


def _ldm_modules(ours: Shapes) -> dict[str, str]:
    """diffusers' module names to latent-diffusion's, which counts the decoder's levels from the finest."""
    levels = 1 + max(_numbers(ours, r"^encoder\.down_blocks\.(\d+)"))
    blocks = 1 + max(_numbers(ours, r"^encoder\.down_blocks\.0\.resnets\.(\d+)"))
    table = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}

    def add_resnet(here: str, there: str) -> None:
        table.update({f"{here}.{module}": f"{there}.{module}" for module in ("norm1", "conv1", "norm2", "conv2")})
        table[f"{here}.conv_shortcut"] = f"{there}.nin_shortcut"

    for side in ("encoder", "decoder"):
        table |= {f"{side}.conv_{end}": f"{side}.conv_{end}" for end in ("in", "out")}
        table[f"{side}.conv_norm_out"] = f"{side}.norm_out"
        table |= _attention_modules(side, f"{side}.mid.attn_1", _ATTENTION_OF_LDM)
        for i in range(2):
            add_resnet(f"{side}.mid_block.resnets.{i}", f"{side}.mid.block_{i + 1}")
    for level in range(levels):
        down, down_there = f"encoder.down_blocks.{level}", f"encoder.down.{level}"
        up, up_there = f"decoder.up_blocks.{level}", f"decoder.up.{levels - 1 - level}"
        table[f"{down}.downsamplers.0.conv"] = f"{down_there}.downsample.conv"
        table[f"{up}.upsamplers.0.conv"] = f"{up_there}.upsample.conv"
        for i in range(blocks):
            add_resnet(f"{down}.resnets.{i}", f"{down_there}.block.{i}")
        for i in range(blocks + 1):
            add_resnet(f"{up}.resnets.{i}", f"{up_there}.block.{i}")
    return table


def _attention_modules(side: str, there: str, names: tuple[str, ...]) -> dict[str, str]:
    here = f"{side}.mid_block.attentions.0"
    return {f"{here}.{ours}": f"{there}.{theirs}" for ours, theirs in zip(_ATTENTION, names, strict=True)}


def _diffusers(ours: Shapes, file: Shapes) -> Layout:
    modules = {module: module for module in (name.rpartition(".")[0] for name in ours)}
    if "encoder.mid_block.attentions.0.query.weight" in file:
        for side in ("encoder", "decoder"):
            modules |= _attention_modules(side, f"{side}.mid_block.attentions.0", _ATTENTION_OF_OLD_DIFFUSERS)
    return _modules_renamed(ours, file, modules, ())


def _modules_renamed(ours: Shapes, file: Shapes, modules: Mapping[str, str], ones: tuple[int, ...]) -> Layout:
    """The layout of an AutoencoderKL whose modules have other names there.

    The attention's matrices are linear layers (C, C) or 1 x 1 convolutions (C, C, 1, 1): `ones` says which the layout
    has as a rule, and a file of either layout may have the others.
    """
    layout = {}
    for name, shape in ours.items():
        module, _, leaf = name.rpartition(".")
        there = f"{modules[module]}.{leaf}"
        if ".attentions." in name and len(shape) == 2:
            shape = file[there] if file.get(there) in (shape, (*shape, 1, 1)) else (*shape, *ones)
        layout[name] = Origin((there,), shape)
    return layout


def _numbers(names: Collection[str], pattern: str) -> list[int]:
    return [int(match[1]) for name in names if (match := re.search(pattern, name))]


# --- Towers ---------------------------------------------------------------------------------------------------------

# Parameters of open_clip's towers -> of transformers' models, in which all blocks have the same names.
_MODELS = {
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


def _open_clip(ours: Shapes, file: Shapes) -> Layout:
    return {name: Origin((name,), shape) for name, shape in ours.items()}


def _transformers(model: str, ours: Shapes, file: Shapes) -> Layout:
    start = "" if _Q_0 in file else model  # see the second form in SIGNATURES
    return {name: _transformers_origin(name, shape, _MODELS[model], start) for name, shape in ours.items()}


def _transformers_origin(name: str, shape: tuple[int, ...], table: Mapping[str, str], start: str) -> Origin:
    if name in _BESIDE:
        return Origin((_BESIDE[name],), shape[::-1], transposed=len(shape) == 2)
    if name in table:
        return Origin((start + table[name],), shape)
    block, module, leaf = _IN_BLOCK.match(name).groups()
    there = f"{start}encoder.layers.{block}"
    if module == "attn.in_proj":
        queries_keys_values = tuple(f"{there}.self_attn.{letter}_proj.{leaf}" for letter in "qkv")
        return Origin(queries_keys_values, (shape[0] // 3, *shape[1:]))
    return Origin((f"{there}.{_BLOCK[module]}.{leaf}",), shape)


# --- The table ------------------------------------------------------------------------------------------------------

LAYOUTS: dict[tuple[str, str], Callable[[Shapes, Shapes], Layout]] = {
    ("vae", "taesd"): _taesd,
    ("vae", "ldm"): _ldm,
    ("vae", "diffusers"): _diffusers,
    ("text", "open_clip"): _open_clip,
    ("text", "transformers"): partial(_transformers, "text_model."),
    ("image", "open_clip"): _open_clip,
    ("image", "transformers"): partial(_transformers, "vision_model."),
}
"""(part, layout) -> function of our module's shapes and the file's, both without prefix."""


def layout_of(part: str, layout: str, module: nn.Module, file: Shapes | None = None) -> Layout:
    """Where the parameters of an autoencoder or tower lie.

    Args:
        part, layout: see `SIGNATURES`.
        module: diffusers' AutoencoderTiny (`taesd`) or AutoencoderKL, open_clip's text tower (a CLIP without `visual`)
            or its image tower (the `visual` of a CLIP); may be on meta. What it lacks, such as the last text block,
            the layout lacks too.
        file: shapes of the file's tensors without the part's prefix, to follow it where files of one layout differ;
            None for a file to be written.
    """
    ours = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    return LAYOUTS[part, layout](ours, file or {})
