"""The tiny checkpoint of the core's tests serves here too."""

from tests.core.conftest import tiny_checkpoint, tiny_composer, tiny_config, tiny_unet

__all__ = ["tiny_checkpoint", "tiny_composer", "tiny_config", "tiny_unet"]
