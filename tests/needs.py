"""What a test needs of libraries that others build in several ways: without it the test is skipped, with a line."""

import av
import pytest
from PIL import features


def encoders(*codecs: str) -> None:
    """Encoders of PyAV."""
    for codec in codecs:
        try:
            av.Codec(codec, "w")
        except av.codec.codec.UnknownCodecError:
            pytest.skip(f"this build of PyAV has no encoder {codec}")


def pillow(*kinds: str) -> None:
    """Formats of Pillow's that it can be built without, by its names for them; of others nothing is asked."""
    for kind in kinds:
        if kind in {*features.modules, *features.codecs} and not features.check(kind):
            pytest.skip(f"Pillow is built without {kind}")
