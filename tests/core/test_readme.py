"""The code on the core's page runs without changes."""

import re
import runpy
from pathlib import Path

import pytest

from vc_core.checkpoint.files import open_tensors, save_tensors
from vc_core.checkpoint.reading import save_checkpoint
from vc_core.video import probe, write_video


@pytest.fixture(scope="module")
def blocks(repository):
    blocks = re.findall(r"```python\n(.*?)```", (repository / "vc_core" / "README.md").read_text(), re.S)
    assert len(blocks) == 2
    return blocks


def run(block: str) -> None:
    """Run a block of the page in the current folder, as a program."""
    assert sum(1 for line in block.splitlines() if line.strip()) <= 12
    program = Path("example.py")
    program.write_text(block, encoding="utf-8")
    runpy.run_path(str(program), run_name="__main__")


def test_composing_a_video(blocks, tmp_path, monkeypatch):
    from vc_core.demo import draw_clip

    monkeypatch.chdir(tmp_path)
    write_video("clip.mp4", draw_clip(), 8)
    run(blocks[0])
    assert probe("out.mp4").frames == 16


def test_swapping_the_checkpoint(blocks, tiny_checkpoint, tiny_config, tmp_path, monkeypatch):
    """Files with the names on the page contain the parts of the tiny checkpoint."""
    monkeypatch.chdir(tmp_path)
    tensors = open_tensors(tiny_checkpoint)
    save_checkpoint("videocomposer.safetensors", tiny_config, {"model": tensors.below("model.").state()})
    save_tensors("v2-1_512-ema-pruned.safetensors", tensors.below("vae.").state())
    image = {f"visual.{name}": tensor for name, tensor in tensors.below("image.").state().items()}
    save_tensors("open_clip_model.safetensors", {**tensors.below("text.").state(), **image})
    run(blocks[1])
    assert probe("waves.mp4").frames == tiny_config.frames


def test_every_name_on_the_page_exists(repository):
    import vc_core

    page = (repository / "vc_core" / "README.md").read_text()
    names = re.findall(r"^\| `(\w+)", page, re.M)
    assert {"VideoComposer", "compose", "Condition", "Style", "Windows", "read_checkpoint", "UserError"} <= set(names)
    for name in set(names) - {"dtype", "fp32", "fp16", "fp8"}:
        assert hasattr(vc_core, name), name
