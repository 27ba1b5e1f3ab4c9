"""ModelScope's text-to-video network: diffusers' output from its files, conversion in both directions, and refusals."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from vc_core.checkpoint.conversion import convert
from vc_core.checkpoint.files import open_tensors, sha256
from vc_core.checkpoint.inspection import inspect
from vc_core.checkpoint.loading import load_unet
from vc_core.checkpoint.reading import read_checkpoint, save_checkpoint
from vc_core.checkpoint.released import to_released
from vc_core.cli import main
from vc_core.config import Config, UNetConfig
from vc_core.errors import UserError
from vc_core.model.unet import UNet3D

WEIGHTS = "diffusion_pytorch_model.safetensors"


def of_diffusers(widths, attention, head_dim):
    """Return diffusers' UNet with these sizes and no zero parameters."""
    from diffusers import UNet3DConditionModel

    kinds = ["CrossAttn" if level in attention else "" for level in range(len(widths))]
    torch.manual_seed(4)
    unet = UNet3DConditionModel(
        block_out_channels=widths, layers_per_block=1, cross_attention_dim=24, attention_head_dim=head_dim,
        down_block_types=tuple(f"{kind}DownBlock3D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock3D" for kind in reversed(kinds)),
    ).eval().requires_grad_(False)  # fmt: skip
    for parameter in unet.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    return unet


def inputs():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 4, 3, 8, 16, generator=generator)
    return x, torch.tensor([3, 700]), torch.randn(2, 77, 24, generator=generator)


@pytest.fixture(scope="module")
def theirs():
    return of_diffusers((32, 64), (0,), 16)


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    """A pipeline's folder."""
    path = tmp_path_factory.mktemp("pipeline")
    theirs.save_pretrained(path / "unet")
    return path


def agrees(unet, theirs):
    expected = theirs(*inputs()).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(unet(*inputs()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("widths", "attention", "head_dim"), [((32, 64), (0,), 16), ((32, 64, 128, 128), (0, 1, 2), 32)]
)
@torch.no_grad()
def test_it_equals_diffusers(tmp_path, widths, attention, head_dim):
    theirs = of_diffusers(widths, attention, head_dim)
    theirs.save_pretrained(tmp_path / "unet")
    torch.save(theirs.state_dict(), tmp_path / "unet.bin")
    for path in (tmp_path, tmp_path / "unet", tmp_path / "unet" / WEIGHTS, tmp_path / "unet.bin"):
        checkpoint = read_checkpoint(path)
        unet = checkpoint.config.unet
        assert (unet.width, unet.head_dim, unet.attention_levels) == (32, head_dim, attention)
        assert not unet.conditions and not unet.style_tokens and not checkpoint.extra
        agrees(load_unet(checkpoint), theirs)


@torch.no_grad()
def test_there_and_back(folder, theirs, tmp_path):
    from diffusers import UNet3DConditionModel

    info = convert(folder, tmp_path / "ours.safetensors")
    assert info.config.name == "ModelScope text-to-video" and not info.assumed and info.complete
    agrees(load_unet(read_checkpoint(tmp_path / "ours.safetensors")), theirs)
    info = convert(tmp_path / "ours.safetensors", tmp_path / "back", layout="diffusers")
    assert [(part.layout, part.wrong) for part in info.parts] == [("diffusers", None)]
    back = UNet3DConditionModel.from_pretrained(tmp_path / "back")
    assert all(torch.equal(back.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())
    assert torch.equal(back.eval()(*inputs()).sample, theirs(*inputs()).sample)
    convert(tmp_path / "ours.safetensors", tmp_path / "again.safetensors", layout="diffusers")
    assert set(load_file(tmp_path / "again.safetensors")) == set(theirs.state_dict())
    (tmp_path / "back" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"back contains other files \(notes\.txt\)\. Choose the name of a new folder"):
        convert(tmp_path / "ours.safetensors", tmp_path / "back", layout="diffusers")


@torch.no_grad()
def test_modelscopes_own_file_and_zeroscopes(tmp_path):
    """LDM's names, which are the released ones without STC-encoders and style; ZeroScope uses the same names."""
    sizes = UNetConfig(width=64, multipliers=(1, 2), res_blocks=1, attention_levels=(0,), context_dim=24,
                       conditions=(), stc_channels=0, style_tokens=0)  # fmt: skip
    unet = UNet3D(sizes).eval()
    torch.save(to_released(unet), tmp_path / "text2video_pytorch_model.pth")
    checkpoint = read_checkpoint(tmp_path / "text2video_pytorch_model.pth")
    assert checkpoint.config.unet == sizes and "ZeroScope" in checkpoint.assumed[0]
    torch.testing.assert_close(load_unet(checkpoint)(*inputs()), unet(*inputs()))
    options = {"size": (320, 576), "frames": 24, "rate": 10.0, "guidance": 15.0}
    info = convert(tmp_path / "text2video_pytorch_model.pth", tmp_path / "zeroscope.safetensors", **options)
    config = info.config
    assert (config.height, config.width, config.frames, config.rate, config.guidance) == (320, 576, 24, 10.0, 15.0)


def test_a_network_that_diffusers_does_not_support_is_refused(tiny_checkpoint, tmp_path):
    with pytest.raises(UserError, match="diffusers is for text-to-video networks and does not support STC-encoders"):
        convert(tiny_checkpoint, tmp_path / "out", layout="diffusers", parts=["model"])
    heads = UNetConfig(width=32, multipliers=(1,), res_blocks=1, attention_levels=(0,), head_dim=16, context_dim=24,
                       temporal_in_heads=1, conditions=(), stc_channels=0, style_tokens=0)  # fmt: skip
    save_checkpoint(tmp_path / "x.safetensors", Config(unet=heads), {"model": to_released(UNet3D(heads))})
    with pytest.raises(UserError, match="does not support 1 heads in the first temporal Transformer, only 8"):
        convert(tmp_path / "x.safetensors", tmp_path / "out", layout="diffusers")
    with pytest.raises(UserError, match=r"'diffusers' stores one network per file\. Choose one of model, vae"):
        convert(tiny_checkpoint, tmp_path / "out", layout="diffusers", parts=["model", "vae"])
    assert not (tmp_path / "out").exists()


def test_metadata_of_another_network_are_reported(folder, tiny_config, tmp_path):
    """The file contains neither style nor conditions, but its config has both."""
    save_file(load_file(folder / "unet" / WEIGHTS), tmp_path / "x.safetensors", {"config": tiny_config.to_json()})
    with pytest.raises(UserError, match="does not support STC-encoders and a style"):
        load_unet(read_checkpoint(tmp_path / "x.safetensors"))
    ours = convert(folder, tmp_path / "ours.safetensors").config
    wrong = dataclasses.replace(ours, unet=dataclasses.replace(ours.unet, style_tokens=1))
    state = open_tensors(tmp_path / "ours.safetensors").below("model.").state()
    save_checkpoint(tmp_path / "y.safetensors", wrong, {"model": state})
    with pytest.raises(UserError, match=r"lacks 4 tensors of its network \(pre_image_condition"):
        load_unet(read_checkpoint(tmp_path / "y.safetensors"))


def test_incomplete_files_and_folders_are_reported(folder, tmp_path):
    state = load_file(folder / "unet" / WEIGHTS)
    cut = {name: tensor for name, tensor in state.items() if name != "up_blocks.1.temp_convs.0.conv1.2.weight"}
    save_file(cut, tmp_path / "cut.safetensors")
    assert "up_blocks.1.temp_convs.0.conv1.2.weight" in inspect(tmp_path / "cut.safetensors").parts[0].wrong
    save_file({n: t for n, t in state.items() if not n.startswith("mid_block")}, tmp_path / "half.safetensors")
    with pytest.raises(UserError, match=r"half\.safetensors contains no valid VideoComposer network"):
        read_checkpoint(tmp_path / "half.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"Expected a checkpoint, but .*empty is a folder without.*unet/{WEIGHTS}"):
        read_checkpoint(tmp_path / "empty")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": "b"}}))
    with pytest.raises(UserError, match="index of a sharded checkpoint"):
        read_checkpoint(tmp_path / "shards")


def test_other_parts_are_read_from_a_pipelines_folder(folder, tmp_path):
    """Its SHA-256 covers all of these files."""
    from transformers import CLIPTextConfig, CLIPTextModel

    assert sha256(folder) == sha256(folder / "unet" / WEIGHTS)
    (tmp_path / "unet").symlink_to(folder / "unet")
    text = CLIPTextConfig(hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    CLIPTextModel(text).save_pretrained(tmp_path / "text_encoder")
    checkpoint = read_checkpoint(tmp_path)
    assert {name: part.layout for name, part in checkpoint.parts.items()} == {
        "model": "diffusers", "text": "transformers",
    }  # fmt: skip
    assert not checkpoint.extra and sha256(tmp_path) != sha256(folder)


# --- The user's settings --------------------------------------------------------------------------------------------


def test_overrides_are_stored_in_the_converted_file(tmp_path, capsys):
    """VideoLCM's file has TF-T2V's shapes, so the user must set few_steps once."""
    sizes = UNetConfig(width=64, multipliers=(1,), res_blocks=1, attention_levels=(0,), context_dim=24, style_tokens=4)
    torch.save(to_released(UNet3D(sizes)), tmp_path / "videolcm.pth")
    video_lcm, out = str(tmp_path / "videolcm.pth"), str(tmp_path / "x.safetensors")
    assert main(["info", video_lcm]) == 0
    report = capsys.readouterr().out
    assert "assumed: The network has four style tokens" in report and '"few_steps"' not in report
    assert main(["info", video_lcm, "--few-steps", "yes"]) == 0
    assert '"few_steps": true' in capsys.readouterr().out
    assert main(["convert", video_lcm, out, "--few-steps", "yes", "--size", "512x320", "--frames", "8"]) == 0
    config = read_checkpoint(out).config
    assert (config.few_steps, config.guidance, config.sampler, config.steps) == (True, 1.0, "lcm", 4)
    assert (config.width, config.height, config.frames, config.rate) == (512, 320, 8, 3.0)
    assert config.diffusion.zero_terminal_snr and config.extraction.condition_scale == 8
    with pytest.raises(UserError, match=r"x\.pth: \.pth cannot store this config \(few_steps is True"):
        convert(out, tmp_path / "x.pth")
    options = ["--few-steps", "no", "--prediction", "epsilon", "--zero-terminal-snr", "no", "--rate", "4"]
    assert main(["convert", out, str(tmp_path / "y.safetensors"), *options]) == 0
    config = read_checkpoint(tmp_path / "y.safetensors").config
    assert (config.few_steps, config.guidance, config.rate) == (False, 9.0, 4.0)
    assert (config.diffusion.prediction, config.diffusion.zero_terminal_snr) == ("epsilon", False)
    convert(video_lcm, tmp_path / "z.pth")  # as TF-T2V, which is recognized by the shapes in a .pth


def test_overrides_that_are_not_possible_are_refused(tiny_checkpoint, tmp_path, capsys):
    for options, message in (
        (["--prediction", "epsilon", "--zero-terminal-snr", "yes"], "zero_terminal_snr requires the prediction v_pre"),
        (["--size", "6x3"], "WIDTHxHEIGHT"),
        (["--few-steps", "maybe"], "Expected yes or no"),
    ):
        try:
            status = main(["info", str(tiny_checkpoint), *options])
        except SystemExit as end:
            status = end.code
        assert status == 2 and message in capsys.readouterr().err
    convert(tiny_checkpoint, tmp_path / "vae.safetensors", layout="taesd")
    for call, more in ((read_checkpoint, ()), (convert, (tmp_path / "x.safetensors",))):
        with pytest.raises(UserError, match="contains no network, so few_steps cannot be set"):
            call(tmp_path / "vae.safetensors", *more, few_steps=True)


# --- Composing ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text_composer(tiny_config, tiny_checkpoint, tmp_path_factory):
    from vc_core.composer import VideoComposer

    unet = dataclasses.replace(tiny_config.unet, conditions=(), stc_channels=0, style_tokens=0)
    path = tmp_path_factory.mktemp("text") / "text.safetensors"
    torch.manual_seed(0)
    save_checkpoint(path, dataclasses.replace(tiny_config, unet=unet), {"model": to_released(UNet3D(unet))})
    return VideoComposer.load(path, tiny_checkpoint, device="cpu")


def test_text_is_composed_and_other_inputs_are_refused(text_composer):
    from vc_core.conditions import Condition
    from vc_core.diffusion.samplers import Sampling
    from vc_core.pipeline import Style, compose

    sampling = Sampling(steps=2)
    video = compose(text_composer, "a cat", sampling=sampling)
    assert video.shape == (1, 3, 3, 32, 40) and not torch.equal(video, compose(text_composer, "", sampling=sampling))
    with pytest.raises(UserError, match=r"does not support style: it was trained without it. Remove the style image"):
        compose(text_composer, style=Style(torch.rand(1, 3, 8, 8)), sampling=sampling)
    with pytest.raises(UserError, match="does not support 'single_image': it was trained with no conditions"):
        compose(text_composer, conditions=[Condition("single_image", torch.rand(1, 3, 1, 32, 40))], sampling=sampling)


def test_unsupported_inputs_are_refused_before_any_work(text_composer, monkeypatch, tmp_path):
    """Otherwise the user would be asked to install a depth network, which is of no use here."""
    from vc_core.commands import compose
    from vc_core.commands.conditions import make_conditions
    from vc_core.commands.settings import Settings

    monkeypatch.setattr("vc_core.commands.conditions.options_of", None)
    for name, settings in (
        ("depth", {"video": tmp_path / "a.mp4", "use": ("depth",)}),
        ("motion", {"pan": (0.1, 0.0)}),
        ("single_image", {"image": tmp_path / "a.png"}),
    ):
        with pytest.raises(UserError, match=f"does not support '{name}'.*Remove '{name}'"):
            make_conditions(Settings(**settings), None, text_composer.config)
    monkeypatch.setattr(compose, "make_conditions", None)
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match="does not support style"):
        compose.run(Settings(style=tmp_path / "a.png", out=tmp_path / "a.mp4"), text_composer)
