"""Exported runs: the file composes, and the nodes' loader reads it."""

import dataclasses
import json
import shutil
import subprocess

import pytest
import torch
from safetensors import safe_open

from tests.disks import everything_in, files_up_to
from training.data.sample import Batch, Sample
from training.engine import Learner
from training.export import export, main
from training.frozen import Encoders, gather_parts
from training.lora import load_lora, merge_lora
from training.objective import Objective, keep_for
from training.ranks import Lane, World
from training.recipe import Domain, Optimizer, Recipe, Start, Train
from training.start import begin
from training.step import Step
from vc_core.checkpoint.conversion import convert
from vc_core.checkpoint.inspection import as_mapping, as_text, inspect
from vc_core.checkpoint.loading import load_unet
from vc_core.checkpoint.reading import read_checkpoint
from vc_core.composer import VideoComposer
from vc_core.conditions import CONDITIONS, condition_size
from vc_core.diffusion.samplers import Sampling
from vc_core.errors import UserError
from vc_core.pipeline import compose


def run(recipe, steps=3):
    """Train a few steps on one clip. Returns the engine."""
    started = begin(recipe)
    size = (recipe.height, recipe.width)
    encoders = Encoders(started.config, gather_parts(recipe), size)
    step = Step(started.unet, encoders, Objective(started.config.diffusion, recipe.loss), recipe)
    engine = Learner(started.unet, step, recipe, World())
    keep = keep_for(recipe, recipe.data[0], started.config.unet.inputs)
    scale = started.config.extraction.condition_scale
    conditions = {
        name: torch.ones(spec.channels, 3 if spec.kind == "temporal" else 1, *condition_size(name, size, scale))
        for name, spec in CONDITIONS.items()
    }
    for number in range(steps):
        sample = Sample("clip", latents=torch.ones(4, 3, 4, 5), text="a clip", conditions=conditions,
                        style=torch.ones(3, 32, 32))  # fmt: skip
        engine.update([(Lane(0, 0, 1), Batch([sample], keep([number]), [number]))])
    engine.save(recipe.out, {"config": started.config.to_json()})
    return engine


@pytest.fixture(scope="module")
def recipe(tiny_checkpoint, tmp_path_factory):
    return Recipe(
        out=tmp_path_factory.mktemp("run"), start=Start("videocomposer", tiny_checkpoint), height=32, width=40,
        steps=10, data=(Domain(frames=3),), optimizer=Optimizer(learning_rate=0.01, warmup=0),
    )  # fmt: skip


@pytest.fixture(scope="module")
def engine(recipe):
    return run(recipe)


@pytest.fixture(scope="module")
def exported(recipe, engine, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "mine.safetensors"
    export(recipe.out, path)
    return path


def weights_of(path):
    return dict(load_unet(read_checkpoint(path)).named_parameters())


def test_an_exported_file_composes_and_contains_its_recipe(recipe, exported):
    composer = VideoComposer.load(exported)
    assert composer.config.frames == 3 and composer.config.width == 40
    video = compose(composer, "a clip", sampling=Sampling(steps=2))
    assert video.shape == (1, 3, 3, 32, 40)
    with safe_open(exported, "pt") as file:
        metadata = json.loads(file.metadata()["training"])
    assert (metadata["step"], metadata["weights"]) == (3, "averaged")
    assert metadata["recipe"]["optimizer"]["learning_rate"] == 0.01
    assert metadata["recipe"]["start"]["checkpoint"] == recipe.start.checkpoint.name
    assert str(recipe.out.parent) not in json.dumps(metadata)  # no folders of the user's machine
    assert set(read_checkpoint(exported).parts) == {"model", "vae", "text", "image"}


def test_info_shows_the_training_and_a_converted_file_keeps_it(exported, tiny_checkpoint, tmp_path):
    info = inspect(exported)
    assert info.training["step"] == 3 and as_mapping(info)["training"] == info.training
    assert as_mapping(info)["training"]["recipe"]["optimizer"]["learning_rate"] == 0.01
    assert "Trained by this project" in as_text(info) and "Trained" not in as_text(info, brief=True)
    assert convert(exported, tmp_path / "half.safetensors", dtype="fp16").training == info.training
    assert convert(exported, tmp_path / "vae.safetensors", parts=["vae"]).training is None
    assert inspect(tiny_checkpoint).training is None and "Trained" not in as_text(inspect(tiny_checkpoint))


def test_averaged_or_raw_weights(recipe, engine, exported, tmp_path, capsys):
    assert (
        main([str(recipe.out), "-o", str(tmp_path / "raw.safetensors"), "--raw", "--dtype", "fp32", "--network-only"])
        == 0
    )
    assert "raw weights of step 3" in capsys.readouterr().out
    assert set(read_checkpoint(tmp_path / "raw.safetensors").parts) == {"model"}
    raw, averaged = engine.weights(average=False), engine.weights(average=True)
    for name, parameter in weights_of(tmp_path / "raw.safetensors").items():
        assert torch.equal(parameter, raw[name]), name
    for name, parameter in weights_of(exported).items():
        torch.testing.assert_close(parameter, averaged[name], rtol=1e-3, atol=1e-4)
    assert any(not torch.allclose(raw[name], averaged[name], atol=1e-3) for name in raw)


def test_layers_that_were_not_trained_come_from_the_start(recipe, tiny_unet, tmp_path):
    recipe = dataclasses.replace(recipe, out=tmp_path / "stc", train=Train("stc"))
    run(recipe, 1)
    export(recipe.out, tmp_path / "stc.safetensors", dtype="fp32")
    for name, parameter in weights_of(tmp_path / "stc.safetensors").items():
        assert torch.equal(parameter, tiny_unet.get_parameter(name)) != name.startswith("stc."), name


def test_a_run_that_trained_everything_needs_no_start(recipe, engine, tmp_path):
    """A run can be exported without the files that it started from."""
    folder = shutil.copytree(recipe.out, tmp_path / "run")
    path = next(folder.glob("checkpoints/*/state.json"))
    state = json.loads(path.read_text())
    state["recipe"]["start"]["checkpoint"] = str(tmp_path / "gone.safetensors")
    path.write_text(json.dumps(state))
    export(folder, tmp_path / "mine.safetensors", network_only=True, dtype="fp32")
    averaged = engine.weights()
    for name, parameter in weights_of(tmp_path / "mine.safetensors").items():
        assert torch.equal(parameter, averaged[name]), name
    with pytest.raises(UserError, match="gone"):
        export(folder, tmp_path / "whole.safetensors")


def test_a_loras_run_gives_the_lora_or_the_merged_network(recipe, tiny_checkpoint, tmp_path):
    recipe = dataclasses.replace(recipe, out=tmp_path / "lora", train=Train("lora", lora_rank=2))
    run(recipe, 2)
    export(recipe.out, tmp_path / "lora.safetensors")
    export(recipe.out, tmp_path / "merged.safetensors", merge=True, dtype="fp32")
    unet = load_unet(read_checkpoint(tiny_checkpoint))
    unet.load_state_dict({name: tensor.clone() for name, tensor in unet.state_dict().items()}, assign=True)
    assert load_lora(unet, tmp_path / "lora.safetensors")
    merge_lora(unet)
    for name, parameter in weights_of(tmp_path / "merged.safetensors").items():
        torch.testing.assert_close(parameter, unet.get_parameter(name), rtol=1e-6, atol=1e-7)


def test_an_export_onto_a_full_disk_leaves_nothing(recipe, engine, tmp_path, capsys):
    with files_up_to(8192):
        assert main([str(recipe.out), "-o", str(tmp_path / "x.safetensors")]) == 2
    assert "x.safetensors cannot be written (File too large). " in capsys.readouterr().err
    assert everything_in(tmp_path) == []


def test_errors_of_export(recipe, engine, tmp_path, capsys):
    assert main([str(tmp_path), "-o", str(tmp_path / "a.safetensors")]) == 2
    assert "contains no checkpoint of a run" in capsys.readouterr().err
    with pytest.raises(UserError, match="contains no checkpoint of a run"):
        export(tmp_path, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"a name that ends in \.safetensors"):
        export(recipe.out, tmp_path / "a.pth")
    assert not list(tmp_path.iterdir())


_LOAD = """
import importlib.util, sys
folder, pack, path = sys.argv[1:]
sys.path.insert(0, folder)
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
spec = importlib.util.spec_from_file_location("pack", pack + "/__init__.py", submodule_search_locations=[pack])
sys.modules["pack"] = importlib.util.module_from_spec(spec)
from pack.nodes.host.model import load_model
from pack.vc_core.checkpoint.reading import read_checkpoint
model = load_model(read_checkpoint(path))
print(model.model.videocomposer.frames, sum(p.numel() for p in model.model.diffusion_model.parameters()))
"""


@pytest.mark.slow
def test_the_nodes_loader_reads_it(comfyui, exported, tiny_unet, repository):
    folder, python, _ = comfyui
    done = subprocess.run(
        [python, "-c", _LOAD, folder, repository, exported], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3", str(sum(p.numel() for p in tiny_unet.parameters()))]
