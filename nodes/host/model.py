"""The network as a MODEL, for ComfyUI's own samplers, guiders, LoRA loaders and model patches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
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
from ...vc_core.diffusion.noise import motion_for_noise
from ...vc_core.diffusion.texts import check_frames
from ...vc_core.errors import UserError, counted
from ...vc_core.families import odd_settings
from ...vc_core.memory import activation_elements
from .carried import CONDITIONS_KEY, STYLE_KEY, TEXTS_KEY, Carried, Conditions, Styles, Texts, fitted
from .network import HostUNet
from .preview import with_preview
from .running import say
from .sampling import distilled_sampling
from .upstream import report_unused, widths

WEIGHT_TYPES = {
    "default": None,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
"""Data types of the network's weights. ComfyUI chooses the default and the type to compute in."""


class VideoLatent(comfy.latent_formats.LatentFormat):
    """A latent `(B, 4, F, h, w)`: height and width are an eighth of the video's, frames are not compressed.

    Args:
        rgb: for previews, the colour `(4 or 5, 3)` in [-1, 1] that each latent channel adds; an optional fifth row is a
            constant. None for Stable Diffusion's colours, which ComfyUI has.
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
    """A checkpoint as one of ComfyUI's supported model families."""

    unet_extra_config: dict[str, Any] = {}  # noqa: RUF012
    supported_inference_dtypes = [torch.float16, torch.bfloat16, torch.float32]  # noqa: RUF012
    vae_key_prefix = ["vae."]  # noqa: RUF012
    text_encoder_key_prefix = ["text."]  # noqa: RUF012

    def __init__(self, config: Config, rgb: Any = None):
        diffusion = config.diffusion
        self.sampling_settings = {
            # ComfyUI's names for these two are "linear" (in the square roots) and "sqrt_linear" (in the betas).
            "beta_schedule": {"scaled_linear": "linear", "linear": "sqrt_linear"}[diffusion.beta_schedule],
            "linear_start": diffusion.beta_start,
            "linear_end": diffusion.beta_end,
            "timesteps": diffusion.steps,
            "zsnr": diffusion.zero_terminal_snr,
        }
        self.latent_format = partial(VideoLatent, config.autoencoder, rgb)
        # Stock nodes compute the width of a UNet's deepest level as four times `model_channels`.
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
        """Return the weights under the released names, and the config, so that our loader reads stock savers' files."""
        config = self.unet_config["videocomposer"]
        released = part(state_dict, released_layout(on_meta(config)))
        text = torch.frombuffer(bytearray(config.to_json().encode()), dtype=torch.uint8)
        return {**{f"model.{name}": tensor for name, tensor in released.items()}, CONFIG_TENSOR: text}


class VideoComposerModel(comfy.model_base.BaseModel):
    """The network as ComfyUI samples it."""

    @property
    def videocomposer(self) -> Config:
        return self.model_config.unet_config["videocomposer"]

    def memory_required(self, input_shape: Sequence[int], *args: Any, **kwargs: Any) -> float:
        """Return a prediction's memory in bytes, without the weights. ComfyUI's formula is for other networks."""
        dtype = self.manual_cast_dtype or self.get_dtype()
        batch, _, *shape = input_shape
        config = self.videocomposer
        elements = activation_elements(config.unet, batch, *shape, config.extraction.condition_scale)
        return elements * comfy.model_management.dtype_size(dtype)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """Return the network inputs from a CONDITIONING.

        Raises:
            UserError: the conditions have another length or batch size than the latent, or the checkpoint does not
                support them.
        """
        out = super().extra_conds(**kwargs)
        noise, config = kwargs["noise"], self.videocomposer
        conditions, style = kwargs.get(CONDITIONS_KEY), kwargs.get(STYLE_KEY)
        if conditions:
            for condition in conditions:
                check_fits(condition, noise, config)
            self._report_resampled(conditions, noise)
            out["conditions"] = Carried(Conditions(tuple(conditions), tuple(noise.shape[-2:]), config.extraction))
        if style is not None:
            check_style(style, noise, config)
            out["style"] = Carried(Styles((style,), len(noise)))
        text, width, later = kwargs.get("cross_attn"), config.unet.context_dim, kwargs.get(TEXTS_KEY, {})
        for tokens in (text, *later.values()):
            if tokens is not None and tokens.shape[-1] != width:
                raise UserError(
                    f"Expected a text embedding of width {width} for this checkpoint, got {tokens.shape[-1]}. Encode "
                    "the prompt with the checkpoint's own CLIP. The released checkpoint uses that of Stable Diffusion "
                    "2.1 (OpenCLIP ViT-H/14)."
                )
        if later:
            check_frames(later, noise.shape[2])
            out["texts"] = Carried(Texts(later, noise.shape[2]))
        return out

    def resize_cond_for_context_window(self, cond_key: str, cond_value: Any, *args: Any, **kwargs: Any) -> Any:
        """Keep the text complete in every window. Newer ComfyUIs cut tensors whose third dimension equals the number of
        frames, and the width of the text may be this number: 64 for the bundled checkpoint."""
        return cond_value if cond_key == "c_crossattn" else None

    def _report_resampled(self, conditions: Sequence[Condition], noise: Tensor) -> None:
        size, scale = (8 * noise.shape[-2], 8 * noise.shape[-1]), self.videocomposer.extraction.condition_scale
        expected = {c.name: (size, condition_size(c.name, size, scale)) for c in conditions}
        names = [c.name for c in conditions if (c.video or size, tuple(c.tensor.shape[-2:])) != expected[c.name]]
        if names:
            say(f"{', '.join(names)}: resampled to the latent's size, {size[1]}x{size[0]}.")


def check_fits(condition: Condition, noise: Tensor, config: Config) -> None:
    """Raise `UserError` if a condition does not match a latent `(B, 4, F, h, w)` or the checkpoint."""
    if condition.name not in config.unet.conditions:
        raise UserError(
            f"The checkpoint '{config.name}' does not support the condition '{condition.name}'. It supports "
            f"{', '.join(config.unet.conditions) or 'none'}. Disconnect '{condition.name}' from STC Encode."
        )
    batch, frames = len(condition.tensor), condition.tensor.shape[2]
    if TABLE[condition.name].kind == "temporal" and frames != noise.shape[2]:
        raise UserError(
            f"The condition '{condition.name}' has {frames} frames, but the latent has {noise.shape[2]}. Connect the "
            "latent of STC Encode, or set 'frames' there to the latent's number of frames."
        )
    if batch not in (1, len(noise)):
        raise UserError(
            f"Expected a batch of 1 or {len(noise)} for the condition '{condition.name}', got {batch}. Use a "
            "condition of one video."
        )


def motion_for(noise: str, positive: Any, latent: Tensor, config: Config) -> Tensor | None:
    """Return the motion in a CONDITIONING that a kind of noise requires, see `motion_for_noise`."""

    def motions() -> Iterator[Condition]:
        for condition in (c for _, carried in positive for c in carried.get(CONDITIONS_KEY, ()) if c.name == "motion"):
            check_fits(condition, latent, config)
            yield fitted(condition, tuple(latent.shape[-2:]), config.extraction)

    return motion_for_noise(noise, motions(), config.extraction)


def check_style(style: Embedded, noise: Tensor, config: Config) -> None:
    """Raise `UserError` if a style, see `STYLE_KEY`, does not match a latent `(B, 4, F, h, w)` or the checkpoint."""
    if not config.unet.style_tokens:
        raise UserError(
            f"The checkpoint '{config.name}' does not support a style image. Bypass Style Embed, or load another "
            "checkpoint."
        )
    if style.embedding is None:
        return
    count, width = len(style.embedding), style.embedding.shape[-1]
    if width != config.unet.context_dim:
        raise UserError(
            f"Expected an image embedding of width {config.unet.context_dim} for this checkpoint, got {width}. Use the "
            "checkpoint's own CLIP_VISION. The released checkpoint uses OpenCLIP ViT-H/14."
        )
    if count not in (1, len(noise)):
        raise UserError(
            f"Expected 1 image, or one for each video of the batch ({len(noise)}), at 'image' of Style Embed, got "
            f"{counted(count, 'image')}. Select one with 'Get Image from Batch' (ImageFromBatch)."
        )


def load_model(checkpoint: Checkpoint, weights: str = "default", rgb: Any = None, disable_dynamic: bool = False) -> Any:
    """Load a checkpoint's network as a MODEL (a ModelPatcher), in the manner of `comfy.sd`'s loaders.

    Args:
        weights: a key of `WEIGHT_TYPES`.
        rgb: see `VideoLatent`.
        disable_dynamic: use the plain ModelPatcher even if this ComfyUI has one that loads weights on demand.

    Raises:
        UserError: tensors are missing or have another shape; the message lists them.
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
    # The patcher of newer versions prepares the layers for loading on demand, so create it before loading the weights.
    plain_class = comfy.model_patcher.ModelPatcher
    patcher_class = plain_class if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", plain_class)
    patcher = patcher_class(model, **devices)
    get, shapes = tensors.get(), {name: tuple(parameter.shape) for name, parameter in plain.named_parameters()}
    state = {name: origin.join(get, shapes[name]) for name, origin in layout.items()}
    model.diffusion_model.load_state_dict(state, assign=getattr(patcher, "is_dynamic", bool)())
    model.eval().requires_grad_(False)
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "videocomposer", _outer_sample)
    # Newer versions call it to copy the MODEL, for another device or with other hooks.
    patcher.cached_patcher_init = (load_model, (checkpoint, weights, rgb))
    return patcher


def _outer_sample(executor, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, *args, **kwargs):
    """Wrap every sampling run: preview all frames, and report stock nodes and settings that do not work as expected."""
    model = executor.class_obj.model_patcher.model
    report_unused(model)
    size, cfg = (8 * noise.shape[-2], 8 * noise.shape[-1]), getattr(executor.class_obj, "cfg", 1.0)
    say(*odd_settings(model.videocomposer, size, len(sigmas) - 1, cfg))
    callback = with_preview(callback, model)
    return executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, *args, **kwargs)


def config_of(model: Any) -> Config:
    """Return the checkpoint's config of a MODEL. Raises `UserError` for another kind of model."""
    inner = getattr(model, "model", None)
    if not isinstance(inner, VideoComposerModel):
        raise UserError(
            f"Expected a VideoComposer model at the socket 'model', got {type(inner).__name__}. Connect the MODEL of "
            "'Load VideoComposer Checkpoint'."
        )
    return inner.videocomposer
