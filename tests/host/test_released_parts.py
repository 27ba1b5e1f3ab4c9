"""The released checkpoint's case: a network without parts, and what stock loaders bring of Stable Diffusion 2.1's."""

import dataclasses

import pytest
import torch

from tests.host.reference import compose_latent
from tests.host.scene import TEXT, Scene, error
from vc_core.checkpoint.files import save_tensors
from vc_core.checkpoint.formats import layout_of
from vc_core.checkpoint.origins import part
from vc_core.checkpoint.reading import save_checkpoint
from vc_core.checkpoint.released import to_released
from vc_core.composer import VideoComposer
from vc_core.conditions import Condition, drawing_size
from vc_core.config import Config, TowersConfig, UNetConfig
from vc_core.demo import draw_clip
from vc_core.encoders.autoencoder import new_autoencoder
from vc_core.encoders.clip import new_towers
from vc_core.model.unet import UNet3D
from vc_core.pipeline import Style
from vc_core.video import resize_crop

CONFIG = dataclasses.replace(
    Config(),
    name="released parts",
    frames=4,
    height=64,
    width=64,
    unet=UNetConfig(width=64, multipliers=(1, 2), res_blocks=1, attention_levels=(0, 1), head_dim=32,
                    temporal_in_heads=2),
)  # fmt: skip
"""Small, but with tokens as wide as the released network's, and made for its autoencoder and towers."""


def write(module, name, layout, path):
    """A module's weights, in half precision, in a layout that users have files in."""
    state = {key: tensor.half().contiguous() for key, tensor in module.state_dict().items()}
    save_tensors(path, {k: v.contiguous() for k, v in part(state, layout_of(name, layout, module, {})).items()}, {})


@pytest.fixture(scope="module")
def files(host):
    """Noise in the shapes and under the names of the files that users own, where ComfyUI looks for them: 2.3 GB."""
    torch.manual_seed(0)
    unet = UNet3D(CONFIG.unet)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    models = host.folder / "models"
    paths = {name: models / folder / f"{name}.safetensors" for name, folder in (
        ("network", "videocomposer"), ("vae", "vae"), ("text", "text_encoders"), ("image", "clip_vision"),
    )}  # fmt: skip
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(paths["network"], CONFIG, {"model": to_released(unet)})
    write(new_autoencoder("ldm"), "vae", "ldm", paths["vae"])
    towers = new_towers(TowersConfig())
    visual, towers.visual = towers.visual, None
    write(visual, "image", "transformers", paths["image"])
    del visual
    write(towers, "text", "transformers", paths["text"])
    yield paths
    for path in paths.values():
        path.unlink()


@pytest.mark.slow
def test_stock_loaders_serve_the_released_checkpoint(host, files):
    """Text by CLIPLoader, style by CLIPVisionEncode, frames by VAELoader: the video is the core's."""
    scene = Scene.__new__(Scene)
    scene.host, scene.graph = host, host.graph()
    scene.loader = scene.graph.add("VCCheckpointLoader", ckpt_name="network.safetensors", weight_dtype="fp32")
    clip = scene.add("CLIPLoader", clip_name="text.safetensors", type="stable_diffusion")
    vision = scene.add("CLIPVisionLoader", clip_name="image.safetensors")
    vae = scene.add("VCVideoVAE", vae=scene.add("VAELoader", vae_name="vae.safetensors"))
    example = scene.add("VCExampleClip", size=224, frames=1)
    style = scene.add(
        "StyleEmbed",
        positive=scene.add("CLIPTextEncode", text=TEXT, clip=clip),
        negative=scene.add("CLIPTextEncode", text="", clip=clip),
        clip_vision_output=scene.add("CLIPVisionEncode", clip_vision=vision, image=example[1], crop="center"),
        strength=0.8,
        end_percent=0.6,
    )
    image = scene.add("VCSingleImage", image=example[1])
    stc = scene.add("STCEncode", positive=style[0], negative=style[1], single_image=image)
    samples = scene.sample(stc, sampler_name="ddim", scheduler="ddim_released", steps=4, cfg=0.0, seed=3)
    again = scene.add("VAEEncode", pixels=scene.add("VAEDecode", samples=samples, vae=vae), vae=vae)
    found, encoded = scene.latents(samples, again)

    parts = [files[name] for name in ("vae", "text", "image")]
    composer = VideoComposer.load(files["network"], parts, device="cpu", dtype="fp32")
    first = draw_clip(size=224, frames=1)
    image = Condition("single_image", resize_crop(first, drawing_size("single_image", (64, 64))))
    seen = Style((first[:, :, 0] * 255).round() / 255, 0.8, 0.0, 0.6)
    expected = compose_latent(composer, TEXT, style=seen, conditions=[image], seed=3, steps=4, sampler="ddim_released")
    assert error(found, expected) <= 1e-4
    assert encoded.shape == found.shape == (1, 4, 4, 8, 8)
