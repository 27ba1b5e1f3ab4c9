"""The network's weights in ComfyUI: LoRAs, data types, saving and loading again."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.host.reference import compose_latent, karras_sigmas, pan_motion
from tests.host.scene import BUNDLED, TEXT, Scene, error
from tests.scaled import quantised, tensorwise
from vc_core.checkpoint.reading import BUNDLED as BUNDLED_FILE
from vc_core.conditions import Condition


def write_lora(path, unet, rank=4, strength=0.05):
    """Write a LoRA for every matrix and convolution of a network, with the key names of ComfyUI's loader."""
    torch.manual_seed(0)
    state = {}
    for name, weight in unet.named_parameters():
        if not name.endswith(".weight") or weight.ndim not in (2, 4):
            continue
        key, tail = f"diffusion_model.{name.removesuffix('.weight')}", [1] * (weight.ndim - 2)
        state[f"{key}.lora_up.weight"] = strength * torch.randn(weight.shape[0], rank, *tail)
        state[f"{key}.lora_down.weight"] = strength * torch.randn(rank, *weight.shape[1:])
        state[f"{key}.alpha"] = torch.tensor(float(rank))
    save_file(state, path)


@pytest.fixture(scope="module")
def lora(host, composer):
    write_lora(host.folder / "models" / "loras" / "everywhere.safetensors", composer.unet)
    return "everywhere.safetensors"


def conditions(scene):
    clip = scene.add("VCExampleClip")
    return {"motion": scene.add("VCCameraMotion", zoom=1.5), "single_image": scene.add("VCSingleImage", image=clip[1])}


def with_lora(scene, lora, strength):
    return scene.add("LoraLoaderModelOnly", lora_name=lora, strength_model=strength)


def test_a_lora_changes_the_video_and_leaves_no_trace(host, lora):
    latents = []
    for strength in (None, 1.0, 0.0, None):  # one run for each, so that none comes from the cache
        scene = Scene(host)
        model = scene.loader if strength is None else with_lora(scene, lora, strength)
        latents += scene.latents(scene.sample(scene.encode(**conditions(scene)), model=model))
    before, under, at_0, after = latents
    assert error(under, before) > 0.01
    assert torch.equal(at_0, before)
    assert torch.equal(after, before)
    assert "lora key not loaded" not in host.log()


def test_a_lora_reaches_every_weight(scene, lora, composer):
    """ComfyUI with a LoRA gives the same result as the core with the LoRA merged into its weights."""
    stc = scene.encode(motion=scene.add("VCCameraMotion", pan_right=0.3))
    (actual,) = scene.latents(scene.sample(stc, model=with_lora(scene, lora, 1.0), steps=3))
    changes = load_file(scene.host.folder / "models" / "loras" / lora)
    state = {name: tensor.clone() for name, tensor in composer.unet.state_dict().items()}
    merged = dict(state)
    for name, weight in state.items():
        key = f"diffusion_model.{name.removesuffix('.weight')}"
        if f"{key}.alpha" in changes:
            up, down = changes[f"{key}.lora_up.weight"], changes[f"{key}.lora_down.weight"]
            merged[name] = weight + (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    try:
        composer.unet.load_state_dict(merged)
        motion = Condition("motion", pan_motion(composer.config, (0.3, 0.0), composer.config.frames))
        steps = {"sampler": "euler", "steps": 3, "sigmas": karras_sigmas(composer.config, 3)}
        expected = compose_latent(composer, TEXT, conditions=[motion], guidance=2.0, seed=1, **steps)
    finally:
        composer.unet.load_state_dict(state)
    assert error(actual, expected) <= 1e-4


def test_weights_of_every_type_give_about_the_same_video(scene):
    stc = scene.encode(**conditions(scene))
    ranges = {"default": (0.0, 0.001), "fp16": (0.0, 0.001), "bf16": (0.001, 0.03), "fp8_e4m3fn": (0.03, 0.3)}
    models = [
        scene.add("VCCheckpointLoader", ckpt_name=BUNDLED, weight_dtype=weight_dtype)
        for weight_dtype in ("fp32", *ranges)
    ]
    exact, *others = scene.latents(*(scene.sample(stc, model=model) for model in models))
    for (weight_dtype, (least, most)), other in zip(ranges.items(), others, strict=True):
        assert least <= error(other, exact) <= most, weight_dtype


@pytest.mark.parametrize(("spelling", "marks"), [("scale_weight", "old"), ("weight_scale", "tensors")])
def test_weights_with_scales_give_about_the_same_video(scene, spelling, marks):
    state, metadata, _ = quantised(BUNDLED_FILE, spelling, tensorwise, marks)
    name = f"scaled_{marks}.safetensors"
    save_file(state, scene.host.checkpoints / name, metadata)
    stc = scene.encode(**conditions(scene))
    scaled = scene.add("VCCheckpointLoader", ckpt_name=name, weight_dtype="default")
    exact, other = scene.latents(scene.sample(stc), scene.sample(stc, model=scaled))
    assert 0.001 <= error(other, exact) <= 0.3
    assert "tensors are not used" not in scene.host.log()


@pytest.mark.parametrize("saver", ["ModelSave", "CheckpointSave"])
def test_files_saved_by_stock_nodes_load_again(scene, saver):
    (before,) = scene.latents(scene.sample(scene.encode(**conditions(scene))))
    extra = {"clip": scene.loader[1], "vae": scene.loader[3]} if saver == "CheckpointSave" else {}
    scene.add(saver, filename_prefix=saver, **extra)
    scene.host.run(scene.graph)
    (saved,) = (scene.host.folder / "output").glob(f"{saver}*.safetensors")
    saved = saved.rename(scene.host.checkpoints / saved.name)

    again = Scene(scene.host, saved.name) if extra else Scene(scene.host)
    again.loader = again.add("VCCheckpointLoader", ckpt_name=saved.name, weight_dtype="fp32")
    (after,) = again.latents(again.sample(again.encode(**conditions(again))))
    assert torch.equal(after, before)
    assert "tensors are not used" not in scene.host.log()
