"""Which ComfyUIs the tests use, and what they report if there is none."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.host.finding import REPOSITORY, NoHost, find_comfyuis


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """An environment without any ComfyUI; `tmp_path` is the home folder."""
    for name in ("COMFYUI_PATH", "COMFYUI_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.setattr("tests.host.finding.REPOSITORY", tmp_path / "checkout")
    return tmp_path


def install(folder, version="0.3.64", environment=".venv"):
    for name in ("main.py", "comfy/model_base.py", f"{environment}/bin/python"):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    if version:
        (folder / "comfyui_version.py").write_text(f'# made by a build\n__version__ = "{version}"\n')
    return folder


def name(monkeypatch, variable, *paths):
    monkeypatch.setenv(variable, os.pathsep.join(map(str, paths)))


def folders():
    return [comfyui.folder for comfyui in find_comfyuis()]


def test_the_error_without_a_comfyui_says_what_to_do(nowhere):
    with pytest.raises(NoHost, match="Set COMFYUI_PATH"):
        find_comfyuis()


@pytest.mark.parametrize("environment", [".venv", "venv"])
def test_the_comfyui_in_the_home_folder(nowhere, environment):
    folder = install(nowhere / "ComfyUI", environment=environment)
    assert find_comfyuis() == [(folder, folder / environment / "bin" / "python", "0.3.64")]


def test_comfyuis_in_the_home_folder_with_an_environment_the_newest_first(nowhere):
    old, new = install(nowhere / "ComfyUI", "0.3.64"), install(nowhere / "ComfyUI-new", "0.33.0")
    unknown = install(nowhere / "ComfyUI-unknown", version="")
    install(nowhere / "ComfyUI-without", environment="elsewhere")
    (nowhere / "ComfyUI-models").mkdir()
    (nowhere / "ComfyUI-link").symlink_to(new)
    assert [comfyui.version for comfyui in find_comfyuis()] == ["0.33.0", "0.3.64", "unknown"]
    assert [folder.resolve() for folder in folders()] == [new, old, unknown]


def test_the_comfyui_of_this_checkout_comes_before_newer_ones(nowhere, monkeypatch):
    home, folder = install(nowhere / "ComfyUI", "0.33.0"), install(nowhere / "other", "0.3.64")
    checkout = folder / "custom_nodes" / "pack"
    checkout.mkdir(parents=True)
    monkeypatch.setattr("tests.host.finding.REPOSITORY", checkout)
    assert folders() == [folder, home]


def test_a_link_in_custom_nodes_counts_as_this_checkout(nowhere, monkeypatch):
    home = install(nowhere / "ComfyUI", "0.33.0")
    folder, checkout = install(nowhere / "other", "0.3.64"), nowhere / "checkout"
    (folder / "custom_nodes").mkdir()
    checkout.mkdir()
    link = folder / "custom_nodes" / "pack"
    link.symlink_to(checkout)
    monkeypatch.setenv("PWD", str(link))
    assert folders() == [folder, home]
    monkeypatch.setenv("PWD", str(folder / "custom_nodes" / "another pack"))
    assert folders() == [home]


def test_only_the_named_comfyuis_are_used(nowhere, monkeypatch):
    install(nowhere / "ComfyUI", "0.99.0")
    old, new = install(nowhere / "old", "0.3.64"), install(nowhere / "new", "0.33.0")
    name(monkeypatch, "COMFYUI_PATH", old)
    assert folders() == [old]
    name(monkeypatch, "COMFYUI_PATH", old, new)
    assert folders() == [new, old]


def test_one_python_for_all_or_one_for_each(nowhere, monkeypatch):
    old, new = install(nowhere / "ComfyUI", "0.3.64"), install(nowhere / "ComfyUI-new", "0.33.0", "elsewhere")
    name(monkeypatch, "COMFYUI_PYTHON", old / "main.py")
    assert [comfyui.python for comfyui in find_comfyuis()] == [old / "main.py"] * 2
    name(monkeypatch, "COMFYUI_PATH", old, new)
    assert [comfyui.python for comfyui in find_comfyuis()] == [old / "main.py"] * 2
    name(monkeypatch, "COMFYUI_PYTHON", old / "main.py", new / "main.py")
    assert [comfyui.python for comfyui in find_comfyuis()] == [new / "main.py", old / "main.py"]


@pytest.mark.parametrize("named", [0, 1, 3])
def test_another_number_of_pythons_is_an_error(nowhere, monkeypatch, named):
    folder = install(nowhere / "ComfyUI")
    name(monkeypatch, "COMFYUI_PATH", *[folder] * named)
    name(monkeypatch, "COMFYUI_PYTHON", folder / "main.py", folder / "main.py")
    with pytest.raises(ValueError, match=f"2 Pythons and COMFYUI_PATH {named} ComfyUIs"):
        find_comfyuis()


@pytest.mark.parametrize("variable", ["COMFYUI_PATH", "COMFYUI_PYTHON"])
def test_a_variable_with_a_wrong_path_is_an_error(nowhere, monkeypatch, variable):
    install(nowhere / "ComfyUI")
    name(monkeypatch, variable, nowhere / "nothing")
    with pytest.raises(FileNotFoundError, match=variable):
        find_comfyuis()


def test_a_comfyui_without_its_own_python(nowhere, monkeypatch):
    folder = install(nowhere / "ComfyUI", environment="elsewhere")
    with pytest.raises(NoHost, match="Set COMFYUI_PYTHON"):
        find_comfyuis()
    name(monkeypatch, "COMFYUI_PATH", folder)  # a named one is not skipped silently
    with pytest.raises(FileNotFoundError, match="Set COMFYUI_PYTHON"):
        find_comfyuis()


@pytest.mark.parametrize(
    ("arguments", "versions", "ran", "summary"),
    [
        ([], ["0.3.64", "0.33.0"], ["0.33.0"] * 2, "ComfyUI 0.33.0 tested"),
        (["--hosts", "all"], ["0.3.64", "0.33.0"], ["0.33.0"] * 2 + ["0.3.64"] * 2, "ComfyUI 0.33.0 and 0.3.64 tested"),
        (["--hosts", "all"], [], [], "no ComfyUI tested"),
    ],
)
def test_comfyuis_are_tested_in_turn_and_the_end_lists_them(nowhere, arguments, versions, ran, summary):
    """With this project's conftest.py and two tests that only need a folder."""
    for version in versions:
        install(nowhere / f"ComfyUI-{version}", version)
    tests = nowhere / "tests"
    (tests / "host").mkdir(parents=True)
    shutil.copy(REPOSITORY / "tests" / "conftest.py", tests)
    (tests / "host" / "test_some.py").write_text(
        "def test_one(comfyui): print(comfyui.version)\ndef test_two(comfyui): print(comfyui.version)\n"
    )
    command = [sys.executable, "-m", "pytest", "-rP", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(command, cwd=nowhere, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert summary in run.stdout.splitlines()
    assert [line for line in run.stdout.splitlines() if line in versions] == ran
