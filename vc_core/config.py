"""Every size of a checkpoint: from its metadata, else from the shapes of its tensors."""

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
from .configuration import WHOLE, Field, Problem, Spoken, Tell, build, checked, words
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
_Scale = Annotated[Literal[4, 8, 12], WHOLE, Spoken("one of 4, 8, 12, or no such key")]
_Rate = Annotated[float, Field(ge=1e-3, le=1e4)]
_Text = Annotated[str, Spoken("a str")]
_PerLevel = Annotated[tuple[T, ...], Field(strict=False, max_length=_LEVELS)]  # lists too

LEAST = 4.8973451890853435e-08
"""Share of the signal that stands for none at the end of a schedule with zero terminal SNR."""


def _tell(section: str) -> Tell:
    """How a section's problems are told; whole sections and keys are those of a checkpoint's JSON."""

    def tell(problem: Problem) -> str:
        value, whole = problem.value, ".".join(("config", *problem.where))
        if problem.kind == "section":
            return f"The checkpoint's {whole} is a {type(value).__name__}: expected a JSON object."
        if problem.kind == "keys":
            unknown = shown(sorted(value))
            return f"The checkpoint's {whole} has unknown keys {unknown}: it needs a newer version of this pack."
        value = shown(tuple(value) if isinstance(value, list) else value)
        return f"The config's {section}{problem.where[0]} is {value}: expected {words(problem.hint)}."

    return tell


@checked(_tell("unet."))
class UNetConfig:
    """Sizes of the 3D UNet; the defaults are the released network (1,413 M parameters).

    Attributes:
        channels: channels of the latent, in and out.
        width: channels of the first level; every level has `width * multiplier` channels.
        attention_levels: levels (0 = full latent size) that have spatial and temporal Transformers.
        head_dim: width of one attention head. Shapes cannot tell it, so it is assumed where no metadata says it.
        temporal_in_heads: heads of the first temporal Transformer, right after the first convolution.
        context_dim: width of the text and style tokens.
        style_tokens: tokens that a style image becomes: 1 as released, 4 in VGen's networks, 0 without style.
        stc_channels: channels of an STC embedding, concatenated with the noisy latent.
        stc_heads: heads of an STC-encoder's temporal layer, each `stc_channels` wide.
        conditions: rows of the condition table that this network has an STC-encoder for.
        dropout, stc_dropout: used in training only.
        super_resolution: the layers of VGen's SR600, see `vc_core.model.unet`. Shapes do not show it.

    Raises:
        UserError: a value of another type or out of its range, widths that heads or norms do not divide.
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
    stc_channels: Annotated[int, Field(ge=0, le=1024)] = 8  # none in a network without conditions
    stc_heads: _Heads = 2
    conditions: _PerLevel[_Text] = tuple(CONDITIONS)
    dropout: _Dropout = 0.1
    stc_dropout: _Dropout = 0.05
    super_resolution: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the network can be told: text, style where it takes one, and its conditions."""
        return ("text", *(("style",) if self.style_tokens else ()), *self.conditions)

    def check_takes(self, name: str) -> None:
        """Raises `UserError` where the network takes no style, or has no STC-encoder for a condition of this name."""
        if name in self.inputs:
            return
        if name == "style":
            raise UserError("The checkpoint takes no style: it was trained without one; leave the style image out.")
        raise UserError(
            f"The checkpoint has no STC-encoder for '{name}': it was trained with "
            f"{', '.join(self.conditions) or 'none'}; leave that condition out."
        )

    def __post_init__(self) -> None:
        unknown = [name for name in self.conditions if name not in tuple(CONDITIONS)]
        if unknown:
            raise UserError(f"The network config names unknown conditions {shown(unknown)}: update the pack.")
        if not self.multipliers:
            raise UserError("The config's unet.multipliers is empty: expected one for each level, such as 1, 2, 4, 4.")
        if self.conditions and not self.stc_channels:
            raise UserError("The config's unet.stc_channels is 0: expected 1 or more where there are conditions.")
        for width in sorted({self.width * multiplier for multiplier in self.multipliers}):
            for divisor, of in ((32, "the norms' number of groups"), (self.head_dim, "the width of a head")):
                if width % divisor:
                    raise UserError(
                        f"The network config has a level of width {width}: expected multiples of {divisor}, {of}."
                    )


@checked(_tell("diffusion."))
class DiffusionConfig:
    """The noise schedule and what the network predicts (released: scaled-linear betas, 1000 steps, noise).

    Attributes:
        zero_terminal_snr: the schedule is rescaled so that its last step is noise alone, which shows nothing of itself:
            the network predicts v.

    Raises:
        UserError: a value out of its range, or a schedule that falls or whose last steps leave no signal.
    """

    steps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    beta_start: _Beta = 0.00085
    beta_end: _Beta = 0.012
    beta_schedule: Literal["scaled_linear", "linear"] = "scaled_linear"
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    zero_terminal_snr: Annotated[bool, Spoken("a bool")] = False

    def __post_init__(self) -> None:
        if self.beta_start > self.beta_end:
            raise UserError(
                f"The config's diffusion.beta_start is {self.beta_start}: expected at most beta_end, {self.beta_end}."
            )
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise UserError("The config's diffusion.zero_terminal_snr goes with the prediction v_prediction alone.")
        if self.alphas_cumprod[-1] < 1e-35:  # the last noise level is about 1 by its root, in float32
            raise UserError(
                f"The config's diffusion.beta_end is {self.beta_end}: expected less, as after {self.steps} steps no "
                "signal is left."
            )

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """The share of the signal's variance that is left at each training step, `(steps,)` in float64.

        With `zero_terminal_snr` rescaled so that nothing is left at the last one (arXiv 2305.08891, section 3.1).
        """
        root = 2 if self.beta_schedule == "scaled_linear" else 1
        start, end = self.beta_start ** (1 / root), self.beta_end ** (1 / root)
        betas = torch.linspace(start, end, self.steps, dtype=torch.float64, device="cpu") ** root
        alphas = (1.0 - betas).cumprod(0)
        if not self.zero_terminal_snr:
            return alphas
        # Algorithm 1 there. Samplers divide by the last one, so it is what ComfyUI takes for zero.
        signal = alphas.sqrt()
        signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
        return (signal**2).clamp(min=LEAST)


@checked(_tell("extraction."))
class ExtractionConfig:
    """How the conditions that the network was trained on were made, so that users need not know.

    Attributes:
        motion_layout: `points`: a block's vector at its centre, all else zero; `dense`: blocks filled.
        motion_unit: `source_pixels`: magnitudes as in the source clip; `pixels`: in pixels of the composed video.
        sketch: `pidinet` (released) or `edges`.
        depth: `midas` (released), or `relative` where any inverse depth in the table's range will do.
        condition_scale: height and width of all conditions as a multiple of the latent's; None: the condition table's
            own, as released, 8 for motion and 12 for the others.
        sampling_rate: frames a second that a clip is sampled at where it is long enough, see `plan_frames`.
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
                f"The config asks for {self.motion_layout} motion in {self.motion_unit}, which no extractor makes: "
                "expected points in source_pixels or dense in pixels."
            )


@checked(_tell("autoencoder."))
class AutoencoderConfig:
    """Layout of the autoencoder and the factor between its latents and the network's.

    `kl` is Stable Diffusion's, `taesd` the tiny one, whose latents need no factor.
    """

    layout: Literal["kl", "taesd"] = "kl"
    scale: Annotated[float, Field(ge=1e-4, le=1e4)] = 0.18215


@checked(_tell("towers."))
class TowersConfig:
    """Sizes of the text and image towers (OpenCLIP); the defaults are ViT-H/14, as released.

    Raises:
        UserError: a value out of its range, widths that heads do not divide, or a patch larger than the image.
    """

    embed_dim: _Width = 1024
    text_width: _Width = 1024
    text_heads: _Heads = 16
    text_layers: Annotated[int, Field(ge=2, le=64)] = 24  # the last but one is used
    image_size: _Side = 224
    patch_size: _Side = 14
    image_width: _Width = 1280
    image_head_width: _Width = 80
    image_layers: _Layers = 32

    def __post_init__(self) -> None:
        for divisor, width in (("text_heads", "text_width"), ("image_head_width", "image_width")):
            if getattr(self, width) % getattr(self, divisor):
                raise UserError(
                    f"The config's towers.{divisor} is {getattr(self, divisor)}: expected a divisor of {width}, "
                    f"{getattr(self, width)}."
                )
        if self.patch_size > self.image_size:
            raise UserError(
                f"The config's towers.patch_size is {self.patch_size}: expected at most image_size, {self.image_size}."
            )


@checked(_tell(""))
class Config:
    """Everything about a checkpoint that its tensors do not say. The defaults are the released network's.

    Attributes:
        name: shown to users.
        frames, height, width, rate: what the checkpoint was trained for; defaults of `compose()`.
        guidance: default guidance scale.
        few_steps: the network was distilled (LCM, arXiv 2310.04378): its defaults are the sampler `lcm` and 4 steps.

    Raises:
        UserError: a value of another type or out of its range.
    """

    name: _Text = "VideoComposer"
    frames: Annotated[int, Field(ge=1, le=100_000)] = 16
    height: _Width = 256
    width: _Width = 256
    rate: _Rate = 8.0
    guidance: Annotated[float, Field(ge=-1e4, le=1e4)] = 9.0
    few_steps: Annotated[bool, Spoken("a bool")] = False
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
        """Reads what `to_json` wrote.

        Raises:
            UserError: broken JSON, keys that this version lacks, and values that cannot be.
        """
        try:
            data = parse_json(text)
        except ValueError as error:
            raise UserError(
                f"The checkpoint's config is no valid JSON ({error}): save the checkpoint again."
            ) from error
        return build(Config, data, _tell(""))


_LATER = {"condition_scale": None, "style_tokens": 1, "sampling_rate": 4.0, "few_steps": False,
          "super_resolution": False}  # fmt: skip
"""Keys that earlier versions do not know, and what they do without them."""


def as_mapping(config: Any) -> dict[str, Any]:
    """A config or a section of one in values that JSON holds, without the keys that earlier versions do not know where
    these do the same without."""
    return dataclasses.asdict(config, dict_factory=lambda pairs: dict(p for p in pairs if p not in _LATER.items()))


def unet_config_from_shapes(shapes: Mapping[str, Sequence[int]], head_dim: int = 64) -> UNetConfig:
    """The network's sizes, read off tensors under their released names.

    What shapes cannot tell is assumed as released: the head width (`head_dim`), hence the heads of the first
    temporal Transformer.

    Raises:
        UserError: the names are not those of a VideoComposer network.
    """
    first = shapes.get("input_blocks.0.0.weight")
    conditions = tuple(n for n, spec in CONDITIONS.items() if f"{spec.released[0]}.0.weight" in shapes)
    if first is None or "input_blocks.0.1.proj_in.weight" not in shapes or "out.2.weight" not in shapes:
        raise UserError(
            "The tensors are not those of a VideoComposer network: expected input_blocks.0.0.weight, "
            "input_blocks.0.1.proj_in.weight and out.2.weight among the names."
        )
    width, in_channels = first[0], first[1]
    channels = shapes["out.2.weight"][0]

    levels: list[list[int]] = [[]]  # of the way down, the numbers of their residual blocks
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
