"""Fixtures: the tiny checkpoint of the core's tests, and shards to read."""

from tests.core.conftest import tiny_checkpoint, tiny_composer, tiny_config, tiny_unet
from tests.training.shards import copied, prepared, videos

__all__ = ["copied", "prepared", "tiny_checkpoint", "tiny_composer", "tiny_config", "tiny_unet", "videos"]
