"""Finding networks, autoencoders and towers in any file by its names."""

import pytest
import torch

from vc_core.checkpoint.formats import FORMATS, find_parts, is_known_extra, layout_of
from vc_core.checkpoint.origins import names_of
from vc_core.config import TowersConfig, UNetConfig
from vc_core.encoders.autoencoder import new_autoencoder
from vc_core.encoders.clip import new_towers
from vc_core.errors import UserError
from vc_core.model.unet import UNet3D

TINY = TowersConfig(16, 16, 2, 2, 28, 14, 16, 16, 1)


def names_like(part_name, layout, prefix):
    """Names of a part in a layout at a tiny size, under a prefix."""
    if part_name == "model":
        with torch.device("meta"):
            module = UNet3D(UNetConfig(width=32, multipliers=(1,), head_dim=16, attention_levels=(0,)))
    elif part_name == "vae":
        module = new_autoencoder(layout, (32, 32, 32, 32), "meta")
    else:
        module = new_towers(TINY, "meta")
        visual, module.visual = module.visual, None
        module = visual if part_name == "image" else module
    return [prefix + name for name in names_of(layout_of(part_name, layout, module))]


def found_in(names, source="x.safetensors"):
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
    names = [name for found in FILES[file] for name in names_like(*found)]
    names += ["model.diffusion_model.input_blocks.0.0.weight", "model_ema.decay", "logit_scale", "a.class_embedding"]
    assert found_in(names) == {part: (layout, prefix) for part, layout, prefix in FILES[file]}


def test_of_several_that_fit_the_shortest_prefix_counts():
    names = [name for prefix in ("b.a.", "a.", "model.") for name in names_like("vae", "ldm", prefix)]
    assert found_in(names) == {"vae": ("ldm", "model.")}
    assert found_in(name for name in names if not name.startswith("model.")) == {"vae": ("ldm", "a.")}


def test_a_part_of_which_too_little_is_there_is_not_found():
    for (name, layout), kind in FORMATS.items():
        for marker in kind.markers[0]:
            names = set(names_like(name, layout, "x."))
            assert f"x.{marker}" in names
            assert found_in(names) == {name: (layout, "x.")}
            assert found_in(names - {f"x.{marker}"}) == {}
    assert found_in([]) == {} and found_in(["x_token_embedding.weight", "x_ln_final.weight"]) == {}


def test_an_sdxl_checkpoint_does_not_pass():
    names = names_like("vae", "ldm", "first_stage_model.") + names_like(
        "text", "open_clip", "conditioner.embedders.1.model."
    )
    with pytest.raises(UserError, match=r"sd_xl\.safetensors is an SDXL checkpoint, whose latents have another scale"):
        found_in(names, "sd_xl.safetensors")


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
