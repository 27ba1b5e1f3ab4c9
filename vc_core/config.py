"""The config of a checkpoint: from its metadata, else from the shapes of its tensors."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import cached_property
from itertools import count
from typing import Annotated, Any, Literal, TypeVar

import torch
from torch import Tensor

from .conditions import CONDITIONS
from .configuration import INTEGER, Describe, Field, Problem, Spoken, build, checked, words
from .errors import UserError, shown
from .parsing import parse_json

_LEVELS = 16
T = TypeVar("T")
_Width = Annotated[int, Field(ge=1, le=65536)]
_Side = Annotated[int, Field(ge=1, le=4096)]
_Heads = Annotated[int, Field(ge=1, le=1024)]
_Layers = Annotated[int, Field(ge=1, le=64)]
_Dropout = Annotated[float, Field(ge=0.0, le=0.99)]
_Beta = Annotated[float, Field(ge=1e-6, le=0.999)]
_Scale = Annotated[Literal[4, 8, 12], INTEGER, Spoken("one of 4, 8, 12, or no such key")]
_Rate = Annotated[float, Field(ge=1e-3, le=1e4)]
_Text = Annotated[str, Spoken("a string")]
_PerLevel = Annotated[tuple[T, ...], Field(strict=False, max_length=_LEVELS)]  # lists too

LEAST = 4.8973451890853435e-08
"""The fraction of the signal's variance that stands for zero at the end of a schedule with zero terminal SNR."""


def _describe(section: str) -> Describe:
    """A function that describes a problem in a section of the config, for users."""

    def describe(problem: Problem) -> str:
        value, path = problem.value, ".".join(("config", *problem.where))
        if problem.kind == "section":
            return f"The checkpoint's {path} has the type {type(value).__name__}. Expected a JSON object."
        if problem.kind == "keys":
            unknown = shown(sorted(value))
            return f"The checkpoint's {path} has unknown keys {unknown}. Update this pack to read them."
        value = shown(tuple(value) if isinstance(value, list) else value)
        return f"Config key {section}{problem.where[0]} is {value}. Expected {words(problem.hint)}."

    return describe


@checked(_describe("unet."))
class UNetConfig:
    """Sizes of the 3D UNet; the defaults are the released network (1,413 M parameters).

    Attributes:
        channels: channels of the latent, in and out.
        width: channels of the first level; every level has `width * multiplier` channels.
        attention_levels: levels (0 = full latent size) that have spatial and temporal Transformers.
        head_dim: width of an attention head. Shapes do not show it: without metadata, it is assumed.
        temporal_in_heads: heads of the first temporal Transformer, right after the first convolution.
        context_dim: width of the text and style tokens.
        style_tokens: tokens for a style image: 1 in the released network, 4 in VGen's networks, 0 without style.
        stc_channels: channels of an STC embedding, concatenated with the noisy latent.
        stc_heads: heads of an STC-encoder's temporal layer, each `stc_channels` wide.
        conditions: the rows of the condition table for which this network has an STC-encoder.
        dropout, stc_dropout: used in training only.
        super_resolution: whether the layers work as in VGen's SR600, see `vc_core.model.unet`. Shapes do not show it.

    Raises:
        UserError: a value has a wrong type or is out of range, or a width is not a multiple of heads or norms' groups.
    """

    channels: _Layers = 4
    width: _Width = 320
    multipliers: _PerLevel[_Layers] = (1, 2, 4, 4)
    res_blocks: Annotated[int, Field(ge=1, le=16)] = 2
    attention_levels: _PerLevel[Annotated[int, Field(ge=0, le=_LEVELS - 1)]] = (0, 1, 2)
    head_dim: _Width = 64
    temporal_in_heads: _Heads = 8
    context_dim: _Width = 1024
    style_tokens: Annotated[int, Field(ge=0, le=64)] = 1
    stc_channels: Annotated[int, Field(ge=0, le=1024)] = 8  # 0 in a network without conditions
    stc_heads: _Heads = 2
    conditions: _PerLevel[_Text] = tuple(CONDITIONS)
    dropout: _Dropout = 0.1
    stc_dropout: _Dropout = 0.05
    super_resolution: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """The network's inputs: text, style if it supports it, and its conditions."""
        return ("text", *(("style",) if self.style_tokens else ()), *self.conditions)

    def check_supports(self, name: str) -> None:
        """Raise `UserError` if the network does not support style, or has no STC-encoder for this condition."""
        if name in self.inputs:
            return
        if name == "style":
            raise UserError("The checkpoint does not support style: it was trained without it. Remove the style image.")
        raise UserError(
            f"The checkpoint does not support '{name}': it was trained with "
            f"{', '.join(self.conditions) or 'no conditions'}. Remove '{name}'."
        )

    def __post_init__(self) -> None:
        unknown = [name for name in self.conditions if name not in tuple(CONDITIONS)]
        if unknown:
            raise UserError(f"Config key unet.conditions has unknown conditions {shown(unknown)}. Update this pack.")
        if not self.multipliers:
            raise UserError("Config key unet.multipliers is empty. Expected one for each level, such as 1, 2, 4, 4.")
        if self.conditions and not self.stc_channels:
            raise UserError("Config key unet.stc_channels is 0. Expected 1 or more with conditions.")
        for width in sorted({self.width * multiplier for multiplier in self.multipliers}):
            for divisor, of in ((32, "the norms' number of groups"), (self.head_dim, "the width of an attention head")):
                if width % divisor:
                    raise UserError(
                        f"A level of the network is {width} wide (config key unet.width times a multiplier). "
                        f"Expected a multiple of {divisor}, {of}."
                    )


@checked(_describe("diffusion."))
class DiffusionConfig:
    """The noise schedule and what the network predicts (released: scaled-linear betas, 1000 steps, noise).

    Attributes:
        zero_terminal_snr: the schedule is rescaled so that its last step is pure noise. This requires v-prediction,
            because predicted noise would then say nothing about the video.

    Raises:
        UserError: a value is out of range, the betas decrease, or no signal remains after the last steps.
    """

    steps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    beta_start: _Beta = 0.00085
    beta_end: _Beta = 0.012
    beta_schedule: Literal["scaled_linear", "linear"] = "scaled_linear"
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    zero_terminal_snr: Annotated[bool, Spoken("true or false")] = False

    def __post_init__(self) -> None:
        if self.beta_start > self.beta_end:
            raise UserError(
                f"Config key diffusion.beta_start is {self.beta_start}. Expected at most beta_end, {self.beta_end}."
            )
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise UserError("Config key diffusion.zero_terminal_snr requires the prediction v_prediction, got epsilon.")
        if self.alphas_cumprod[-1] < 1e-35:  # the last noise level, about 1 / sqrt of this, must fit float32
            raise UserError(
                f"Config key diffusion.beta_end is {self.beta_end}. Expected less: after {self.steps} steps, no signal "
                "remains."
            )

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """The fraction of the signal's variance that remains at each training step, `(steps,)` in float64.

        With `zero_terminal_snr`, rescaled so that nothing remains at the last step (arXiv 2305.08891, section 3.1).
        """
        root = 2 if self.beta_schedule == "scaled_linear" else 1
        start, end = self.beta_start ** (1 / root), self.beta_end ** (1 / root)
        betas = torch.linspace(start, end, self.steps, dtype=torch.float64, device="cpu") ** root
        alphas = (1.0 - betas).cumprod(0)
        if not self.zero_terminal_snr:
            return alphas
        # Algorithm 1 in that paper. Samplers divide by the last value, so use ComfyUI's value for zero.
        signal = alphas.sqrt()
        signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
        return (signal**2).clamp(min=LEAST)


@checked(_describe("extraction."))
class ExtractionConfig:
    """How conditions must be extracted, as for the network's training. Users need not know it.

    Attributes:
        motion_layout: `points`: a block's vector at its centre, zeros elsewhere; `dense`: filled blocks.
        motion_unit: `source_pixels`: lengths in pixels of the source clip; `pixels`: of the composed video.
        sketch: `pidinet` (released) or `edges`.
        depth: `midas` (released), or `relative`: any inverse depth in the table's range.
        condition_scale: height and width of all conditions as a multiple of the latent's; None: the condition table's
            (released): 8 for motion and 12 for the others.
        sampling_rate: frames sampled per second of a clip, if it is long enough, see `plan_frames`.
    """

    motion_layout: Literal["points", "dense"] = "points"
    motion_unit: Literal["source_pixels", "pixels"] = "source_pixels"
    sketch: Literal["pidinet", "edges"] = "pidinet"
    depth: Literal["midas", "relative"] = "midas"
    condition_scale: _Scale | None = None
    sampling_rate: _Rate = 4.0

    def __post_init__(self) -> None:
        if (self.motion_layout, self.motion_unit) not in (("points", "source_pixels"), ("dense", "pixels")):
            raise UserError(
                f"The config combines motion_layout {self.motion_layout} with motion_unit {self.motion_unit}, which no "
                "extractor supports. Expected points with source_pixels, or dense with pixels."
            )


@checked(_describe("autoencoder."))
class AutoencoderConfig:
    """Layout of the autoencoder, and the factor between its latents and the network's.

    `kl` is Stable Diffusion's. `taesd` is the tiny autoencoder, whose latents need no factor.
    """

    layout: Literal["kl", "taesd"] = "kl"
    scale: Annotated[float, Field(ge=1e-4, le=1e4)] = 0.18215


@checked(_describe("towers."))
class TowersConfig:
    """Sizes of the text and image towers (OpenCLIP). The defaults are ViT-H/14, which the released network uses.

    Raises:
        UserError: a value is out of range, a width is not a multiple of its heads, or a patch is larger than the image.
    """

    embed_dim: _Width = 1024
    text_width: _Width = 1024
    text_heads: _Heads = 16
    text_layers: Annotated[int, Field(ge=2, le=64)] = 24  # the output of the last but one is used
    image_size: _Side = 224
    patch_size: _Side = 14
    image_width: _Width = 1280
    image_head_width: _Width = 80
    image_layers: _Layers = 32

    def __post_init__(self) -> None:
        for divisor, width in (("text_heads", "text_width"), ("image_head_width", "image_width")):
            if getattr(self, width) % getattr(self, divisor):
                raise UserError(
                    f"Config key towers.{divisor} is {getattr(self, divisor)}. Expected a divisor of {width}, "
                    f"{getattr(self, width)}."
                )
        if self.patch_size > self.image_size:
            raise UserError(
                f"Config key towers.patch_size is {self.patch_size}. Expected at most image_size, {self.image_size}."
            )


@checked(_describe(""))
class Config:
    """Everything about a checkpoint that its tensors do not show. The defaults are the released network's.

    Attributes:
        name: shown to users.
        frames, height, width, rate: the videos that it was trained on; defaults of `compose()`.
        guidance: default guidance scale.
        few_steps: whether the network is distilled (LCM, arXiv 2310.04378): the defaults are then the sampler `lcm` and
            4 steps.

    Raises:
        UserError: a value has a wrong type or is out of range.
    """

    name: _Text = "VideoComposer"
    frames: Annotated[int, Field(ge=1, le=100_000)] = 16
    height: _Width = 256
    width: _Width = 256
    rate: _Rate = 8.0
    guidance: Annotated[float, Field(ge=-1e4, le=1e4)] = 9.0
    few_steps: Annotated[bool, Spoken("true or false")] = False
    unet: UNetConfig = field(default_factory=UNetConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    extraction: ExtractionConfig = field(default_factory=ExtractionConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    towers: TowersConfig = field(default_factory=TowersConfig)

    @property
    def sampler(self) -> str:
        """The default sampler."""
        return "lcm" if self.few_steps else "dpmpp_2m"

    @property
    def steps(self) -> int:
        """The default number of sampling steps."""
        return 4 if self.few_steps else 20

    def to_json(self) -> str:
        return json.dumps(as_mapping(self))

    @staticmethod
    def from_json(text: str) -> "Config":
        """Read the JSON that `to_json` writes.

        Raises:
            UserError: broken JSON, an unknown key, or a wrong value.
        """
        try:
            data = parse_json(text)
        except ValueError as error:
            raise UserError(
                f"The checkpoint's config is not valid JSON ({error}). Save the checkpoint again."
            ) from error
        return build(Config, data, _describe(""))


_LATER = {"condition_scale": None, "style_tokens": 1, "sampling_rate": 4.0, "few_steps": False,
          "super_resolution": False}  # fmt: skip
"""Keys that earlier versions do not know -> the values that have the same effect as no key."""


def as_mapping(config: Any) -> dict[str, Any]:
    """A config, or a section of it, as a mapping for JSON. Omit keys that earlier versions do not know, if their values
    have no effect."""
    return dataclasses.asdict(config, dict_factory=lambda pairs: dict(p for p in pairs if p not in _LATER.items()))


def unet_config_from_shapes(shapes: Mapping[str, Sequence[int]], head_dim: int = 64) -> UNetConfig:
    """The network's sizes, from the shapes of its tensors under their released names.

    Shapes do not show the head width (`head_dim`), which gives the heads of the first temporal Transformer. By default
    it is assumed to be the released one.

    Raises:
        UserError: the names are not those of a VideoComposer network.
    """
    first = shapes.get("input_blocks.0.0.weight")
    conditions = tuple(n for n, spec in CONDITIONS.items() if f"{spec.released[0]}.0.weight" in shapes)
    if first is None or "input_blocks.0.1.proj_in.weight" not in shapes or "out.2.weight" not in shapes:
        raise UserError(
            "The tensors are not those of a VideoComposer network. Expected the names input_blocks.0.0.weight, "
            "input_blocks.0.1.proj_in.weight and out.2.weight."
        )
    width, in_channels = first[0], first[1]
    channels = shapes["out.2.weight"][0]

    levels: list[list[int]] = [[]]  # of the encoder: the numbers of their residual blocks
    for index in count(1):
        if f"input_blocks.{index}.op.weight" in shapes:
            levels.append([])
        elif f"input_blocks.{index}.0.in_layers.2.weight" in shapes:
            levels[-1].append(index)
        else:
            break
    firsts = [blocks[0] for blocks in levels if blocks]
    style = shapes.get("pre_image_condition.2.weight")
    cross = shapes.get("middle_block.1.transformer_blocks.0.attn2.to_k.weight")
    stem = next((shapes[f"{CONDITIONS[n].released[0]}.5.weight"] for n in conditions), None)
    stc_channels = stem[0] if stem else in_channels - channels
    qkv = next((shapes[f"{CONDITIONS[n].released[1]}.layers.0.0.fn.to_qkv.weight"] for n in conditions), None)
    return UNetConfig(
        channels=channels,
        width=width,
        multipliers=tuple(shapes[f"input_blocks.{first}.0.in_layers.2.weight"][0] // width for first in firsts),
        res_blocks=len(levels[0]),
        attention_levels=tuple(i for i, first in enumerate(firsts) if f"input_blocks.{first}.1.norm.weight" in shapes),
        head_dim=head_dim,
        temporal_in_heads=shapes["input_blocks.0.1.proj_in.weight"][0] // head_dim,
        context_dim=cross[1] if cross else 1024,
        style_tokens=style[0] // style[1] if style else 0,
        stc_channels=stc_channels,
        stc_heads=qkv[0] // 3 // stc_channels if qkv else 2,
        conditions=conditions,
    )
