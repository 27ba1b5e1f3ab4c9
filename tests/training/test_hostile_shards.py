"""Shards with members of another type than their names say: they are bad samples, and no other file is opened."""

import io
import tarfile

import pytest

from tests.hostile import OWN_PICTURES, hostile
from tests.traced import needs_strace, traced
from tests.training.clips import EVERYTHING, generator
from tests.training.shards import clips
from training.data.sample import BadSample
from training.data.shards import index_path


@pytest.fixture
def shards(prepared, tmp_path):
    """Shards, one for each hostile file, which replaces the video of the first clip."""
    source = sorted(prepared.glob("*.tar"))[0]
    (tmp_path / "files").mkdir()
    shards = []
    for name, path in hostile(tmp_path / "files").items():
        shards.append(tmp_path / name / "shard-000000.tar")
        shards[-1].parent.mkdir()
        with tarfile.open(source) as old, tarfile.open(shards[-1], "w", format=tarfile.USTAR_FORMAT) as new:
            for member in old:
                data = old.extractfile(member).read()
                data = path.read_bytes() if member.name.endswith(".mp4") else data
                member.size = len(data)
                new.addfile(member, io.BytesIO(data))
    return shards


def read_shard(path):
    try:
        return clips(path.parent).sample(0, EVERYTHING, generator())
    except BadSample as error:
        assert ".mp4" in str(error)


@pytest.mark.filterwarnings("ignore")
def test_members_that_would_open_other_files_are_bad_samples(shards):
    for path in shards:
        assert path.parent.name in OWN_PICTURES or read_shard(path) is None, path


@needs_strace
def test_no_other_file_is_opened(shards):
    also = [file for path in shards for file in (path.parent, index_path(path))]
    assert traced("tests.training.test_hostile_shards", "read_shard", shards, also) == []
