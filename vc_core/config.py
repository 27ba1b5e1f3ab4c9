"""Every size of a checkpoint: from its metadata, else from the shapes of its tensors."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

from .conditions import CONDITIONS
from .errors import UserError, shown
from .parsing import parse_json

Ranges = Mapping[str, tuple[float, float]]
"""Lowest and highest value of a config's numbers, or of each number of a tuple, by the field's name."""

_WIDTH, _HEADS, _LEVELS = (1, 65536), (1, 1024), 16


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the 3D UNet; the defaults are the released network (1,413 M parameters).

    Attributes:
        channels: channels of the latent, in and out.
        width: channels of the first level; every level has `width * multiplier` channels.
        attention_levels: levels (0 = full latent size) that have spatial and temporal Transformers.
        head_dim: width of one attention head. Shapes cannot tell it, so it is assumed where no metadata says it.
        temporal_in_heads: heads of the first temporal Transformer, right after the first convolution.
        context_dim: width of the text and style tokens.
        stc_channels: channels of an STC embedding, concatenated with the noisy latent.
        stc_heads: heads of an STC-encoder's temporal layer, each `stc_channels` wide.
        conditions: rows of the condition table that this network has an STC-encoder for.
        dropout, stc_dropout: used in training only.

    Raises:
        UserError: a value of another type or out of its range, widths that heads or norms do not divide.
    """

    RANGES: ClassVar[Ranges] = {
        "channels": (1, 64),
        "width": _WIDTH,
        "multipliers": (1, 64),
        "res_blocks": (1, 16),
        "attention_levels": (0, _LEVELS - 1),
        "head_dim": _WIDTH,
        "temporal_in_heads": _HEADS,
        "context_dim": _WIDTH,
        "stc_channels": (0, 1024),  # none in a network without conditions
        "stc_heads": _HEADS,
        "dropout": (0.0, 0.99),
        "stc_dropout": (0.0, 0.99),
    }

    channels: int = 4
    width: int = 320
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2
    attention_levels: tuple[int, ...] = (0, 1, 2)
    head_dim: int = 64
    temporal_in_heads: int = 8
    context_dim: int = 1024
    stc_channels: int = 8
    stc_heads: int = 2
    conditions: tuple[str, ...] = tuple(CONDITIONS)
    dropout: float = 0.1
    stc_dropout: float = 0.05

    def __post_init__(self) -> None:
        _check(self, "unet.")
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


@dataclass(frozen=True)
class DiffusionConfig:
    """The noise schedule and what the network predicts (released: scaled-linear betas, 1000 steps, noise).

    Attributes:
        zero_terminal_snr: the schedule is rescaled so that its last step is noise alone, which shows nothing of itself:
            the network predicts v.

    Raises:
        UserError: a value out of its range, or a schedule that falls or whose last steps leave no signal.
    """

    RANGES: ClassVar[Ranges] = {"steps": (2, 100_000), "beta_start": (1e-6, 0.999), "beta_end": (1e-6, 0.999)}

    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Literal["scaled_linear", "linear"] = "scaled_linear"
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        from .diffusion.schedule import alphas_cumprod

        _check(self, "diffusion.")
        if self.beta_start > self.beta_end:
            raise UserError(
                f"The config's diffusion.beta_start is {self.beta_start}: expected at most beta_end, {self.beta_end}."
            )
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise UserError("The config's diffusion.zero_terminal_snr goes with the prediction v_prediction alone.")
        if alphas_cumprod(self)[-1] < 1e-35:  # the last noise level is about 1 by its root, in float32
            raise UserError(
                f"The config's diffusion.beta_end is {self.beta_end}: expected less, as after {self.steps} steps no "
                "signal is left."
            )


@dataclass(frozen=True)
class ExtractionConfig:
    """How the conditions that the network was trained on were made, so that users need not know.

    Attributes:
        motion_layout: `points`: a block's vector at its centre, all else zero; `dense`: blocks filled.
        motion_unit: `source_pixels`: magnitudes as in the source clip; `pixels`: in pixels of the composed video.
        sketch: `pidinet` (released) or `edges`.
        depth: `midas` (released), or `relative` where any inverse depth in the table's range will do.
        condition_scale: height and width of all conditions as a multiple of the latent's; None: the condition table's
            own, as released, 8 for motion and 12 for the others.
    """

    motion_layout: Literal["points", "dense"] = "points"
    motion_unit: Literal["source_pixels", "pixels"] = "source_pixels"
    sketch: Literal["pidinet", "edges"] = "pidinet"
    depth: Literal["midas", "relative"] = "midas"
    condition_scale: Literal[4, 8, 12] | None = None

    RANGES: ClassVar[Ranges] = {}

    def __post_init__(self) -> None:
        _check(self, "extraction.")
        if (self.motion_layout, self.motion_unit) not in (("points", "source_pixels"), ("dense", "pixels")):
            raise UserError(
                f"The config asks for {self.motion_layout} motion in {self.motion_unit}, which no extractor makes: "
                "expected points in source_pixels or dense in pixels."
            )


@dataclass(frozen=True)
class AutoencoderConfig:
    """Layout of the autoencoder and the factor between its latents and the network's.

    `kl` is Stable Diffusion's, `taesd` the tiny one, whose latents need no factor.
    """

    RANGES: ClassVar[Ranges] = {"scale": (1e-4, 1e4)}

    layout: Literal["kl", "taesd"] = "kl"
    scale: float = 0.18215

    def __post_init__(self) -> None:
        _check(self, "autoencoder.")


@dataclass(frozen=True)
class TowersConfig:
    """Sizes of the text and image towers (OpenCLIP); the defaults are ViT-H/14, as released.

    Raises:
        UserError: a value out of its range, widths that heads do not divide, or a patch larger than the image.
    """

    RANGES: ClassVar[Ranges] = {
        "embed_dim": _WIDTH,
        "text_width": _WIDTH,
        "text_heads": _HEADS,
        "text_layers": (2, 64),  # the last but one is used
        "image_size": (1, 4096),
        "patch_size": (1, 4096),
        "image_width": _WIDTH,
        "image_head_width": _WIDTH,
        "image_layers": (1, 64),
    }

    embed_dim: int = 1024
    text_width: int = 1024
    text_heads: int = 16
    text_layers: int = 24
    image_size: int = 224
    patch_size: int = 14
    image_width: int = 1280
    image_head_width: int = 80
    image_layers: int = 32

    def __post_init__(self) -> None:
        _check(self, "towers.")
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


@dataclass(frozen=True)
class Config:
    """Everything about a checkpoint that its tensors do not say. The defaults are the released network's.

    Attributes:
        name: shown to users.
        frames, height, width, rate: what the checkpoint was trained for; defaults of `compose()`.
        guidance: default guidance scale.

    Raises:
        UserError: a value of another type or out of its range.
    """

    RANGES: ClassVar[Ranges] = {
        "frames": (1, 100_000),
        "height": (1, 65536),
        "width": (1, 65536),
        "rate": (1e-3, 1e4),
        "guidance": (-1e4, 1e4),
    }

    name: str = "VideoComposer"
    frames: int = 16
    height: int = 256
    width: int = 256
    rate: float = 8.0
    guidance: float = 9.0
    unet: UNetConfig = field(default_factory=UNetConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    extraction: ExtractionConfig = field(default_factory=ExtractionConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    towers: TowersConfig = field(default_factory=TowersConfig)

    def __post_init__(self) -> None:
        _check(self, "")

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
        return _build(Config, data, "config")


def as_mapping(config: Any) -> dict[str, Any]:
    """A config or a section of one in values that JSON holds. Keys that are None are left out, as earlier versions do
    not know them."""
    return dataclasses.asdict(config, dict_factory=lambda pairs: {k: v for k, v in pairs if v is not None})


def _build(cls: type, data: Any, where: str) -> Any:
    """A dataclass from nested dictionaries, refusing what it does not know."""
    if not isinstance(data, Mapping):
        raise UserError(f"The checkpoint's {where} is a {type(data).__name__}: expected a JSON object.")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise UserError(
            f"The checkpoint's {where} has unknown keys {shown(unknown)}: it needs a newer version of this pack."
        )
    nested = {f.name: f.default_factory for f in fields.values() if f.default_factory is not dataclasses.MISSING}
    return cls(**{k: _build(nested[k], v, f"{where}.{k}") if k in nested else v for k, v in data.items()})


def _check(config: Any, section: str) -> None:
    """Refuses what is of another type than a config's field, or outside of its `RANGES`. Lists become tuples."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if isinstance(value, list):  # JSON has no tuples
            value = tuple(value)
            object.__setattr__(config, f.name, value)
        expected, fits = _expected(f.type, *config.RANGES.get(f.name, (0, 0)))
        if not fits(value):
            raise UserError(f"The config's {section}{f.name} is {shown(value)}: expected {expected}.")


def _expected(kind: Any, low: float, high: float) -> tuple[str, Callable[[Any], bool]]:
    """What a field of a type must be, in words and as a test. NaN is in no range."""
    if get_origin(kind) in (Union, UnionType):  # with None
        what, fits = _expected(get_args(kind)[0], low, high)
        return f"{what}, or no such key", lambda value: value is None or fits(value)
    if get_origin(kind) is Literal:
        known = get_args(kind)
        # Of equal numbers of other types, such as 4.0, sizes would not be whole.
        return (
            f"one of {', '.join(map(str, known))}",
            lambda value: value in known and isinstance(value, type(known[0])),
        )
    if get_origin(kind) is tuple:
        what, fits = _expected(get_args(kind)[0], low, high)
        return (
            f"a list of at most {_LEVELS}, each {what}",
            lambda value: isinstance(value, tuple) and len(value) <= _LEVELS and all(map(fits, value)),
        )
    if kind in (int, float):
        types = int if kind is int else (int, float)
        return (
            f"a {'whole number' if kind is int else 'number'} from {low:g} to {high:g}",
            lambda value: isinstance(value, types) and not isinstance(value, bool) and low <= value <= high,
        )
    return f"a {kind.__name__}", lambda value: isinstance(value, kind)


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

    multipliers, attention, res_blocks, blocks_here = [], [], 0, 0
    index = 1
    while True:
        if f"input_blocks.{index}.op.weight" in shapes:
            res_blocks, blocks_here = blocks_here, 0
        elif (conv := shapes.get(f"input_blocks.{index}.0.in_layers.2.weight")) is not None:
            if blocks_here == 0:
                multipliers.append(conv[0] // width)
                if f"input_blocks.{index}.1.norm.weight" in shapes:
                    attention.append(len(multipliers) - 1)
            blocks_here += 1
        else:
            break
        index += 1
    cross = shapes.get("middle_block.1.transformer_blocks.0.attn2.to_k.weight")
    stem = next((shapes[f"{CONDITIONS[n].released[0]}.5.weight"] for n in conditions), None)
    stc_channels = stem[0] if stem else in_channels - channels
    qkv = next((shapes[f"{CONDITIONS[n].released[1]}.layers.0.0.fn.to_qkv.weight"] for n in conditions), None)
    return UNetConfig(
        channels=channels,
        width=width,
        multipliers=tuple(multipliers),
        res_blocks=res_blocks or blocks_here,
        attention_levels=tuple(attention),
        head_dim=head_dim,
        temporal_in_heads=shapes["input_blocks.0.1.proj_in.weight"][0] // head_dim,
        context_dim=cross[1] if cross else 1024,
        stc_channels=stc_channels,
        stc_heads=qkv[0] // 3 // stc_channels if qkv else 2,
        conditions=conditions,
    )
