"""The code on the Python user's page runs without changes, in its order."""

import re
from importlib import import_module

import pytest

from vc_core.checkpoint.files import open_tensors, save_tensors
from vc_core.checkpoint.reading import save_checkpoint
from vc_core.video import probe


@pytest.fixture(scope="module")
def page(repository):
    return (repository / "vc_core" / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def blocks(page):
    """Heading -> the code below it."""
    sections = re.split(r"^## ", page, flags=re.M)[1:]
    blocks = {section.partition("\n")[0]: re.findall(r"```python\n(.*?)```", section, re.S) for section in sections}
    assert all(len(code) <= 1 for code in blocks.values())
    return {heading: code[0] for heading, code in blocks.items() if code}


def run(block: str, names: dict) -> None:
    """Run a block in the current folder, with the names of the blocks before it."""
    assert sum(1 for line in block.splitlines() if line.strip()) <= 15
    exec(compile(block, "README.md", "exec"), names)  # noqa: S102


def test_from_a_first_video_to_tensors(blocks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    run(blocks["A first video"], names)
    assert probe("out.mp4").frames == 16
    run(blocks["Conditions"], names)
    assert probe("masked.mp4").frames == 16
    run(blocks["Tensors in and out"], names)
    run(blocks["Large frames"], names)
    assert names["larger"].shape == (1, 3, 16, 128, 128)
    run(blocks["Keyframes"], names)
    assert names["between"].shape == (1, 3, 16, 64, 64)
    assert names["long"].shape[2] == 24 and len(names["two"]) == 2 and names["first_frame"].shape == (3, 64, 64)


def test_another_checkpoint(blocks, tiny_checkpoint, tiny_config, tmp_path, monkeypatch):
    """Files with the names on the page contain the parts of the tiny checkpoint."""
    monkeypatch.chdir(tmp_path)
    tensors = open_tensors(tiny_checkpoint)
    save_checkpoint("videocomposer.safetensors", tiny_config, {"model": tensors.below("model.").state()})
    save_tensors("v2-1_512-ema-pruned.safetensors", tensors.below("vae.").state())
    image = {f"visual.{name}": tensor for name, tensor in tensors.below("image.").state().items()}
    save_tensors("open_clip_model.safetensors", {**tensors.below("text.").state(), **image})
    run(blocks["Checkpoints"], {})
    assert probe("waves.mp4").frames == tiny_config.frames


def test_an_error(blocks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(blocks["Errors"], {})
    assert "missing.safetensors" in capsys.readouterr().out


def test_public_names(page):
    import vc_core

    rows = re.findall(r"^\| (`.+?`) \| `(vc_core[\w.]*)` \|", page, re.M)
    names = [(module, name) for cell, module in rows for name in re.findall(r"`(\w+)`", cell)]
    assert [(module, name) for module, name in names if not hasattr(import_module(module), name)] == []
    assert {name for module, name in names if module == "vc_core"} == set(vc_core.__all__)
