"""Keyframes, and cut and drag, through ComfyUI's samplers; what the stock noise mask does with 5-D latents."""

import pytest
import torch

from tests.host.reference import compose_latent, karras_sigmas
from tests.host.scene import TEXT, error
from vc_core.conditions import Condition
from vc_core.demo import draw_clip
from vc_core.extract.drawing import Rectangle
from vc_core.extract.keyframes import keyframes
from vc_core.extract.motion.camera import CameraMove
from vc_core.extract.motion.drag import camera_paths, drag, tracks_paths
from vc_core.extract.motion.tracks import Track

ALLOWED = 1e-4
FRAMES = 8


@pytest.fixture
def draft(composer):
    """A draft with the first and the last frame of the example clip."""
    clip = draw_clip(frames=FRAMES)
    size = (composer.config.height, composer.config.width)
    return keyframes({0: clip[:, :, 0], -1: clip[:, :, -1]}, FRAMES, size)


def kept_frames(scene, indices="0, -1"):
    clip = scene.add("VCExampleClip", frames=FRAMES)
    first = scene.add("ImageFromBatch", image=clip[1], batch_index=0, length=1)
    last = scene.add("ImageFromBatch", image=clip[1], batch_index=FRAMES - 1, length=1)
    images = scene.add("ImageBatch", image1=first, image2=last)
    return scene.add("VCKeyframes", vae=scene.loader[3], images=images, indices=indices, frames=FRAMES)


@pytest.mark.parametrize("stock", [False, True], ids=["ours", "stock"])
def test_keyframes_equal_those_of_compose(scene, composer, draft, stock):
    node = kept_frames(scene)
    stc = scene.encode(mask=node)
    latent = {"latent_image" if stock else "latent": node[2]}
    (actual,) = scene.latents((scene.stock_sample if stock else scene.sample)(stc, steps=6, **latent))
    expected = compose_latent(
        composer,
        TEXT,
        init=draft.init,
        denoise_mask=draft.mask,
        conditions=[Condition("mask", draft.mask_condition(draft.init.shape[-2:], composer.config))],
        seed=1,
        sampler="euler",
        steps=6,
        sigmas=karras_sigmas(composer.config, 6),
        guidance=2.0,
    )
    assert error(actual, expected) <= ALLOWED


@pytest.mark.parametrize(
    "names", [("ddim", "ddim_released"), ("dpmpp_2m", "karras"), ("lcm", "lcm_released"), ("uni_pc", "normal")]
)
def test_kept_frames_come_out_as_they_went_in(scene, names):
    node = kept_frames(scene)
    sampler, scheduler = names
    out = scene.sample(scene.encode(mask=node), latent=node[2], sampler_name=sampler, scheduler=scheduler, steps=4)
    before, after = scene.latents(node[2], out)
    assert error(after[:, :, [0, -1]], before[:, :, [0, -1]]) < 1e-3
    assert (after - before)[:, :, 1:-1].square().mean() > 0.01


def test_kept_frames_stay_in_windows_and_for_every_video_of_a_batch(scene):
    node = kept_frames(scene)
    pair = scene.add("RepeatLatentBatch", samples=node[2], amount=2)
    out = scene.sample(scene.encode(mask=node), latent=pair, context_length=4)
    before, after = scene.latents(node[2], out)
    assert after.shape[0] == 2 and error(after[:, :, [0, -1]], before[:, :, [0, -1]].expand(2, -1, -1, -1, -1)) < 1e-3
    assert not torch.allclose(after[0], after[1])


def test_the_last_of_many_images_continue_a_video(scene):
    clip = scene.add("VCExampleClip", frames=FRAMES, size=64)
    node = scene.add("VCKeyframes", vae=scene.loader[3], images=clip[1], indices="0:3", frames=6)
    encoded = scene.add("VAEEncode", pixels=clip[1], vae=scene.loader[3])
    kept, complete = scene.latents(node[2], encoded)
    assert error(kept[:, :, :3], complete[:, :, -3:]) < 1e-5 and not kept[:, :, 3:].any()


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ("0, 1, 2", "got 2 images and 3 indices"),
        ("first", "'indices' contains first"),
        ("0, 8", "outside a video of 8 frames"),
        ("7, -1", "both are frame 7"),
        ("1, 1", "occurs twice"),
    ],
)
def test_wrong_indices_are_refused(scene, indices, message):
    node = kept_frames(scene, indices)
    scene.add("SaveLatent", samples=node[2])
    assert message in scene.host.fails(scene.graph)["exception_message"]


def dragged(scene, motion, inside=0.5, outside=0.75):
    clip = scene.add("VCExampleClip", frames=1, size=64)
    return scene.add("VCCutAndDrag", image=clip[1], motion=motion, inside=inside, outside=outside)


def encoded(scene, node):
    """Add the latent of a draft, with its mask."""
    latent = scene.add("VAEEncode", pixels=node[0], vae=scene.loader[3])
    return scene.add("SetLatentNoiseMask", samples=latent, mask=node[1])


def test_a_dragged_image_equals_the_core_s(scene, composer):
    """A box on tracks, added to a camera: each moves as in the core."""
    box = '{"box": {"x": 8, "y": 20, "width": 24, "height": 24}, "path": [{"x": 0, "y": 0}, {"x": 12, "y": 0}]}'
    camera = scene.add("VCCameraMotion", zoom=1.2, frames=FRAMES)
    motion = scene.add(
        "VCMotionFromTracks", tracks=box, canvas_width=64, canvas_height=64, frames=FRAMES, add_to=camera[0]
    )
    latent = encoded(scene, dragged(scene, motion))
    track = Track(torch.tensor([[0.0, 0.0], [12.0, 0.0]]).double(), Rectangle(8, 20, 32, 44))
    size = (64, 64)

    def paths(points):
        moved = tracks_paths([track], FRAMES, size, points)
        return moved + camera_paths(CameraMove(zoom=1.2), FRAMES, size, points) - points

    expected = drag(draw_clip(size=64, frames=1)[:, :, 0], size, paths, 0.5, 0.75)
    from vc_core.pipeline import encode_video

    (actual,) = scene.latents(latent)
    scale = composer.config.autoencoder.scale
    assert error(actual, encode_video(composer, expected.init, size) / scale) < 1e-3


def test_differential_diffusion_reads_the_mask_of_a_draft(scene):
    """Inside is held longer than outside: less of it changes. Without the stock node, 0 to 1 would blend instead."""
    motion = scene.add("VCCameraMotion", pan_right=0.1, frames=FRAMES)
    low, high = (encoded(scene, dragged(scene, motion, inside=inside)) for inside in (0.2, 0.8))
    model = scene.add("DifferentialDiffusion")
    stc = scene.encode(motion=motion)
    outs = [scene.sample(stc, model=model, latent=latent, steps=8, scheduler="normal") for latent in (low, high)]
    source, little, much = scene.latents(low, *outs)
    assert error(little, source) < error(much, source) / 1.5


def test_motion_of_a_video_cannot_be_dragged(scene):
    motion = scene.add("MotionVectorExtract", video=scene.add("VCExampleClip", frames=FRAMES)[1])
    scene.add("PreviewImage", images=dragged(scene, motion))
    assert "Connect 'Motion from Tracks' or 'Camera Motion'" in scene.host.fails(scene.graph)["exception_message"]
