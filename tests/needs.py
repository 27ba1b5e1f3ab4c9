"""Optional features of libraries that a test requires. Without them, the test is skipped with a reason."""

import av
import pytest
from PIL import features


def encoders(*codecs: str) -> None:
    """Require encoders of PyAV."""
    for codec in codecs:
        try:
            av.Codec(codec, "w")
        except av.codec.codec.UnknownCodecError:
            pytest.skip(f"this build of PyAV does not contain the encoder {codec}")


def pillow(*kinds: str) -> None:
    """Require optional formats of Pillow, by Pillow's names. Ignore formats that every build supports."""
    for kind in kinds:
        if kind in {*features.modules, *features.codecs} and not features.check(kind):
            pytest.skip(f"Pillow is built without {kind}")
