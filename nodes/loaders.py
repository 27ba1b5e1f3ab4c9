"""Checkpoints and VAEs."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..vc_core.checkpoint.inspection import knows_scenes_only
from ..vc_core.checkpoint.reading import PARTS, Checkpoint, read_checkpoint
from ..vc_core.published import MODELS
from .host import folders
from .host.model import WEIGHT_TYPES, load_model
from .host.running import say
from .host.towers import Missing, load_clip, load_clip_vision
from .host.vae import framewise, latent_colors, load_vae
from .inputs import CATEGORY, schema

LOADERS_CATEGORY = f"{CATEGORY}/loaders"

# A part that a file may lack -> what to do then.
_INSTEAD = {
    "vae": "load Stable Diffusion's VAE with 'Load VAE' (of v2-1_512-ema-pruned.ckpt with 'Load Checkpoint') and pass "
    "it through 'Video VAE (VideoComposer)'",
    "text": "load Stable Diffusion 2.1's text encoder (OpenCLIP ViT-H/14) with 'Load CLIP', type stable_diffusion (of "
    "v2-1_512-ema-pruned.ckpt with 'Load Checkpoint')",
    "image": "load OpenCLIP ViT-H/14 (open_clip_pytorch_model.bin, as it is) with 'Load CLIP Vision'",
}


def scenes_note(checkpoint: Checkpoint) -> str:
    """A sentence about a small checkpoint that would be taken for more than it is."""
    if not knows_scenes_only(checkpoint):
        return ""
    config = checkpoint.config
    return (
        f"This checkpoint knows simple drawn shapes at {config.width}x{config.height} only. For photographs and "
        f"real videos take the released one, from {MODELS[0].source}; this node's help page says where to put it."
    )


class VCCheckpointLoader(io.ComfyNode):
    """Loads a checkpoint."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VCCheckpointLoader",
            display_name="Load VideoComposer Checkpoint",
            category=LOADERS_CATEGORY,
            description="Loads a VideoComposer checkpoint: the bundled small one, the released one, or your own.",
            search_aliases=["load checkpoint", "load model", "videocomposer"],
            inputs=[
                io.Combo.Input("ckpt_name", options=folders.checkpoint_names(), default=folders.BUNDLED_NAME,
                               tooltip="A file of the model folder 'videocomposer', or the small checkpoint that comes "
                                       "with the nodes."),
                io.Combo.Input("weight_dtype", options=list(WEIGHT_TYPES), default="default",
                               tooltip="Type that the network's weights are kept in; fp8 halves the memory of fp16."),
            ],
            outputs=[
                io.Model.Output("model", display_name="MODEL", tooltip="The network, for any sampler."),
                io.Clip.Output("clip", display_name="CLIP", tooltip="The text tower, for CLIPTextEncode."),
                io.ClipVision.Output("clip_vision", display_name="CLIP_VISION",
                                     tooltip="The image tower, for StyleEmbed."),
                io.Vae.Output("vae", display_name="VAE", tooltip="The autoencoder, for VAEDecode and VAEEncode."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, ckpt_name: str, weight_dtype: str) -> Any:
        """A file that was replaced is loaded again."""
        found = folders.checkpoint_path(ckpt_name).stat()
        return found.st_mtime_ns, found.st_size

    @classmethod
    def execute(cls, ckpt_name, weight_dtype) -> io.NodeOutput:
        checkpoint = read_checkpoint(folders.checkpoint_path(ckpt_name))
        checkpoint.part("model")
        parts, towers = checkpoint.parts, checkpoint.config.towers
        missing = {
            name: Missing(f"'{ckpt_name}' comes without {PARTS[name]}: {advice}.") for name, advice in _INSTEAD.items()
        }
        vae = load_vae(parts["vae"]) if "vae" in parts else missing["vae"]
        clip = load_clip(parts["text"], towers) if "text" in parts else missing["text"]
        vision = load_clip_vision(parts["image"], towers) if "image" in parts else missing["image"]
        colors = latent_colors(vae) if "vae" in parts and checkpoint.config.autoencoder.layout != "kl" else None
        say(
            scenes_note(checkpoint),
            *checkpoint.assumed,
            *(str(each) for name, each in missing.items() if name not in parts),
        )
        return io.NodeOutput(load_model(checkpoint, weight_dtype, colors), clip, vision, vae)


class VCVideoVAE(io.ComfyNode):
    """A Stable Diffusion VAE for videos."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VCVideoVAE",
            display_name="Video VAE (VideoComposer)",
            category=LOADERS_CATEGORY,
            description="Makes a Stable Diffusion VAE take the 5-D latents of videos, frame by frame.",
            search_aliases=["vae", "stable diffusion vae", "videocomposer"],
            inputs=[io.Vae.Input("vae", tooltip="Stable Diffusion 1.x's or 2.x's VAE, from 'Load VAE'.")],
            outputs=[io.Vae.Output("video_vae", display_name="VAE", tooltip="For VAEDecode and VAEEncode of videos.")],
        )

    @classmethod
    def execute(cls, vae) -> io.NodeOutput:
        return io.NodeOutput(framewise(vae))


NODES: list[Any] = [VCCheckpointLoader, VCVideoVAE]
