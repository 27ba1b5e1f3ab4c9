"""A small composer with random weights: it shows what conditions do, in milliseconds."""

import pytest
import torch

from vc_core.checkpoint.reading import save_checkpoint
from vc_core.checkpoint.released import to_released
from vc_core.config import AutoencoderConfig, Config, DiffusionConfig, ExtractionConfig, TowersConfig, UNetConfig
from vc_core.model.unet import UNet3D


@pytest.fixture(scope="session")
def tiny_config():
    return Config(
        name="tiny",
        frames=3,
        height=32,
        width=40,
        guidance=2.0,
        unet=UNetConfig(
            width=32, multipliers=(1, 2), res_blocks=1, attention_levels=(0,), head_dim=16, temporal_in_heads=1,
            context_dim=16,
        ),
        diffusion=DiffusionConfig(prediction="v_prediction"),
        extraction=ExtractionConfig(motion_layout="dense", motion_unit="pixels", sketch="edges", depth="relative"),
        autoencoder=AutoencoderConfig("taesd", 1.0),
        towers=TowersConfig(16, 16, 2, 2, 32, 16, 32, 16, 1),
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_unet(tiny_config):
    torch.manual_seed(0)
    return UNet3D(tiny_config.unet).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_config, tiny_unet, tmp_path_factory):
    """A checkpoint file with all parts."""
    from vc_core.checkpoint.loading import to_taesd_layout
    from vc_core.encoders.autoencoder import new_autoencoder
    from vc_core.encoders.clip import new_towers

    torch.manual_seed(1)
    towers = new_towers(tiny_config.towers).state_dict()
    parts = {
        "model": to_released(tiny_unet),
        "vae": to_taesd_layout(new_autoencoder()),
        "text": {k: v for k, v in towers.items() if not k.startswith("visual.")},
        "image": {k.removeprefix("visual."): v for k, v in towers.items() if k.startswith("visual.")},
    }
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_checkpoint(path, tiny_config, parts)
    return path


@pytest.fixture(scope="session")
def tiny_composer(tiny_checkpoint):
    from vc_core.composer import VideoComposer

    return VideoComposer.load(tiny_checkpoint)
