"""Damaged files of every kind: an error message or a correct result, no crash, at most 10 s and 512 MB per file."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.core.moving_clips import OWN, encode, moving
from tests.core.pictures import plan, read_mask
from tests.fuzzing import UNDAMAGED, outcomes
from tests.hostile import encoded
from tests.training.clips import EVERYTHING, generator
from tests.training.shards import clips
from training.data.folder import read_captions
from training.data.shards import Shards, index_path
from training.recipe import read_recipe
from vc_core.checkpoint.files import open_tensors
from vc_core.checkpoint.inspection import inspect
from vc_core.commands.record import read_record
from vc_core.commands.settings import Settings
from vc_core.demo import draw_clip
from vc_core.extract.depth.maps import read_depth_maps
from vc_core.extract.depth.networks import _settings
from vc_core.extract.motion.from_video import read_motion
from vc_core.extract.motion.tracks import read_tracks
from vc_core.video import FramePlan, plan_frames, probe, read_frames, read_image, write_video

SECONDS, MEGABYTES = 10, 512  # per case; CPU seconds of all threads
CASES = {"quick": 4, "all": 48}
"""Damaged copies of each file of `FILES`."""

# --- Readers: each reads a path and checks the form of the result --------------------------------------------------


def is_finite(tensor, low, high):
    assert tensor.numel() and tensor.isfinite().all()
    assert low - 1e-5 <= tensor.min() and tensor.max() <= high + 1e-5  # scaling rounds


def read_a_video(path):
    plan = plan_frames(probe(path), 3)
    assert isinstance(plan, FramePlan) and 0.01 <= plan.rate <= 1000
    frames = read_frames(path, plan, (32, 40))
    assert frames.shape == (1, 3, 3, 32, 40)
    is_finite(frames, 0, 1)
    field = read_motion(path, plan, (32, 40)).field
    assert field.shape[:3] == (1, 2, 3)
    is_finite(field, -1e5, 1e5)


def read_a_video_in_memory(path):
    data = path.read_bytes()
    is_finite(read_frames(data, plan_frames(probe(data), 2), (32, 40)), 0, 1)


def read_a_picture(path):
    picture = read_image(path)
    assert picture.shape[:2] == (1, 3)
    is_finite(picture, 0, 1)


def read_maps(path):
    is_finite(read_depth_maps(path, plan(2), (32, 40)), 0, 1)


def read_a_mask(path):
    keep = read_mask(path, 2, size=(32, 40))
    assert keep.shape == (1, 1, 2, 32, 40) and set(keep.unique().tolist()) <= {0.0, 1.0}


def read_some_tracks(path):
    for track in read_tracks(path):
        is_finite(track.points, -1e9, 1e9)


def read_a_list(path):
    for entry in read_captions(path.parent, path):
        assert (entry.file or entry.fault) and isinstance(entry.caption, str)


def read_a_shard(path):
    index_path(path).unlink(missing_ok=True)
    read_samples(path)


def read_samples(path):
    """Read the samples of a shard; the path is the shard or its index."""
    data = clips(path.parent)
    for number in range(len(Shards(path.parent))):
        sample = data.sample(number, EVERYTHING, generator())
        is_finite(sample.video, 0, 1)
        assert isinstance(sample.text, str)
        for condition in sample.conditions.values():
            is_finite(condition, -1e5, 1e5)


def read_a_checkpoint(path):
    assert inspect(path).parts


def read_tensors(path):
    for tensor in open_tensors(path).state().values():
        assert isinstance(tensor.sum(), torch.Tensor)


def read_settings(path):
    Settings.from_yaml(path)


def read_a_recipe(path):
    read_recipe(path)


def read_a_record(path):
    read_record(path)


def read_depth_settings(path):
    _settings(path, path.parent)


# --- Files ----------------------------------------------------------------------------------------------------------


def _video(muxer, codec, pixels, *size):
    return lambda path, host: encoded(path, muxer, codec, pixels, *size)


def _picture(mode, **options):
    def save(path, host):
        random = np.random.default_rng(0)
        pixels = random.integers(256, size=(24, 32, 4), dtype=np.uint8)
        grey16 = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        image = grey16 if mode == "I;16" else Image.fromarray(pixels).convert(mode)
        image.save(path, **options)

    return save


def _text(text):
    return lambda path, host: path.write_text(text, encoding="utf-8")


def _captions(path, host):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["file", "caption"], *([f"{n}.mp4", f"a swan, {n}"] for n in range(20))])


def _pickled(path, host):
    torch.save({"state_dict": {f"layer.{n}.weight": torch.randn(4, 4) for n in range(4)}, "step": 3}, path)


def _shard(path, host):
    path.write_bytes(sorted(host("prepared").glob("*.tar"))[0].read_bytes())


def _index(path, host):
    shard = sorted(host("prepared").glob("*.tar"))[0]
    path.write_bytes(index_path(shard).read_bytes())
    path.with_name(f"{path.name}.beside").mkdir()
    (path.with_name(f"{path.name}.beside") / shard.name).write_bytes(shard.read_bytes())


def _checkpoint(path, host):
    path.write_bytes(host("tiny_checkpoint").read_bytes())


def _recorded(path, host):
    record = {"format": 1, "inputs": {"video": [{"path": "a.mp4", "name": "a.mp4", "sha256": "0" * 64}]},
                 "settings": Settings().to_mapping(), "made": {}, "versions": {}, "machine": {}}  # fmt: skip
    write_video(path, draw_clip(frames=2), 8, metadata={"videocomposer": json.dumps(record)})


_BOX = {"x": 1, "y": 2, "width": 3, "height": 4}
_TRACKS = [[{"x": 1, "y": 2}, {"x": 30, "y": 40.5}], {"box": _BOX, "path": [[1, 2]]}]
_SETTINGS = "text: a swan\nframes: 8\nsize: 64x64\nuse: [motion, depth]\nstrength: {motion: 0.5}\npan: [0.1, 0]\n"
_RECIPE = "out: run\nsteps: 10\nstart: {kind: scratch}\ndata:\n- {kind: synthetic}\nloss: {lone: {motion: 0.3}}\n"
_DEPTH = {"model_type": "dpt", "backbone": None, "image_size": 384, "hidden_size": 16, "num_hidden_layers": 2}

# Name of the file -> the function that writes it, and the readers of its damaged copies.
FILES = {
    "own.mp4": (lambda path, host: encode(path, moving(3, 0), **OWN), read_a_video, read_a_video_in_memory),
    "h264.mkv": (_video("matroska", "libx264", "yuv420p"), read_a_video),
    "h264.ts": (_video("mpegts", "libx264", "yuv420p"), read_a_video),
    "hevc.mp4": (_video("mp4", "libx265", "yuv420p"), read_a_video),
    "av1.mp4": (_video("mp4", "libsvtav1", "yuv420p"), read_a_video),
    "vp9.webm": (_video("webm", "libvpx-vp9", "yuv420p"), read_a_video, read_a_video_in_memory),
    "mpeg4.avi": (_video("avi", "mpeg4", "yuv420p"), read_a_video),
    "mjpeg.avi": (_video("avi", "mjpeg", "yuvj420p"), read_a_video),
    "prores.mov": (_video("mov", "prores", "yuv422p10le"), read_a_video),
    "ffv1.mkv": (_video("matroska", "ffv1", "yuv420p"), read_a_video),
    "clip.wmv": (_video("asf", "wmv2", "yuv420p"), read_a_video),
    "clip.flv": (_video("flv", "flv", "yuv420p"), read_a_video),
    "clip.mpg": (_video("mpeg", "mpeg2video", "yuv420p"), read_a_video),
    "clip.mxf": (_video("mxf", "mpeg2video", "yuv420p"), read_a_video),
    "clip.ogv": (_video("ogg", "libvpx", "yuv420p"), read_a_video),
    "clip.gif": (_video("gif", "gif", "rgb8"), read_a_video),
    "clip.h264": (_video("h264", "libx264", "yuv420p"), read_a_video),
    "rgb.png": (_picture("RGB"), read_a_picture, read_a_mask),
    "palette.png": (_picture("P"), read_a_picture, read_a_mask),
    "deep.png": (_picture("I;16"), read_a_picture, read_maps),
    "rgb.jpg": (_picture("RGB"), read_a_picture, read_a_mask),
    "grey.jpg": (_picture("L"), read_a_picture, read_maps),
    "rgb.webp": (_picture("RGBA"), read_a_picture),
    "rgb.bmp": (_picture("RGB"), read_a_picture),
    "rgb.tif": (_picture("RGB", compression="tiff_lzw"), read_a_picture),
    "grey.tif": (_picture("L"), read_a_picture, read_maps),
    "rgb.avif": (_picture("RGB"), read_a_picture),
    "tracks.json": (_text(json.dumps(_TRACKS)), read_some_tracks),
    "captions.csv": (_captions, read_a_list),
    "captions.jsonl": (_text("".join(json.dumps({"file": f"{n}.mp4", "caption": "a swan"}) + "\n" for n in range(20))),
                       read_a_list),
    "shard-000000.tar": (_shard, read_a_shard),
    index_path(Path("shard-000000.tar")).name: (_index, read_samples),
    "checkpoint.safetensors": (_checkpoint, read_a_checkpoint, read_tensors),
    "pickled.pth": (_pickled, read_tensors),
    "settings.yaml": (_text(_SETTINGS), read_settings),
    "settings.json": (_text(json.dumps(Settings().to_mapping())), read_settings),
    "recipe.yaml": (_text(_RECIPE), read_a_recipe),
    "config.json": (_text(json.dumps(_DEPTH)), read_depth_settings),
    "recorded.mp4": (_recorded, read_a_record),
    "recorded.webp": (_recorded, read_a_record),
    "recorded.gif": (_recorded, read_a_record),
}  # fmt: skip

JOBS = [(name, reader) for name, (_, *readers) in FILES.items() for reader in readers]


def wrong(request, tmp_path, numbers):
    """The outcomes that are wrong, for the damaged copies of these numbers of all files."""
    for folder in ("files", "copies"):
        (tmp_path / folder).mkdir()
    for name, (make, *_) in FILES.items():
        make(tmp_path / "files" / name, request.getfixturevalue)
    jobs = [(reader.__name__, tmp_path / "files" / name) for name, reader in JOBS]
    results = list(outcomes("tests.training.test_fuzzing", jobs, numbers, tmp_path / "copies"))
    assert len(results) == len(JOBS) * (1 + len(numbers))
    return [
        result | {"job": JOBS[result["job"]][0]}
        for result in results
        if result["outcome"] not in (("right",) if result["case"] == UNDAMAGED else ("right", "error"))
        or result["seconds"] > SECONDS
        or result["megabytes"] > MEGABYTES
    ]


def test_some_damaged_files(request, tmp_path):
    assert wrong(request, tmp_path, range(CASES["quick"])) == []


@pytest.mark.slow
def test_two_thousand_damaged_files(request, tmp_path):
    assert len(JOBS) * CASES["all"] >= 2000
    assert wrong(request, tmp_path, range(CASES["quick"], CASES["quick"] + CASES["all"])) == []
