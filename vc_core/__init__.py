"""VideoComposer: composes a video from text, a style image, an image, a sketch, motion, depth, masks and sketches.

from . import Condition, Style, VideoComposer, compose

composer = VideoComposer.load()                      # the bundled small checkpoint, or a path
video = compose(composer, "a red circle", seed=1)    # (1, 3, F, H, W) in [0, 1]
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import Checkpoint, read_checkpoint, save_checkpoint
    from .composer import VideoComposer
    from .conditions import CONDITIONS, Condition, ConditionSpec
    from .config import Config
    from .diffusion.samplers import SAMPLERS, Sampling
    from .diffusion.windows import Windows
    from .errors import UserError
    from .pipeline import Style, compose

_HOME = {
    "CONDITIONS": "conditions",
    "Checkpoint": "checkpoint",
    "Condition": "conditions",
    "ConditionSpec": "conditions",
    "Config": "config",
    "SAMPLERS": "diffusion.samplers",
    "Sampling": "diffusion.samplers",
    "Style": "pipeline",
    "UserError": "errors",
    "VideoComposer": "composer",
    "Windows": "diffusion.windows",
    "compose": "pipeline",
    "read_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
}
__all__ = [
    "CONDITIONS",
    "SAMPLERS",
    "Checkpoint",
    "Condition",
    "ConditionSpec",
    "Config",
    "Sampling",
    "Style",
    "UserError",
    "VideoComposer",
    "Windows",
    "compose",
    "read_checkpoint",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    # Loaded when first asked for: importing the package costs nothing.
    if name not in _HOME:
        raise AttributeError(f"module 'vc_core' has no attribute '{name}'")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
