"""`compose()` for tests that vary one setting at a time."""

from dataclasses import fields
from typing import Any

from torch import Tensor

from vc_core import Sampling, VideoComposer, compose


def composed(composer: VideoComposer, text: Any = "a", **settings: Any) -> Tensor:
    """Call `compose`; the settings may contain fields of `Sampling`."""
    names = {field.name for field in fields(Sampling)} & settings.keys()
    sampling = Sampling(**{name: settings.pop(name) for name in names})
    return compose(composer, text, sampling=sampling, **settings)
