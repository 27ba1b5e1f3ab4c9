"""Which ComfyUI the tests take, and what they say where there is none."""

import pytest

from tests.host.server import NoHost, find_comfyui


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No ComfyUI where any is looked for; `tmp_path` is the home folder."""
    for name in ("COMFYUI_PATH", "COMFYUI_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.setattr("tests.host.server.REPOSITORY", tmp_path / "checkout")
    return tmp_path


def make(folder, environment=".venv"):
    for name in ("main.py", "comfy/model_base.py", f"{environment}/bin/python"):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return folder


def test_none_is_told_with_what_to_do(nowhere):
    with pytest.raises(NoHost, match="set COMFYUI_PATH"):
        find_comfyui()


@pytest.mark.parametrize("environment", [".venv", "venv"])
def test_the_one_in_the_home_folder(nowhere, environment):
    folder = make(nowhere / "ComfyUI", environment)
    assert find_comfyui() == (folder, folder / environment / "bin" / "python")


def test_the_one_whose_custom_nodes_holds_the_checkout(nowhere, monkeypatch):
    make(nowhere / "ComfyUI")
    folder = make(nowhere / "other")
    checkout = folder / "custom_nodes" / "pack"
    checkout.mkdir(parents=True)
    monkeypatch.setattr("tests.host.server.REPOSITORY", checkout)
    assert find_comfyui()[0] == folder


def test_the_one_whose_custom_nodes_holds_a_link_to_it(nowhere, monkeypatch):
    make(nowhere / "ComfyUI")
    folder, checkout = make(nowhere / "other"), nowhere / "checkout"
    (folder / "custom_nodes").mkdir()
    checkout.mkdir()
    link = folder / "custom_nodes" / "pack"
    link.symlink_to(checkout)
    monkeypatch.setenv("PWD", str(link))
    assert find_comfyui()[0] == folder
    monkeypatch.setenv("PWD", str(folder / "custom_nodes" / "another pack"))
    assert find_comfyui()[0] == nowhere / "ComfyUI"


def test_the_named_one_comes_first(nowhere, monkeypatch):
    make(nowhere / "ComfyUI")
    folder = make(nowhere / "named")
    monkeypatch.setenv("COMFYUI_PATH", str(folder))
    assert find_comfyui()[0] == folder
    monkeypatch.setenv("COMFYUI_PYTHON", str(folder / "main.py"))
    assert find_comfyui()[1] == folder / "main.py"


@pytest.mark.parametrize("variable", ["COMFYUI_PATH", "COMFYUI_PYTHON"])
def test_a_variable_that_names_none_is_an_error(nowhere, monkeypatch, variable):
    make(nowhere / "ComfyUI")
    monkeypatch.setenv(variable, str(nowhere / "nothing"))
    with pytest.raises(FileNotFoundError, match=variable):
        find_comfyui()


def test_one_without_a_python_of_its_own(nowhere):
    make(nowhere / "ComfyUI", "elsewhere")
    with pytest.raises(NoHost, match="set COMFYUI_PYTHON"):
        find_comfyui()
