"""Networks of VideoComposer's kind, told by their parameters' names and shapes, and what their files leave unsaid."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from .config import Config, DiffusionConfig, ExtractionConfig, UNetConfig


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        name: shown to users.
        knows: whether a network is of this family.
        config: sections and keys of `Config` in which the family differs from the released network.
        assumed: what is told of a file that says none of this itself.
        otherwise: what to do where the file is another's of the same shapes; told until the user says something.
    """

    name: str
    knows: Callable[[UNetConfig], bool]
    config: dict[str, Any]
    assumed: str
    otherwise: str = ""


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
        "four style tokens, so a network of VGen's: v-prediction with zero terminal SNR, 448x256, 3 frames a second, "
        "conditions at the video's own size, many steps",
        "VideoLCM has the same shapes: say few_steps yes for it",
    ),
    Family(
        "ModelScope text-to-video",
        lambda unet: not unet.style_tokens and not unet.conditions,
        {},
        "no STC-encoders and no style, so a text-to-video network such as ModelScope's: noise prediction, 256x256, 16 "
        "frames",
        "ZeroScope has the same shapes: take 576x320, 24 frames and a window of 24 for it",
    ),
    Family(
        "VideoComposer",
        lambda unet: True,
        {},
        "no config in the metadata: head width 64 and all else that shapes cannot tell is as released",
    ),
)

VGEN_SUFFIX = ", cinematic, High Contrast, highly detailed, no blur, 4k render"
VGEN_NEGATIVE = (
    "Distorted, discontinuous, Ugly, blurry, low resolution, motionless, static, disfigured, disconnected limbs, "
    "Ugly faces, incomplete arms"
)
"""What VGen adds to every prompt of TF-T2V, and its negative prompt (VideoLCM's alike); used only where asked for."""


def assumed(unet: UNetConfig, overrides: Collection[str] = ()) -> tuple[Config, str]:
    """The config of a network of which nothing but its sizes is known, and a sentence on what was assumed;
    `overrides` are the names of what the user says besides, see `overridden`."""
    family = next(family for family in FAMILIES if family.knows(unet))
    more = f"but for {', '.join(overrides)}, as was said" if overrides else family.otherwise
    return Config(name=family.name, unet=unet, **family.config), "; ".join(filter(None, [family.assumed, more]))


def overridden(config: Config, *, size: tuple[int, int] | None = None, **overrides: Any) -> Config:
    """A config with what a user says of the network in place of what its file says; None leaves a key as it is.

    Args:
        size: (height, width) in pixels.
        overrides: `prediction` and `zero_terminal_snr` of `DiffusionConfig`; `few_steps`, `frames`, `rate`, `guidance`.
            The prediction `epsilon` takes a zero terminal SNR away where that is not given too, as the two exclude each
            other; few steps bring no guidance, many the released one again.

    Raises:
        UserError: a value that is not possible.
    """
    overrides = {name: value for name, value in overrides.items() if value is not None}
    if size is not None:
        overrides["height"], overrides["width"] = size
    if overrides.get("prediction") == "epsilon":
        overrides.setdefault("zero_terminal_snr", False)
    if overrides.get("few_steps", config.few_steps) != config.few_steps:
        overrides.setdefault("guidance", 1.0 if overrides["few_steps"] else Config.guidance)
    if "super_resolution" in overrides:
        unet = replace(config.unet, super_resolution=overrides.pop("super_resolution"))
        diffusion = DiffusionConfig(prediction="v_prediction", zero_terminal_snr=True)
        config = replace(config, name="SR600", unet=unet, diffusion=diffusion, width=1280, height=720)
    diffusion = {name: overrides.pop(name) for name in ("prediction", "zero_terminal_snr") if name in overrides}
    return replace(config, diffusion=replace(config.diffusion, **diffusion), **overrides)


FAR = 2.25
"""A side that is more times another is far from it: ZeroScope was trained so far from ModelScope's network."""
MOST_OF_FEW = 8
"""So many steps a network that was distilled for few is run with at most, as in arXiv 2310.04378, table 1."""


def odd_settings(
    config: Config, size: tuple[int, int], steps: int, guidance: float, sampler: str = ""
) -> Iterator[str]:
    """Sentences on a run that a checkpoint was not made for; `size` is (height, width) in pixels, `sampler` one of the
    core's, where nothing else made it fit."""
    height, width = size
    if any(
        max(now, then) > FAR * min(now, then) for now, then in zip(size, (config.height, config.width), strict=True)
    ):
        yield (
            f"{width}x{height} is far from {config.width}x{config.height}, which the network was made for as far as "
            "is known: it repeats or loses things at sizes that it did not learn."
        )
    if config.few_steps and (steps > MOST_OF_FEW or guidance > 1.0):
        yield (
            f"The network was distilled for few steps without guidance, and {steps} with a guidance of {guidance:g} "
            f"spoil the video: take {config.steps} steps of {config.sampler} and a guidance of 1, or say few_steps no "
            "if it is another network."
        )
    if sampler == "lcm" and not config.few_steps:
        yield (
            "The sampler lcm is for networks that were distilled for few steps, and this one is taken for one of many: "
            "say few_steps yes if it was distilled, as VideoLCM, or take another sampler."
        )
