"""Super-resolution with SR600's layers: `upscale()`, `./vc upscale`, and which file is SR600. The golden values are in
test_golden.py."""

import json
from dataclasses import replace

import pytest
import torch

from vc_core.checkpoint.reading import read_checkpoint, save_checkpoint
from vc_core.checkpoint.released import to_released
from vc_core.cli import main
from vc_core.composer import VideoComposer
from vc_core.diffusion.windows import Windows
from vc_core.errors import UserError
from vc_core.families import overridden
from vc_core.model.unet import UNet3D
from vc_core.upscaling import SUFFIX, suggested_size, upscale
from vc_core.video import probe, read_frames
from vc_core.video.frames import plan_frames
from vc_core.video.writing import write_video

FEW = {"steps": 2, "levels": 20, "size": (48, 64)}


@pytest.fixture(scope="module")
def checkpoint(tiny_config, tmp_path_factory):
    """A small text-to-video network, whose file does not say that it is SR600."""
    torch.manual_seed(0)
    config = replace(tiny_config, unet=replace(tiny_config.unet, style_tokens=0, stc_channels=0, conditions=()))
    unet = UNet3D(config.unet)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # otherwise the last layers are zeros
    path = tmp_path_factory.mktemp("super_resolution") / "small.safetensors"
    save_checkpoint(path, config, {"model": to_released(unet)})
    return path


@pytest.fixture(scope="module")
def composer(checkpoint, tiny_checkpoint):
    return VideoComposer.load(checkpoint, tiny_checkpoint, overrides={"super_resolution": True})


@pytest.fixture
def upscaling(checkpoint, tiny_checkpoint):
    files = ["--checkpoint", str(checkpoint), "--parts", str(tiny_checkpoint)]
    return lambda source, out: ["upscale", str(source), "-o", str(out), *files]


@pytest.fixture
def video():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(1, 3, 5, 24, 32, generator=generator)


def test_a_video_becomes_larger_and_follows_the_text(composer, video):
    result = upscale(composer, video, "a fox", **FEW)
    assert result.shape == (1, 3, 5, 48, 64) and result.min() >= 0 and result.max() <= 1
    assert not torch.equal(result, upscale(composer, video, "a whale", **FEW))
    assert torch.equal(result, upscale(composer, video, "a fox", **FEW))


def test_a_long_video_is_enlarged_in_windows_that_share_frames(composer, video):
    parts = [upscale(composer, video[:, :, span], **FEW) for span in (slice(0, 3), slice(2, 5))]
    windowed = upscale(composer, video, windows=Windows(3, 1), **FEW)
    # The first and the last two frames belong to one window each.
    for frames, part in ((slice(0, 2), parts[0][:, :, :2]), (slice(3, 5), parts[1][:, :, 1:])):
        torch.testing.assert_close(windowed[:, :, frames], part, rtol=0, atol=0.05)
    assert not torch.equal(windowed, upscale(composer, video, windows=Windows(5), **FEW))


def test_sizes_keep_the_shape_of_the_video(composer):
    config = replace(composer.config, height=720, width=1280)
    assert suggested_size((360, 640), config) == (720, 1280)
    assert suggested_size((256, 256), config) == (960, 960)
    assert suggested_size((640, 360), config) == (1280, 720)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": (50, 64)}, "multiples of 8"),
        ({"steps": 30, "levels": 20}, "steps must be from 1 to levels"),
        ({"levels": 2000}, "at most 1000"),
    ],
)
def test_wrong_values(composer, video, settings, words):
    with pytest.raises(UserError, match=words):
        upscale(composer, video, **FEW | settings)


def test_other_networks_are_refused(tiny_composer, tiny_config, video):
    with pytest.raises(UserError, match=r"'tiny' is not a network for super-resolution. Use VGen's sr_step_110000_ema"):
        upscale(tiny_composer, video, **FEW)
    with pytest.raises(UserError, match="has conditions or style, so it is not SR600"):
        overridden(tiny_config, super_resolution=True)


def test_the_user_says_which_network_it_is(checkpoint, tmp_path):
    as_sr600, as_is = (read_checkpoint(checkpoint, super_resolution=answer).config for answer in (True, None))
    assert (as_sr600.name, as_sr600.width, as_sr600.height) == ("SR600", 1280, 720)
    assert as_sr600.diffusion.prediction == "v_prediction" and as_sr600.diffusion.zero_terminal_snr
    assert not as_is.unet.super_resolution and as_is.name == "tiny"
    assert overridden(as_sr600, super_resolution=True) == as_sr600
    assert overridden(as_sr600, super_resolution=False).diffusion.prediction == "epsilon"
    out = tmp_path / "sr600.safetensors"
    assert main(["convert", str(checkpoint), str(out), "--super-resolution", "yes"]) == 0
    assert read_checkpoint(out).config == as_sr600  # a converted file says so itself


def test_command(composer, upscaling, video, tmp_path, capsys):
    source, out = tmp_path / "small.mp4", tmp_path / "large"
    write_video(source, video, 8)
    assert main([*upscaling(source, out), "--text", "a fox", "--size", "64x48", "--steps", "2", "--levels", "20"]) == 0
    assert "5 frames of 64x48, 8 per second" in capsys.readouterr().out
    assert json.loads((out / "video.json").read_text())["rate"] == "8"
    frames = read_frames(source, plan_frames(probe(source), 5, 8))
    expected = upscale(composer, frames, f"a fox{SUFFIX}", **FEW)
    actual = read_frames(out, plan_frames(probe(out), 5, 8))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1 / 255)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "30", "--levels", "20"], "steps must be from 1 to levels"),
        (["--start", "100"], "0.625 seconds long"),
        (["--overlap", "30"], "overlap"),
    ],
)
def test_wrong_options(upscaling, video, tmp_path, capsys, options, words):
    source = tmp_path / "small.mp4"
    write_video(source, video, 8)
    out = tmp_path / "large.mp4"
    assert main([*upscaling(source, out), *options]) == 2
    assert words in capsys.readouterr().err and not out.exists()


def test_wrong_files(upscaling, video, tmp_path, capsys):
    source = tmp_path / "small.mp4"
    write_video(source, video, 8)
    assert main(upscaling(tmp_path / "no.mp4", tmp_path / "o.mp4")) == 2 and "IN" in capsys.readouterr().err
    assert main(upscaling(source, source)) == 2 and "would overwrite the input" in capsys.readouterr().err
