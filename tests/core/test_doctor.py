"""./vc doctor and the table of models: what is found, what is missing, and what to do about it."""

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
    """The trial is left out: it takes seconds and has a test of its own."""
    monkeypatch.setattr(doctor, "problem", lambda: None)


@pytest.fixture
def small_models(monkeypatch):
    """Models as in the table, of a few bytes each."""
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


def test_models_are_found_by_size_or_name_below_the_folders(small_models, tmp_path):
    a, b = small_models
    inner = tmp_path / "vae" / "deep"
    inner.mkdir(parents=True)
    (inner / "renamed.safetensors").write_bytes(b"three")
    (tmp_path / "A.pth").write_bytes(b"cut off")
    (tmp_path / "other.pth").write_bytes(b"something else")
    (tmp_path / "notes.txt").write_bytes(b"one")
    (inner / "back").symlink_to(tmp_path)
    found = find_models([tmp_path, tmp_path / "none"])
    assert found == {a: [tmp_path / "A.pth"], b: [inner / "renamed.safetensors"]}
    assert not a.has_size_of(found[a][0]) and b.has_size_of(found[b][0])


def test_what_doctor_says(small_models, no_trial, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VC_MODELS", str(tmp_path))
    (tmp_path / "a.pth").write_bytes(b"two")  # of the right size, with other content
    assert cli.main(["doctor", "--hash"]) == 0
    out = capsys.readouterr().out
    assert "torch 2" in out and "threads" in out and "libx264 for .mp4" in out
    assert "found: a.pth" in out and "SHA-256 WRONG: get it again from https://there" in out
    assert "missing: b.safetensors" in out and "from https://there; ./vc get b.safetensors" in out
    assert f"put it into {tmp_path}; {KINDS[small_models[1].kind]}; SHA-256" in out
    assert out.rstrip().endswith("Composing with the bundled checkpoint works.")

    (tmp_path / "a.pth").write_bytes(b"one")
    assert cli.main(["doctor", "--hash"]) == 0
    assert "SHA-256 right" in capsys.readouterr().out
    assert cli.main(["doctor"]) == 0
    assert "SHA-256 right" not in capsys.readouterr().out


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
    assert "einops missing: " in out and "av 1.0 is another version: " in out
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


def test_libraries_are_known_where_pip_installed_the_core_alone(monkeypatch, tmp_path):
    """Without the requirements files, by what the installed package says of itself."""
    monkeypatch.setattr(doctor, "PROJECT", tmp_path)
    named = ["numpy>=1.25,<3", 'pyyaml>=999; extra == "standalone"', 'torch>=2; extra == "standalone"']
    monkeypatch.setattr(doctor.metadata, "requires", {"videocomposer": named}.__getitem__)
    found = {item["name"]: (item["wanted"], item["satisfied"], item["needed"]) for item in doctor.libraries()}
    assert found == {
        "numpy": ("<3,>=1.25", True, True),
        "pyyaml": (">=999", False, False),
        "torch": (">=2", True, True),
    }


def test_what_fails_in_the_trial_is_told(monkeypatch, capsys):
    def broken(settings):
        raise OSError("no space left")

    monkeypatch.setattr("vc_core.commands.compose.run", broken)
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().out.rstrip().endswith("failed with OSError: no space left")


def test_doctor_speaks_without_torch(repository):
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
    assert "libx264 for .mp4" in run.stdout and "It does not work: " in run.stdout.splitlines()[-1]


def test_the_trial_composes():
    assert doctor.problem() is None
