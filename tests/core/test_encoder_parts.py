"""Finding autoencoders and towers in any file by its names."""

import pytest

from vc_core.config import TowersConfig
from vc_core.encoders.autoencoder import new_autoencoder
from vc_core.encoders.clip import build_clip, open_clip_config
from vc_core.encoders.layouts import SIGNATURES, Found, find_parts, is_ignored, layout_of
from vc_core.errors import UserError
from vc_core.layouts import names_of

TINY = TowersConfig(16, 16, 2, 2, 28, 14, 16, 16, 1)


def names_like(part_name, layout, prefix):
    """Names of a part in a layout at a tiny size, under a prefix."""
    if part_name == "vae":
        module = new_autoencoder(layout, (32, 32, 32, 32), "meta")
    else:
        module = build_clip(open_clip_config(TINY), "meta")
        visual, module.visual = module.visual, None
        module = visual if part_name == "image" else module
    return [prefix + name for name in names_of(layout_of(part_name, layout, module))]


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
    "ours": [("vae", "taesd", "vae."), ("text", "open_clip", "text."), ("image", "open_clip", "image.")],
}  # fmt: skip


@pytest.mark.parametrize("file", FILES)
def test_parts_are_found_under_any_prefix(file):
    expected = [Found(*found) for found in FILES[file]]
    names = [name for found in expected for name in names_like(*found)]
    names += ["model.diffusion_model.input_blocks.0.0.weight", "model_ema.decay", "logit_scale", "a.class_embedding"]
    assert sorted(find_parts(names)) == sorted(expected)


def test_a_part_of_which_too_little_is_there_is_not_found():
    for (name, layout), forms in SIGNATURES.items():
        for marker in forms[0]:
            names = set(names_like(name, layout, "x."))
            assert f"x.{marker}" in names
            assert find_parts(names) == [Found(name, layout, "x.")]
            assert find_parts(names - {f"x.{marker}"}) == []
    assert find_parts([]) == [] and find_parts(["x_token_embedding.weight", "x_ln_final.weight"]) == []


def test_an_sdxl_checkpoint_does_not_pass():
    names = names_like("vae", "ldm", "first_stage_model.") + names_like(
        "text", "open_clip", "conditioner.embedders.1.model."
    )
    with pytest.raises(UserError, match=r"sd_xl\.safetensors is an SDXL checkpoint, whose latents have another scale"):
        find_parts(names, "sd_xl.safetensors")


def test_known_extras():
    ignored = (
        "text_model.embeddings.position_ids",
        "loss.discriminator.main.0.weight",
        "logit_scale",
        "model_ema.decay",
    )
    assert all(is_ignored(name) for name in ignored)
    assert not is_ignored("encoder.lossy.weight") and not is_ignored("decoder.conv_in.weight")
