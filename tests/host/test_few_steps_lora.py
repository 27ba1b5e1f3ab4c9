"""A LoRA that makes its checkpoint one for few steps, with the stock LoRA loader and our sampler."""

import pytest

from tests.host.reference import compose_latent
from tests.host.scene import BUNDLED, TEXT, error
from tests.host.test_weights import with_lora, write_lora
from vc_core.checkpoint.reading import BUNDLED as FILE
from vc_core.composer import VideoComposer

LCM = {"steps": 4, "cfg": 1.0, "sampler_name": "lcm", "scheduler": "lcm_released"}
AUTO = {"steps": 0, "cfg": 0.0, "sampler_name": "auto", "scheduler": "auto"}
VIDEO = {"frames": 3, "width": 64, "height": 64}


@pytest.mark.parametrize(("few_steps", "settings"), [("auto", LCM), ("yes", AUTO)])
def test_it_samples_in_four_steps_as_the_core_does(scene, composer, few_steps, settings):
    """With LCM's settings, or with few_steps of the loader, which makes them the automatic ones."""
    file = scene.host.folder / "models" / "loras" / "student.safetensors"
    write_lora(file, composer.unet, strength=0.03)
    scene.loader = scene.add("VCCheckpointLoader", ckpt_name=BUNDLED, weight_dtype="fp32", few_steps=few_steps)
    model = with_lora(scene, file.name, 1.0)
    (actual,) = scene.latents(scene.sample(scene.encode(**VIDEO), model=model, **settings))
    student = VideoComposer.load(FILE, loras={file: 1.0})
    lcm = {"sampler": "lcm", "steps": 4, "guidance": 1.0}
    expected = compose_latent(student, TEXT, frames=3, size=(64, 64), seed=1, **lcm)
    assert error(actual, expected) <= 1e-4
