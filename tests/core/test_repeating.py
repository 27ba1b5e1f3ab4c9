"""`./vc compose` from a file that it wrote, from a file of settings, and for many runs at once."""

import json
import shutil

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from vc_core import cli
from vc_core.commands import compose as running
from vc_core.commands.record import KEY, read_record
from vc_core.demo import draw_clip
from vc_core.video import write_video
from vc_core.video.metadata import read_metadata


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A short clip that is not square."""
    path = tmp_path_factory.mktemp("clips") / "a clip.mp4"
    return write_video(path, draw_clip(size=96, frames=6)[..., :80], rate=8)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    noise = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


@pytest.fixture
def compose(tiny_checkpoint):
    """`./vc compose` with the tiny checkpoint, two steps and small pixels."""
    return lambda *arguments: vc(
        "compose", "--checkpoint", tiny_checkpoint, "--steps", 2, "--scale", 1, *[str(a) for a in arguments]
    )


def vc(*arguments):
    return cli.main([str(argument) for argument in arguments])


def settings_of(path):
    return read_record(path).settings


def frames_of(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def last_line(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


# --- The same again -------------------------------------------------------------------------------------------------


def test_a_lora_is_applied_recorded_and_found_again(compose, tiny_composer, tmp_path, capsys):
    """With its strength, from its old path or from the video's folder; a missing file is reported."""
    weight = tiny_composer.unet.get_parameter("conv_out.weight")
    halves = {
        "lora_down.weight": torch.randn(2, *weight.shape[1:]),
        "lora_up.weight": torch.randn(len(weight), 2, 1, 1),
    }
    lora = tmp_path / "style.safetensors"
    save_file({f"lora_unet_conv_out.{end}": half for end, half in halves.items()}, lora)
    plain, first, again = tmp_path / "plain.mp4", tmp_path / "first.mp4", tmp_path / "again.mp4"
    assert compose("-o", plain) == 0 and compose("--lora", f"{lora}=0.5", "-o", first) == 0
    assert not np.array_equal(frames_of(plain), frames_of(first))
    assert settings_of(first).lora == {lora: 0.5} and "lora" not in json.loads(read_metadata(plain)[KEY])["settings"]
    (tmp_path / "moved").mkdir()
    moved, copy = lora.rename(tmp_path / "moved" / lora.name), shutil.copy(first, tmp_path / "moved" / "first.mp4")
    assert vc("compose", "--from", copy, "-o", again) == 0
    assert again.read_bytes() != plain.read_bytes() and np.array_equal(frames_of(again), frames_of(first))
    assert vc("compose", "--from", first, "-o", again) == 2
    assert "style.safetensors, an input of" in last_line(capsys) and moved.is_file()
    assert compose("--lora", tmp_path / "none.safetensors", "-o", again) == 2
    assert "--lora: There is no file" in last_line(capsys)


def test_the_same_again_from_a_produced_file(picture, clip, tmp_path, capsys):
    """With the bundled checkpoint, which is recorded as `bundled`."""
    first = tmp_path / "first.mp4"
    assert vc("compose", "--steps", 2, "--frames", 3, "--video", clip, "--use", "motion", "--style", picture,
              "--strength", "motion=0.7", "--text", "a red circle", "--seed", 3, "-o", first) == 0  # fmt: skip
    assert json.loads(read_metadata(first)[KEY])["inputs"]["checkpoint"][0]["path"] == "bundled"
    assert vc("compose", "--from", first, "-o", tmp_path / "again.mp4", "--sheet", tmp_path / "sheet.png") == 0
    assert "vc: " not in capsys.readouterr().err  # no warning; a slow machine shows progress bars
    assert (tmp_path / "again.mp4").read_bytes() == first.read_bytes()
    assert vc("compose", "--from", tmp_path / "sheet.png", "-o", tmp_path / "more.mp4") == 0
    assert (tmp_path / "more.mp4").read_bytes() == first.read_bytes()
    assert vc("compose", "--from", first, "--seed", 4, "-o", tmp_path / "other.mp4") == 0
    assert not np.array_equal(frames_of(tmp_path / "other.mp4"), frames_of(first))
    assert settings_of(tmp_path / "other.mp4").seed == 4


@pytest.fixture
def produced(compose, picture, tmp_path):
    """A video generated from an image in the same folder."""
    shutil.copy(picture, tmp_path / "image.png")
    assert compose("--image", tmp_path / "image.png", "-o", tmp_path / "first.mp4") == 0
    return tmp_path / "first.mp4"


def test_the_original_is_not_overwritten(produced, capsys, monkeypatch):
    before = produced.read_bytes()
    assert vc("compose", "--from", produced) == 2
    assert "requires a name for the new output. Add -o" in capsys.readouterr().err
    monkeypatch.chdir(produced.parent)
    assert vc("compose", "--from", produced, "-o", "first.mp4") == 2
    assert "first.mp4 is also the --from file" in capsys.readouterr().err
    assert produced.read_bytes() == before


def test_moved_inputs_are_found_in_the_folder_of_the_produced_file(produced, tmp_path, capsys):
    new = tmp_path / "moved"
    new.mkdir()
    for name in ("first.mp4", "image.png"):
        (tmp_path / name).rename(new / name)
    assert vc("compose", "--from", new / "first.mp4", "-o", tmp_path / "again.mp4") == 0
    assert np.array_equal(frames_of(tmp_path / "again.mp4"), frames_of(new / "first.mp4"))


def test_inputs_that_are_missing_or_changed(produced, picture, tmp_path, capsys):
    again = tmp_path / "again.mp4"
    (tmp_path / "image.png").write_bytes(picture.read_bytes() + b"!")
    assert vc("compose", "--from", produced, "-o", again) == 2
    error = last_line(capsys)
    assert "image.png has changed since" in error and "--image" in error
    (tmp_path / "image.png").unlink()
    assert vc("compose", "--from", produced, "-o", again) == 2
    error = last_line(capsys)
    assert "image.png, an input of" in error and "does not exist" in error and "--image" in error
    assert not again.exists()
    assert vc("compose", "--from", produced, "--image", picture, "-o", again) == 0
    assert np.array_equal(frames_of(again), frames_of(produced))


def test_another_machine_causes_one_line_of_warning(produced, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    monkeypatch.setattr("vc_core.commands.record._version", lambda name: "0.0")
    assert vc("compose", "--from", produced, "-o", tmp_path / "again.mp4") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"vc: The new output may differ from {produced} in its last bits (")
    assert "is 99" in line and "torch" in line and "is 0.0" in line


def test_a_file_without_recorded_settings(clip, picture, tmp_path, capsys):
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    for path in (clip, picture, tmp_path / "broken.mp4", tmp_path / "none.mp4", tmp_path):
        assert vc("compose", "--from", path, "-o", tmp_path / "again.mp4") == 2
        assert str(path) in last_line(capsys)


def test_settings_from_yaml(tiny_checkpoint, picture, tmp_path, capsys, monkeypatch):
    shutil.copy(picture, tmp_path / "image.png")
    (tmp_path / "a.yaml").write_text(f"image: image.png\nsteps: 2\ncheckpoint: {tiny_checkpoint}\nout: out.mp4\n")
    monkeypatch.chdir(tmp_path.parent)
    assert vc("compose", "--from", tmp_path / "a.yaml") == 0
    assert (tmp_path / "out.mp4").exists()
    assert vc("compose", "--from", tmp_path / "a.yaml", "--seed", 1, "-o", tmp_path / "b.mp4") == 0
    assert not np.array_equal(frames_of(tmp_path / "out.mp4"), frames_of(tmp_path / "b.mp4"))
    (tmp_path / "a.yaml").write_text("stepps: 2")
    assert vc("compose", "--from", tmp_path / "a.yaml", "-o", tmp_path / "c.mp4") == 2
    assert "a.yaml: There is no setting 'stepps'. Did you mean 'steps'?" in last_line(capsys)


# --- Many runs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def loads(monkeypatch):
    """A list with one item per loaded checkpoint."""
    counted, load = [], running.load
    monkeypatch.setattr(running, "load", lambda settings, progress: counted.append(1) or load(settings, progress))
    return counted


def write_runs(tmp_path, tiny_checkpoint, runs, **defaults):
    path = tmp_path / "runs.yaml"
    defaults = {"checkpoint": str(tiny_checkpoint), "steps": 1, **defaults}
    path.write_text(json.dumps({"defaults": defaults, "runs": runs}))
    return path


def test_many_runs_load_once(tmp_path, tiny_checkpoint, loads, capsys):
    other = shutil.copy(tiny_checkpoint, tmp_path / "other.safetensors")
    runs = [
        {"seed": 1, "out": "a.mp4"},
        {"seed": 1, "steps": 2, "out": "b.mp4"},
        {"out": "c", "checkpoint": other.name},
    ]
    assert vc("compose", "--batch", write_runs(tmp_path, tiny_checkpoint, runs)) == 0
    assert len(loads) == 2
    out = capsys.readouterr().out
    assert "[1/3] " in out and f"[3/3] {tmp_path / 'c'}" in out
    assert settings_of(tmp_path / "b.mp4").steps == 2
    assert settings_of(tmp_path / "a.mp4").steps == 1
    assert (tmp_path / "c").is_dir()


def test_options_apply_to_all_runs(tmp_path, tiny_checkpoint):
    path = tmp_path / "list.yaml"
    path.write_text("- {out: a.mp4, seed: 5}\n- {out: b.mp4}\n")
    assert vc("compose", "--batch", path, "--checkpoint", tiny_checkpoint, "--steps", 1, "--seed", 9) == 0
    assert [settings_of(tmp_path / f"{name}.mp4").seed for name in "ab"] == [9, 9]


def test_a_run_that_fails_does_not_stop_the_rest(tmp_path, tiny_checkpoint, clip, capsys):
    runs = [
        {"out": "a.mp4", "video": str(clip), "use": "motion", "frames": 500},
        {"out": "b.mp4"},
        {"out": "c.mp4", "image": str(clip)},
    ]
    assert vc("compose", "--batch", write_runs(tmp_path, tiny_checkpoint, runs)) == 2
    captured = capsys.readouterr()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.mp4", "runs.yaml"]
    lines = captured.err.strip().splitlines()
    assert lines[0] == "vc: 2 of 3 runs failed:"
    assert "run 1" in lines[1] and "too short" in lines[1]
    assert "run 3" in lines[2] and "cannot be read as an image" in lines[2]


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([{"out": "a.mp4"}, {}], "run 2: The output has no name. Add 'out'"),
        ([{"out": "a.mp4"}, {"out": "b.mp4"}, {"out": "./a.mp4"}], "run 3: Run 1 also writes {folder}/a.mp4"),
        ([{"out": "a.mp4"}, {"out": "b.mp4", "stepps": 1}], "run 2: There is no setting 'stepps'"),
        ([{"out": "a.mp4", "mask-seed": 1, "mask_seed": 2}], "run 1: The setting 'mask_seed' occurs twice"),
        ([{"out": "a.mp4"}, {"out": "b.mp4", "steps": 0}], "run 2: 'steps' is 0. Expected an integer of at least 1"),
        ([{"out": "a.mp4"}, {"out": "b.mp4", "image": "no.png"}], "run 2: 'image': There is no file {folder}/no.png"),
        ([{"out": "a.mp4"}, {"out": "b.mp4", "use": ["motion"]}], "run 2: 'use' motion requires a source"),
        ([{"out": "a.mp4", "sheet": "s.png"}, {"out": "b.mp4", "sheet": "s.png"}], "Run 1 also writes {folder}/s.png"),
        ([], "contains no runs"),
        (["a.mp4"], "contains no runs"),
    ],
)
def test_all_runs_are_checked_before_the_first_starts(tmp_path, tiny_checkpoint, loads, capsys, runs, message):
    path = write_runs(tmp_path, tiny_checkpoint, runs)
    assert vc("compose", "--batch", path) == 2
    error = last_line(capsys)
    assert error.startswith(f"vc: {path}") and message.format(folder=tmp_path) in error
    assert not loads and list(tmp_path.iterdir()) == [path]


def test_a_file_of_runs_with_other_keys(tmp_path, capsys):
    (tmp_path / "runs.yaml").write_text("runs: [{out: a.mp4}]\ndefault: {steps: 1}\n")
    assert vc("compose", "--batch", tmp_path / "runs.yaml") == 2
    assert "has unknown keys: default. Expected a list of runs" in last_line(capsys)


def test_a_file_of_the_other_kind(tmp_path, capsys):
    (tmp_path / "one.yaml").write_text("batch-size: 2\nout: a.mp4\n")
    assert vc("compose", "--batch", tmp_path / "one.yaml") == 2
    assert "contains the settings of one run" in (error := last_line(capsys))
    assert f"Use --from {tmp_path / 'one.yaml'}" in error
    (tmp_path / "many.yaml").write_text("- {out: a.mp4}\n")
    assert vc("compose", "--from", tmp_path / "many.yaml") == 2
    assert "For a list of settings, use --batch instead of --from." in last_line(capsys)


def test_defaults_of_runs_may_be_spelled_in_another_way(tmp_path):
    (tmp_path / "runs.yaml").write_text(
        "defaults: {batch_size: 2}\nruns: [{out: a.mp4}, {batch-size: 3, out: b.mp4}]\n"
    )
    assert [run.batch_size for run in running.gather_many(tmp_path / "runs.yaml", {})] == [2, 3]


def test_ctrl_c_ends_many_runs(tmp_path, tiny_checkpoint, monkeypatch):
    path = write_runs(tmp_path, tiny_checkpoint, [{"out": f"{i}.mp4"} for i in range(3)])
    done, compose = [], running.run

    def run(*arguments):
        if done:
            raise KeyboardInterrupt
        done.append(compose(*arguments))
        return done[-1]

    monkeypatch.setattr(running, "run", run)
    assert vc("compose", "--batch", path) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.mp4", "runs.yaml"]
