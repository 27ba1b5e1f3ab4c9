"""The command line: its outputs, repeated runs, many runs, and a clear message with status 2 for every user error."""

import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vc_core import Tiling, Windows, cli, pipeline, terminal
from vc_core.checkpoint.reading import BUNDLED_LORA
from vc_core.commands import compose as running
from vc_core.commands.record import read_record
from vc_core.commands.settings import TITLES, Settings, as_option
from vc_core.demo import draw_clip
from vc_core.diffusion.samplers import Sampling
from vc_core.video import probe, write_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A short clip with an unusual aspect ratio."""
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
    """`./vc compose` with the tiny checkpoint, two steps and no enlargement."""
    return lambda *arguments: vc(
        "compose", "--checkpoint", tiny_checkpoint, "--steps", 2, "--scale", 1, *[str(a) for a in arguments]
    )


def vc(*arguments):
    return cli.main([str(argument) for argument in arguments])


def frames_of(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def last_line(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


# --- compose --------------------------------------------------------------------------------------------------------


def test_a_distilled_checkpoint_is_sampled_as_such(tiny_checkpoint, tmp_path, capsys):
    out, again = tmp_path / "out.mp4", tmp_path / "again.mp4"
    few = ["--checkpoint", tiny_checkpoint, "--few-steps", "yes", "--device", "cpu"]
    assert cli.main(["compose", *map(str, [*few, "--text", "a", "-o", out])]) == 0
    assert "4 steps of lcm, guidance 1" in capsys.readouterr().out
    assert cli.main(["compose", "--from", str(out), "-o", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()
    record = read_record(out).settings
    assert (record.few_steps, record.sampler, record.steps, record.guidance) == (True, "lcm", 4, 1.0)


def test_the_bundled_lora_composes_in_four_steps_and_is_repeated_from_any_folder(tmp_path, capsys, monkeypatch):
    out, again = tmp_path / "out.mp4", tmp_path / "again.mp4"
    few = ["--lora", "bundled", "--frames", "2", "--device", "cpu", "--text", "a red circle", "-o", str(out)]
    assert cli.main(["compose", *few]) == 0
    assert "4 steps of lcm, guidance 1" in capsys.readouterr().out
    (file,) = read_record(out).inputs["lora"]
    assert (file["path"], file["name"]) == ("bundled", BUNDLED_LORA.name)
    elsewhere = tmp_path / "elsewhere" / BUNDLED_LORA.name
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(BUNDLED_LORA.read_bytes())
    for module in ("record", "setting_types"):  # another installation
        monkeypatch.setattr(f"vc_core.commands.{module}.BUNDLED_LORA", elsewhere)
    assert cli.main(["compose", "--from", str(out), "-o", str(again)]) == 0
    assert read_record(again).settings.lora == {elsewhere: 1.0}


def test_compose_with_everything(compose, clip, picture, tmp_path, capsys):
    out, sheet = tmp_path / "out.mp4", tmp_path / "sheet.png"
    status = compose(
        "--video", clip, "--use", "motion,sketch,mask", "--mask", picture, "--image", picture, "--sketch", picture,
        "--style", picture, "--text", "a red circle", "--negative", "grey", "--strength", "motion=0.5",
        "--schedule", "style=0:0.6", "--size", "48x32", "--scale", "2", "-o", out, "--sheet", sheet,
    )  # fmt: skip
    assert status == 0
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert (stream.codec.name, stream.pix_fmt) == ("h264", "yuv420p")
    assert frames_of(out).shape == (3, 64, 96, 3)
    assert probe(out).rate == 5  # the plan's rate: a clip of 0.75 s has only 3 frames at 4 per second
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{out}: 3 frames of 96x64, 5 per second, seed 0"
    assert lines[
        -1
    ] == "set automatically: 3 frames, guidance 2, 5 frames per second, 5 frames sampled per second of " + (
        "a clip.mp4, cpu in fp32"
    )
    with Image.open(sheet) as image:  # a row for each of the five conditions, the style and the result
        assert image.height > 7 * 128


def test_compose_notes_the_memory_that_it_needs(compose, tmp_path, capsys, monkeypatch):
    words = "--text", "a", "--dtype", "fp16", "--offload", "--steps", "1", "-o"
    assert compose(*words, tmp_path / "little.mp4") == 0
    assert "memory" not in capsys.readouterr().err
    monkeypatch.setattr("vc_core.commands.compose.NOTED", 0)
    assert compose(*words, tmp_path / "much.mp4") == 0
    message = "vc: This run needs about 0.6 GB of memory: 0.0 for weights (fp16, offloaded), 0.6 for the program, and "
    assert message in capsys.readouterr().err
    monkeypatch.setattr("vc_core.memory.available", lambda device: 10**8)
    assert compose(*words, tmp_path / "too-much.mp4") == 0
    assert ". 0.1 GB are free, which is not enough. Try dtype fp8, or a smaller size" in capsys.readouterr().err


def test_every_condition_and_setting_changes_the_video(tiny_composer, clip, picture, tmp_path, monkeypatch):
    composed, inner = [], pipeline.compose

    def watched(*arguments, **settings):
        composed.append(inner(*arguments, **settings))
        return composed[-1]

    monkeypatch.setattr(pipeline, "compose", watched)
    source = {"video": clip, "use": ("motion",)}
    variants = {
        "none": {},
        "motion": source,
        "off": {**source, "strength": {"motion": 0}},
        "image": {"image": picture},
        "style": {"style": picture},
        "init": {"init": clip, "denoise": 0.5},
        "seed": {"seed": 1},
        "text": {"text": "a"},
        "rescale": {"text": "a", "rescale": 1},
        "guidance": {"condition_guidance": 3, "image": picture},
        "eta": {"sampler": "ddim", "eta": 1},
        "prompts": {"text": "a", "vgen_prompts": True},
    }
    for values in variants.values():
        running.run(Settings(**values, steps=2, scale=1, out=tmp_path / "out.mp4"), tiny_composer)
    videos = dict(zip(variants, composed, strict=True))
    assert torch.equal(videos["none"], videos.pop("off"))
    assert [(a, b) for a in videos for b in videos if a < b and torch.equal(videos[a], videos[b])] == []


def test_what_reaches_compose(compose, monkeypatch, tmp_path, tiny_config):
    passed = {}

    def composed(composer, text, **settings):
        passed.update(settings, text=text)
        return torch.zeros(2, 3, 7, 16, 24)

    monkeypatch.setattr("vc_core.pipeline.compose", composed)
    options = {
        "frames": 7, "size": "24x16", "batch_size": 2, "seed": 5, "sampler": "ddim", "eta": 0.5, "guidance": 4,
        "condition_guidance": 2, "rescale": 0.5, "window": 4, "overlap": 1, "chunk": 2, "tile": 64, "text": "a",
        "negative": "b",
    }  # fmt: skip
    assert compose(*[word for name, value in options.items() for word in (as_option(name), value)],
                   "-o", tmp_path / "out.mp4") == 0  # fmt: skip
    assert callable(passed.pop("progress"))
    sampling = Sampling(
        "ddim", 2, 1.0, 0.5, guidance=4, condition_guidance=2, rescale=0.5, windows=Windows(4, 1, carry=0.5)
    )
    assert passed == {
        "text": {0: "a"}, "negative": "b", "conditions": [], "style": None, "init": None, "sampling": sampling,
        "frames": 7, "denoise_mask": None, "size": (16, 24), "batch": 2, "seed": 5, "tiling": Tiling(2, 64),
    }  # fmt: skip
    assert len([path for path in tmp_path.iterdir() if path.suffix == ".mp4"]) == 2


def test_a_strength_far_above_that_of_the_training_is_noted(compose, tmp_path, capsys):
    for strength, noted in ((5, True), (2, False)):
        assert compose("--pan=0.2,0", "--strength", f"motion={strength}", "-o", tmp_path / f"{strength}.gif") == 0
        assert (f"The strength of 'motion' is {strength}. " in capsys.readouterr().out) == noted


@pytest.mark.parametrize(
    ("frames", "options", "expected"),
    [
        (3, {}, (None, None)),
        (4, {}, (3, 1)),
        (4, {"window": 8}, (8, 4)),  # one window instead of the default windows
        (9, {"window": 8, "overlap": 0}, (8, 0)),
        (9, {"overlap": 2}, (3, 2)),
    ],
)
def test_windows_of_long_videos(tiny_config, frames, options, expected):
    full, _ = running.fill_in(Settings(frames=frames, **options), tiny_config)
    assert (full.window, full.overlap) == expected


@pytest.mark.parametrize("name", ["out.mp4", "out.webm", "out.gif", "out.webp", "out"])
def test_every_output_format_contains_the_record(compose, tmp_path, name):
    out = tmp_path / name
    assert compose("--text", "ein „Kreis“; a=b\n\\", "--guidance", "3", "-o", out, "--sheet", tmp_path / "s.png") == 0
    for path in (out, tmp_path / "s.png"):
        settings = read_record(path).settings
        assert settings.text == "ein „Kreis“; a=b\n\\"
        assert (settings.guidance, settings.frames, settings.size, settings.steps) == (3.0, 3, (32, 40), 2)
        assert settings.out is None


def test_the_record_of_an_output_file(compose, tiny_checkpoint, clip, picture, tmp_path):
    out = tmp_path / "out.mp4"
    assert compose("--video", clip, "--use", "motion,mask", "--mask", picture, "-o", out) == 0
    record = read_record(out)
    assert record.settings.fps == 5 and record.settings.size == (32, 40) and record.settings.guidance == 2
    assert {name: [file["sha256"] for file in files] for name, files in record.inputs.items()} == {
        name: [hashlib.sha256(Path(path).read_bytes()).hexdigest()]
        for name, path in (("video", clip), ("mask", picture), ("checkpoint", tiny_checkpoint))
    }
    assert record.versions["torch"] == torch.__version__.split("+")[0] or record.versions["torch"] == torch.__version__
    assert record.machine["device"] == "cpu" and record.machine["threads"] == torch.get_num_threads()
    assert {"vc_core", "torch", "av", "diffusers"} == set(record.versions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--video", "none.mp4", "--use", "motion"], "--video: There is no file none.mp4. Check the path."),
        (["--video", "CLIP"], "Choose the conditions to extract from it"),
        (["--use", "motion"], "Add --video FILE"),
        (["--video", "CLIP", "--use", "smell"], "Unknown condition 'smell'"),
        (["--video", "CLIP", "--use", "mask"], "requires a mask"),
        (["--video", "CLIP", "--use", "depth"], "Pass depth maps of the clip (--depth-maps), or run ./vc get midas"),
        (["--video", "PICTURE", "--use", "motion"], "picture.png"),
        (["--video", ".", "--use", "motion"], "Expected a video, but . is a folder without images"),
        (["--video", "CLIP", "--use", "motion", "--frames", "500"], "too short"),
        (["--image", "CLIP"], "cannot be read as an image"),
        (["--image", "none.png"], "none.png"),
        (["--mask", "PICTURE"], "Add mask to --use"),
        (["--size", "30x30"], "--size is 30x30. Expected multiples of 8"),
        (["--size", "large"], "Expected WIDTHxHEIGHT"),
        (["--strength", "motion=much"], "Expected NAME=NUMBER, e.g. motion=0.5"),
        (["--strength", "motion"], "--strength is motion. Expected NAME=NUMBER, e.g. motion=0.5"),
        (["--strength", "text"], "Set the text with --text, and its strength with --guidance"),
        (["--strength", "text=0.5"], "Set the text with --text, and its strength with --guidance"),
        (["--schedule", "style"], "Expected NAME=START:END, e.g. style=0:0.6"),
        (["--lora", "a.pth=big"], "--lora: There is no file a.pth=big. A strength is a number: FILE=0.8."),
        (["--video", "CLIP", "--use", "image"], "For the first frame, use single_image"),
        (["--video", "CLIP", "--use", "style"], "Set the style with --style FILE"),
        (
            ["--video", "CLIP", "--use", "motion", "--start", "60"],
            "is 0.75 seconds long, so it has no frames from 60 s on",
        ),
        (["--strength", "motion=0.5"], "names conditions that are not used: motion"),
        (["--schedule", "style=0.9:0.1"], "Expected 0 <= start <= end <= 1"),
        (["--sampler", "eulr"], "--sampler is eulr. Expected one of dpmpp_2m"),
        (["--scale", "0"], "--scale is 0. Expected an integer from 1 to 64"),
        (["--fps", "0"], "--fps is 0. Expected a number above 0 and at most 1000"),
        (["--fps", "nan"], "--fps is nan. Expected a number"),
        (["--seed", "99999999999999999999"], "--seed is 99999999999999999999. Expected an integer from 0"),
        (["--image", "", "--text", "a"], "--image is empty. Expected a path"),
        (["--checkpoint", "none.safetensors"], "--checkpoint: There is no file none.safetensors."),
        (["--checkpoint", "CLIP"], "a clip.mp4 is an image or a video, not a checkpoint"),
        (["--parts", "none.bin"], "none.bin"),
        (["--device", "toaster"], "Expected auto, cpu"),
        (["--sheet", "sheet.jpg"], "A contact sheet is a .png file, but its name is sheet.jpg"),
        (["--init", "CLIP"], "has no effect at --denoise 1"),
        (["--from", "none.yaml"], "The settings file none.yaml does not exist"),
        (["--from", "CLIP"], "a clip.mp4"),
        (["--batch", "none.yaml"], "--out and --batch exclude each other"),
    ],
)
def test_bad_input(tiny_checkpoint, clip, picture, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    names = {"CLIP": clip, "PICTURE": picture}
    checkpoint = [] if "--checkpoint" in arguments else ["--checkpoint", tiny_checkpoint]
    status = vc("compose", *checkpoint, *[names.get(a, a) for a in arguments], "--steps", 2, "-o", "out.mp4")
    error = last_line(capsys)
    assert status == 2
    assert error.startswith("vc: ")
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written(compose, tmp_path, capsys, clip, monkeypatch):
    assert compose() == 2
    assert "The output has no name. Add --out" in capsys.readouterr().err
    assert compose("-o", tmp_path / "out.avi") == 2
    assert ".mp4" in capsys.readouterr().err
    assert compose("-o", tmp_path / "no" / "out.mp4") == 2
    assert "its folder does not exist" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    (tmp_path / "folder.mp4").mkdir()
    monkeypatch.setattr("vc_core.commands.compose.load", None)  # these errors are raised before anything is loaded
    assert compose("-o", tmp_path / "mine") == 2
    assert "thesis.txt" in capsys.readouterr().err
    assert compose("-o", tmp_path / "folder.mp4") == 2
    assert "is a folder" in capsys.readouterr().err
    assert compose("--fps", 100, "-o", tmp_path / "out.gif") == 2
    assert "100 frames per second" in capsys.readouterr().err
    copy = shutil.copy(clip, tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    assert compose("--video", copy, "--use", "motion", "-o", "clip.mp4") == 2
    assert "would overwrite the input of --video" in capsys.readouterr().err
    assert copy.read_bytes() == clip.read_bytes()


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(Exception, match=r"--checkpoint: There is no file .*none"):
        vc("compose", "--debug", "--checkpoint", tmp_path / "none", "-o", tmp_path / "out.mp4")


def test_a_bug_of_ours_prints_one_line_too(compose, tmp_path, capsys, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("vc_core.pipeline.compose", broken)
    assert compose("-o", tmp_path / "out.mp4") == 1
    error = capsys.readouterr().err
    assert "Unexpected ZeroDivisionError: division by zero. Run the command with --debug" in error
    assert "Traceback" not in error


def test_a_truncated_video(compose, clip, tmp_path, capsys):
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:1500])
    assert compose("--video", tmp_path / "cut.mp4", "--use", "motion", "-o", tmp_path / "out.mp4") == 2
    assert "cut.mp4" in capsys.readouterr().err
    assert not (tmp_path / "out.mp4").exists()


def test_help_lists_every_setting_in_groups(capsys):
    with pytest.raises(SystemExit) as exit:
        vc("compose", "--help")
    assert exit.value.code == 0
    out = capsys.readouterr().out
    for name, title in TITLES.items():
        assert f"{as_option(name)} " in out or f"{as_option(name)}," in out
        assert f"\n {title}\n" in out
    assert "│" not in out and "\x1b" not in out
    first = out.split("\n\n ")[1]
    assert first.startswith("what most runs need\n")
    assert re.findall(r"--(\w+) [A-Z]+", first) == ["text", "image", "video", "use", "checkpoint", "out"]


def test_the_examples_of_the_help_run(clip, picture, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(clip, "clip.mp4")
    shutil.copy(picture, "first.png")
    with pytest.raises(SystemExit):
        vc("compose", "--help")
    examples = re.findall(r"^  \./vc (.*)", capsys.readouterr().out, re.MULTILINE)
    assert len(examples) == 3
    for example in examples:
        words = shlex.split(example)
        assert vc(*words, "--checkpoint", tiny_checkpoint, "--steps", 1) == 0
        assert Path(words[-1]).is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["componse"], "Unknown command componse. Did you mean 'compose'? Expected one of test, "),
        (["bench", "netwrk"], "Unknown benchmark netwrk. Did you mean 'network'?"),
        (["compose", "--txt", "a"], "Unknown option --txt. Did you mean --text? See ./vc compose --help."),
        (["compose", "--stesp=4"], "Unknown option --stesp. Did you mean --steps?"),
        (["compose", "--smell", "a"], "Unknown option --smell. See"),
        (["compose", "--text", "red", "red"], 'Put text with spaces in quotes: --text "red red".'),
        (
            ["compose", "--text", "a", "red", "circle"],
            "Unexpected word 'red'. Put text with spaces in quotes: --text \"a red circle\".",
        ),
        (["compose", "--offload", "red"], "Unexpected word 'red'. Put its option in front of it, or remove it."),
        (["compose", "--max-megapixels", "x"], "--max-megapixels is x. Expected megapixels above 0"),
        (["extract"], "Missing: KIND (condition to extract: motion, "),
        (["extract"], "style), FILE, --out OUT. Expected ./vc extract KIND FILE --out OUT. See ./vc extract --help."),
        (["extract", "-o", "x"], "style), FILE. Expected ./vc extract KIND FILE [OPTIONS]."),
        (["extract", "motino", "a.mp4", "-o", "x"], "KIND is motino. Expected one of motion, "),
        (["extract", "motino", "a.mp4", "-o", "x"], "Did you mean 'motion'?"),
        (["convert", "a"], "Expected ./vc convert IN OUT."),
        (["demo", "--seed", "x"], "--seed is x. Expected an integer. See ./vc demo --help."),
        (["demo", "-o"], "--out has no value. Add one after it."),
    ],
)
def test_wrong_command_lines_say_what_to_write(words, message, capsys):
    try:
        status = vc(*words)
    except SystemExit as exit:
        status = exit.code
    error = capsys.readouterr().err
    assert status == 2 and message in error and error.count("\n") == 1


# --- Ctrl-C ---------------------------------------------------------------------------------------------------------


def test_ctrl_c_leaves_nothing(compose, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **settings):
        settings["progress"]("sampling", 1, 20)
        raise KeyboardInterrupt

    monkeypatch.setattr("vc_core.pipeline.compose", interrupted)
    assert compose("-o", tmp_path / "out.mp4") == 130
    assert "interrupted" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT to one process is POSIX's")
@pytest.mark.parametrize("what", ["sampling", "writing"])
def test_ctrl_c_ends_within_a_step(compose, tmp_path, monkeypatch, what):
    """The real signal, in the middle of the real work."""
    # A process that a shell starts in the background ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    reports, inner = [], terminal.Bars.__call__

    def report(self, *progress):
        inner(self, *progress)
        reports.append(progress[:2])
        if progress[:2] == (what, 2):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(terminal.Bars, "__call__", report)
    (tmp_path / "out.mp4").write_bytes(b"an older one")
    try:
        assert compose("--frames", 16, "--steps", 500 if what == "sampling" else 1, "-o", tmp_path / "out.mp4") == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert reports[-1] == (what, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"an older one"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT to one process is POSIX's")
def test_ctrl_c_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-m", "vc_core", "compose", "--steps", "900", "--frames", "4", "-o", "out.mp4"]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=tmp_path, env=environment) as process:
        output = b""
        while b"sampling" not in output:
            output += (read := os.read(process.stderr.fileno(), 4096))
            assert read, output.decode()
        process.send_signal(signal.SIGINT)
        output += process.stderr.read()
        assert process.wait() == 130
    assert b"900/900" not in output
    assert b"vc: interrupted" in output and b"Traceback" not in output
    assert list(tmp_path.iterdir()) == []


# --- Progress -------------------------------------------------------------------------------------------------------


def test_only_slow_work_gets_a_bar(capsys):
    with terminal.progress_bars() as progress:
        for done in range(1, 4):
            progress("hashing", done, 3)
        assert capsys.readouterr().err == ""
        for done in range(1, 4):
            time.sleep(0.3)
            progress("sampling", done, 3)
    error = capsys.readouterr().err
    assert "sampling" in error and "3/3" in error and "hashing" not in error
