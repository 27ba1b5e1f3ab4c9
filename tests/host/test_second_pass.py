"""Large frames in tiles: our sampler gives the core's latent, with and without an image to start from."""

import pytest

from tests.host.reference import compose_latent, normal_sigmas
from tests.host.scene import TEXT, Scene, error
from tests.host.test_errors import assert_error
from vc_core.conditions import Condition
from vc_core.diffusion.tiles import Tiles
from vc_core.extract.motion.camera import CameraMove, camera_field, condition_from_field

FRAMES, SIDE = 4, 128
VIDEO = {"frames": FRAMES, "width": SIDE, "height": SIDE}
SAMPLER = {"steps": 4, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal"}


def test_tiles_are_those_of_the_core(host, composer):
    scene, config = Scene(host), composer.config
    stc = scene.encode(motion=scene.add("VCCameraMotion", pan_right=0.2, **VIDEO), **VIDEO)
    tiled, entire = scene.latents(
        scene.sample(stc, **SAMPLER, tile_size=config.width), scene.sample(stc, **SAMPLER, tile_size=0)
    )
    field = camera_field(CameraMove((0.2, 0.0)), FRAMES, (SIDE, SIDE))
    motion = Condition("motion", condition_from_field(field, config.extraction, (SIDE, SIDE)))
    settings = {
        "conditions": [motion], "frames": FRAMES, "size": (SIDE, SIDE), "seed": 1, "sampler": "euler", "steps": 4,
        "sigmas": normal_sigmas(config, 4), "guidance": 2.0,
    }  # fmt: skip
    assert error(tiled, compose_latent(composer, TEXT, tiles=Tiles(64, 64), **settings)) <= 1e-4
    assert error(entire, compose_latent(composer, TEXT, **settings)) <= 1e-4
    assert error(tiled, entire) > 0.01


@pytest.mark.parametrize(("side", "words"), [(24, "at least 32 pixels"), (36, "multiples of 8")])
def test_wrong_tiles(host, side, words):
    scene = Scene(host)
    scene.add("SaveLatent", samples=scene.sample(scene.encode(**VIDEO), **SAMPLER, tile_size=side))
    assert_error(scene, "VC3DUNetSampler", words)
