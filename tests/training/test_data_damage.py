"""Damaged shards: a damaged sample is a bad sample, a damaged shard is an error, and nothing becomes zeros."""

import os
from itertools import islice

import numpy as np
import pytest
import torch

from tests.training.clips import EVERYTHING, FRAMES, generator
from tests.training.shards import FORM, LONG, clips, keep_all
from training.data import packing
from training.data import shards as module
from training.data.loading import load
from training.data.order import Order, RankOrder
from training.data.sample import BadSample
from training.data.shards import Shards, index_path
from vc_core.errors import UserError


def damage(folder, index, ending, data=None):
    """Overwrite a member with noise, or with data of its length."""
    shard, _, members = Shards(folder).find(index)
    offset, size = members[ending]
    stamp = shard.stat()
    with open(shard, "r+b") as file:
        file.seek(offset)
        file.write((data or os.urandom(size)).ljust(size, b" ")[:size])
    os.utime(shard, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


DAMAGES = 120
"""Damaged copies of each kind of member."""


def damages(data, seed):
    """Yield copies of bytes, most of them with flipped bits, the others cut off."""
    random = np.random.default_rng(seed)
    for number in range(DAMAGES):
        copy = bytearray(data)
        if number % 4 == 0:
            yield bytes(copy[: random.integers(len(copy))])
            continue
        among = (
            min(len(copy), 160) if number % 2 else len(copy)
        )  # the short headers: damage there has the largest effect
        for place in random.integers(among, size=random.integers(1, 4)):
            copy[-1 - place if number % 8 == 7 else place] ^= 1 << random.integers(8)
        yield bytes(copy)


@pytest.mark.parametrize("ending", ["json", "mp4", "motion.npz", "sketch.png", "latents.npy"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_members_are_bad_samples_or_give_finite_numbers(prepared, monkeypatch, ending):
    shards = Shards(prepared)
    name, intact = shards.read(3, ["json", "mp4", "motion.npz", "sketch.png", "latents.npy"])
    data = clips(prepared, FORM, shards.settings["latents"]["fingerprint"] if ending == "latents.npy" else None)
    expected = data.sample(3, EVERYTHING, generator())
    refused = 0
    for number, damaged in enumerate(damages(intact[ending], 7)):
        members = {**intact, ending: damaged}
        monkeypatch.setattr(Shards, "read", lambda self, index, endings: (name, members))  # noqa: B023 - used at once
        try:
            sample = data.sample(3, EVERYTHING, generator())
        except BadSample as error:
            assert str(error).startswith(f"{name}.{'' if ending == 'json' else ending}"), error
            refused += 1
            continue
        for field in ("latents", "video", "style", "source"):
            value, like = getattr(sample, field), getattr(expected, field)
            assert (value is None) == (like is None), (number, field)
            assert value is None or (value.shape == like.shape and value.isfinite().all()), (number, field)
        for condition, like in expected.conditions.items():
            value = sample.conditions[condition]
            assert value.shape == like.shape and value.isfinite().all(), (number, condition)
    assert refused > DAMAGES / 5


def test_numbers_that_are_not_finite_are_a_bad_sample(copied):
    fingerprint = Shards(copied).settings["latents"]["fingerprint"]
    latents = torch.zeros(1, 4, LONG, 4, 5)
    latents[0, 2, 4, 1, 1] = torch.inf
    damage(copied, 3, "latents.npy", packing.pack_latents(latents))
    for seed in range(4):  # also in a window without the value: the sample is damaged
        with pytest.raises(BadSample, match=r"000000003\.latents\.npy.*not finite"):
            clips(copied, FORM, fingerprint).sample(3, (), generator(seed))
    vectors = packing.unpack_vectors(Shards(copied).read(3, ["motion.npz"])[1]["motion.npz"], (96, 128), 0, LONG)
    vectors.rows["dy"][7] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        packing.unpack_vectors(packing.pack_vectors(vectors), (96, 128), 0, LONG)


def test_errors_in_our_code_are_not_bad_samples(prepared, monkeypatch):
    def mistaken(*_, **__):
        raise TypeError("ours")

    for name in ("rasterise_points", "make"):
        monkeypatch.setattr(module, name, mistaken)
        with pytest.raises(TypeError, match="ours"):
            clips(prepared).sample(3, ("motion",), generator())
        monkeypatch.undo()


@pytest.mark.filterwarnings("ignore")
def test_damaged_tars_are_reported(prepared, tmp_path):
    tar, read = tmp_path / "shard-000000.tar", 0
    data = (prepared / "shard-000002.tar").read_bytes()
    for damaged in damages(data, 8):
        tar.write_bytes(damaged)
        index_path(tar).unlink(missing_ok=True)
        try:
            read += len(Shards(tmp_path))
        except UserError as error:
            assert str(tar) in str(error)
    assert read > 10


@pytest.mark.parametrize("ending", ["json", "mp4", "motion.npz", "sketch.png", "latents.npy"])
def test_a_damaged_member_is_a_bad_sample_if_it_is_needed(copied, ending):
    damage(copied, 3, ending)
    latents = Shards(copied).settings["latents"]["fingerprint"] if ending == "latents.npy" else None
    data = clips(copied, FORM, latents)
    with pytest.raises(BadSample, match=r"shard-000001\.tar:000000003\..+"):
        data.sample(3, EVERYTHING, generator())
    assert data.sample(2, EVERYTHING, generator()).key
    if ending in ("motion.npz", "sketch.png"):
        assert data.sample(3, ("text",), generator()).key


def test_json_that_is_not_an_object_is_a_bad_sample(copied):
    damage(copied, 3, "json", b"[1, 2]")
    with pytest.raises(BadSample):
        clips(copied).sample(3, ("motion",), generator())


def test_corrupt_samples_are_skipped_and_counted_and_too_many_stop(copied):
    damage(copied, 1, "mp4")
    order = RankOrder(Order(0, 5), (FRAMES,), batch=5)

    def batches(max_bad):
        return islice(load({FRAMES: clips(copied)}, order, keep_all, max_bad=max_bad), 4)

    for batch in batches(1.0):
        assert len(batch.samples) == 5 and len(batch.bad) >= 1
        assert all("000000001" not in sample.key for sample in batch.samples)
        assert all("000000001.mp4" in message for message in batch.bad)
    with pytest.raises(UserError, match="000000001"):
        list(batches(0.001))


def test_a_shard_that_is_cut_off_is_reported(copied):
    tar = copied / "shard-000001.tar"
    data = tar.read_bytes()
    for length in (len(data) // 2, 1024 * 3, 100):
        tar.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"shard-000001\.tar (is cut off|was not written)"):
            Shards(copied)
    shards = Shards.__new__(Shards)  # opened by a run before it is cut off
    tar.write_bytes(data)
    shards.__init__(copied)
    shards.find(3)
    tar.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadSample, match="cut off"):
        shards.read(3, ["sketch.png"])
    tar.unlink()
    with pytest.raises(BadSample, match="No such file"):
        shards.read(3, ["json"])
