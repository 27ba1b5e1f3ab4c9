"""The command line: what it writes, and one clear sentence with status 2 for what it cannot do."""

import json
import subprocess
import sys

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vc_core import cli
from vc_core.demo import draw_clip
from vc_core.video import probe, write_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A short clip of odd proportions."""
    path = tmp_path_factory.mktemp("clips") / "a clip.mp4"
    return write_video(path, draw_clip(size=96, frames=6)[..., :80], rate=8)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    noise = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def vc(*arguments):
    return cli.main([str(argument) for argument in arguments])


def test_compose_with_everything(tiny_checkpoint, clip, picture, tmp_path):
    out = tmp_path / "out.mp4"
    status = vc(
        "compose", "--checkpoint", tiny_checkpoint, "--video", clip, "--use", "motion,sketch,mask", "--mask", picture,
        "--image", picture, "--sketch", picture, "--style", picture, "--text", "a red circle", "--negative", "grey",
        "--strength", "motion=0.5", "--schedule", "style=0:0.6", "--steps", "2", "--size", "48x32", "--scale", "2",
        "-o", out,
    )  # fmt: skip
    assert status == 0
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert (stream.codec.name, stream.pix_fmt) == ("h264", "yuv420p")
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == 3
    assert frames[0].shape == (64, 96, 3)
    assert probe(out).rate == 5  # the plan's: 3 frames of 0.75 s are no more than 3 at 4 a second


def test_the_conditions_that_were_named_are_the_ones_that_act(tiny_checkpoint, clip, picture, tmp_path):
    base = ["compose", "--checkpoint", tiny_checkpoint, "--steps", "2"]
    variants = {
        "none": [],
        "motion": ["--video", clip, "--use", "motion"],
        "off": ["--video", clip, "--use", "motion", "--strength", "motion=0", "--fps", "8"],
        "image": ["--image", picture],
        "style": ["--style", picture],
    }
    content = {}
    for name, extra in variants.items():
        assert vc(*base, *extra, "-o", tmp_path / f"{name}.mp4") == 0
        with av.open(str(tmp_path / f"{name}.mp4")) as container:
            content[name] = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    assert np.array_equal(content["none"], content["off"])
    others = ("none", "motion", "image", "style")
    assert all(not np.array_equal(content[a], content[b]) for a in others for b in others if a < b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--video", "none.mp4", "--use", "motion"], "none.mp4"),
        (["--video", "CLIP"], "say what to take from it"),
        (["--use", "motion"], "give --video FILE"),
        (["--video", "CLIP", "--use", "smell"], "Unknown condition 'smell'"),
        (["--video", "CLIP", "--use", "mask"], "needs a mask file"),
        (["--video", "CLIP", "--use", "depth"], "depth"),
        (["--video", "PICTURE", "--use", "motion"], "picture.png"),
        (["--video", "CLIP", "--use", "motion", "--frames", "500"], "too short"),
        (["--image", "CLIP"], "cannot be read as an image"),
        (["--image", "none.png"], "none.png"),
        (["--mask", "PICTURE"], "add mask to --use"),
        (["--size", "30x30"], "30x30 is not possible: expected multiples of 8"),
        (["--size", "large"], "expected WIDTHxHEIGHT"),
        (["--strength", "motion=much"], "expected NAME=FACTOR"),
        (["--strength", "motion=0.5"], "name conditions that are given"),
        (["--schedule", "style=0.9:0.1"], "expected 0 <= start <= end <= 1"),
        (["--sampler", "euler"], "Unknown sampler 'euler'"),
        (["--scale", "0"], "--scale 0 is not possible"),
        (["--fps", "0"], "--fps 0.0 is not possible"),
        (["--fps", "nan"], "--fps nan is not possible"),
        (["--seed", "99999999999999999999"], "The seed 99999999999999999999"),
        (["--checkpoint", "none.safetensors"], "There is no checkpoint at none.safetensors"),
        (["--checkpoint", "CLIP"], "cannot be read as a checkpoint"),
    ],
)
def test_bad_input(tiny_checkpoint, clip, picture, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    names = {"CLIP": clip, "PICTURE": picture}
    checkpoint = [] if "--checkpoint" in arguments else ["--checkpoint", tiny_checkpoint]
    status = vc("compose", *checkpoint, *[names.get(a, a) for a in arguments], "--steps", 2, "-o", "out.mp4")
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2
    assert error.startswith("vc: ")
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written(tiny_checkpoint, tmp_path, capsys):
    assert vc("compose", "--checkpoint", tiny_checkpoint, "-o", tmp_path / "out.avi") == 2
    assert "ends in .mp4" in capsys.readouterr().err
    assert vc("compose", "--checkpoint", tiny_checkpoint, "--steps", 1, "-o", tmp_path / "no" / "out.mp4") == 2
    assert "its folder does not exist" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(Exception, match="There is no checkpoint"):
        vc("compose", "--debug", "--checkpoint", tmp_path / "none", "-o", tmp_path / "out.mp4")


def test_our_own_mistakes_are_one_line_too(tiny_checkpoint, tmp_path, capsys, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("vc_core.pipeline.compose", broken)
    assert vc("compose", "--checkpoint", tiny_checkpoint, "-o", tmp_path / "out.mp4") == 1
    error = capsys.readouterr().err
    assert "unexpected ZeroDivisionError: division by zero (--debug" in error
    assert "Traceback" not in error


def test_ctrl_c_leaves_nothing(tiny_checkpoint, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **settings):
        settings["progress"](1, 20)
        raise KeyboardInterrupt

    monkeypatch.setattr("vc_core.pipeline.compose", interrupted)
    assert vc("compose", "--checkpoint", tiny_checkpoint, "-o", tmp_path / "out.mp4") == 130
    assert "interrupted" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_info(tiny_checkpoint, capsys):
    assert vc("info", tiny_checkpoint) == 0
    out = capsys.readouterr().out
    assert "tiny" in out and "vae: 2.4 M parameters" in out
    assert json.loads(out[out.index("{") :])["unet"]["width"] == 32


def test_the_module_runs_as_the_launcher_does(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "vc_core", "info", str(tmp_path / "none.pth")], capture_output=True, text=True
    )
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1


def test_a_truncated_video(tiny_checkpoint, clip, tmp_path, capsys):
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:1500])
    status = vc("compose", "--checkpoint", tiny_checkpoint, "--video", tmp_path / "cut.mp4", "--use", "motion",
                "-o", tmp_path / "out.mp4")  # fmt: skip
    assert status == 2
    assert "cut.mp4" in capsys.readouterr().err
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(
    ("arguments", "handed_on"),
    [
        (["test", "-k", "two words"], ["-m", "pytest", "-m", "not slow", "-k", "two words"]),
        (["test", "--all", "-x"], ["-m", "pytest", "-x"]),
        (["train", "network", "--minutes", "3"], ["-m", "training", "network", "--minutes", "3"]),
    ],
)
def test_test_and_train_are_handed_on(monkeypatch, repository, arguments, handed_on):
    calls = []
    monkeypatch.setattr(subprocess, "call", lambda command, **settings: calls.append((command, settings)) or 7)
    assert vc(*arguments) == 7
    ((command, settings),) = calls
    assert command == [sys.executable, *handed_on]
    if arguments[0] == "test":
        assert settings["cwd"] == repository
    else:
        assert settings["env"]["PYTHONPATH"].startswith(str(repository))


def test_train_names_its_parts(repository):
    run = subprocess.run([sys.executable, "-m", "training"], capture_output=True, text=True, cwd=repository)
    assert run.returncode == 2
    assert "autoencoder" in run.stderr and "network" in run.stderr


def test_torch_is_left_as_it_was():
    assert torch.is_grad_enabled()
