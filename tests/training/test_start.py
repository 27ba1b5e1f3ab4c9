"""The start of a run: a 2D UNet's own output on every frame; a text-to-video model's output for any conditions."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from training.recipe import Domain, Loss, Recipe, Start, Train
from training.start import begin, check_downloads
from vc_core.checkpoint.conversion import convert
from vc_core.checkpoint.diffusers_unet import diffusers_layout, diffusers_names, unet_config_from_diffusers
from vc_core.checkpoint.loading import on_meta
from vc_core.checkpoint.reading import save_checkpoint
from vc_core.checkpoint.released import ldm_names, released_layout, to_released
from vc_core.conditions import CONDITIONS
from vc_core.config import Config, UNetConfig
from vc_core.errors import UserError
from vc_core.model.unet import UNet3D

SIZES = UNetConfig(width=32, multipliers=(1, 2, 2), res_blocks=2, attention_levels=(0, 1), head_dim=16,
                   temporal_in_heads=1, context_dim=24)  # fmt: skip
"""Stable Diffusion 2.1's structure: two residual blocks per level, no attention at the deepest."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("start")
    (path / "sizes.json").write_text(Config(unet=SIZES).to_json())
    return path


@pytest.fixture(scope="module")
def two_dimensional():
    """diffusers' 2D UNet with random weights."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(1)
    return UNet2DConditionModel(
        block_out_channels=(32, 64, 64), layers_per_block=2, cross_attention_dim=24, attention_head_dim=(2, 4, 4),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), use_linear_projection=True,
    ).eval().requires_grad_(False)  # fmt: skip


@pytest.fixture(scope="module")
def files_2d(folder, two_dimensional):
    """The same UNet in both layouts."""
    state = two_dimensional.state_dict()
    save_file(state, folder / "diffusers.safetensors")
    ours, theirs = ldm_names(SIZES), diffusers_names(SIZES)
    modules = {theirs[name]: f"model.diffusion_model.{ours[name]}" for name in ours}
    renamed = {f"{modules[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": tensor for key, tensor in state.items()}
    torch.save({"state_dict": renamed, "global_step": 3}, folder / "ldm.ckpt")
    return {"diffusers": folder / "diffusers.safetensors", "ldm": folder / "ldm.ckpt"}


def inputs(frames=3):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 4, frames, 8, 16, generator=generator)
    return x, torch.tensor([3, 700]), torch.randn(2, 77, 24, generator=generator)


def from_2d(folder, path, stage=2, **settings):
    start = Start("stable_diffusion", path, network=folder / "sizes.json")
    return begin(Recipe(stage=stage, start=start, **settings))


@pytest.mark.parametrize("layout", ["diffusers", "ldm"])
@torch.no_grad()
def test_a_2d_unet_gives_its_own_output_on_every_frame(folder, files_2d, two_dimensional, layout):
    started = from_2d(folder, files_2d[layout])
    unet = started.unet.eval()
    x, t, context = inputs()
    expected = torch.stack([two_dimensional(x[:, :, frame], t, context).sample for frame in range(3)], dim=2)
    torch.testing.assert_close(unet(x, t, context), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(unet(x, t, context, torch.randn(2, 8, 3, 8, 16)), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(unet(x[:, :, :1], t, context), expected[:, :, :1], rtol=1e-5, atol=1e-5)
    assert {"the temporal layers", "the style's layers", "the STC-encoder of motion"} <= set(started.fresh)
    assert "the spatial layers" not in started.fresh


def test_ldm_names_are_stable_diffusions():
    names = ldm_names(UNetConfig())
    assert names["middle_out.norm1"] == "middle_block.2.in_layers.0"
    assert names["decoder.2.upsample.conv"] == "output_blocks.2.1.conv"
    assert names["decoder.5.upsample.conv"] == "output_blocks.5.2.conv"
    assert names["encoder.2.downsample.conv"] == "input_blocks.3.0.op"
    assert names["encoder.0.spatial.block.ff.proj_in"] == "input_blocks.1.1.transformer_blocks.0.ff.net.0.proj"
    # Stable Diffusion 2.1's UNet has 686 tensors.
    spatial = [n for n, _ in on_meta(Config()).named_parameters() if n.rpartition(".")[0] in names]
    assert len(spatial) == 686


def test_stage_1_has_neither_conditions_nor_channels_for_them(folder, files_2d):
    started = from_2d(folder, files_2d["diffusers"], stage=1)
    assert started.unet.conv_in.weight.shape[1] == 4 and started.config.unet.conditions == ()
    started.unet(*inputs())


def test_a_foreign_tensor_in_a_2d_unet_is_named(folder, two_dimensional, tmp_path):
    state = {**two_dimensional.state_dict(), "class_embedding.linear_1.weight": torch.zeros(4, 4)}
    save_file(state, tmp_path / "unclip.safetensors")
    with pytest.raises(UserError, match=r"class_embedding\.linear_1\.weight"):
        from_2d(folder, tmp_path / "unclip.safetensors")
    del state["class_embedding.linear_1.weight"], state["mid_block.resnets.0.norm1.bias"]
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match=r"mid_block\.resnets\.0\.norm1\.bias"):
        from_2d(folder, tmp_path / "cut.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="contains no 2D UNet"):
        from_2d(folder, tmp_path / "other.safetensors")


@pytest.fixture(scope="module")
def text_to_video(folder):
    """A text-to-video model as after stage 1: nothing in it is zero."""
    started = begin(Recipe(stage=1, start=Start(network=folder / "sizes.json")))
    unet, generator = started.unet.eval().requires_grad_(False), torch.Generator().manual_seed(2)
    for parameter in unet.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return unet, started.config


@pytest.fixture(scope="module")
def stage_1_file(folder, text_to_video):
    unet, config = text_to_video
    save_checkpoint(folder / "stage1.safetensors", config, {"model": to_released(unet)})
    return folder / "stage1.safetensors"


@torch.no_grad()
def test_step_0_of_stage_2_is_the_text_to_video_model_whatever_the_conditions(stage_1_file, text_to_video):
    started = begin(Recipe(stage=2, start=Start("videocomposer", stage_1_file)))
    unet = started.unet.eval()
    assert tuple(unet.stc) == tuple(CONDITIONS) and unet.conv_in.weight.shape[1] == 12
    assert torch.equal(unet.conv_in.weight[:, :4], text_to_video[0].conv_in.weight)
    assert not unet.conv_in.weight[:, 4:].any()
    x, t, context = inputs()
    expected = text_to_video[0](x, t, context)
    for name, spec in CONDITIONS.items():
        condition = 5 * torch.randn(2, spec.channels, 3 if spec.kind == "temporal" else 1, 32, 64)
        stc = unet.encode_condition(name, condition, (8, 16))
        assert stc.abs().max() > 0.05
        torch.testing.assert_close(unet(x, t, context, stc), expected, rtol=1e-6, atol=1e-6)
    assert [name for name in started.fresh if "STC" not in name] == []  # a stage 1 file contains the style's layers


@torch.no_grad()
def test_modelscopes_unet_has_neither_style_nor_conditions(tmp_path):
    torch.manual_seed(3)
    sizes = UNetConfig(width=64, multipliers=(1,), res_blocks=1, attention_levels=(0,), temporal_in_heads=1,
                       context_dim=24, conditions=(), stc_channels=0)  # fmt: skip
    unet = UNet3D(sizes).eval()
    state = {name: t.clone() for name, t in to_released(unet).items() if not name.startswith("pre_image_condition")}
    torch.save(state, tmp_path / "text2video_pytorch_model.pth")
    start = Start("modelscope", tmp_path / "text2video_pytorch_model.pth")
    for stage in (1, 2):
        started = begin(Recipe(stage=stage, start=start))
        assert (
            (started.fresh == ())
            if stage == 1
            else {"the style's layers", "the STC-encoder of mask"} <= set(started.fresh)
        )
        assert "the temporal layers" not in started.fresh
        assert started.config.name == ("ModelScope text-to-video" if stage == 1 else "VideoComposer")
        x, t, context = inputs()
        stc = torch.randn(2, 8, 3, 8, 16) if stage == 2 else None
        torch.testing.assert_close(started.unet.eval()(x, t, context, stc), unet(x, t, context), rtol=1e-6, atol=1e-6)
    torch.save({**state, "another.weight": torch.zeros(1)}, tmp_path / "text2video_pytorch_model.pth")
    with pytest.warns(UserWarning, match=r"another\.weight"):
        begin(Recipe(start=start))


DIFFUSERS_3D = dataclasses.replace(SIZES, temporal_in_heads=8, conditions=(), stc_channels=0)
"""diffusers has a fixed number of heads in the first temporal Transformer."""


@pytest.fixture(scope="module")
def three_dimensional():
    """diffusers' UNet of ModelScope's text-to-video model; nothing in it is zero."""
    from diffusers import UNet3DConditionModel

    torch.manual_seed(4)
    unet = UNet3DConditionModel(
        block_out_channels=(32, 64, 64), layers_per_block=2, cross_attention_dim=24, attention_head_dim=16,
        down_block_types=("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
    ).eval().requires_grad_(False)  # fmt: skip
    for parameter in unet.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    return unet


def from_diffusers_3d(folder, state, stage=2):
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    return begin(Recipe(stage=stage, start=Start("modelscope", folder)))


@pytest.mark.parametrize("stage", [1, 2])
@torch.no_grad()
def test_diffusers_layout_of_modelscopes_unet_gives_its_own_output(tmp_path, three_dimensional, stage):
    started = from_diffusers_3d(tmp_path, three_dimensional.state_dict(), stage)
    x, t, context = inputs()
    stc = torch.randn(2, 8, 3, 8, 16) if stage == 2 else None
    expected = three_dimensional(x, t, context).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(started.unet.eval()(x, t, context, stc), expected, rtol=1e-5, atol=1e-5)
    still = three_dimensional(x[:, :, [0, 0, 0]], t, context).sample
    assert (still - expected)[:, :, 0].abs().max() > 0.01  # frames attend to each other
    added = {"the style's layers", *(f"the STC-encoder of {name}" for name in CONDITIONS)}
    assert set(started.fresh) == (added if stage == 2 else set())


def test_every_tensor_of_diffusers_unet_has_one_place(tmp_path, three_dimensional):
    names = diffusers_names(DIFFUSERS_3D, temporal=True)
    theirs = {name.rpartition(".")[0] for name in three_dimensional.state_dict()}
    ours = {name.rpartition(".")[0] for name, _ in on_meta(Config(unet=DIFFUSERS_3D)).named_parameters()}
    ours = {name for name in ours if not name.startswith("style_")}
    assert {names[name] for name in ours} == theirs and len(ours) == len(theirs)
    state = dict(three_dimensional.state_dict())
    del state["up_blocks.1.temp_attentions.0.proj_in.bias"]
    with pytest.raises(UserError, match=r"up_blocks\.1\.temp_attentions\.0\.proj_in\.bias"):
        from_diffusers_3d(tmp_path, state)
    state = {**three_dimensional.state_dict(), "another_module.0.weight": torch.zeros(1)}
    with pytest.raises(UserError, match=r"Expected ModelScope's text-to-video UNet.*, but .*another_module\.0\.weight"):
        from_diffusers_3d(tmp_path, state)


def test_diffusers_file_of_modelscopes_unet_has_the_released_sizes():
    """diffusers' default is ModelScope's; it has the same tensors and shapes as our network's default."""
    from diffusers import UNet3DConditionModel

    with torch.device("meta"):
        theirs = {name: tuple(t.shape) for name, t in UNet3DConditionModel().state_dict().items()}
    sizes = unet_config_from_diffusers(theirs)
    assert sizes == dataclasses.replace(UNetConfig(), conditions=(), stc_channels=0, style_tokens=0)
    unet = on_meta(Config(unet=sizes))
    layout = diffusers_layout(unet, theirs)
    assert {o.names[0]: o.shape for o in layout.values()} == theirs
    assert {name for name, _ in unet.named_parameters()} == set(layout)


def test_the_released_names_without_stc_and_style_are_modelscopes():
    """By the released key table: both files contain a network without conditions, with the same shapes."""
    released = {o.names[0]: o.shape for o in released_layout(on_meta(Config())).values()}
    plain = dataclasses.replace(UNetConfig(), conditions=(), stc_channels=0)
    modelscope = {o.names[0]: o.shape for o in released_layout(on_meta(Config(unet=plain))).values()}
    assert {n for n in modelscope if modelscope[n] != released[n]} == {"input_blocks.0.0.weight"}
    stc = tuple(f"{prefix}." for spec in CONDITIONS.values() for prefix in spec.released)
    assert {n for n in released if n not in modelscope} == {n for n in released if n.startswith(stc)}


@torch.no_grad()
def test_a_videocomposer_starts_unchanged(tiny_checkpoint, tiny_unet, tiny_config):
    recipe = Recipe(start=Start("videocomposer", tiny_checkpoint), data=(Domain(frames=5), Domain(frames=1)),
                    height=64, width=48, loss=Loss(prediction="epsilon"))  # fmt: skip
    started = begin(recipe)
    for name, parameter in started.unet.named_parameters():
        assert torch.equal(parameter, tiny_unet.get_parameter(name)), name
    assert started.fresh == ()
    config = started.config
    assert (config.frames, config.height, config.width) == (5, 64, 48)
    assert config.diffusion.prediction == "epsilon" and config.unet == tiny_config.unet
    images = begin(dataclasses.replace(recipe, data=(Domain(frames=1),)))
    assert images.config.frames == tiny_config.frames  # keeps its video length


def test_a_network_from_scratch_is_reproducible_and_predicts_zero(folder):
    recipe = Recipe(start=Start(network=folder / "sizes.json"), seed=4)
    state = torch.get_rng_state()
    first, second = (begin(recipe).unet.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)
    other = begin(dataclasses.replace(recipe, seed=5)).unet
    assert not torch.equal(other.conv_in.weight, first["conv_in.weight"])
    assert not other.eval()(*inputs()).any()


def test_wrong_schedules_and_networks_are_errors():
    with pytest.raises(UserError, match="zero_terminal_snr"):
        begin(Recipe(loss=Loss(zero_terminal_snr=True)))
    with pytest.raises(UserError, match=r"Cannot read nowhere\.json, which the recipe names as start\.network"):
        begin(Recipe(start=Start(network=Path("nowhere.json"))))


# --- Every checkpoint of the family ---------------------------------------------------------------------------------


def small(**changes):
    return dataclasses.replace(UNetConfig(width=64, multipliers=(1,), res_blocks=1, attention_levels=(0,),
                                          temporal_in_heads=1, context_dim=24), **changes)  # fmt: skip


TEXT_ALONE = {"conditions": (), "stc_channels": 0, "style_tokens": 0}


def saved(path, **changes):
    torch.manual_seed(3)
    torch.save({name: t.clone() for name, t in to_released(UNet3D(small(**changes))).items()}, path)
    return path


def test_vgens_network_keeps_its_tokens_and_its_schedule(tmp_path):
    path = saved(tmp_path / "tft2v.pth", style_tokens=4)
    started = begin(Recipe(start=Start("checkpoint", path), height=256, width=448))
    config = started.config
    assert started.fresh == () and config.unet.style_tokens == 4 and config.name == "TF-T2V"
    assert (config.diffusion.prediction, config.diffusion.zero_terminal_snr) == ("v_prediction", True)
    assert (config.extraction.condition_scale, config.rate, config.extraction.sampling_rate) == (8, 3.0, 3.0)
    noise = begin(Recipe(start=Start("checkpoint", path), loss=Loss(prediction="epsilon"))).config.diffusion
    assert (noise.prediction, noise.zero_terminal_snr) == ("epsilon", False)


def test_a_lora_keeps_the_network_that_it_starts_from(tmp_path):
    """A text-only network stays text-only, or the LoRA would learn with layers that the network does not have."""
    path = saved(tmp_path / "text2video_pytorch_model.pth", **TEXT_ALONE)
    started = begin(Recipe(start=Start("checkpoint", path), train=Train(what="lora", lora_rank=2)))
    assert started.config.unet == small(**TEXT_ALONE) and started.fresh == ()
    assert started.config.unet.inputs == ("text",)
    assert all("lora" in name for name, p in started.unet.named_parameters() if p.requires_grad)


def test_training_from_a_network_for_few_steps_is_noted(tmp_path):
    path = saved(tmp_path / "videolcm.pth", style_tokens=4)
    convert(path, tmp_path / "lcm.safetensors", few_steps=True)
    with pytest.warns(UserWarning, match=r"lcm\.safetensors was distilled for few sampling steps"):
        started = begin(Recipe(start=Start("checkpoint", tmp_path / "lcm.safetensors")))
    assert started.config.few_steps and started.config.guidance == 1.0


def test_a_missing_published_file_comes_with_its_command(tmp_path):
    path = tmp_path / "non_ema_228000.pth"
    command = rf"Download it with ./vc get --to {tmp_path} non_ema_228000\.pth, or .* --start.checkpoint bundled"
    with pytest.raises(UserError, match=command):
        check_downloads(Recipe(start=Start("checkpoint", path)))
    with pytest.raises(UserError, match=r"v2-1_512-ema-pruned\.ckpt"):
        check_downloads(Recipe(start=Start(parts=(tmp_path / "v2-1_512-ema-pruned.ckpt",))))
    path.touch()
    check_downloads(Recipe(start=Start("checkpoint", path)))
    check_downloads(Recipe(start=Start("checkpoint", tmp_path / "mine.pth")))  # its reader reports it
