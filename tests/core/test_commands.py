"""The commands of `./vc` that start other programs, and the command line as a program."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from vc_core import cli
from vc_core.checkpoint.reading import BUNDLED_LORA


def vc(*arguments):
    return cli.main([str(argument) for argument in arguments])


def test_info(tiny_checkpoint, capsys):
    assert vc("info", tiny_checkpoint) == 0
    out = capsys.readouterr().out
    assert "tiny" in out and "vae: the autoencoder in the layout taesd, 2.4 M parameters" in out and "SHA-256" in out
    assert "\n  sampling_rate: 4 frames per second of a clip\n" in out
    assert json.loads(out[out.index("{") :])["unet"]["width"] == 32


def test_info_on_a_lora(tmp_path, capsys):
    assert vc("info", BUNDLED_LORA) == 0
    out = capsys.readouterr().out
    assert "LoRA of rank 32 for 193 layers, 4." in out and "fits: VideoComposer small" in out
    assert "distilled for few steps: 4 steps of lcm, guidance scale 1" in out
    assert vc("info", BUNDLED_LORA, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["layers"] == 193 and report["few_steps"] and report["training"]["weights"] == "averaged"
    assert vc("info", BUNDLED_LORA, "--few-steps", "no") == 2
    assert "--few-steps has no effect on" in capsys.readouterr().err
    # SD 2.1's key, which the released network has too
    halves = {"lora_down": torch.ones(2, 1024), "lora_up": torch.ones(320, 2)}
    key = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k"
    save_file({f"{key}.{half}.weight": tensor for half, tensor in halves.items()}, tmp_path / "style.safetensors")
    assert vc("info", tmp_path / "style.safetensors") == 0
    assert "LoRA of rank 2 for 1 layer, 0.0 MB" in (out := capsys.readouterr().out) and "fits: VideoComposer\n" in out
    save_file({f"other.{half}.weight": tensor for half, tensor in halves.items()}, tmp_path / "style.safetensors")
    assert vc("info", tmp_path / "style.safetensors") == 2
    assert "contains no LoRA for this network" in capsys.readouterr().err


def test_benchmarks_import_each_other_as_the_launcher_starts_them(repository):
    environment = {**os.environ, "PYTHONPATH": str(repository), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "vc_core", "bench", "peer", "--help"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0 and "--peer PEER" in run.stdout


def test_all_benchmarks_can_be_imported(repository):
    names = sorted(path.stem for path in (repository / "benchmarks").glob("*.py"))
    path = os.pathsep.join([str(repository / "benchmarks"), str(repository)])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", f"import {', '.join(names)}"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_module_runs_as_the_launcher_does(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "vc_core", "info", str(tmp_path / "none.pth")], capture_output=True, text=True
    )
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize("xdist", [None, "installed"])
@pytest.mark.parametrize(
    ("arguments", "passed"),
    [
        (["test", "-k", "two words", "-n", "3"], ["-m", "not slow", "-k", "two words", "-n", "3"]),
        (["test", "--all", "-x"], ["-x"]),
    ],
)
def test_arguments_of_test_go_to_pytest(monkeypatch, repository, arguments, passed, xdist):
    """With pytest-xdist one process per core; the user's own -n comes later and so overrides it."""
    calls = []
    monkeypatch.setattr(cli, "find_spec", lambda name: xdist)
    monkeypatch.setattr(subprocess, "call", lambda command, **settings: calls.append((command, settings)) or 7)
    assert vc(*arguments) == 7
    ((command, settings),) = calls
    assert command == [sys.executable, "-m", "pytest", *(["-n", "auto"] if xdist else []), *passed]
    assert settings["cwd"] == repository


@pytest.mark.parametrize(
    ("name", "module"),
    [("clean", "training.data.clean"), ("prepare", "training.data.prepare"), ("train", "training"),
     ("export", "training.export"), ("evaluate", "training.evaluate")],
)  # fmt: skip
@pytest.mark.parametrize("system", ["posix", "nt"])
def test_training_programs_replace_the_process_if_they_can(monkeypatch, repository, name, module, system):
    """So that a signal to the command reaches the training, which saves before it exits."""
    calls = []
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    monkeypatch.setattr(subprocess, "call", lambda command, env: calls.append((command[0], command, env)) or 7)
    monkeypatch.setattr("vc_core.cli.os.name", system)
    status = vc(name, "a b", "--minutes", "3")
    monkeypatch.undo()
    assert status == (7 if system == "nt" else None)
    ((program, command, environment),) = calls
    assert (program, command) == (sys.executable, [sys.executable, "-m", module, "a b", "--minutes", "3"])
    assert environment["PYTHONPATH"].startswith(str(repository))


def test_train_names_the_bundled_checkpoints(repository):
    run = subprocess.run([sys.executable, "-m", "training"], capture_output=True, text=True, cwd=repository)
    assert run.returncode == 2
    assert "vc train bundled --minutes" in run.stderr and "synthetic.yaml" in run.stderr


def test_torch_settings_are_unchanged():
    assert torch.is_grad_enabled()
