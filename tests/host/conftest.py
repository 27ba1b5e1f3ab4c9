"""Fixtures for the tests against a real ComfyUI."""

import pytest

from tests.host.scene import Scene


@pytest.fixture
def scene(host):
    """A new graph with the bundled checkpoint."""
    return Scene(host)


@pytest.fixture(scope="session")
def composer():
    """The bundled checkpoint in the core, float32."""
    from vc_core.composer import VideoComposer

    return VideoComposer.load(device="cpu", dtype="fp32")
