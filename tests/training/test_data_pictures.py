"""Images and videos of every kind in data sets: the clips prepared from them. Small files that would need much memory
are refused."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests import needs
from tests.core.odd_files import animated, heic, of_streams
from training.data.folder import FolderClips, read_captions
from training.data.packing import unpack_image, unpack_maps, unpack_vectors
from training.data.prepare import main
from training.data.sample_fields import Form
from training.data.shard_writing import SUMMARY
from training.data.shards import Shards
from vc_core.errors import UserError
from vc_core.video.limits import VARIABLE

SIZE = (32, 32)


def listed(folder, *names):
    (folder / "captions.csv").write_text("file,caption\n" + "".join(f"{name},a scene\n" for name in names))
    return folder


def prepared(folder, out, *options):
    assert main([str(folder), "-o", str(out), "--size", "32x32", "--jobs", "1", *map(str, options)]) == 0
    return json.loads((out / SUMMARY).read_text())


def test_an_image_of_tiles_is_prepared_completely(tmp_path):
    quarters = np.zeros((128, 128, 3), np.uint8)
    quarters[:64, 64:, 0] = quarters[64:, :64, 1] = quarters[64:, 64:, 2] = 250
    (tmp_path / "IMG_0001.HEIC").write_bytes(heic(quarters, (64, 64)))
    (tmp_path / "IMG_0001.txt").write_text("a test card")
    assert prepared(tmp_path, tmp_path / "out", "--frames", 1)["clips"] == 1
    picture = unpack_image(Shards(tmp_path / "out").read(0, ["webp"])[1]["webp"])[0].float()
    middle = picture.shape[-1] // 2
    assert picture[:, :middle, :middle].mean() < 10
    assert picture[0, : middle - 2, middle + 2 :].mean() > 230 and picture[2, middle + 2 :, middle + 2 :].mean() > 230


def test_animations_and_folders_of_images_are_clips(tmp_path):
    needs.pillow("webp")
    colours = [(20 * n, 0, 0) for n in range(12)]
    animated(tmp_path / "a.webp", colours, size=(48, 48))
    (tmp_path / "shots").mkdir()
    for number, colour in enumerate(colours):
        Image.new("RGB", (48, 48), colour).save(tmp_path / "shots" / f"{number}.png")
    folder = listed(tmp_path, "a.webp", "shots")
    assert prepared(folder, tmp_path / "out", "--frames", 3)["clips"] == 2
    clips = FolderClips(folder, read_captions(folder), Form(SIZE, 3))
    for number in range(2):
        sample = clips.sample(number, ["motion"], torch.Generator().manual_seed(0))
        red = sample.video[0].mean((1, 2))
        assert red[0] < red[1] < red[2]


def test_bombs_are_dropped_with_the_reason(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, "0.01")
    of_streams(tmp_path / "large.mp4", ("mpeg4", 12, (320, 400), (0, 0, 200)))
    of_streams(tmp_path / "small.mp4", ("mpeg4", 12, (64, 64), (0, 0, 200)))
    summary = prepared(listed(tmp_path, "large.mp4", "small.mp4"), tmp_path / "out", "--frames", 3)
    assert summary["clips"] == 1
    assert [clip["file"] for clip in summary["dropped"]] == ["large.mp4"]
    assert "400 by 320 pixels" in summary["dropped"][0]["reason"]
    options = ("--frames", 3, "--max-megapixels", 1)
    assert prepared(tmp_path, tmp_path / "again", *options)["clips"] == 2


def test_a_video_that_is_too_wide_for_its_motion_is_dropped_and_a_height_suggested(tmp_path):
    of_streams(tmp_path / "wide.mkv", ("ffv1", 12, (64, 8400), (0, 0, 200)))
    of_streams(tmp_path / "small.mp4", ("mpeg4", 12, (64, 64), (0, 0, 200)))
    folder = listed(tmp_path, "wide.mkv", "small.mp4")
    summary = prepared(folder, tmp_path / "out", "--frames", 3)
    assert summary["clips"] == 1 and "--nominal-height 62" in summary["dropped"][0]["reason"]
    assert prepared(folder, tmp_path / "again", "--frames", 3, "--nominal-height", 62)["clips"] == 2


def test_limits_apply_to_members_of_shards_too(monkeypatch):
    monkeypatch.setenv("VC_MAX_MEGAPIXELS", "1")
    images = {kind: io.BytesIO() for kind in ("PNG", "WEBP")}
    for kind, file in images.items():
        Image.new("L", (1300, 900)).save(file, kind)
    with pytest.raises(UserError, match="1300 by 900"):
        unpack_image(images["WEBP"].getvalue())
    maps = images["PNG"].getvalue()
    assert unpack_maps(maps, 0.0, 1.0, 2).shape == (1, 2, 450, 1300)  # two frames of 0.6 megapixels
    with pytest.raises(UserError, match="1300 by 900"):
        unpack_maps(maps, 0.0, 1.0, 1)
    packed = io.BytesIO()
    np.savez_compressed(packed, frame=np.zeros(2**26, np.int32))
    assert len(packed.getvalue()) < 2**19
    with pytest.raises(ValueError, match="268 MB when unpacked"):
        unpack_vectors(packed.getvalue(), (64, 64), 0, 2)
