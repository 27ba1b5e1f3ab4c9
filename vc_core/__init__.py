"""VideoComposer: compose videos from text, images, sketches, and the motion, depth or masks of a clip.

from vc_core import Condition, Style, VideoComposer, compose

composer = VideoComposer.load()                      # the bundled small checkpoint; or pass a path
video = compose(composer, "a red circle", seed=1)    # (1, 3, F, H, W) in [0, 1]
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers, which do not run `__getattr__`
    from .checkpoint.reading import Checkpoint, read_checkpoint, save_checkpoint  # noqa: F401
    from .composer import VideoComposer  # noqa: F401
    from .conditions import CONDITIONS, Condition, ConditionSpec  # noqa: F401
    from .config import Config  # noqa: F401
    from .diffusion.samplers import SAMPLERS, Sampling  # noqa: F401
    from .diffusion.tiles import Tiles  # noqa: F401
    from .diffusion.windows import Windows  # noqa: F401
    from .encoders.autoencoder import Tiling  # noqa: F401
    from .errors import UserError  # noqa: F401
    from .pipeline import Style, compose  # noqa: F401
    from .upscaling import upscale  # noqa: F401

_MODULES = {
    "CONDITIONS": "conditions",
    "Checkpoint": "checkpoint.reading",
    "Condition": "conditions",
    "ConditionSpec": "conditions",
    "Config": "config",
    "SAMPLERS": "diffusion.samplers",
    "Sampling": "diffusion.samplers",
    "Style": "pipeline",
    "Tiles": "diffusion.tiles",
    "Tiling": "encoders.autoencoder",
    "UserError": "errors",
    "VideoComposer": "composer",
    "Windows": "diffusion.windows",
    "compose": "pipeline",
    "read_checkpoint": "checkpoint.reading",
    "save_checkpoint": "checkpoint.reading",
    "upscale": "upscaling",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    # Load a module when its name is first used: importing the package is fast.
    if name not in _MODULES:
        raise AttributeError(f"module 'vc_core' has no attribute '{name}'")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
