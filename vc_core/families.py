"""Networks of VideoComposer's kind, told by their parameters' names and shapes, and what their files leave unsaid."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from .config import Config, DiffusionConfig, ExtractionConfig, UNetConfig


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        name: shown to users.
        knows: whether a network is of this family.
        config: sections and keys of `Config` in which the family differs from the released network.
        assumed: what is told of a file that says none of this itself.
    """

    name: str
    knows: Callable[[UNetConfig], bool]
    config: dict[str, Any]
    assumed: str


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
        "conditions at the video's own size, many steps; VideoLCM has the same shapes: for it say --few-steps yes",
    ),
    Family(
        "ModelScope text-to-video",
        lambda unet: not unet.style_tokens and not unet.conditions,
        {},
        "no STC-encoders and no style, so a text-to-video network such as ModelScope's: noise prediction, 256x256, 16 "
        "frames; ZeroScope has the same shapes: for it say --size 576x320 --frames 24",
    ),
    Family(
        "VideoComposer",
        lambda unet: True,
        {},
        "no config in the metadata: head width 64 and all else that shapes cannot tell is as released",
    ),
)

APPENDED = ", cinematic, High Contrast, highly detailed, no blur, 4k render"
NEGATIVE = (
    "Distorted, discontinuous, Ugly, blurry, low resolution, motionless, static, disfigured, disconnected limbs, "
    "Ugly faces, incomplete arms"
)
"""What VGen adds to every prompt of TF-T2V, and its negative prompt (VideoLCM's alike); used only where asked for."""


def assumed(unet: UNetConfig) -> tuple[Config, str]:
    """The config of a network of which nothing but its sizes is known, and a sentence on what was assumed."""
    family = next(family for family in FAMILIES if family.knows(unet))
    return Config(name=family.name, unet=unet, **family.config), family.assumed


def overridden(
    config: Config,
    prediction: Literal["epsilon", "v_prediction"] | None = None,
    zero_terminal_snr: bool | None = None,
    few_steps: bool | None = None,
    size: tuple[int, int] | None = None,
    **others: Any,
) -> Config:
    """A config with what a user says of the network in place of what its file says; None leaves a key as it is.

    Args:
        prediction: `epsilon` takes a zero terminal SNR away where that is not given too, as the two exclude each other.
        few_steps: whether the network was distilled for few steps; the default guidance is none then, or the released
            one again.
        size: (height, width) in pixels.
        others: `frames`, `rate`, `guidance`.

    Raises:
        UserError: a value that is not possible.
    """
    if prediction == "epsilon" and zero_terminal_snr is None:
        zero_terminal_snr = False
    height, width = size or (None, None)
    diffusion = {"prediction": prediction, "zero_terminal_snr": zero_terminal_snr}
    changed = {"few_steps": few_steps, "height": height, "width": width, **others}
    if few_steps not in (None, config.few_steps) and changed.get("guidance") is None:
        changed["guidance"] = 1.0 if few_steps else Config.guidance
    given = {key: value for key, value in changed.items() if value is not None}
    inner = {key: value for key, value in diffusion.items() if value is not None}
    return replace(config, diffusion=replace(config.diffusion, **inner), **given)
