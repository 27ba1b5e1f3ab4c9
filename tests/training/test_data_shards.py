"""Shards: their members, random access compared with the tar, the index."""

import io
import json
import os
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
import torch

from tests.training.clips import EDGES, EVERYTHING, FRAMES, MOTIONS, SIZE, Spy, generator, same
from tests.training.shards import FORM, LONG, clips, keep_all
from training.data import packing
from training.data import shards as module
from training.data.domains import open_clips
from training.data.folder import read_captions
from training.data.loading import load
from training.data.order import Order, RankOrder
from training.data.precomputed import fingerprint
from training.data.sample_fields import Form
from training.data.shard_writing import PrepareOptions, prepare
from training.data.shards import OWN, ShardClips, Shards, index_path, write_shard
from training.recipe import Domain
from vc_core.checkpoint.formats import layout_of
from vc_core.checkpoint.loading import SCALARS, load_autoencoder
from vc_core.checkpoint.origins import part
from vc_core.checkpoint.reading import BUNDLED, Part, read_checkpoint, save_checkpoint
from vc_core.checkpoint.tensors import Tensors
from vc_core.conditions import CONDITIONS, condition_size
from vc_core.config import Config, ExtractionConfig
from vc_core.disk import WriteError
from vc_core.encoders.autoencoder import encode, new_autoencoder
from vc_core.errors import UserError
from vc_core.extract.motion.from_video import read_motion
from vc_core.extract.sketch.methods import edges
from vc_core.video import FramePlan, read_frames, resize_crop


def about(shards, index):
    return json.loads(shards.read(index, ["json"])[1]["json"])


def plan_of(about):
    return FramePlan(about["plan"]["start"], Fraction(about["plan"]["rate"]), LONG)


def test_random_access_equals_reading_the_tar_in_order(prepared):
    shards, index = Shards(prepared), 0
    for file in sorted(prepared.glob("*.tar")):
        samples = {}
        with tarfile.open(file, "r|") as tar:
            for member in tar:
                if not member.name.startswith(OWN):
                    key, _, ending = member.name.partition(".")
                    samples.setdefault(key, {})[ending] = tar.extractfile(member).read()
        for key, members in samples.items():
            name, read = shards.read(index, list(members))
            assert read == members and name == f"{file}:{key}"
            assert set(members) == {"json", "mp4", "motion.npz", "latents.npy", "sketch.png"}
            index += 1
    assert index == len(shards) == 5
    with pytest.raises(IndexError):
        shards.find(5)


def test_members_are_those_of_the_source(videos, prepared):
    shards = Shards(prepared)
    for index, file in enumerate(MOTIONS):
        record = about(shards, index)
        assert record["file"] == file and record["caption"].startswith("a scene")
        assert record["others"] == {"license": "CC0"} and record["motion"] == {"height": 96, "width": 128}
        assert record["fps"] == 5 and record["size"] == [48, 60]
        assert 0 <= record["plan"]["start"] <= 13 / 12 - 1
        frames = read_frames(videos / file, plan_of(record), (48, 60))
        stored = packing.unpack_video(shards.read(index, ["mp4"])[1]["mp4"], Fraction(5), LONG)
        error = stored.transpose(0, 1).float() / 255 - frames[0]
        assert error.mean((1, 2, 3)).abs().max() < 0.01  # no colour shift
        grey = error[0] * 0.299 + error[1] * 0.587 + error[2] * 0.114  # chroma is stored for four pixels at once
        assert grey.abs().mean() < 0.02
        sketch = packing.unpack_maps(shards.read(index, ["sketch.png"])[1]["sketch.png"], 0, 1, LONG)
        assert (sketch - edges(frames)[0]).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("layout", ["points", "dense"])
def test_motion_equals_that_of_the_file(videos, tmp_path, layout):
    """Bit-identical, although only the blocks are stored, and in windows with any start."""
    unit = {"points": "source_pixels", "dense": "pixels"}[layout]
    extraction = ExtractionConfig(layout, unit)
    options = PrepareOptions(videos, LONG, SIZE, rate=5, layout=layout, nominal_height=48)
    prepare(options, read_captions(videos)[:1], tmp_path, per_shard=1)
    shards = Shards(tmp_path)
    plan, size = plan_of(about(shards, 0)), condition_size("motion", SIZE)
    expected = read_motion(videos / "right.mp4", plan, size, layout, nominal_height=48).field[0]
    complete = ShardClips(shards, Form(SIZE, LONG, extraction)).sample(0, {"motion"}, generator())
    assert expected.abs().max() > 1 and torch.equal(complete.conditions["motion"], expected)
    starts = set()
    for seed in range(20):
        part = ShardClips(shards, Form(SIZE, FRAMES, extraction)).sample(0, {"motion"}, generator(seed))
        motion = part.conditions["motion"]
        first = next(n for n in range(3) if torch.equal(part.video, complete.video[:, n : n + FRAMES]))
        assert not motion[:, 0].any() and torch.equal(motion[:, 1:], expected[:, first + 1 : first + FRAMES])
        starts.add(first)
    assert starts == {0, 1, 2}


def test_a_sample_has_the_requested_inputs_in_their_shapes(prepared):
    sample = clips(prepared).sample(2, EVERYTHING, generator())
    assert sample.key.endswith("shard-000001.tar:000000002") and sample.text == "a scene, down"
    assert sample.latents is None and sample.video.shape == (3, FRAMES, *SIZE)
    assert sample.style.shape == (3, 24, 24)
    assert set(sample.conditions) == {"motion", "sketch", "mask", "single_image", "single_sketch"}  # not depth
    for name, tensor in sample.conditions.items():
        frames = FRAMES if CONDITIONS[name].kind == "temporal" else 1
        assert tensor.shape == (CONDITIONS[name].channels, frames, *condition_size(name, SIZE)), name
    assert torch.equal(sample.conditions["single_sketch"], sample.conditions["sketch"][:, :1])
    assert torch.equal(sample.conditions["single_image"], sample.source[:, :1])
    assert torch.equal(sample.video, resize_crop(sample.source[None], SIZE)[0])
    assert same(sample, clips(prepared).sample(2, EVERYTHING, generator()))


def test_latents_are_those_of_the_autoencoder(prepared):
    settings = Shards(prepared).settings
    data = clips(prepared, Form(SIZE, LONG, EDGES), settings["latents"]["fingerprint"])
    sample = data.sample(0, {"text"}, generator())
    assert sample.video is None
    video = clips(prepared, Form(SIZE, LONG, EDGES)).sample(0, (), generator()).video
    expected = encode(load_autoencoder(read_checkpoint(BUNDLED).part("vae")), video[None])[0]
    assert sample.latents.shape == expected.shape
    assert (
        sample.latents - expected
    ).abs().mean() < 0.1 * expected.abs().mean()  # the video was compressed in the shard
    with pytest.raises(UserError, match="are from another autoencoder"):
        clips(prepared, FORM, "0123")


def test_fingerprints_depend_on_weights_and_factors():
    state = {"a": torch.rand(3, 4), "b": torch.zeros(0), "c": torch.tensor(1.0)}

    def of(changes, scale=1.0):
        return fingerprint(Part("vae", "taesd", Tensors.of({**state, **changes})), scale)

    assert of({}) == of({}, 1) == of({"a": state["a"].clone()}) == of({"vae_scale": torch.tensor(1.0)})
    other = state["a"].clone()
    other[2, 3] += 1e-3
    changed = [of({"a": other}), of({"a": state["a"].T}), of({"d": torch.zeros(1)}), of({}, 0.5)]
    assert len({of({}), *changed}) == 5


def test_fingerprints_in_half_precision_are_equal_in_all_layouts():
    torch.manual_seed(0)
    model = new_autoencoder("ldm", (32, 32, 32, 32))

    def of(layout, dtype):
        state = part(model.state_dict(), layout_of("vae", layout, model))
        return fingerprint(Part("vae", layout, Tensors.of({name: t.to(dtype) for name, t in state.items()})), 0.18215)

    halves = {of(layout, dtype) for layout in ("ldm", "diffusers") for dtype in (torch.float32, torch.float16)}
    assert len(halves) == 1 and of("ldm", torch.bfloat16) not in halves


def test_latents_of_a_file_match_its_export_in_half_precision(videos, tmp_path):
    """`prepare --latents` with a checkpoint in float32, then a run that starts from its export by `./vc export`."""
    bundled, config = read_checkpoint(BUNDLED), Config()
    state = {
        name: t.float() * (1 if name in SCALARS else 1.0001) for name, t in bundled.part("vae").tensors.state().items()
    }

    def saved(name, state, dtype):
        save_checkpoint(tmp_path / name, config, {"vae": state}, dtype)
        return read_checkpoint(tmp_path / name).part("vae")

    saved("full.safetensors", state, torch.float32)
    options = PrepareOptions(videos, FRAMES, SIZE, latents=tmp_path / "full.safetensors")
    prepare(options, read_captions(videos)[:1], tmp_path / "shards")
    domain = Domain("shards", tmp_path / "shards", frames=FRAMES)

    def latents(part):
        (clips,) = open_clips(domain, SIZE, config, {"vae": part}).values()
        return clips.sample(0, (), generator()).latents

    for dtype in (torch.float32, torch.float16):
        assert latents(saved("export.safetensors", state, dtype)) is not None
    with pytest.raises(UserError, match="are from another autoencoder"):
        latents(
            saved(
                "export.safetensors",
                {name: t if name in SCALARS else t * 1.01 for name, t in state.items()},
                torch.float16,
            )
        )


def test_windows_of_latents_video_and_sketches_are_the_same(prepared):
    settings = Shards(prepared).settings
    latents = settings["latents"]["fingerprint"]
    complete = clips(prepared, Form(SIZE, LONG, EDGES), latents).sample(0, {"sketch"}, generator())
    plain = clips(prepared, Form(SIZE, LONG, EDGES)).sample(0, (), generator())
    for seed in range(6):
        part = clips(prepared, FORM, latents).sample(0, {"sketch"}, generator(seed))
        video = clips(prepared).sample(0, (), generator(seed)).video
        first = next(n for n in range(3) if torch.equal(part.latents, complete.latents[:, n : n + FRAMES]))
        assert torch.equal(part.conditions["sketch"], complete.conditions["sketch"][:, first : first + FRAMES])
        assert torch.equal(video, plain.video[:, first : first + FRAMES])


def test_inputs_that_are_not_requested_are_not_read(prepared, monkeypatch):
    read = []
    find = Shards.read
    monkeypatch.setattr(Shards, "read", lambda self, n, endings: read.append(set(endings)) or find(self, n, endings))
    spy = Spy(monkeypatch)
    spy.watch(module, "rasterise_points", "unpack_video", "unpack_maps")
    shards = Shards(prepared)
    cached, plain = ShardClips(shards, FORM, shards.settings["latents"]["fingerprint"]), ShardClips(shards, FORM)
    for inputs, members in {
        (): {"latents.npy"},
        ("text",): {"latents.npy"},
        ("motion",): {"latents.npy", "motion.npz"},
        ("sketch", "single_sketch"): {"latents.npy", "sketch.png"},
        ("style",): {"latents.npy", "mp4"},
        ("depth",): {"latents.npy", "mp4"},
    }.items():
        cached.sample(0, inputs, generator())
        assert read.pop() == {"json", *members}
    assert spy.calls == {"rasterise_points": 1, "unpack_video": 2, "unpack_maps": 1}
    plain.sample(0, (), generator())
    assert read.pop() == {"json", "mp4"}
    assert plain.sample(0, ("sketch", "single_image"), generator()).source is None  # the step has nothing to compute


def test_depth_is_stored_between_its_minimum_and_maximum(tmp_path):
    depth = torch.rand(1, 1, LONG, 48, 60) * 3 + 0.5
    span = [depth.min().item(), depth.max().item()]
    back = packing.unpack_maps(packing.pack_maps(depth, *span), *span, LONG)
    assert (back - depth[0]).abs().max() <= (span[1] - span[0]) / 510 + 1e-6
    flat = torch.full((1, 1, LONG, 4, 4), 0.7)
    assert torch.equal(packing.unpack_maps(packing.pack_maps(flat, 0.7, 0.7), 0.7, 0.7, LONG), flat[0])


def test_images_are_stored_as_images(tmp_path):
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    picture = np.linspace(0, 255, 80 * 100 * 3).reshape(80, 100, 3).astype(np.uint8)
    Image.fromarray(picture).save(folder / "a.png")
    (folder / "captions.jsonl").write_text('{"file": "a.png", "caption": "grey"}\n')
    prepare(PrepareOptions(folder, 1, SIZE), read_captions(folder), tmp_path / "out")
    sample = clips(tmp_path / "out", Form(SIZE, 1, EDGES, 24)).sample(0, EVERYTHING, generator())
    assert sample.video.shape == (3, 1, *SIZE) and not sample.conditions["motion"].any()
    expected = resize_crop(torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255, (48, 60))
    assert (sample.source[:, 0] - expected[0]).abs().mean() < 0.02


# --- The index ------------------------------------------------------------------------------------------------------


def test_the_index_is_rebuilt_if_it_is_missing_broken_or_of_another_tar(copied, monkeypatch):
    scans = Spy(monkeypatch)
    scans.watch(module, "_scan")
    expected = [Shards(copied).read(n, ["json"])[1] for n in range(5)]
    assert scans.calls == {"_scan": 0}
    first, second, third = sorted(copied.glob("*.tar"))
    index_path(first).unlink()
    index_path(second).write_text('{"count": ')
    with open(third, "ab") as file:
        file.write(bytes(10240))  # readers treat it as the end of the tar
    module._table.cache_clear()
    assert [Shards(copied).read(n, ["json"])[1] for n in range(5)] == expected
    assert scans.calls == {"_scan": 3}
    module._table.cache_clear()
    Shards(copied).read(0, ["json"])
    assert scans.calls == {"_scan": 3}  # the indexes were written


def test_an_index_that_cannot_be_written_is_reported_once(copied, monkeypatch, recwarn):
    """For example on a read-only disk: 40,000 shards must not give as many warnings."""
    expected = [Shards(copied).read(index, ["json"]) for index in range(5)]

    def refused(path):
        raise WriteError(f"{path} cannot be written")

    for shard in copied.glob("*.tar"):
        index_path(shard).unlink()
    monkeypatch.setattr(module, "written_beside", refused)
    module._table.cache_clear()
    shards = Shards(copied)
    assert [shards.read(index, ["json"]) for index in range(5)] == expected
    messages = {str(warned.message) for warned in recwarn}
    assert len(messages) == 1 and messages.pop().startswith(f"{copied}: No index can be written for its shards")


def test_an_index_is_valid_for_a_copy_whatever_its_times(prepared, tmp_path, monkeypatch):
    expected = [Shards(prepared).read(n, ["json"])[1] for n in range(5)]
    for number, file in enumerate(sorted(prepared.iterdir(), reverse=True)):
        shutil.copyfile(file, tmp_path / file.name)
        os.utime(tmp_path / file.name, (1000 + number,) * 2)  # the tars after their indexes
    scans = Spy(monkeypatch)
    scans.watch(module, "_scan")
    assert [Shards(tmp_path).read(n, ["json"])[1] for n in range(5)] == expected
    assert scans.calls == {"_scan": 0}


def other_tars():
    """Yield settings and samples of tars of equal size. The first tar is the one with an index."""
    sizes = {"a": 20_000, "b": 45_000, "c": 20_000}
    data = {key: {"mp4": os.urandom(size), "json": json.dumps(key).encode()} for key, size in sizes.items()}
    yield {"latents": "0123"}, data
    yield {"latents": "4567"}, data
    yield {"latents": "0123"}, {"d": data["a"], "b": data["b"], "c": data["c"]}
    yield {"latents": "0123"}, {**data, "b": {**data["b"], "mp4": os.urandom(45_000 + 512)}}
    yield {"latents": "0123"}, {"a": data["a"], "b": data["b"], "d": data["c"]}


@pytest.mark.parametrize("number", range(1, 5))
def test_an_index_of_another_tar_of_equal_size_is_not_used(tmp_path, number):
    first, *others = other_tars()
    tar, other = tmp_path / "here" / "shard.tar", tmp_path / "there" / "shard.tar"
    for path, (settings, samples) in ((tar, first), (other, others[number - 1])):
        path.parent.mkdir()
        write_shard(path, settings, samples.items())
    status = tar.stat()
    assert other.stat().st_size == status.st_size
    shutil.copyfile(other, tar)
    os.utime(tar, ns=(status.st_atime_ns, status.st_mtime_ns))
    settings, samples = others[number - 1]
    shards = Shards(tar.parent)
    assert shards.settings["latents"] == settings["latents"]
    for index, (key, members) in enumerate(samples.items()):
        assert shards.read(index, ["mp4", "json"]) == (f"{tar}:{key}", members)


def test_a_changed_tar_is_read_as_it_is_now(copied):
    tar = copied / "shard-000000.tar"
    settings = {name: value for name, value in Shards(copied).settings.items() if name != "format"}
    write_shard(tar, settings, [("a", {"json": b"{}"}), ("b", {"json": b"1", "mp4": b"22"}), ("c", {"json": b"[]"})])
    module._table.cache_clear()
    shards = Shards(copied)
    assert len(shards) == 6 and shards.read(1, ["mp4"])[1] == {"mp4": b"22"}


def test_threads_and_processes_read_the_same(prepared):
    data = clips(prepared)
    alone = [data.sample(n % 5, EVERYTHING, generator(n)) for n in range(10)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda n: data.sample(n % 5, EVERYTHING, generator(n)), range(10)))
    assert all(map(same, alone, together))
    order = RankOrder(Order(0, 5), (FRAMES,), batch=2)

    def keys(workers):
        batches = islice(load({FRAMES: data}, order, keep_all, workers=workers), 3)
        return [(sample.key, sample.video) for batch in batches for sample in batch.samples]

    for (a, x), (b, y) in zip(keys(0), keys(2), strict=True):
        assert a == b and torch.equal(x, y)


# --- Sets of shards ---------------------------------------------------------------------------------------------------


def test_a_set_may_be_prepared_in_parts(copied):
    before = [Shards(copied).read(n, ["json"])[1] for n in range(5)]
    for number, name in enumerate(("shard-000000.tar", "shard-000001.tar", "shard-000002.tar")):
        part = copied / f"part-{number}"
        part.mkdir()
        shutil.move(copied / name, part / "shard-000000.tar")
    parts = Shards(copied)
    assert len(parts) == 5 and [parts.read(n, ["json"])[1] for n in range(5)] == before


def test_other_tars_and_other_settings_are_refused(copied, tmp_path):
    with pytest.raises(UserError, match=r"\.tar"):
        Shards(tmp_path / "nothing")
    for form, message in [
        (Form((32, 32), FRAMES, EDGES), "prepared at 40x32"),
        (Form(SIZE, LONG + 1, EDGES), f"prepared with {LONG} frames"),
        (
            Form(SIZE, FRAMES, ExtractionConfig("dense", "pixels", "edges")),
            "motion is points, but the network requires dense",
        ),
        (Form(SIZE, FRAMES, ExtractionConfig()), "sketch is edges, but the network requires"),
    ]:
        with pytest.raises(UserError, match=message):
            clips(copied, form)
    settings = {name: value for name, value in Shards(copied).settings.items() if name != "format"}
    write_shard(copied / "shard-000009.tar", {**settings, "rate": 7}, [])
    with pytest.raises(UserError, match="other settings"):
        Shards(copied)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w"):
        pass
    (copied / "shard-000009.tar").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="not written by"):
        Shards(copied)
