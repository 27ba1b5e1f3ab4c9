"""Families of VideoComposer networks, recognized by their parameters' names and shapes, and the settings that their
files do not contain."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from .config import Config, DiffusionConfig, ExtractionConfig, UNetConfig
from .errors import UserError


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        name: shown to users.
        matches: whether a network belongs to this family.
        config: sections and keys of `Config` in which the family differs from the released network.
        note: which settings are assumed for a file without a config.
        alternative: what to do if the file belongs to another family with the same shapes; shown unless the user passes
            overrides.
    """

    name: str
    matches: Callable[[UNetConfig], bool]
    config: dict[str, Any]
    note: str
    alternative: str = ""


FAMILIES = (
    # As in VGen's configs/tft2v_vcomposer_infer.yaml and videolcm_vcomposer_infer.yaml.
    Family(
        "TF-T2V",
        lambda unet: unet.style_tokens == 4,
        {
            "width": 448,
            "rate": 3.0,
            "diffusion": DiffusionConfig(prediction="v_prediction", zero_terminal_snr=True),
            "extraction": ExtractionConfig(condition_scale=8, sampling_rate=3.0),
        },
        "The network has four style tokens, so VGen's settings are used: v-prediction with zero terminal SNR, 448x256, "
        "3 frames per second, conditions at the video's own size, many steps.",
        "VideoLCM has the same shapes. Set few_steps to yes for it.",
    ),
    # As in VGen's configs/sr600_infer.yaml.
    Family(
        "SR600",
        lambda unet: unet.super_resolution,
        {"width": 1280, "height": 720, "diffusion": DiffusionConfig(prediction="v_prediction", zero_terminal_snr=True)},
        "The network is used as VGen's SR600.",
    ),
    Family(
        "ModelScope text-to-video",
        lambda unet: not unet.style_tokens and not unet.conditions,
        {"width": 256, "height": 256, "diffusion": DiffusionConfig()},
        "The network has no STC-encoders and no style, so the settings of ModelScope's text-to-video are used: noise "
        "prediction, 256x256, 16 frames.",
        "ZeroScope and SR600 have the same shapes. For ZeroScope, use 576x320, 24 frames and a window of 24. For "
        "SR600, use ./vc upscale, or set super_resolution to yes.",
    ),
    Family(
        "VideoComposer",
        lambda unet: True,
        {},
        "The metadata contains no config, so head width 64 and the released values of all other settings that the "
        "shapes do not show are used.",
    ),
)

VGEN_SUFFIX = ", cinematic, High Contrast, highly detailed, no blur, 4k render"
VGEN_NEGATIVE = (
    "Distorted, discontinuous, Ugly, blurry, low resolution, motionless, static, disfigured, disconnected limbs, "
    "Ugly faces, incomplete arms"
)
"""The suffix that VGen appends to every prompt of TF-T2V and VideoLCM, and its negative prompt; both are optional."""


def _family(unet: UNetConfig) -> Family:
    return next(family for family in FAMILIES if family.matches(unet))


def inferred_config(unet: UNetConfig, overrides: Collection[str] = ()) -> tuple[Config, str]:
    """Return the config of a network that has only sizes, and a note on the assumed settings. `overrides` are the
    names of the settings that the user passes, see `overridden`."""
    family = _family(unet)
    more = f"Your own settings apply for {', '.join(overrides)}." if overrides else family.alternative
    return Config(name=family.name, unet=unet, **family.config), " ".join(filter(None, [family.note, more]))


def overridden(config: Config, *, size: tuple[int, int] | None = None, **overrides: Any) -> Config:
    """Return a config with the user's settings in place of those in the file; None keeps the file's value.

    Args:
        size: (height, width) in pixels.
        overrides: `prediction` and `zero_terminal_snr` of `DiffusionConfig`; `few_steps`, `frames`, `rate`, `guidance`.
            The prediction `epsilon` sets `zero_terminal_snr` to False unless it is passed too, because the two exclude
            each other. A new `few_steps` sets the guidance scale to 1 (few steps) or to the released one (many).
            `super_resolution` says whether a text-to-video network is VGen's SR600, which has the same shapes.

    Raises:
        UserError: a value is not allowed, or a network with conditions or style is called SR600.
    """
    overrides = {name: value for name, value in overrides.items() if value is not None}
    if size is not None:
        overrides["height"], overrides["width"] = size
    if overrides.get("prediction") == "epsilon":
        overrides.setdefault("zero_terminal_snr", False)
    if overrides.get("few_steps", config.few_steps) != config.few_steps:
        overrides.setdefault("guidance", 1.0 if overrides["few_steps"] else Config.guidance)
    if overrides.pop("super_resolution", sr := config.unet.super_resolution) != sr:
        if config.unet.conditions or config.unet.style_tokens:
            raise UserError(f"The network '{config.name}' has conditions or style, so it is not SR600.")
        unet = replace(config.unet, super_resolution=not sr)
        family = _family(unet)
        config = replace(config, name=family.name, unet=unet, **family.config)
    diffusion = {name: overrides.pop(name) for name in ("prediction", "zero_terminal_snr") if name in overrides}
    return replace(config, diffusion=replace(config.diffusion, **diffusion), **overrides)


FAR = 2.25
"""Ratio of two sides above which they count as far from each other: ZeroScope's size has this ratio to ModelScope's."""
MOST_OF_FEW = 8
"""Maximum number of steps for a network that was distilled for few steps, as in arXiv 2310.04378, table 1."""


def odd_settings(
    config: Config, size: tuple[int, int], steps: int, guidance: float, sampler: str = ""
) -> Iterator[str]:
    """Yield warnings about settings that do not suit a checkpoint. `size` is (height, width) in pixels; `sampler` is
    the core's name of the sampler, empty to skip its check."""
    height, width = size
    trained = (config.height, config.width)
    if any(max(side, usual) > FAR * min(side, usual) for side, usual in zip(size, trained, strict=True)):
        yield (
            f"The frame size {width}x{height} is far from {config.width}x{config.height}, at which the network was "
            "probably trained. Objects may repeat or disappear. Choose a size closer to it."
        )
    if config.few_steps and (steps > MOST_OF_FEW or guidance > 1.0):
        yield (
            f"The network was distilled for few steps without guidance; {steps} steps with guidance scale {guidance:g} "
            f"spoil the video. Use {config.steps} steps of {config.sampler} and guidance scale 1. If it is another "
            "network, set few_steps to no."
        )
    if sampler == "lcm" and not config.few_steps:
        yield (
            "The sampler lcm is for networks that were distilled for few steps, but few_steps is set to no for this "
            "network. If it was distilled, as VideoLCM was, set few_steps to yes. Otherwise choose another sampler."
        )
