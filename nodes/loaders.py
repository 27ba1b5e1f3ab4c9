"""Nodes that load checkpoints and adapt VAEs."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..vc_core.checkpoint.inspection import knows_scenes_only
from ..vc_core.checkpoint.reading import Checkpoint, read_checkpoint
from ..vc_core.published import MODELS
from .host import folders
from .host.model import WEIGHT_TYPES, load_model
from .host.running import say
from .host.towers import Missing, load_clip, load_clip_vision
from .host.vae import framewise, latent_colors, load_vae
from .inputs import CATEGORY, advanced, schema

LOADERS_CATEGORY = f"{CATEGORY}/loaders"
ANSWERS = {"auto": None, "yes": True, "no": False}

# Part -> its name, and what to do if the file does not contain it.
_REPLACEMENTS = {
    "vae": "autoencoder. Load Stable Diffusion's VAE with 'Load VAE' (or v2-1_512-ema-pruned.ckpt with 'Load "
    "Checkpoint'), then connect it to 'Video VAE (VideoComposer)'.",
    "text": "text encoder. Load Stable Diffusion 2.1's (OpenCLIP ViT-H/14) with 'Load CLIP', type stable_diffusion (or "
    "v2-1_512-ema-pruned.ckpt with 'Load Checkpoint').",
    "image": "image encoder. Load OpenCLIP ViT-H/14, such as open_clip_pytorch_model.bin, with 'Load CLIP Vision'.",
}


def scenes_note(checkpoint: Checkpoint) -> str:
    """Return a warning for a checkpoint that was trained on synthetic scenes only, otherwise ""."""
    if not knows_scenes_only(checkpoint):
        return ""
    config = checkpoint.config
    return (
        f"This checkpoint only knows simple drawn shapes at {config.width}x{config.height}. For photographs and real "
        f"videos use the released checkpoint from {MODELS[0].source}. This node's help page says where to put the file."
    )


class VCCheckpointLoader(io.ComfyNode):
    """Load a checkpoint as MODEL, CLIP, CLIP_VISION and VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VCCheckpointLoader",
            display_name="Load VideoComposer Checkpoint",
            category=LOADERS_CATEGORY,
            description="Loads a VideoComposer checkpoint: the small bundled one, a released one, or your own.",
            search_aliases=["load checkpoint", "load model", "videocomposer"],
            inputs=[
                io.Combo.Input("ckpt_name", options=folders.checkpoint_names(), default=folders.BUNDLED_NAME,
                               tooltip="A file in the model folder 'videocomposer', or the small checkpoint that is "
                                       "bundled with the nodes."),
                io.Combo.Input("weight_dtype", options=list(WEIGHT_TYPES), default="default",
                               tooltip="Data type of the network's weights. default = ComfyUI decides. fp8 needs half "
                                       "the memory of fp16."),
                *advanced(
                    io.Combo.Input("few_steps", options=list(ANSWERS), default="auto", optional=True,
                                   tooltip="Whether the network was distilled for few steps without guidance. auto = "
                                           "as the file says; choose yes for VideoLCM, whose file does not say so, "
                                           "and if you add a LoRA for few steps."),
                    io.Combo.Input("super_resolution", options=list(ANSWERS), default="auto", optional=True,
                                   tooltip="Whether the network is VGen's SR600, for SR600 Upscale. auto = as the file "
                                           "says; choose yes for sr_step_110000_ema.pth, whose file does not say so."),
                ),
            ],
            outputs=[
                io.Model.Output("model", display_name="MODEL", tooltip="The network, for any sampler."),
                io.Clip.Output("clip", display_name="CLIP", tooltip="The text encoder, for CLIP Text Encode."),
                io.ClipVision.Output("clip_vision", display_name="CLIP_VISION",
                                     tooltip="The image encoder, for Style Embed."),
                io.Vae.Output("vae", display_name="VAE", tooltip="The autoencoder, for VAE Decode and VAE Encode."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, ckpt_name: str, **settings: str) -> Any:
        """Load a file again when it was replaced."""
        status = folders.checkpoint_path(ckpt_name).stat()
        return status.st_mtime_ns, status.st_size

    @classmethod
    def execute(cls, ckpt_name, weight_dtype, **settings: str) -> io.NodeOutput:
        overrides = {name: ANSWERS[answer] for name, answer in settings.items()}
        checkpoint = read_checkpoint(folders.checkpoint_path(ckpt_name), **overrides)
        checkpoint.part("model")
        parts, towers = checkpoint.parts, checkpoint.config.towers
        missing = {name: Missing(f"'{ckpt_name}' contains no {text}") for name, text in _REPLACEMENTS.items()}
        vae = load_vae(parts["vae"]) if "vae" in parts else missing["vae"]
        clip = load_clip(parts["text"], towers) if "text" in parts else missing["text"]
        vision = load_clip_vision(parts["image"], towers) if "image" in parts else missing["image"]
        colors = latent_colors(vae) if "vae" in parts and checkpoint.config.autoencoder.layout != "kl" else None
        say(
            scenes_note(checkpoint),
            *checkpoint.assumed,
            *(str(item) for name, item in missing.items() if name not in parts),
        )
        return io.NodeOutput(load_model(checkpoint, weight_dtype, colors), clip, vision, vae)


class VCVideoVAE(io.ComfyNode):
    """Adapt a Stable Diffusion VAE to videos."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VCVideoVAE",
            display_name="Video VAE (VideoComposer)",
            category=LOADERS_CATEGORY,
            description="Adapts a Stable Diffusion VAE to the 5-D latents of videos, frame by frame.",
            search_aliases=["vae", "stable diffusion vae", "videocomposer"],
            inputs=[io.Vae.Input("vae", tooltip="A VAE of Stable Diffusion 1.x or 2.x, from Load VAE.")],
            outputs=[
                io.Vae.Output("video_vae", display_name="VAE", tooltip="For VAE Decode and VAE Encode of videos.")
            ],
        )

    @classmethod
    def execute(cls, vae) -> io.NodeOutput:
        return io.NodeOutput(framewise(vae))


NODES: list[Any] = [VCCheckpointLoader, VCVideoVAE]
