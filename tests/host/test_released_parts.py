"""A network-only file like the released checkpoint, with the other parts from stock loaders."""

import dataclasses
import re
import zlib

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
"""Small, but with tokens as wide as the released network's, and for its autoencoder and towers."""


def write(module, name, layout, path):
    """Write a module's weights in half precision, in the layout of published files."""
    state = {key: tensor.half().contiguous() for key, tensor in module.state_dict().items()}
    save_tensors(path, {k: v.contiguous() for k, v in part(state, layout_of(name, layout, module, {})).items()}, {})


@pytest.fixture(scope="module")
def files(host):
    """Write noise in the shapes and under the names of published files into ComfyUI's folders: 2.3 GB."""
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
    """With CLIPLoader, CLIPVisionEncode and VAELoader, the video equals the core's."""
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
    actual, encoded = scene.latents(samples, again)

    parts = [files[name] for name in ("vae", "text", "image")]
    composer = VideoComposer.load(files["network"], parts, device="cpu", dtype="fp32")
    first = draw_clip(size=224, frames=1)
    image = Condition("single_image", resize_crop(first, drawing_size("single_image", (64, 64))))
    style_image = Style((first[:, :, 0] * 255).round() / 255, 0.8, 0.0, 0.6)
    expected = compose_latent(
        composer, TEXT, style=style_image, conditions=[image], seed=3, steps=4, sampler="ddim_released"
    )
    assert error(actual, expected) <= 1e-4
    assert encoded.shape == actual.shape == (1, 4, 4, 8, 8)


# --- The three files in the authors' instructions -------------------------------------------------------------------

NETWORK, TOWERS, STABLE_DIFFUSION = "non_ema_228000.pth", "open_clip_pytorch_model.bin", "v2-1_512-ema-pruned.ckpt"
SMALL = UNetConfig(width=64, multipliers=(1, 2), res_blocks=1, attention_levels=(0, 1), temporal_in_heads=2)
"""A network whose config can be recognized by the shapes in its file."""


class Weights:
    """Weights of any shape as views of one small storage, so that the file of an entire tower has a few MB."""

    def __init__(self):
        torch.manual_seed(0)
        self.noise = 0.04 * torch.randn(2**19).half()
        self.near_one = 1.0 + self.noise

    def state(self, shapes):
        return {name: self.view(name, tuple(shape)) for name, shape in shapes.items()}

    def view(self, name, shape):
        source = self.near_one if len(shape) == 1 and name.endswith("weight") else self.noise
        strides = (37, 17, 7, 3, 1)[5 - len(shape) :]
        return source.as_strided(shape, strides, zlib.crc32(name.encode()) % 2**16)


def shapes_in(module, part_name, layout):
    return {n: origin.shape for origin in layout_of(part_name, layout, module, {}).values() for n in origin.names}


def shapes_of_sd_unet():
    """Return a UNet of one level with LDM's names and Stable Diffusion 2.1's width, by which ComfyUI recognizes it."""
    with torch.device("meta"):
        unet = UNet3D(
            UNetConfig(width=320, multipliers=(1,), res_blocks=1, attention_levels=(0,), stc_channels=0, conditions=())
        )
    over_time = re.compile(r"^input_blocks\.0\.1|temopral|_blocks\.\d+\.2\.|^middle_block\.2\.|^pre_image")
    named = {name: tensor.shape for name, tensor in to_released(unet).items() if not over_time.search(name)}
    return {name.replace("middle_block.3.", "middle_block.2."): shape for name, shape in named.items()}


def write_official(models):
    """Write files with the three names and layouts into ComfyUI's folders; the SD file has OpenCLIP's text tower."""
    weights = Weights()
    with torch.device("meta"):
        network = to_released(UNet3D(SMALL))
    towers = new_towers(TowersConfig(), "meta")
    visual, towers.visual = towers.visual, None
    text = weights.state(shapes_in(towers, "text", "open_clip"))
    image = weights.state(shapes_in(visual, "image", "open_clip"))
    vae = weights.state(shapes_in(new_autoencoder("ldm", device="meta"), "vae", "ldm"))
    unet = weights.state(shapes_of_sd_unet())
    prefixes = {"model.diffusion_model.": unet, "first_stage_model.": vae, "cond_stage_model.model.": text}
    state = {prefix + name: tensor for prefix, tensors in prefixes.items() for name, tensor in tensors.items()}
    contents = {
        f"videocomposer/{NETWORK}": weights.state({name: tensor.shape for name, tensor in network.items()}),
        f"checkpoints/{STABLE_DIFFUSION}": {"state_dict": {**state, "betas": torch.zeros(1000)}, "global_step": 220000},
        f"clip_vision/{TOWERS}": {**text, **{f"visual.{name}": tensor for name, tensor in image.items()}},
    }
    contents[f"text_encoders/{TOWERS}"] = contents[f"clip_vision/{TOWERS}"]
    for name, content in contents.items():
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, models / name)
    return [models / name for name in contents]


@pytest.mark.slow
def test_the_files_of_the_authors_instructions_work_unchanged(host):
    """With each file in its node, the video equals the core's."""
    network, diffusion, *towers = paths = write_official(host.folder / "models")
    try:
        assert max(path.stat().st_size for path in paths) < 2**23
        scene = Scene.__new__(Scene)
        scene.host, scene.graph = host, host.graph()
        scene.loader = scene.graph.add("VCCheckpointLoader", ckpt_name=NETWORK, weight_dtype="fp32")
        stable = scene.add("CheckpointLoaderSimple", ckpt_name=STABLE_DIFFUSION)
        text = scene.add("CLIPLoader", clip_name=TOWERS, type="stable_diffusion")  # instead of the other file's
        vision = scene.add("CLIPVisionLoader", clip_name=TOWERS)
        vae = scene.add("VCVideoVAE", vae=stable[2])
        example = scene.add("VCExampleClip", size=224, frames=1)
        style = scene.add(
            "StyleEmbed",
            positive=scene.add("CLIPTextEncode", text=TEXT, clip=stable[1]),
            negative=scene.add("CLIPTextEncode", text="", clip=text),
            clip_vision_output=scene.add("CLIPVisionEncode", clip_vision=vision, image=example[1], crop="center"),
        )
        image = scene.add("VCSingleImage", image=example[1], width=64, height=64)
        stc = scene.add(
            "STCEncode", positive=style[0], negative=style[1], single_image=image, width=64, height=64, frames=4
        )
        samples = scene.sample(stc, sampler_name="ddim", scheduler="ddim_released", steps=4, cfg=3.0, seed=3)
        again = scene.add("VAEEncode", pixels=scene.add("VAEDecode", samples=samples, vae=vae), vae=vae)
        actual, encoded = scene.latents(samples, again)

        composer = VideoComposer.load(network, [diffusion, towers[0]], device="cpu", dtype="fp32")
    finally:
        for path in paths:
            path.unlink()
    first = draw_clip(size=224, frames=1)
    image = Condition("single_image", resize_crop(first, drawing_size("single_image", (64, 64))))
    expected = compose_latent(
        composer, TEXT, style=Style((first[:, :, 0] * 255).round() / 255), conditions=[image], seed=3, steps=4,
        sampler="ddim_released", guidance=3.0, frames=4, size=(64, 64),
    )  # fmt: skip
    assert error(actual, expected) <= 1e-4
    assert encoded.shape == actual.shape == (1, 4, 4, 8, 8)
