"""`./vc extract`, and conditions of `./vc compose` that no video brings, as users call them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from vc_core.checkpoint.files import open_tensors
from vc_core.cli import main
from vc_core.commands.extract import KINDS, LEGIBLE, OPTIONS
from vc_core.commands.record import read_record
from vc_core.commands.settings import as_option
from vc_core.config import ExtractionConfig
from vc_core.demo import draw_clip
from vc_core.extract.mask import random_mask
from vc_core.extract.motion.from_video import block_vectors
from vc_core.video import plan_frames, probe, read_frames, write_video


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
        ("motion", ("--checkpoint", "bundled"), (1, 2, 16, 32, 32)),
        ("sketch", ("--size", "64x80", "--frames", 3), (1, 1, 3, 120, 96)),
        ("single_image", (), (1, 3, 1, 384, 384)),
        ("single_sketch", (), (1, 1, 1, 384, 384)),
        ("style", (), (1, 3, 1, 224, 224)),
        ("style", ("--checkpoint", "bundled"), (1, 3, 1, 64, 64)),
    ],
)
def test_from_a_video(clip, tmp_path, capsys, kind, options, shape):
    out = tmp_path / "x.safetensors"
    assert vc("extract", kind, clip, "-o", out, "--json", "--preview", tmp_path / "x.png", *options) == 0
    report = json.loads(capsys.readouterr().out)
    tensors = open_tensors(out)
    assert set(tensors.shapes) == {"condition"}
    assert tensors.shapes["condition"] == shape == tuple(report["shape"])
    settings = json.loads(tensors.metadata["videocomposer"])
    assert settings["kind"] == kind and len(settings["sha256"]) == 64 and settings["rate"] > 0
    assert torch.isfinite(tensors.state()["condition"]).all() and report["least"] < report["most"]
    with Image.open(tmp_path / "x.png") as sheet:
        assert sheet.width > sheet.height >= LEGIBLE


@pytest.mark.parametrize("checkpoint", [(), ("--checkpoint", "bundled")], ids=["released", "bundled"])
def test_the_raw_blocks_of_the_released_path(clip, tmp_path, checkpoint):
    options = ("--vectors", "--rate", 4, "--frames", 5)
    assert vc("extract", "motion", clip, "-o", tmp_path / "x.safetensors", *options, *checkpoint) == 0
    rows = block_vectors(clip, plan_frames(probe(clip), 5, 4)).rows
    tensors = open_tensors(tmp_path / "x.safetensors")
    vectors = tensors.state()["vectors"]
    assert vectors.shape == (len(rows), 5)
    assert json.loads(tensors.metadata["videocomposer"])["vectors"] == {
        "layout": "released", "columns": ["frame", "dst_x", "dst_y", "dx", "dy"], "rows": len(rows), "height": 160,
        "width": 160, "fps": 4, "source_fps": 8,
    }  # fmt: skip
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
        ("single_sketch", ("--lines", "none"), (1, 1, 1, 384, 384)),
        ("style", ("--checkpoint", "bundled"), (1, 3, 1, 64, 64)),
        ("single_sketch", ("--lines", "bright"), (1, 1, 1, 384, 384)),
    ):
        out = tmp_path / "x.safetensors"
        assert vc("extract", kind, picture, "-o", out, "--preview", tmp_path / "x.png", *options) == 0
        condition = open_tensors(out).state()["condition"]
        assert condition.shape == shape and condition.min() >= 0 and condition.max() <= 1
    # A finished drawing keeps its filled shape; edges would only have kept its outline.
    assert condition[0, 0, 0, 192, 192] > 0.4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("motion", "PICTURE"), "motion requires a video, but "),
        (("depth", "CLIP"), "midas_v3_dpt_large.pth"),
        (("sketch", "CLIP", "--sketch-method", "pidinet"), "table5_pidinet.pth"),
        (("mask", "CLIP"), "The condition 'mask' requires a mask"),
        (("sketch", "CLIP", "--vectors"), "--vectors has no effect on sketch, only on motion"),
        (("motion", "CLIP", "--vectors", "--mode", "stream"), "--motion-mode stream and --vectors exclude each other"),
        (
            ("motion", "CLIP", "--vectors", "--nominal-height", "96"),
            "--nominal-height 96 and --vectors exclude each other",
        ),
        (("motion", "CLIP", "--mode", "strem"), "--motion-mode is strem. Expected one of released, stream"),
        (("single_sketch", "CLIP", "--lines", "dark"), "--sketch-lines requires an image, but "),
        (("single_sketch", "PICTURE", "--lines", "dark", "--sketch-method", "edges"), "Set only one of them"),
        (("single_image", "PICTURE", "--rate", "4"), "--rate requires a video, but "),
        (("sketch", "CLIP", "--models", "none"), "--models: There is no folder none."),
        (("depth", "CLIP", "--depth-maps", "PICTURE", "--depth-model", "PICTURE"), "exclude each other"),
        (("depth", "CLIP", "--depth-maps", "none.png"), "--depth-maps: There is no file none.png."),
        (("depth", "CLIP", "--scale", "2"), "--depth-scale requires --depth-maps"),
        (("mask", "CLIP", "--mask", "PICTURE", "--draw", "half"), "exclude each other"),
        (("mask", "CLIP", "--draw", "box"), "Expected one of strokes, rectangles, half, any"),
        (("style", "CLIP", "--checkpoint", "PICTURE"), "picture.png is an image or a video, not a checkpoint"),
        (("single_sketch", "PICTURE", "--device", "cpu"), "--device has no effect, because this run needs no network"),
        (("depth", "CLIP", "--depth-maps", "PICTURE", "--models", "."), "--models has no effect, because"),
        (("motion", "CLIP", "--preview", "."), "and something else is in it|is the current folder"),
        (("motion", "CLIP", "--size", "60x60"), "--size is 60x60. Expected multiples of 8"),
        (("motion", "CLIP", "-o", "x.pt"), "A condition is a .safetensors file, but its name is x.pt"),
        (("motion", "CLIP", "--preview", "x.avi"), "x.avi ends in .avi, which is not a supported video format"),
        (("motion", "nothing.mp4"), "FILE: There is no file nothing.mp4."),
        (("motion", ".."), "but .. is a folder without images"),
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


@pytest.mark.parametrize("kind", KINDS)
def test_options_that_do_nothing_for_a_kind_are_refused(clip, tmp_path, capsys, kind):
    for name, kinds in OPTIONS.items():
        if kind not in kinds:
            assert vc("extract", kind, clip, as_option(name), 1, "-o", tmp_path / "x.safetensors") == 2
            assert f"{as_option(name)} has no effect on {kind}, only on {kinds[0]}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def level(tmp_path_factory):
    path = tmp_path_factory.mktemp("maps") / "map.png"
    Image.fromarray(np.tile(np.linspace(0, 255, 160).astype(np.uint8), (160, 1))).save(path)
    return path


@pytest.mark.parametrize(
    ("kind", "common", "option"),
    [
        ("motion", (), ("--mode", "stream")),
        ("motion", (), ("--nominal-height", 96)),
        ("motion", (), ("--frames", 2)),
        ("motion", (), ("--size", "48x48")),
        ("single_image", (), ("--start", 1)),
        ("motion", (), ("--rate", 2)),
        ("depth", ("--depth-maps", "LEVEL"), ("--near", "dark")),
        ("depth", ("--depth-maps", "LEVEL"), ("--scale", 4)),
        ("mask", ("--mask", "LEVEL"), ("--white", "keep")),
        ("mask", ("--draw", "strokes"), ("--draw", "half")),
        ("mask", ("--draw", "strokes"), ("--seed", 1)),
    ],
)
def test_options_do_something(clip, level, tmp_path, kind, common, option):
    frames = () if kind == "single_image" or "--frames" in option else ("--frames", 3)
    size = () if "--size" in option else ("--size", "64x64")
    written = []
    for options in ((), option):
        given = [level if word == "LEVEL" else word for word in (*common, *frames, *size, *options)]
        assert vc("extract", kind, clip, "-o", tmp_path / "x.safetensors", *given) == 0
        written.append(open_tensors(tmp_path / "x.safetensors").state()["condition"])
    assert written[0].shape != written[1].shape or not torch.equal(*written)


def test_extract_says_which_levels_of_depth_maps_became_which_depths(clip, level, tmp_path, capsys):
    out, frames = tmp_path / "x.safetensors", ("--frames", 2)
    assert vc("extract", "depth", clip, "--depth-maps", level, *frames, "-o", out) == 0
    assert (
        "levels 0.0142 and 0.982 of 0 to 1 (percentiles 2 and 98) were mapped to the depths 0 and 2"
        in capsys.readouterr().out
    )
    how = json.loads(open_tensors(out).metadata["videocomposer"])["how"]
    assert how["levels"] == pytest.approx([0.02, 0.98], abs=0.01)
    assert (how["became"], how["percentiles"], how["scale"]) == ([0, 2], [2, 98], None)
    assert vc("extract", "depth", clip, "--depth-maps", level, *frames, "--scale", 4, "-o", out) == 0
    assert "became" not in capsys.readouterr().out
    assert open_tensors(out).state()["condition"].amax() == 4


def test_a_random_mask_is_that_of_the_released_training(clip, tmp_path):
    out = tmp_path / "x.safetensors"
    for kind in ("strokes", "rectangles", "half", "any"):
        assert vc("extract", "mask", clip, "--frames", 2, "--draw", kind, "--seed", 7, "-o", out) == 0
        generator = torch.Generator().manual_seed(7)
        keep = random_mask(2, (384, 384), generator, None if kind == "any" else kind)
        assert torch.equal(open_tensors(out).state()["condition"][:, 3:], keep)
        assert json.loads(open_tensors(out).metadata["videocomposer"])["how"] == {"drawn": kind, "seed": 7}


def test_a_first_frame_works_with_short_clips_and_is_that_of_the_sequence(tmp_path):
    long, short = (write_video(tmp_path / f"{n}.mp4", draw_clip(size=64, frames=n), 30) for n in (30, 3))
    out = tmp_path / "x.safetensors"
    for kind in ("single_image", "single_sketch", "style"):
        assert vc("extract", kind, short, "-o", out) == 0, kind
    assert json.loads(open_tensors(out).metadata["videocomposer"])["frames"] == 1
    # 16 of its 30 frames at 17 per second: the first frame differs from that of the usual 4 per second
    assert vc("extract", "single_image", long, "--size", "64x64", "-o", out) == 0
    plan = plan_frames(probe(long))
    expected = read_frames(long, plan, (96, 96))[:, :, :1]
    assert plan.rate == 17 and torch.equal(open_tensors(out).state()["condition"], expected)


def test_several_folders_of_models(clip, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    out = ("-o", tmp_path / "x.safetensors")
    options = ("--models", tmp_path / "a", "--models", tmp_path / "b", "--frames", 2, "--size", "64x64")
    assert vc("extract", "sketch", clip, *out, *options) == 0
    report = json.loads(open_tensors(out[1]).metadata["videocomposer"])
    assert report["models"] == [str(tmp_path / "a"), str(tmp_path / "b")] and "mask_white" not in report


def test_small_conditions_are_shown_large(clip, tmp_path):
    out = ("-o", tmp_path / "x.safetensors", "--size", "32x32", "--frames", 3)
    for kind, draw in (("motion", ()), ("mask", ("--draw", "half"))):
        assert vc("extract", kind, clip, *out, *draw, "--preview", tmp_path / "x.mp4") == 0
        assert min(probe(tmp_path / "x.mp4").width, probe(tmp_path / "x.mp4").height) >= LEGIBLE
    for _ in range(2):  # a folder of pictures, and again over it
        assert vc("extract", "motion", clip, *out, "--preview", tmp_path / "frames") == 0
        assert len(list((tmp_path / "frames").glob("*.png"))) == 3


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
    assert read_record(tmp_path / "x.mp4").methods["motion"] == {"method": "by hand"}


@pytest.fixture
def composed(tiny_checkpoint, tmp_path, monkeypatch):
    """From options of `./vc compose` with the tiny checkpoint to what reaches the network."""
    seen = {}
    monkeypatch.setattr(
        "vc_core.pipeline.compose", lambda composer, *_, **s: seen.update(s) or torch.zeros(1, 3, 3, 32, 40)
    )

    def run(*options):
        assert vc("compose", "--checkpoint", tiny_checkpoint, "-o", tmp_path / "x.mp4", *options) == 0
        return {condition.name: condition.tensor for condition in seen["conditions"]}

    return run


@pytest.mark.parametrize(
    "options",
    [(), ("--sketch-lines", "bright"), ("--sketch-lines", "none"), ("--sketch-method", "edges")],
    ids=" ".join,
)
def test_a_drawing_is_the_same_condition_for_both_commands(
    composed, tiny_checkpoint, picture, tmp_path, capsys, options
):
    out = tmp_path / "x.safetensors"
    assert vc("extract", "single_sketch", picture, "--checkpoint", tiny_checkpoint, "-o", out, *options) == 0
    report = capsys.readouterr().out
    mine = open_tensors(out).state()["condition"]
    assert torch.equal(mine, composed("--sketch", picture, *options)["single_sketch"])
    assert "is read as a drawing with dark lines" in capsys.readouterr().out or options
    # The image's background is black. With dark lines it becomes bright; as a photo it has no edges.
    assert (mine[..., 0, 0] > 0.99).all() == (options == ())
    assert ("is read as a drawing with dark lines" in report) == (options == ())


def test_masks_and_depth_maps_are_the_same_for_both_commands(composed, tiny_checkpoint, clip, level, picture, tmp_path):
    out = tmp_path / "x.safetensors"
    for kind, options in (
        ("mask", ("--mask", picture, "--mask-white", "keep")),
        ("mask", ("--mask-draw", "strokes", "--mask-seed", 3)),
        ("depth", ("--depth-maps", level, "--depth-near", "dark", "--depth-scale", 3)),
        ("motion", ("--nominal-height", 96)),
    ):
        assert vc("extract", kind, clip, "--checkpoint", tiny_checkpoint, "-o", out, *options) == 0
        theirs = composed("--video", clip, "--use", kind, *options)[kind]
        assert torch.equal(open_tensors(out).state()["condition"], theirs)


def test_composing_from_the_first_frame_of_a_short_clip(composed, tmp_path, capsys):
    short = write_video(tmp_path / "short.mp4", draw_clip(size=64, frames=1), 8)
    assert composed("--video", short, "--use", "single_image")["single_image"].shape == (1, 3, 1, 48, 60)
    assert "frames sampled per second" not in capsys.readouterr().out
    assert read_record(tmp_path / "x.mp4").settings.fps == 8  # the checkpoint's: one frame has no rate


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--use", "motion", "--video", "CLIP", "--zoom", "1.2"), "'motion' is set twice, by --use and by --zoom"),
        (("--canvas", "64x64"), "--canvas requires --tracks"),
        (("--depth-near", "sideways"), "Expected one of bright, dark"),
        (("--depth-maps", "CLIP"), "--depth-maps has no effect. Add depth to --use"),
    ],
)
def test_settings_that_make_no_sense(clip, tmp_path, capsys, options, message):
    given = [clip if option == "CLIP" else option for option in options]
    assert vc("compose", "-o", tmp_path / "x.mp4", *given) == 2
    assert message in capsys.readouterr().err


def test_no_input_is_overwritten(clip, picture, tmp_path, capsys):
    before = picture.read_bytes()
    out = ("-o", tmp_path / "x.safetensors")
    assert vc("extract", "single_image", picture, *out, "--preview", picture) == 2
    assert vc("extract", "style", picture, *out, "--preview", tmp_path / "none" / "x.png") == 2
    assert picture.read_bytes() == before and not (tmp_path / "x.safetensors").exists()
    assert "would overwrite an input" in capsys.readouterr().err


def test_the_style_of_a_video_and_names_with_colons(clip, tmp_path):
    odd = tmp_path / "10:00 clip.mp4"
    odd.write_bytes(clip.read_bytes())
    assert vc("extract", "style", odd, "-o", tmp_path / "x.safetensors", "--preview", tmp_path / "a:b.mp4") == 0
    assert open_tensors(tmp_path / "x.safetensors").shapes["condition"] == (1, 3, 1, 224, 224)
    assert probe(tmp_path / "a:b.mp4").frames == 1


def test_tracks_with_a_video_are_refused(tmp_path, capsys):
    (tmp_path / "tracks.json").write_text(json.dumps([{"x": 300, "y": 300}, {"x": 480, "y": 300}]))
    assert vc("compose", "--tracks", tmp_path / "tracks.json", "-o", tmp_path / "x.mp4") == 2
    assert "Set --canvas WIDTHxHEIGHT" in capsys.readouterr().err


def test_a_random_mask_is_drawn_again_and_not_read_from_a_missing_file(composed, clip, picture, tmp_path):
    kept = picture.rename(tmp_path / "mask.png")
    file = composed("--video", clip, "--use", "mask", "--mask", kept)["mask"]
    kept.unlink()
    written = (tmp_path / "x.mp4").rename(tmp_path / "made.mp4")
    drawn = composed("--from", written, "--mask-draw", "half")["mask"]
    assert file.shape == drawn.shape and set(drawn[:, 3].mean((1, 2, 3)).tolist()) == {0.5}
