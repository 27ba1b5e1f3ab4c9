"""SR600 Upscale: a small network with random weights gives the core's latent, and other networks are refused."""

from dataclasses import replace

import pytest
import torch

from tests.host.scene import TEXT, Scene, error
from tests.host.test_errors import assert_error
from tests.host.test_families import SMALL
from vc_core.checkpoint.loading import load_unet
from vc_core.checkpoint.reading import read_checkpoint
from vc_core.checkpoint.released import to_released
from vc_core.demo import draw_clip
from vc_core.model.unet import UNet3D
from vc_core.upscaling import upscale

NAME, FRAMES, SIDE = "sr_step_110000_ema.pth", 3, 64


@pytest.fixture(scope="module")
def file(host):
    torch.manual_seed(7)
    unet = UNet3D(replace(SMALL, style_tokens=0, stc_channels=0, conditions=()))
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))  # otherwise the last layers are zeros
    torch.save(to_released(unet), host.checkpoints / NAME)
    yield host.checkpoints / NAME
    (host.checkpoints / NAME).unlink()


def video_latent(scene):
    clip = scene.add("VCExampleClip", frames=FRAMES, size=SIDE)
    return scene.add("VAEEncode", pixels=clip[1], vae=scene.loader[3])


def upscaled(scene, answer="yes", latent=None, **settings):
    model = scene.add("VCCheckpointLoader", ckpt_name=NAME, weight_dtype="fp32", super_resolution=answer)
    latent = latent or video_latent(scene)
    values = {"steps": 3, "cfg": 9.0, "levels": 700, "rescale": 0.3, "context_length": 0, "context_overlap": -1}
    return scene.add(
        "VCSuperResolution", model=model, positive=scene.positive, negative=scene.negative, latent=latent,
        **{**values, **settings},
    )  # fmt: skip


@pytest.mark.parametrize("settings", [{}, {"rescale": 0.0, "cfg": 2.0, "levels": 900}])
def test_it_equals_the_core(host, composer, file, monkeypatch, settings):
    scene = Scene(host)
    encoded = video_latent(scene)
    encoded, actual = scene.latents(encoded, upscaled(scene, latent=encoded, **settings))
    checkpoint = read_checkpoint(file, super_resolution=True)
    small = replace(composer, config=checkpoint.config, unet=load_unet(checkpoint))
    scaled = encoded * checkpoint.config.autoencoder.scale
    monkeypatch.setattr("vc_core.upscaling.encode_video", lambda *args: scaled)
    monkeypatch.setattr("vc_core.encoders.autoencoder.decode", lambda autoencoder, latent, *rest: latent)
    values = {"guidance": 9.0, "rescale": 0.3, "levels": 700, "steps": 3}
    values |= {{"cfg": "guidance"}.get(name, name): value for name, value in settings.items()}
    video = draw_clip(size=SIDE, frames=FRAMES)
    expected = upscale(small, video, TEXT, negative="", size=(SIDE, SIDE), **values)
    assert actual.std() > 0.1 and error(actual, expected) <= 5e-4  # a guidance of 9 magnifies rounding errors


def test_long_videos_run_in_windows(host, file):
    scene = Scene(host)
    windowed, plain = scene.latents(upscaled(scene, context_length=2, context_overlap=1), upscaled(scene))
    assert windowed.shape == plain.shape and windowed.isfinite().all() and error(windowed, plain) > 1e-3


def test_other_networks_and_wrong_steps_are_refused(host, file):
    for settings, words in (
        ({"answer": "auto"}, "is not a network for super-resolution"),
        ({"steps": 30, "levels": 20}, "steps must be from 1 to levels"),
    ):
        scene = Scene(host)
        scene.add("SaveLatent", samples=upscaled(scene, **settings))
        assert_error(scene, "VCSuperResolution", words)
