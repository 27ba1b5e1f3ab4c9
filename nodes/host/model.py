"""The network as a MODEL: what every stock sampler, guider, LoRA loader and model patch takes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...vc_core.checkpoint.formats import layout_of
from ...vc_core.checkpoint.loading import on_meta
from ...vc_core.checkpoint.origins import check, names_of, part, unused_note
from ...vc_core.checkpoint.reading import CONFIG_TENSOR, Checkpoint
from ...vc_core.checkpoint.released import released_layout
from ...vc_core.conditions import CONDITIONS as TABLE
from ...vc_core.conditions import Condition, condition_size
from ...vc_core.config import AutoencoderConfig, Config
from ...vc_core.diffusion.guidance import Embedded
from ...vc_core.errors import UserError, counted
from ...vc_core.families import odd_settings
from ...vc_core.memory import activation_elements
from .carried import CONDITIONS_KEY, STYLE_KEY, Carried, Conditions, Styles
from .network import HostUNet
from .preview import with_preview
from .running import say
from .sampling import distilled_sampling
from .upstream import tell_unused, widths

WEIGHT_TYPES = {
    "default": None,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
"""Types that the network's weights can be stored in; ComfyUI chooses the default, and what to compute in."""


class VideoLatent(comfy.latent_formats.LatentFormat):
    """`(B, 4, F, h, w)`: frames are not compressed, height and width eightfold.

    Args:
        rgb: for previews, the colour `(4 or 5, 3)` in [-1, 1] that each latent channel adds, and then what is added to
            all; None for Stable Diffusion's, which ComfyUI knows.
    """

    latent_channels = 4
    latent_dimensions = 3
    spacial_downscale_ratio = 8
    temporal_downscale_ratio = 1

    def __init__(self, config: AutoencoderConfig, rgb: Sequence[Sequence[float]] | None = None):
        self.scale_factor = config.scale
        rgb = comfy.latent_formats.SD15().latent_rgb_factors if rgb is None else rgb
        self.latent_rgb_factors = [list(row) for row in rgb[:4]]
        self.latent_rgb_factors_bias = list(rgb[4]) if len(rgb) > 4 else None


class VideoComposerConfig(comfy.supported_models_base.BASE):
    """What ComfyUI asks of a model family, for one checkpoint."""

    unet_extra_config: dict[str, Any] = {}  # noqa: RUF012
    supported_inference_dtypes = [torch.float16, torch.bfloat16, torch.float32]  # noqa: RUF012
    vae_key_prefix = ["vae."]  # noqa: RUF012
    text_encoder_key_prefix = ["text."]  # noqa: RUF012

    def __init__(self, config: Config, rgb: Any = None):
        diffusion = config.diffusion
        self.sampling_settings = {
            # ComfyUI's names for the two are "linear" (in the square roots) and "sqrt_linear" (in the betas).
            "beta_schedule": {"scaled_linear": "linear", "linear": "sqrt_linear"}[diffusion.beta_schedule],
            "linear_start": diffusion.beta_start,
            "linear_end": diffusion.beta_end,
            "timesteps": diffusion.steps,
            "zsnr": diffusion.zero_terminal_snr,
        }
        self.latent_format = partial(VideoLatent, config.autoencoder, rgb)
        # By the second, stock nodes tell the deepest level of a UNet, which is four times as wide in theirs.
        super().__init__({"videocomposer": config, "model_channels": widths(config.unet)[-1] // 4})

    def model_type(self, state_dict: Any, prefix: str = "") -> comfy.model_base.ModelType:
        kinds = comfy.model_base.ModelType
        prediction = self.unet_config["videocomposer"].diffusion.prediction
        return {"epsilon": kinds.EPS, "v_prediction": kinds.V_PREDICTION}[prediction]

    def inpaint_model(self) -> bool:
        return False

    def get_model(self, state_dict: Any, prefix: str = "", device: Any = None) -> VideoComposerModel:
        kind = self.model_type(state_dict, prefix)
        model = VideoComposerModel(self, kind, device=device, unet_model=HostUNet)
        if model.videocomposer.few_steps:
            model.model_sampling = distilled_sampling(self, model.videocomposer.diffusion)
        return model

    def process_unet_state_dict_for_saving(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Under the released names, with the config beside them: what stock save nodes write loads again."""
        config = self.unet_config["videocomposer"]
        released = part(state_dict, released_layout(on_meta(config)))
        text = torch.frombuffer(bytearray(config.to_json().encode()), dtype=torch.uint8)
        return {**{f"model.{name}": tensor for name, tensor in released.items()}, CONFIG_TENSOR: text}


class VideoComposerModel(comfy.model_base.BaseModel):
    """The network in ComfyUI's sampling."""

    @property
    def videocomposer(self) -> Config:
        return self.model_config.unet_config["videocomposer"]

    def memory_required(self, input_shape: Sequence[int], *args: Any, **kwargs: Any) -> float:
        """Bytes that a prediction takes beside the weights; ComfyUI's own formula is for other networks."""
        dtype = self.manual_cast_dtype or self.get_dtype()
        batch, _, *shape = input_shape
        config = self.videocomposer
        elements = activation_elements(config.unet, batch, *shape, config.extraction.condition_scale)
        return elements * comfy.model_management.dtype_size(dtype)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """The inputs of the network that a CONDITIONING holds.

        Raises:
            UserError: conditions of another length or batch than the latent, or that the checkpoint cannot take.
        """
        out = super().extra_conds(**kwargs)
        noise, config = kwargs["noise"], self.videocomposer
        given, style = kwargs.get(CONDITIONS_KEY), kwargs.get(STYLE_KEY)
        if given:
            for condition in given:
                check_fits(condition, noise, config)
            self._tell_fitted(given, noise)
            out["conditions"] = Carried(Conditions(tuple(given), tuple(noise.shape[-2:]), config.extraction))
        if style is not None:
            check_style(style, noise, config)
            out["style"] = Carried(Styles((style,), len(noise)))
        text, width = kwargs.get("cross_attn"), config.unet.context_dim
        if text is not None and text.shape[-1] != width:
            raise UserError(
                f"The text conditioning is {text.shape[-1]} wide and the checkpoint takes {width}: encode the prompt "
                "with the checkpoint's own CLIP, for the released one Stable Diffusion 2.1's (OpenCLIP ViT-H/14)."
            )
        return out

    def _tell_fitted(self, given: Sequence[Condition], noise: Tensor) -> None:
        size, scale = (8 * noise.shape[-2], 8 * noise.shape[-1]), self.videocomposer.extraction.condition_scale
        wanted = {c.name: (size, condition_size(c.name, size, scale)) for c in given}
        names = [c.name for c in given if (c.video or size, tuple(c.tensor.shape[-2:])) != wanted[c.name]]
        if names:
            say(f"{', '.join(names)}: resampled to the latent's {size[1]}x{size[0]}.")


def check_fits(condition: Condition, noise: Tensor, config: Config) -> None:
    """Refuses a condition that does not go with a latent `(B, 4, F, h, w)`. Raises `UserError`."""
    if condition.name not in config.unet.conditions:
        raise UserError(
            f"The checkpoint '{config.name}' has no STC-encoder for '{condition.name}': it was trained with "
            f"{', '.join(config.unet.conditions) or 'none'}; unplug that socket of STCEncode."
        )
    batch, frames = len(condition.tensor), condition.tensor.shape[2]
    if TABLE[condition.name].kind == "temporal" and frames != noise.shape[2]:
        raise UserError(
            f"The condition '{condition.name}' has {frames} frames and the latent {noise.shape[2]}: sample the latent "
            "that STCEncode gives, or set its frames to the latent's."
        )
    if batch not in (1, len(noise)):
        raise UserError(
            f"The condition '{condition.name}' is a batch of {batch} and the latent of {len(noise)}: expected 1 or "
            f"{len(noise)}."
        )


def check_style(style: Embedded, noise: Tensor, config: Config) -> None:
    """Refuses a style, see `STYLE_KEY`, that does not go with a latent `(B, 4, F, h, w)`. Raises `UserError`."""
    if not config.unet.style_tokens:
        raise UserError(
            f"The checkpoint '{config.name}' takes no style, and the conditioning has been through StyleEmbed: bypass "
            "that node, or load another checkpoint."
        )
    if style.embedding is None:
        return
    count, width = len(style.embedding), style.embedding.shape[-1]
    if width != config.unet.context_dim:
        raise UserError(
            f"The style image's embedding is {width} wide and the checkpoint takes {config.unet.context_dim}: use the "
            "checkpoint's own CLIP_VISION, for the released one OpenCLIP ViT-H/14."
        )
    if count not in (1, len(noise)):
        raise UserError(
            f"StyleEmbed was given {counted(count, 'image')} for {counted(len(noise), 'video')}: expected 1 image, or "
            "one for each video of a batch; 'Get Image from Batch' takes one out."
        )


def load_model(checkpoint: Checkpoint, weights: str = "default", rgb: Any = None, disable_dynamic: bool = False) -> Any:
    """The network of a checkpoint as a MODEL (a ModelPatcher); see the end of `comfy.sd`'s own loaders.

    Args:
        weights: one of `WEIGHT_TYPES`.
        rgb: see `VideoLatent`.
        disable_dynamic: make the plain patcher, where newer versions have one of their own that loads on demand.

    Raises:
        UserError: tensors that are missing or of another shape; the message lists them.
    """
    mm = comfy.model_management
    plain, network = on_meta(checkpoint.config), checkpoint.part("model")
    tensors = network.tensors
    layout = layout_of("model", network.layout, plain, tensors.shapes)
    check(layout, tensors, "its network")
    if checkpoint.extra:
        logging.warning("%s: %s", checkpoint.path, unused_note(checkpoint.extra))
    devices = {"load_device": mm.get_torch_device(), "offload_device": mm.unet_offload_device()}
    dtypes = VideoComposerConfig.supported_inference_dtypes
    stored = WEIGHT_TYPES[weights]
    if stored is None:
        types = [tensors.dtypes[name] for name in names_of(layout)]
        in_file, count = max(types, key=types.count), sum(parameter.numel() for parameter in plain.parameters())
        stored = mm.unet_dtype(devices["load_device"], count, dtypes, in_file)
    config = VideoComposerConfig(checkpoint.config, rgb)
    config.set_inference_dtype(stored, mm.unet_manual_cast(stored, devices["load_device"], dtypes))
    model = config.get_model({}, device=devices["offload_device"])
    # Newer versions' own patcher fits the layers for loading on demand, so it comes before the weights.
    plain_class = comfy.model_patcher.ModelPatcher
    patcher_class = plain_class if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", plain_class)
    patcher = patcher_class(model, **devices)
    get, shapes = tensors.get(), {name: tuple(parameter.shape) for name, parameter in plain.named_parameters()}
    state = {name: origin.join(get, shapes[name]) for name, origin in layout.items()}
    model.diffusion_model.load_state_dict(state, assign=getattr(patcher, "is_dynamic", bool)())
    model.eval().requires_grad_(False)
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "videocomposer", _outer_sample)
    # Newer versions call it for a further copy of the MODEL, on another device or with other hooks.
    patcher.cached_patcher_init = (load_model, (checkpoint, weights, rgb))
    return patcher


def _outer_sample(executor, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, *args, **kwargs):
    """Every sampling run: with previews of all frames, and a word on what of the nodes before has no effect."""
    model = executor.class_obj.model_patcher.model
    tell_unused(model)
    size, cfg = (8 * noise.shape[-2], 8 * noise.shape[-1]), getattr(executor.class_obj, "cfg", 1.0)
    say(*odd_settings(model.videocomposer, size, len(sigmas) - 1, cfg))
    callback = with_preview(callback, model)
    return executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, *args, **kwargs)


def config_of(model: Any) -> Config:
    """The checkpoint's config of a MODEL. Raises `UserError` for another kind of model."""
    inner = getattr(model, "model", None)
    if not isinstance(inner, VideoComposerModel):
        raise UserError(
            f"The socket 'model' holds a {type(inner).__name__} and a VideoComposer model was expected: connect the "
            "MODEL of 'Load VideoComposer Checkpoint'."
        )
    return inner.videocomposer
