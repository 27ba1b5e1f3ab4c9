"""The trainer: complete runs of a tiny network on synthetic scenes, with all kinds of interruptions."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from tests.disks import everything_in, files_up_to, limit_files
from tests.training.interrupted import train_interrupted
from tests.training.test_data_foreign import write_tar
from training.data.sample import Batch, Sample
from training.engine import checkpoints, read_state
from training.export import export
from training.lock import FILE, locked
from training.log import Log, domain_names
from training.lora import add_lora, save_lora
from training.ranks import Lane, World
from training.recipe import Domain, as_plain, from_plain, read_recipe
from training.trainer import changed, train
from vc_core.checkpoint.conversion import convert
from vc_core.checkpoint.loading import load_unet
from vc_core.checkpoint.reading import read_checkpoint, save_checkpoint
from vc_core.config import AutoencoderConfig, Config, DiffusionConfig, ExtractionConfig, TowersConfig, UNetConfig
from vc_core.errors import UserError
from vc_core.model.unet import UNet3D
from vc_core.pipeline import compose
from vc_core.video import probe

CONFIG = Config(
    name="tiny",
    frames=3,
    height=32,
    width=32,
    guidance=2.0,
    unet=UNetConfig(
        width=32, multipliers=(1,), res_blocks=1, attention_levels=(), head_dim=16, temporal_in_heads=1, context_dim=16,
    ),
    diffusion=DiffusionConfig(prediction="v_prediction"),
    extraction=ExtractionConfig(motion_layout="dense", motion_unit="pixels", sketch="edges", depth="relative"),
    autoencoder=AutoencoderConfig("taesd", 1.0),
    towers=TowersConfig(16, 16, 2, 2, 32, 16, 32, 16, 1),
)  # fmt: skip
"""With dropout in the network: its random numbers must be the same after a resume."""

RECIPE = """
height: 32
width: 32
start: {network: net.json, parts: [parts.safetensors]}
data:
  - {kind: synthetic, frames: 3, batch: 2, count: 5}
  - {kind: synthetic, frames: 1, batch: 1, count: 5}
optimizer: {learning_rate: 1e-3, warmup: 2, ema: 0.9}
engine: {device: cpu, keep: 9}
watch: {log_every: 1}
"""


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    from vc_core.checkpoint.loading import to_taesd_layout
    from vc_core.encoders.autoencoder import new_autoencoder
    from vc_core.encoders.clip import new_towers

    folder = tmp_path_factory.mktemp("recipe")
    torch.manual_seed(1)
    towers = new_towers(CONFIG.towers).state_dict()
    parts = {
        "vae": to_taesd_layout(new_autoencoder()),
        "text": {k: v for k, v in towers.items() if not k.startswith("visual.")},
        "image": {k.removeprefix("visual."): v for k, v in towers.items() if k.startswith("visual.")},
    }
    save_checkpoint(folder / "parts.safetensors", CONFIG, parts)
    (folder / "net.json").write_text(CONFIG.to_json())
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


@pytest.fixture
def make(recipe_file, tmp_path):
    """Returns the recipe with options, in its own folder."""
    return lambda *options: read_recipe(recipe_file, ["--out", str(tmp_path / "run"), *options])


@pytest.fixture(scope="module")
def straight(recipe_file, tmp_path_factory):
    """Folder of a run of 8 steps without an interruption."""
    out = tmp_path_factory.mktemp("straight")
    assert train(read_recipe(recipe_file, ["--out", str(out), "--steps", "8", "--engine.save-every", "4"])) == 0
    return out


def lines(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def tensors(checkpoint):
    return {name: t for file in sorted(checkpoint.glob("*.safetensors")) for name, t in load_file(file).items()}


def assert_equal_runs(first, second):
    """Check for the same weights, averages and optimizer, bit for bit, and the same losses and samples in each step."""
    ours, theirs = (tensors(checkpoints(run)[-1]) for run in (first, second))
    assert ours.keys() == theirs.keys()
    assert {name.split(".")[0] for name in ours} == {"weights", "average", "optimizer"}
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    of_time = ("seconds", "clips_per_second", "frames_per_second", "memory_gib")
    logs = [[{k: v for k, v in line.items() if k not in of_time} for line in lines(run)] for run in (first, second)]
    assert logs[0] == logs[1]
    assert [line["step"] for line in logs[0]] == list(range(1, len(logs[0]) + 1))


@pytest.mark.skipif(os.name == "nt", reason="signals do not kill there")
def test_a_run_killed_and_then_terminated_is_the_same_run(recipe_file, straight, tmp_path, repository):
    """8 steps: 4 and SIGKILL, some more and SIGTERM, then the rest."""
    options = ["--out", str(tmp_path), "--steps", "8", "--engine.save-every", "4"]
    program = [sys.executable, str(repository / "tests" / "training" / "interrupted.py"), "6", str(recipe_file)]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    killed = subprocess.run([*program, *options], env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000004"]
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 6))

    recipe = read_recipe(recipe_file, options)
    assert train_interrupted(recipe, signal.SIGTERM, 7) == 143
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000004", "step-00000007"]
    assert train(recipe) == 0
    assert_equal_runs(tmp_path, straight)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_leaves_within_a_step(make, capsys, number, status):
    recipe, before = make("--steps", "9"), signal.getsignal(number)
    assert train_interrupted(recipe, number, 2) == status
    assert signal.getsignal(number) is before
    assert [path.name for path in checkpoints(recipe.out)] == ["step-00000002"]
    assert [line["step"] for line in lines(recipe.out)] == [1, 2]
    assert f"stopped by {number.name}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals do not reach other processes there")
def test_a_signal_to_all_processes_of_a_run_saves_too(recipe_file, tmp_path, repository):
    """As torchrun and service managers send it, while a worker reads samples."""
    command = [sys.executable, "-m", "training", str(recipe_file), "--out", str(tmp_path), "--engine.workers", "1"]
    run = subprocess.Popen(command, cwd=repository, start_new_session=True, stdout=subprocess.PIPE, text=True)
    try:
        while run.poll() is None and not ((tmp_path / "log.jsonl").exists() and len(lines(tmp_path)) > 2):
            time.sleep(0.1)
        os.killpg(run.pid, signal.SIGTERM)
        output, _ = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 143 and "stopped by SIGTERM" in output
    assert read_state(checkpoints(tmp_path)[-1])["step"] == lines(tmp_path)[-1]["step"]


def test_ranks_without_torchrun_learn_the_same_as_one_process(recipe_file, tmp_path, repository, capsys):
    """The same samples in each step, and the same weights except for rounding. A run continues with fewer ranks."""
    config = replace(CONFIG, unet=replace(CONFIG.unet, dropout=0.0, stc_dropout=0.0))
    (tmp_path / "net.json").write_text(config.to_json())
    plain = as_plain(read_recipe(recipe_file, ["--start.network", str(tmp_path / "net.json"), "--steps", "3"]))
    recipe = from_plain({**plain, "data": plain["data"][:1], "out": str(tmp_path / "one")})
    assert train(recipe) == 0
    command = [sys.executable, "-m", "training", str(tmp_path / "one" / "recipe.yaml"), "--out", str(tmp_path / "two")]
    run = subprocess.run([*command, "--ranks", "2", "--steps", "2"], cwd=repository, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "on 2 ranks (ddp)" in run.stderr and run.stdout.count("is complete. Export it") == 1
    assert train(replace(recipe, out=tmp_path / "two")) == 0
    printed = capsys.readouterr()
    assert "on 2 ranks" not in printed.err and printed.out.count("is complete. Export it") == 2
    ours, theirs = (tensors(checkpoints(tmp_path / name)[-1]) for name in ("one", "two"))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    for mine, other in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert mine["samples"] == other["samples"]
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert other["frames_per_second"] == pytest.approx(3 * other["clips_per_second"])


def test_a_user_error_of_all_ranks_is_printed_once(recipe_file, tmp_path, repository):
    options = ["--out", str(recipe_file), "--ranks", "2", "--optimizer.accumulate", "2"]
    command = [sys.executable, "-m", "training", str(recipe_file), *options]
    run = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert run.returncode == 2 and "cannot be created" in run.stderr
    assert run.stderr.count("vc: ") == 1


def test_the_position_in_the_data_is_saved(straight):
    """A step uses two videos and one image, and numbers alternate between the domains."""
    assert read_state(checkpoints(straight)[-1])["samples"] == [16, 8]
    assert from_plain(read_state(checkpoints(straight)[-1])["recipe"]).steps == 8
    assert read_recipe(straight / "recipe.yaml").steps == 8


def test_a_finished_run_does_nothing_and_more_steps_continue_it(make, capsys):
    assert train(make("--steps", "1")) == 0
    assert "new weights: everything" in capsys.readouterr().err
    remains = make().out / "checkpoints" / ".step-00000007.part"  # from a run that was killed while it saved
    remains.mkdir()
    assert train(make("--steps", "1")) == 0
    assert len(lines(make().out)) == 1 and not remains.exists()
    capsys.readouterr()
    assert train(make("--steps", "2", "--optimizer.clip", "0.5")) == 0
    assert len(lines(make().out)) == 2
    output = capsys.readouterr().err
    assert "optimizer.clip changed from 1.0 to 0.5" in output
    assert "steps changed from 1 to 2" in output


def test_another_number_of_domains_is_an_error(make):
    recipe = make("--steps", "1")
    assert train(recipe) == 0
    text = (recipe.out / "recipe.yaml").read_text()
    with pytest.raises(UserError, match="has 2 domains, but the recipe has 1"):
        train(replace(recipe, data=recipe.data[:1]))
    with pytest.raises(UserError, match="with another network, optimizer"):
        train(replace(recipe, optimizer=replace(recipe.optimizer, ema=0.0)))
    assert (recipe.out / "recipe.yaml").read_text() == text


def test_a_missing_image_tower_or_depth_network_is_reported_before_the_first_step(make, tmp_path):
    recipe = make()
    convert(recipe.start.parts[0], tmp_path / "few.safetensors", parts=["vae", "text"])
    start, data = replace(recipe.start, parts=(tmp_path / "few.safetensors",)), (Domain("folder", tmp_path, frames=3),)
    recipe = replace(recipe, start=start, data=data)
    with pytest.raises(UserError, match=r"image tower.*add style to `without` of each domain"):
        train(recipe)
    with pytest.raises(UserError, match=r"depth model.*add depth to the domain's `without`"):
        train(replace(recipe, data=(replace(data[0], without=("style",)),)))
    with pytest.raises(UserError, match="captions"):  # it gets this far without the two
        train(replace(recipe, data=(replace(data[0], without=("style", "depth")),)))


def test_the_log_of_a_run(straight):
    line = lines(straight)[-1]
    assert line["samples"] == [16, 8]
    assert {"loss", "loss/videos", "loss/images", "norm/spatial", "norm/temporal", "norm/all", "rate/spatial",
            "clips_per_second", "frames_per_second", "memory_gib"} <= line.keys()  # fmt: skip
    assert line["loss"] == pytest.approx((line["loss/videos"] + line["loss/images"]) / 2)
    assert any(re.fullmatch(r"loss/videos/\d+-\d+", name) for name in line)
    assert list((straight / "tensorboard").glob("events*"))


def test_unreadable_samples_are_reported_once_and_counted_at_the_end(make, tmp_path, capsys):
    log = Log(tmp_path, make(), World(), 1000)
    sample = Sample("a", torch.zeros(4, 1, 4, 4))
    for step, bad in enumerate([["one.mp4: gone"], ["two.mp4: gone", "three.mp4: gone"]], 1):
        log.take([(Lane(0, 0, 1), Batch([sample], {}, [step], bad=bad))], [(torch.tensor([1.0]), torch.tensor([step]))])
        log.write(step, {}, {})
    log.close()
    printed = capsys.readouterr().err
    assert printed.count("one.mp4: gone") == 1 and "two.mp4" not in printed
    assert f"3 samples were unreadable and replaced by others; {tmp_path / 'log.jsonl'} lists them" in printed


def test_losses_are_separate_for_each_domain_and_quarter_of_the_schedule(make, tmp_path):
    log = Log(tmp_path, make(), World(), 1000)
    video, image = (Sample(str(frames), torch.zeros(4, frames, 4, 4)) for frames in (3, 1))
    batches = [(Lane(0, 0, 1), Batch([video] * 3, {}, [0, 1, 2], bad=["a clip: gone"])),
               (Lane(1, 0, 1), Batch([image], {}, [3]))]  # fmt: skip
    log.take(batches, [(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 249, 999])),
                       (torch.tensor([4.0]), torch.tensor([500]))])  # fmt: skip
    line = log.write(1, {"all": 1.0}, {"spatial": 0.1})
    log.close()
    assert {name: value for name, value in line.items() if name.startswith("loss")} == {
        "loss": 3.5, "loss/videos": 3.0, "loss/images": 4.0, "loss/videos/0-249": 2.0, "loss/videos/750-999": 5.0,
        "loss/images/500-749": 4.0,
    }  # fmt: skip
    assert (line["bad_samples"], line["bad"]) == (1, ["a clip: gone"])
    assert domain_names([Domain(), Domain(lengths=(1,)), Domain()]) == ["videos0", "images", "videos2"]


def test_a_log_removes_lines_after_the_checkpoint(make, tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    Log(tmp_path, make(), World(), 1000, step=2).close()
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("what", ["all", "lora", "lora_from"])
def test_validation_composes_the_prompts_and_some_samples(make, what, monkeypatch):
    used = []

    def watched(composer, *arguments, **options):
        used.append(composer.unet)
        return compose(composer, *arguments, **options)

    monkeypatch.setattr("training.validation.compose", watched)
    recipe = make("--steps", "2", "--watch.validate-every", "2", "--watch.prompts", "a red circle", "--watch.seeds",
                  "0", "1", "--watch.samples", "1", "--train.what", what.split("_")[0], "--train.lora-on", "spatial",
                  "temporal", "--data.1.weight", "0.5")  # fmt: skip
    if what != "all":
        config = replace(CONFIG, unet=replace(CONFIG.unet, attention_levels=(0,)))
        (recipe.out.parent / "net.json").write_text(config.to_json())
        recipe = replace(recipe, start=replace(recipe.start, network=recipe.out.parent / "net.json"),
                         train=replace(recipe.train, lora_on=("spatial.block",)))  # fmt: skip
    if what == "lora_from":  # on other layers, with another rank, and with an alpha that is not the rank
        lora, unet = recipe.out.parent / "lora.safetensors", UNet3D(config.unet)
        add_lora(unet, 3, 7.5, ["temporal.block"])
        save_lora(lora, unet)
        recipe = replace(recipe, train=replace(recipe.train, lora_from=lora))
    assert train(recipe) == 0
    videos = sorted((recipe.out / "validation" / "step-00000002").iterdir())
    assert [video.name for video in videos] == ["0-seed0.mp4", "0-seed1.mp4", "sample0-seed0.mp4", "sample0-seed1.mp4"]
    assert probe(videos[0]).frames == 3
    export(recipe.out, recipe.out.parent / "whole.safetensors", merge=True, dtype="fp32")
    expected = load_unet(read_checkpoint(recipe.out.parent / "whole.safetensors")).state_dict()
    for name, tensor in used[0].state_dict().items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


def test_a_signal_ends_validation_too(make, monkeypatch):
    composed = []

    def compose(*_, progress, **__):
        composed.append(1)
        signal.raise_signal(signal.SIGTERM)
        progress("sampling", 1, 2)
        raise AssertionError("was not stopped")

    monkeypatch.setattr("training.validation.compose", compose)
    recipe = make("--steps", "5", "--watch.validate-every", "1", "--watch.prompts", "a", "b")
    assert train(recipe) == 143
    assert len(composed) == 1
    assert read_state(checkpoints(recipe.out)[-1])["step"] == 2


def test_differences_of_recipes_are_listed_by_name():
    before = {"a": 1, "b": {"c": [1, 2], "d": 3}, "e": 4}
    assert changed(before, before) == {}
    assert changed(before, {"a": 1, "b": {"c": [1, 5], "d": 3}}) == {"b.c.1": (2, 5), "e": (4, None)}


def test_on_a_full_disk_a_run_stops_and_the_same_command_continues_it(make, tmp_path):
    recipe = make("--steps", "2", "--engine.save-every", "1")
    message = f"{recipe.out / 'checkpoints' / 'step-00000001'} cannot be written (File too large). "
    with files_up_to(300_000), pytest.raises(UserError, match=re.escape(message)):
        train(recipe)
    assert everything_in(recipe.out / "checkpoints") == []
    assert train(recipe) == 0
    assert [path.name for path in checkpoints(recipe.out)] == ["step-00000001", "step-00000002"]
    assert [line["step"] for line in lines(recipe.out)] == [1, 2]


def test_tensorboard_on_a_full_disk_prints_only_the_message(make, tmp_path, capfd):
    recipe = make("--steps", "1")
    log = Log(tmp_path, recipe, World(), 1000)
    with files_up_to(0), pytest.raises(UserError, match="tensorboard cannot be written"):
        for step in range(2000):
            log.video("noise", torch.rand(3, 2, 64, 64), step)
    log.leave()
    assert "Traceback" not in capfd.readouterr().err


def test_a_second_run_in_the_same_folder_names_the_first(make, tmp_path):
    recipe = make()
    recipe.out.mkdir()
    host = re.escape(socket.gethostname())
    with locked(recipe.out, "./vc train"):
        with pytest.raises(UserError, match=rf"run is in use by \./vc train \(process {os.getpid()} on {host}\)"):
            train(recipe)
        assert everything_in(recipe.out) == [FILE]


@pytest.mark.slow
def test_ranks_print_once_that_the_disk_is_full_or_the_folder_is_in_use(recipe_file, tmp_path, repository):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "training", str(recipe_file), "--out", str(out), "--ranks", "2"]
    command += ["--steps", "1", "--optimizer.accumulate", "2"]

    def start(**limits):
        return subprocess.run(command, cwd=repository, capture_output=True, text=True, **limits)

    ended = start(preexec_fn=partial(limit_files, 300_000))
    message = f"vc: {out / 'checkpoints' / 'step-00000001'} cannot be written (File too large). "
    assert ended.returncode == 2 and ended.stderr.count(message) == 1, ended.stderr
    assert "Traceback" not in ended.stderr and everything_in(out / "checkpoints") == []
    with locked(out, "./vc train"):
        ended = start()
    assert (
        ended.returncode == 2
        and ended.stderr.count(f"vc: {out} is in use by ./vc train (process {os.getpid()} on ") == 1
    )
    assert start().returncode == 0


def test_the_command_prints_the_error_and_returns_2(recipe_file, monkeypatch, capsys):
    from training.__main__ import main

    for arguments, status, message in (
        ([], 2, "usage: vc train RECIPE"),
        (["--help"], 0, "training/recipes/stage1.yaml"),
        (["none.yaml"], 2, "vc: Cannot read the recipe none.yaml"),
        (["fintune"], 2, "Did you mean training/recipes/finetune.yaml?"),
        (["--steps", "5"], 2, "vc: The recipe is missing. It comes first."),
        ([str(recipe_file), "--out", str(recipe_file)], 2, "cannot be created"),
    ):
        monkeypatch.setattr(sys, "argv", ["vc train", *arguments])
        assert main() == status
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["shards", "folder"])
def test_shards_of_another_program_are_used_without_preparation(make, videos, tmp_path, kind):
    """The same steps as with the files in them; a sample that failed to download is skipped."""
    steps = {}
    members = {"9.json": json.dumps({"caption": "x", "status": "failed_to_download"})}
    (tmp_path / "files").mkdir()
    for number, name in enumerate(("right", "left", "up")):
        data = (videos / f"{name}.mp4").read_bytes()
        about = json.dumps({"caption": f"goes {name}", "status": "success", "key": str(number)})
        members |= {f"{number}.mp4": data, f"{number}.txt": f"goes {name}", f"{number}.json": about}
        (tmp_path / "files" / f"{number}.mp4").write_bytes(data)
        (tmp_path / "files" / f"{number}.txt").write_text(f"goes {name}")
    write_tar(tmp_path / "shards" / "00000.tar", members)
    (tmp_path / "shards" / "00000.parquet").touch()
    for data_kind, path in ((kind, "shards"), ("folder", "files")):
        out = tmp_path / f"run of {path}"
        domain = Domain(data_kind, tmp_path / path, frames=3, batch=2, without=("depth",))
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            assert train(replace(make("--steps", "3"), out=out, data=(domain,))) == 0
        assert any("without a video" in str(note.message) for note in notes) == (path == "shards")
        steps[path] = [line["loss"] for line in lines(out)]
    assert len(steps["files"]) == 3 and steps["shards"] == steps["files"]
