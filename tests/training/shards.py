"""Helpers for the tests of shards: prepared shards, and copies to damage."""

import shutil

import pytest
import torch

from tests.training.clips import EDGES, EVERYTHING, FRAMES, SIZE, make_folder
from training.data.folder import read_captions
from training.data.sample_fields import Form
from training.data.shard_writing import PrepareOptions, prepare
from training.data.shards import ShardClips, Shards
from vc_core.checkpoint.reading import BUNDLED

LONG = 5
"""Frames per clip in the shards."""
FORM = Form(SIZE, FRAMES, EDGES, style_size=24)


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """The source videos of the shards."""
    return make_folder(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="session")
def prepared(videos, tmp_path_factory):
    """Five clips in three shards, with latents and sketches. Tests must not change them."""
    out = tmp_path_factory.mktemp("out") / "shards"
    options = PrepareOptions(videos, LONG, SIZE, rate=5, latents=BUNDLED, sketch="edges")
    summary = prepare(options, read_captions(videos), out, per_shard=2)
    assert summary["clips"] == 5 and summary["shards"] == 3 and not summary["dropped"]
    return out


@pytest.fixture
def copied(prepared, tmp_path):
    """A copy of the shards, for tests that damage them."""
    for file in prepared.iterdir():
        shutil.copy2(file, tmp_path)  # with their times
    return tmp_path


def clips(folder, form=FORM, latents=None):
    return ShardClips(Shards(folder), form, latents)


def keep_all(numbers):
    return {name: torch.ones(len(numbers), dtype=torch.bool) for name in EVERYTHING}
