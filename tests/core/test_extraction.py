"""`./vc extract`, and conditions of `./vc compose` that no video brings, as users call them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from vc_core.cli import main
from vc_core.commands.record import read_record
from vc_core.config import ExtractionConfig
from vc_core.demo import draw_clip
from vc_core.extract.motion import block_vectors
from vc_core.files import open_tensors
from vc_core.video import plan_frames, probe, write_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("a clip") / "clip.mp4"
    write_video(path, draw_clip(size=160), 8)
    return path


@pytest.fixture
def picture(tmp_path):
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[20:40, 30:60] = (250, 120, 20)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def vc(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("kind", "options", "shape"),
    [
        ("motion", (), (1, 2, 16, 256, 256)),
        ("motion", ("--mode", "stream", "--rate", 4, "--frames", 4), (1, 2, 4, 256, 256)),
        ("motion", ("--checkpoint", "bundled"), (1, 2, 16, 64, 64)),
        ("sketch", ("--size", "64x80", "--frames", 3), (1, 1, 3, 120, 96)),
        ("single_image", (), (1, 3, 1, 384, 384)),
        ("single_sketch", (), (1, 1, 1, 384, 384)),
    ],
)
def test_from_a_video(clip, tmp_path, capsys, kind, options, shape):
    out = tmp_path / "x.safetensors"
    assert vc("extract", kind, clip, "-o", out, "--json", "--preview", tmp_path / "x.png", *options) == 0
    told = json.loads(capsys.readouterr().out)
    tensors = open_tensors(out)
    assert set(tensors.shapes) == {"condition"}
    assert tensors.shapes["condition"] == shape == tuple(told["shape"])
    settings = json.loads(tensors.metadata["videocomposer"])
    assert settings["kind"] == kind and len(settings["sha256"]) == 64 and settings["rate"] > 0
    assert torch.isfinite(tensors.state()["condition"]).all() and told["least"] < told["most"]
    with Image.open(tmp_path / "x.png") as sheet:
        assert sheet.width > sheet.height


def test_the_raw_blocks_of_the_released_path(clip, tmp_path):
    assert vc("extract", "motion", clip, "-o", tmp_path / "x.safetensors", "--vectors") == 0
    rows = block_vectors(clip, plan_frames(probe(clip))).rows
    vectors = open_tensors(tmp_path / "x.safetensors").state()["vectors"]
    assert vectors.shape == (len(rows), 5)
    for column, name in enumerate(("frame", "dst_x", "dst_y", "dx", "dy")):
        assert vectors[:, column].tolist() == rows[name].tolist()


def test_a_mask_and_a_video_to_look_at(clip, picture, tmp_path):
    out, shown = tmp_path / "x.safetensors", tmp_path / "x.webp"
    assert vc("extract", "mask", clip, "--mask", picture, "-o", out, "--preview", shown) == 0
    condition = open_tensors(out).state()["condition"]
    assert condition.shape == (1, 4, 16, 384, 384)
    assert set(condition[:, 3].unique().tolist()) == {0.0, 1.0}
    assert shown.stat().st_size > 1000


def test_depth_maps_from_elsewhere(clip, tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 160).astype(np.uint16), (160, 1))
    Image.fromarray(ramp).save(tmp_path / "map.png")
    results = {}
    for near in ("bright", "dark"):
        out = tmp_path / f"{near}.safetensors"
        assert vc("extract", "depth", clip, "--depth-maps", tmp_path / "map.png", "--near", near, "-o", out) == 0
        results[near] = open_tensors(out).state()["condition"]
    assert results["bright"].shape == (1, 1, 16, 384, 384)
    assert results["bright"][0, 0, 0, 0, -1] > results["bright"][0, 0, 0, 0, 0]
    assert results["dark"][0, 0, 0, 0, -1] < results["dark"][0, 0, 0, 0, 0]
    assert results["bright"].min() >= 0 and results["bright"].max() <= 10


def test_from_an_image(picture, tmp_path):
    for kind, options, shape in (
        ("style", (), (1, 3, 1, 224, 224)),
        ("single_image", (), (1, 3, 1, 384, 384)),
        ("single_sketch", (), (1, 1, 1, 384, 384)),
        ("single_sketch", ("--lines", "bright"), (1, 1, 1, 384, 384)),
    ):
        out = tmp_path / "x.safetensors"
        assert vc("extract", kind, picture, "-o", out, "--preview", tmp_path / "x.png", *options) == 0
        condition = open_tensors(out).state()["condition"]
        assert condition.shape == shape and condition.min() >= 0 and condition.max() <= 1
    # A drawing that is one already keeps its filled shape, which edges would have hollowed.
    assert condition[0, 0, 0, 192, 192] > 0.4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("motion", "PICTURE"), "is an image, and motion comes from a video"),
        (("depth", "CLIP"), "midas_v3_dpt_large.pth"),
        (("sketch", "CLIP", "--sketch-method", "pidinet"), "table5_pidinet.pth"),
        (("mask", "CLIP"), "needs a mask file"),
        (("sketch", "CLIP", "--vectors"), "Block vectors go with motion alone"),
        (("sketch", "CLIP", "--lines", "dark"), "goes with a single_sketch from an image alone"),
        (("motion", "CLIP", "--size", "60x60"), "expected WIDTHxHEIGHT|multiples of 8"),
        (("motion", "CLIP", "-o", "x.pt"), "expected a name that ends in .safetensors"),
        (("motion", "CLIP", "--preview", "x.avi"), "no video is written as .avi"),
        (("motion", "nothing.mp4"), "no such file"),
    ],
)
def test_refusals(clip, picture, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VC_MODELS", str(tmp_path / "models"))
    given = [{"CLIP": clip, "PICTURE": picture}.get(argument, argument) for argument in arguments]
    assert vc("extract", *given, *(() if "-o" in given else ("-o", "x.safetensors"))) == 2
    error = capsys.readouterr().err
    assert any(part in error for part in message.split("|")) and error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"picture.png"}


# --- Conditions of ./vc compose -------------------------------------------------------------------------------------


def test_composing_with_motion_made_by_hand(tiny_checkpoint, tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tracks.json").write_text(json.dumps([{"x": 10, "y": 20}, {"x": 50, "y": 20}]))
    seen = []
    monkeypatch.setattr(
        "vc_core.pipeline.compose", lambda composer, *_, **s: seen.append(s) or torch.zeros(1, 3, 3, 32, 40)
    )
    common = ("compose", "--checkpoint", tiny_checkpoint, "-o", "x.mp4")
    assert vc(*common, "--tracks", "tracks.json", "--canvas", "64x64", "--radius", 20) == 0
    assert vc(*common, "--pan=-0.5,0") == 0
    assert tiny_config.extraction == ExtractionConfig("dense", "pixels", "edges", "relative")
    tracks, pan = (settings["conditions"][0].tensor for settings in seen)
    assert tracks.shape == pan.shape == (1, 2, 3, 32, 40)
    assert tracks[0, 0, 1].max() > 5 and tracks[0, 1].abs().max() < 1e-3 and not tracks[:, :, 0].any()
    assert pan[0, 0, 1:].min() > 5  # the camera goes left, so what it sees goes right
    assert read_record(tmp_path / "x.mp4").made["motion"] == {"method": "by hand"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--use", "motion", "--video", "CLIP", "--zoom", "1.2"), "'motion' was given twice, by --use and by hand"),
        (("--canvas", "64x64"), "--canvas goes with --tracks"),
        (("--depth-near", "sideways"), "expected one of bright, dark"),
        (("--depth-maps", "CLIP"), "--depth-maps is not used: add depth to --use"),
    ],
)
def test_settings_that_cannot_be_meant(clip, tmp_path, capsys, options, message):
    given = [clip if option == "CLIP" else option for option in options]
    assert vc("compose", "-o", tmp_path / "x.mp4", *given) == 2
    assert message in capsys.readouterr().err


def test_no_input_is_overwritten(clip, picture, tmp_path, capsys):
    before = picture.read_bytes()
    out = ("-o", tmp_path / "x.safetensors")
    assert vc("extract", "single_image", picture, *out, "--preview", picture) == 2
    assert vc("extract", "style", picture, *out, "--preview", tmp_path / "none" / "x.png") == 2
    assert picture.read_bytes() == before and not (tmp_path / "x.safetensors").exists()
    assert "would overwrite what is read" in capsys.readouterr().err


def test_the_style_of_a_video_and_names_with_colons(clip, tmp_path):
    odd = tmp_path / "10:00 clip.mp4"
    odd.write_bytes(clip.read_bytes())
    assert vc("extract", "style", odd, "-o", tmp_path / "x.safetensors", "--preview", tmp_path / "a:b.mp4") == 0
    assert open_tensors(tmp_path / "x.safetensors").shapes["condition"] == (1, 3, 1, 224, 224)
    assert probe(tmp_path / "a:b.mp4").frames == 1


def test_tracks_beside_the_video_are_told(tmp_path, capsys):
    (tmp_path / "tracks.json").write_text(json.dumps([{"x": 300, "y": 300}, {"x": 480, "y": 300}]))
    assert vc("compose", "--tracks", tmp_path / "tracks.json", "-o", tmp_path / "x.mp4") == 2
    assert "give --canvas WIDTHxHEIGHT" in capsys.readouterr().err
