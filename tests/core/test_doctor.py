"""./vc doctor and the table of models: what is installed, what is missing, and what to do about it."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from vc_core import cli
from vc_core import published as models
from vc_core.commands import doctor
from vc_core.published import KINDS, MODELS, find_models, model_folders


@pytest.fixture
def no_trial(monkeypatch):
    """Skip the trial: it takes seconds and has its own test."""
    monkeypatch.setattr(doctor, "problem", lambda: None)


@pytest.fixture
def small_models(monkeypatch):
    """A table of models with a few bytes each."""
    table = tuple(
        models.ModelFile(name, "for tests", len(content), hashlib.sha256(content).hexdigest(), "https://there", kind)
        for name, content, kind in (("a.pth", b"one", "network"), ("b.safetensors", b"three", "annotator"))
    )
    monkeypatch.setattr(models, "MODELS", table)
    monkeypatch.setattr(doctor, "MODELS", table)
    return table


def test_the_table_of_models():
    sizes = [model.size for model in MODELS if model.size is not None]
    assert len({model.name for model in MODELS}) == len(MODELS) and len(set(sizes)) == len(sizes)
    for model in MODELS:
        assert model.source.startswith("https://") and model.purpose
        assert model.kind in KINDS
        assert model.sha256 is None or (len(model.sha256) == 64 and int(model.sha256, 16))


def test_folders_are_those_of_the_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("VC_MODELS", os.pathsep.join([str(tmp_path / "a"), str(tmp_path / "b")]))
    assert model_folders() == [tmp_path / "a", tmp_path / "b"]
    monkeypatch.delenv("VC_MODELS")
    assert model_folders() == [models.PROJECT / "models"]


def test_models_are_recognized_by_size_or_name_below_the_folders(small_models, tmp_path):
    a, b = small_models
    inner = tmp_path / "vae" / "deep"
    inner.mkdir(parents=True)
    (inner / "renamed.safetensors").write_bytes(b"three")
    (tmp_path / "A.pth").write_bytes(b"cut off")
    (tmp_path / "other.pth").write_bytes(b"something else")
    (tmp_path / "notes.txt").write_bytes(b"one")
    (inner / "back").symlink_to(tmp_path)
    paths = find_models([tmp_path, tmp_path / "none"])
    assert paths == {a: [tmp_path / "A.pth"], b: [inner / "renamed.safetensors"]}
    assert not a.has_size_of(paths[a][0]) and b.has_size_of(paths[b][0])


def test_the_report_of_doctor(small_models, no_trial, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VC_MODELS", str(tmp_path))
    (tmp_path / "a.pth").write_bytes(b"two")  # the right size, but different content
    assert cli.main(["doctor", "--hash"]) == 0
    out = capsys.readouterr().out
    assert "torch 2" in out and " used; weights in fp32" in out and "libx264 for .mp4" in out
    assert "found: a.pth" in out and "SHA-256 WRONG; download it again from https://there" in out
    assert (
        "not installed: b.safetensors" in out and "download: ./vc get b.safetensors, or https://there (5 bytes)" in out
    )
    assert f"folder: {tmp_path}; {KINDS[small_models[1].kind]}; SHA-256" in out
    assert out.rstrip().endswith("Composing with the bundled checkpoint works.")

    (tmp_path / "a.pth").write_bytes(b"one")
    assert cli.main(["doctor", "--hash"]) == 0
    assert "SHA-256 correct" in capsys.readouterr().out
    assert cli.main(["doctor"]) == 0
    assert "SHA-256 correct" not in capsys.readouterr().out


def test_doctor_as_json(no_trial, capsys):
    assert cli.main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert findings["works"] is True
    assert {"python", "libraries", "devices", "codecs", "models", "compiler", "disk"} <= set(findings)
    assert findings["devices"][0]["name"] == "cpu"
    assert [file["name"] for file in findings["models"]["files"]] == [model.name for model in MODELS]


def test_a_library_that_is_missing(monkeypatch, capsys):
    here = doctor._version
    changed = {"einops": None, "av": "1.0"}
    monkeypatch.setattr(doctor, "_version", lambda name: changed[name] if name in changed else here(name))
    assert cli.main(["doctor"]) == 2
    out = capsys.readouterr().out
    assert "einops is missing; expected " in out and "av 1.0 is the wrong version; expected " in out
    last = out.rstrip().splitlines()[-1]
    assert "einops" in last and "av" in last and "./vc --setup" in last


def test_a_test_library_that_is_missing_does_not_stop_composing(monkeypatch):
    def lacking():
        return {item["name"] for item in doctor.libraries() if not item["satisfied"]}

    here, before = doctor._version, lacking()
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "pytest" else here(name))
    monkeypatch.setattr("vc_core.commands.compose.run", lambda settings: None)
    assert doctor.problem() is None
    assert lacking() - before == {"pytest"}


def test_libraries_are_listed_if_pip_installed_the_core_alone(monkeypatch, tmp_path):
    """Without requirements files, the list comes from the metadata of the installed package."""
    monkeypatch.setattr(doctor, "PROJECT", tmp_path)
    named = ["numpy>=1.25,<3", 'pyyaml>=999; extra == "standalone"', 'torch>=2; extra == "standalone"']
    monkeypatch.setattr(doctor.metadata, "requires", {"videocomposer": named}.__getitem__)
    rows = {item["name"]: (item["wanted"], item["satisfied"], item["needed"]) for item in doctor.libraries()}
    assert rows == {
        "numpy": ("<3,>=1.25", True, True),
        "pyyaml": (">=999", False, False),
        "torch": (">=2", True, True),
    }


def test_an_error_of_the_trial_is_reported(monkeypatch, capsys):
    def broken(settings):
        raise OSError("no space left")

    monkeypatch.setattr("vc_core.commands.compose.run", broken)
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().out.rstrip().endswith("The trial failed with OSError: no space left")


def test_doctor_works_without_torch(repository):
    code = """
import sys

class NoTorch:
    def find_spec(self, name, *_):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, NoTorch())
from vc_core.cli import main
sys.exit(main(["doctor"]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository)
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr
    last = run.stdout.splitlines()[-1]
    assert "libx264 for .mp4" in run.stdout and "the bundled checkpoint does not work. " in last


def test_the_trial_composes():
    assert doctor.problem() is None
