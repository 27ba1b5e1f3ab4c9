"""The nodes and the core give the same result: float32, one seed, one checkpoint, identical conditions."""

import pytest
import torch
from PIL import Image

from tests.host.reference import (
    clip_motion,
    compose_latent,
    karras_sigmas,
    normal_sigmas,
    pan_motion,
)
from tests.host.scene import TEXT, error
from vc_core.conditions import Condition, drawing_size
from vc_core.demo import draw_clip
from vc_core.extract.depth.maps import depth_from_maps
from vc_core.pipeline import Style
from vc_core.video import resize_crop

ALLOWED = 1e-4
SIGMAS = {"karras": karras_sigmas, "normal": normal_sigmas}


@pytest.fixture
def wired(scene, composer):
    """An STCEncode with motion, a single image, depth and style, each with its own strength and schedule, and the same
    as arguments of `compose`."""
    config = composer.config
    picture = (draw_clip(size=config.width, frames=1)[0, :, 0] * 255).round().byte()
    # 8 bits and the image tower's size, to which ComfyUI rounds its images and the core does not.
    Image.fromarray(picture.movedim(0, -1).numpy()).save(scene.host.folder / "input" / "style.png")
    ramp = (torch.outer(torch.linspace(0.1, 1, 64), torch.linspace(0.2, 1, 64)) * 255).round().byte()
    Image.fromarray(ramp.numpy()).save(scene.host.folder / "input" / "depth.png")

    clip = scene.add("VCExampleClip")
    style = scene.add(
        "StyleEmbed", positive=scene.positive, negative=scene.negative, clip_vision=scene.loader[2],
        image=scene.add("LoadImage", image="style.png"), strength=0.7, start_percent=0.1, end_percent=0.8,
    )  # fmt: skip
    depth = scene.add(
        "DepthSequence", video=scene.add("LoadImage", image="depth.png"), input="depth maps, near is bright",
        strength=0.5, start_percent=0.2, end_percent=0.9,
    )  # fmt: skip
    stc = scene.encode(
        positive=style[0],
        negative=style[1],
        motion=scene.add("MotionVectorExtract", video=clip[1], strength=0.8, end_percent=0.7),
        single_image=scene.add("VCSingleImage", image=clip[1], strength=0.9, start_percent=0.1),
        depth=depth,
    )

    side = drawing_size("depth", (config.height, config.width))
    maps = (ramp / 255).expand(1, 3, config.frames, -1, -1)
    image = resize_crop(draw_clip()[:, :, :1], side)
    conditions = [  # `compose` scales them to the checkpoint's size
        Condition("motion", clip_motion(config), 0.8, 0.0, 0.7),
        Condition("single_image", image, 0.9, 0.1, 1.0),
        Condition("depth", depth_from_maps(resize_crop(maps, side), "bright", None), 0.5, 0.2, 0.9),
    ]
    return stc, {"style": Style(picture[None] / 255, 0.7, 0.1, 0.8), "conditions": conditions, "seed": 1}


def test_our_sampler_on_the_released_grid_is_the_released_loop(scene, composer, wired):
    stc, settings = wired
    (actual,) = scene.latents(scene.sample(stc, sampler_name="ddim", scheduler="ddim_released", steps=6))
    expected = compose_latent(composer, TEXT, sampler="ddim_released", steps=6, guidance=2.0, **settings)
    assert error(actual, expected) <= ALLOWED


@pytest.mark.parametrize(("sampler", "scheduler"), [("euler", "karras"), ("dpmpp_2m", "normal")])
def test_our_sampler_the_stock_one_and_compose_agree_on_the_same_sigmas(scene, composer, wired, sampler, scheduler):
    stc, settings = wired
    names = {"sampler_name": sampler, "scheduler": scheduler, "steps": 6}
    ours, stock = scene.latents(scene.sample(stc, **names), scene.stock_sample(stc, **names))
    sigmas = SIGMAS[scheduler](composer.config, 6)
    expected = compose_latent(composer, TEXT, sampler=sampler, steps=6, sigmas=sigmas, guidance=2.0, **settings)
    assert error(ours, expected) <= ALLOWED
    assert error(stock, expected) <= ALLOWED


def test_the_compared_conditions_have_an_effect(scene, wired):
    """Otherwise the tests above would compare less than their names say."""
    inputs = scene.graph[wired[0]]["inputs"]
    lacking = [{k: v for k, v in inputs.items() if k != name} for name in ("motion", "single_image", "depth")]
    lacking.append({**inputs, "positive": scene.positive[0]})  # without the style
    even = {"scheduler": "normal", "steps": 4}  # Karras' levels lie at both ends if a schedule ends without signal
    complete, *others = scene.latents(*(scene.sample(scene.add("STCEncode", **i), **even) for i in (inputs, *lacking)))
    assert min(error(other, complete) for other in others) > 10 * ALLOWED


def test_a_long_video_in_windows_equals_the_one_of_compose(scene, composer):
    frames, config = 28, composer.config
    motion = scene.add("VCCameraMotion", pan_right=0.4, frames=frames)
    image = scene.add("VCSingleImage", image=scene.add("VCExampleClip")[1])
    stc = scene.encode(motion=motion, single_image=image)
    (actual,) = scene.latents(scene.sample(stc, steps=4))
    side = drawing_size("single_image", (config.height, config.width))
    expected = compose_latent(
        composer,
        TEXT,
        conditions=[
            Condition("motion", pan_motion(config, (0.4, 0.0), frames)),
            Condition("single_image", resize_crop(draw_clip()[:, :, :1], side)),
        ],
        frames=frames,
        seed=1,
        sampler="euler",
        steps=4,
        sigmas=karras_sigmas(config, 4),
        guidance=2.0,
    )
    assert actual.shape[2] == frames
    assert error(actual, expected) <= ALLOWED


def test_a_guidance_of_0_is_the_one_that_the_checkpoint_recommends(scene, composer):
    stc = scene.encode()
    by_default, by_number = scene.latents(*(scene.sample(stc, cfg=cfg) for cfg in (0.0, composer.config.guidance)))
    assert torch.equal(by_default, by_number)
