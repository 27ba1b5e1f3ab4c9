"""Recognizing networks, autoencoders and towers in a file by the names of its tensors."""

import pytest
import torch

from vc_core.checkpoint.files import save_tensors
from vc_core.checkpoint.formats import FORMATS, find_parts, is_known_extra, layout_of
from vc_core.checkpoint.origins import names_of
from vc_core.checkpoint.reading import read_checkpoint
from vc_core.config import TowersConfig, UNetConfig
from vc_core.encoders.autoencoder import new_autoencoder
from vc_core.encoders.clip import new_towers
from vc_core.errors import UserError
from vc_core.model.unet import UNet3D

TINY = TowersConfig(16, 16, 2, 2, 28, 14, 16, 16, 1)


def names_like(part_name, layout, prefix):
    """Return the names of a part in a layout at a tiny size, with a prefix."""
    if part_name == "model":
        text_only = {"style_tokens": 0, "conditions": (), "stc_channels": 0} if layout == "diffusers" else {}
        with torch.device("meta"):
            module = UNet3D(UNetConfig(width=32, multipliers=(1,), head_dim=16, attention_levels=(0,), **text_only))
    elif part_name == "vae":
        module = new_autoencoder(layout, (32, 32, 32, 32), "meta")
    else:
        module = new_towers(TINY, "meta")
        visual, module.visual = module.visual, None
        module = visual if part_name == "image" else module
    return [prefix + name for name in names_of(layout_of(part_name, layout, module))]


def parts_in(names, source="x.safetensors"):
    return find_parts(frozenset(names), source)


FILES = {
    "Stable Diffusion 1": [
        ("vae", "ldm", "first_stage_model."),
        ("text", "transformers", "cond_stage_model.transformer."),
    ],
    "Stable Diffusion 2": [("vae", "ldm", "first_stage_model."), ("text", "open_clip", "cond_stage_model.model.")],
    "SD 2 before its visual tower was cut": [
        ("vae", "ldm", "first_stage_model."),
        ("text", "open_clip", "cond_stage_model.model."),
        ("image", "open_clip", "cond_stage_model.model.visual."),
    ],
    "open_clip": [("text", "open_clip", ""), ("image", "open_clip", "visual.")],
    "transformers' CLIPModel": [("text", "transformers", ""), ("image", "transformers", "")],
    "a diffusers pipeline in one file": [
        ("vae", "diffusers", "vae."),
        ("text", "transformers", "text_encoder."),
        ("image", "transformers", "image_encoder."),
    ],
    "ours": [
        ("model", "released", "model."),
        ("vae", "taesd", "vae."),
        ("text", "open_clip", "text."),
        ("image", "open_clip", "image."),
    ],
}


@pytest.mark.parametrize("file", FILES)
def test_parts_are_found_under_any_prefix(file):
    names = [name for part in FILES[file] for name in names_like(*part)]
    names += ["model.diffusion_model.input_blocks.0.0.weight", "model_ema.decay", "logit_scale", "a.class_embedding"]
    assert parts_in(names) == {part: (layout, prefix) for part, layout, prefix in FILES[file]}


def test_the_shortest_of_several_prefixes_is_used():
    names = [name for prefix in ("b.a.", "a.", "model.") for name in names_like("vae", "ldm", prefix)]
    assert parts_in(names) == {"vae": ("ldm", "model.")}
    assert parts_in(name for name in names if not name.startswith("model.")) == {"vae": ("ldm", "a.")}


def test_a_part_without_one_of_its_markers_is_not_found():
    for (name, layout), kind in FORMATS.items():
        for marker in kind.markers[0]:
            names = set(names_like(name, layout, "x."))
            assert f"x.{marker}" in names
            assert parts_in(names) == {name: (layout, "x.")}
            assert parts_in(names - {f"x.{marker}"}) == {}
    assert parts_in([]) == {} and parts_in(["x_token_embedding.weight", "x_ln_final.weight"]) == {}


def test_an_sdxl_checkpoint_does_not_pass():
    names = names_like("vae", "ldm", "first_stage_model.") + names_like(
        "text", "open_clip", "conditioner.embedders.1.model."
    )
    with pytest.raises(UserError, match=r"sd_xl\.safetensors is an SDXL checkpoint, with another latent scale"):
        parts_in(names, "sd_xl.safetensors")


VIDEO = "not a VideoComposer network"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        # In addition to all names of our network, because VGen's other networks use the same code.
        (
            ["local_image_concat.0.weight", "local_temporal_encoder.layers.0.0.norm.weight"],
            f"VGen's I2VGen-XL, {VIDEO}",
        ),
        (["asim_embedding.0.weight", "img_embedding.weight"], f"VGen's HiGen, {VIDEO}"),
        (["input_blocks.1.1.transformer_blocks.0.ff_adapter.down_linear.weight"], f"VGen's DreamVideo, {VIDEO}"),
        (
            ["input_blocks.1.1.transformer_blocks.0.attn1.to_q_lora.down_linear.weight"],
            f"VGen's InstructVideo, {VIDEO}",
        ),
    ],
)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_other_networks_of_vgen_are_distinguished_from_videocomposer(names, message, prefix):
    names = [prefix + name for name in names] + names_like("model", "released", prefix)
    with pytest.raises(UserError, match=f"net.pth is {message}"):
        parts_in(names, "net.pth")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("image_latents_proj_in.0.weight", f"I2VGen-XL in diffusers' layout, {VIDEO}"),
        ("blocks.0.self_attn.q.weight", f"Wan, {VIDEO}"),
        ("model.diffusion_model.blocks.39.self_attn.o.weight", f"Wan, {VIDEO}"),
        ("condition_embedder.time_embedder.linear_1.weight", f"Wan, {VIDEO}"),
        ("module.down_blocks.0.motion_modules.0.temporal_transformer.norm.weight", "a motion module of AnimateDiff"),
        ("down_blocks.0.motion_modules.0.norm.weight", "a motion module of AnimateDiff"),
        ("model.diffusion_model.input_blocks.1.0.time_stack.in_layers.0.weight", "Stable Video Diffusion"),
        ("down_blocks.0.attentions.0.temporal_transformer_blocks.0.norm1.weight", "Stable Video Diffusion"),
        ("model.diffusion_model.init_attn.0.norm.weight", "VideoCrafter or DynamiCrafter"),
        ("model.diffusion_model.patchify_proj.weight", "LTX-Video"),
        ("txt_in.individual_token_refiner.blocks.0.norm1.weight", "HunyuanVideo"),
        ("patch_embed.text_proj.weight", "CogVideoX"),
        ("lora_unet_middle_block_1_proj_in.lora_down.weight", "a LoRA, not a complete network"),
        ("base_model.model.mid_block.attentions.0.proj_in.lora_A.weight", "a LoRA"),
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight", "a LoRA"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_linear_layer.down.weight", "a LoRA"),
        ("lora_unet_middle_block_1_proj_in.hada_w1_a", "a LoRA"),
    ],
)
def test_files_of_other_families_are_recognized(tmp_path, name, message):
    save_tensors(tmp_path / "x.safetensors", {name: torch.zeros(2)})
    with pytest.raises(UserError, match=rf"x\.safetensors is {message}.*\. (Load|Pass) it with ") as raised:
        read_checkpoint(tmp_path / "x.safetensors")
    assert "\n" not in str(raised.value)


def test_stable_video_diffusion_is_distinguished_from_sdxl():
    names = [
        "conditioner.embedders.0.open_clip.model.logit_scale",
        "model.diffusion_model.input_blocks.1.0.time_mixer.x",
    ]
    with pytest.raises(UserError, match="is Stable Video Diffusion"):
        parts_in(names)


LDM_2D = ("time_embed.0.weight", "input_blocks.0.0.weight", "input_blocks.1.0.in_layers.0.weight", "out.2.weight")
DIFFUSERS_2D = ("time_embedding.linear_1.weight", "conv_in.weight", "down_blocks.0.resnets.0.norm1.weight")


@pytest.mark.parametrize("names", [LDM_2D, [f"model.diffusion_model.{name}" for name in LDM_2D], DIFFUSERS_2D])
def test_a_unet_for_images_is_refused_but_can_be_trained_from(tmp_path, names):
    save_tensors(tmp_path / "x.safetensors", {name: torch.zeros(2) for name in names})
    message = r"x\.safetensors contains a UNet for images.*Use a VideoComposer network.*start\.kind stable_diffusion"
    with pytest.raises(UserError, match=message):
        read_checkpoint(tmp_path / "x.safetensors")


def test_a_checkpoint_of_stable_diffusion_contains_parts_but_no_network(tmp_path):
    names = [f"model.diffusion_model.{name}" for name in LDM_2D] + names_like("vae", "ldm", "first_stage_model.")
    save_tensors(tmp_path / "sd.safetensors", {name: torch.zeros(2) for name in names})
    checkpoint = read_checkpoint(tmp_path / "sd.safetensors")
    assert set(checkpoint.parts) == {"vae"}
    with pytest.raises(UserError, match=r"sd\.safetensors contains a UNet for images"):
        checkpoint.part("model")


def test_known_extras():
    ignored = (
        "text_model.embeddings.position_ids",
        "loss.discriminator.main.0.weight",
        "logit_scale",
        "model_ema.decay",
    )
    for part in ("vae", "text", "image"):
        assert all(is_known_extra(part, name) for name in ignored)
        assert not is_known_extra(part, "encoder.lossy.weight") and not is_known_extra(part, "decoder.conv_in.weight")
