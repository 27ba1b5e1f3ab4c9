"""Large frames in tiles: our sampler gives the core's latent, with and without an image to start from."""

import pytest
import torch

from tests.host.reference import compose_latent, karras_sigmas
from tests.host.scene import TEXT, Scene, error
from tests.host.test_errors import assert_error
from tests.host.test_parity import ALLOWED
from vc_core.conditions import Condition, drawing_size
from vc_core.demo import draw_clip
from vc_core.diffusion.tiles import Tiles
from vc_core.diffusion.windows import Windows
from vc_core.extract.motion.camera import CameraMove, camera_field, condition_from_field
from vc_core.video import resize_crop

SIZE, PAN = (96, 128), (0.3, 0.0)
"""Two rows of three tiles of the bundled checkpoint's 64 x 64."""
SAMPLER = {"sampler_name": "euler", "scheduler": "karras", "cfg": 2.0, "steps": 3}


def encoded(scene, frames):
    """Add an STCEncode for large frames: motion in their pixels, and an image."""
    motion = scene.add("VCCameraMotion", pan_right=PAN[0], frames=frames, width=SIZE[1], height=SIZE[0])
    image = scene.add("VCSingleImage", image=scene.add("VCExampleClip")[1], width=SIZE[1], height=SIZE[0])
    return scene.encode(motion=motion, single_image=image, width=SIZE[1], height=SIZE[0])


def composed(composer, frames, **settings):
    """Return the core's latent of the same video."""
    config = composer.config
    field = camera_field(CameraMove(PAN), frames, SIZE)
    image = resize_crop(draw_clip()[:, :, :1], drawing_size("single_image", SIZE))
    conditions = [
        Condition("motion", condition_from_field(field, config.extraction, SIZE)),
        Condition("single_image", image),
    ]
    common = {"conditions": conditions, "frames": frames, "size": SIZE, "seed": 1, "steps": 3, "guidance": 2.0}
    return compose_latent(composer, TEXT, sampler="euler", sigmas=karras_sigmas(config, 3), **common, **settings)


@pytest.mark.parametrize(
    ("inputs", "tiles"),
    [
        ({"tile_size": 0}, Tiles(64, 64)),
        ({"tile_size": 64, "tile_overlap": 16}, Tiles(64, 64, 16)),
        ({"tile_size": -1}, None),
        ({}, None),
    ],
)
def test_tiles_are_those_of_the_core(host, composer, inputs, tiles):
    scene = Scene(host)
    (actual,) = scene.latents(scene.sample(encoded(scene, 4), **SAMPLER, **inputs))
    assert error(actual, composed(composer, 4, tiles=tiles)) <= ALLOWED


def test_tiles_change_the_video_only_if_there_are_several(host):
    scene = Scene(host)
    stc = encoded(scene, 4)
    sizes = (-1, 64, 128)
    entire, tiled, single = scene.latents(*(scene.sample(stc, **SAMPLER, tile_size=size) for size in sizes))
    assert error(tiled, entire) > 100 * ALLOWED
    assert torch.equal(single, entire)


def test_tiles_of_windows_are_those_of_the_core(host, composer):
    scene = Scene(host)
    stc = encoded(scene, 6)
    windows = {"context_length": 4, "context_overlap": 2}
    (actual,) = scene.latents(scene.sample(stc, **SAMPLER, **windows, tile_size=0))
    assert error(actual, composed(composer, 6, tiles=Tiles(64, 64), windows=Windows(4, 2))) <= ALLOWED


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"tile_size": 24}, ["24x24", "at least 32x32"]),
        ({"tile_size": 36}, ["multiples of 8", "36x36"]),
        ({"tile_size": 64, "tile_overlap": 64}, ["from 0 to 56", "got 64"]),
    ],
)
def test_wrong_tiles(host, inputs, words):
    scene = Scene(host)
    scene.add("SaveLatent", samples=scene.sample(scene.encode(), **inputs))
    assert_error(scene, "VC3DUNetSampler", *words)
