"""Every checkpoint of the family through training, export and evaluation, at tiny sizes."""

from dataclasses import replace

import pytest
import torch

from tests.training.clips import make_folder
from tests.training.test_export import run
from training.data.folder import pictures_of
from training.evaluate.evaluation import EvaluationSettings, evaluate
from training.evaluate.own_clips import open_data
from training.evaluate.report import as_table
from training.evaluate.trials import Composing
from training.export import export
from training.recipe import Domain, Optimizer, Recipe, Start, Train
from training.trainer import train
from vc_core.checkpoint.conversion import convert
from vc_core.checkpoint.loading import load_unet
from vc_core.checkpoint.reading import read_checkpoint, save_checkpoint
from vc_core.checkpoint.released import to_released
from vc_core.composer import VideoComposer
from vc_core.diffusion.samplers import Sampling
from vc_core.families import inferred_config
from vc_core.model.unet import UNet3D
from vc_core.pipeline import compose

TEXT_ALONE = {"conditions": (), "stc_channels": 0, "style_tokens": 0, "temporal_in_heads": 8}
FAMILIES = {
    "tft2v": ({"style_tokens": 4}, {}),
    "videolcm": ({"style_tokens": 4}, {"few_steps": True, "guidance": 1.0}),
    "modelscope": (TEXT_ALONE, {}),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_config):
    """A tiny network of each family; the text-only one in diffusers' layout."""
    folder, paths = tmp_path_factory.mktemp("family"), {}
    for name, (sizes, more) in FAMILIES.items():
        unet = replace(tiny_config.unet, **sizes)
        config, _ = inferred_config(unet)
        tiny = {key: getattr(tiny_config, key) for key in ("frames", "height", "width", "towers", "autoencoder")}
        methods = {"sketch": "edges", "depth": "relative"}
        config = replace(config, extraction=replace(config.extraction, **methods), **(tiny | more))
        paths[name] = folder / f"{name}.safetensors"
        torch.manual_seed(0)
        save_checkpoint(paths[name], config, {"model": to_released(UNet3D(unet))})
    convert(paths["modelscope"], folder / "diffusers", layout="diffusers")
    return {**paths, "modelscope": folder / "diffusers"}


def recipe_from(path, parts, out, **changes):
    return Recipe(
        out=out, start=Start("checkpoint", path, parts=(parts,)), height=32, width=40, steps=2,
        data=(Domain(frames=3),), optimizer=Optimizer(learning_rate=0.01, warmup=0), **changes,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*distilled for few sampling steps")
@pytest.mark.parametrize("name", FAMILIES)
def test_fine_tuning_keeps_a_networks_config(files, tiny_checkpoint, tmp_path, name):
    before = read_checkpoint(files[name]).config
    run(recipe_from(files[name], tiny_checkpoint, tmp_path / "run", stage=1 if name == "modelscope" else 2), steps=2)
    export(tmp_path / "run", tmp_path / "mine.safetensors", dtype="fp32")
    assert read_checkpoint(tmp_path / "mine.safetensors").config == before
    own, learned = (load_unet(read_checkpoint(path)) for path in (files[name], tmp_path / "mine.safetensors"))
    assert any(not torch.equal(p, q) for p, q in zip(own.parameters(), learned.parameters(), strict=True))
    video = compose(VideoComposer.load(tmp_path / "mine.safetensors"), "a clip", sampling=Sampling(steps=2))
    assert video.isfinite().all() and video.shape == (1, 3, 3, 32, 40)


def test_stage_2_of_a_text_to_video_network_makes_it_compositional(files, tiny_checkpoint, tiny_config, tmp_path):
    run(recipe_from(files["modelscope"], tiny_checkpoint, tmp_path / "run"), steps=1)
    export(tmp_path / "run", tmp_path / "mine.safetensors")
    config = read_checkpoint(tmp_path / "mine.safetensors").config
    assert config.unet.inputs == tiny_config.unet.inputs and config.name == "VideoComposer"


@pytest.mark.filterwarnings("ignore:.*distilled for few sampling steps")
@pytest.mark.parametrize("name", ["tft2v", "modelscope"])
def test_a_lora_can_be_merged_into_its_network(files, tiny_checkpoint, tmp_path, name):
    recipe = recipe_from(files[name], tiny_checkpoint, tmp_path / "run", train=Train(what="lora", lora_rank=2))
    run(recipe, steps=2)
    export(tmp_path / "run", tmp_path / "whole.safetensors", merge=True, dtype="fp32")
    assert read_checkpoint(tmp_path / "whole.safetensors").config == read_checkpoint(files[name]).config


def test_training_validates_by_the_networks_own_sampling(files, tiny_checkpoint, tmp_path, monkeypatch):
    used = []

    def watched(self, config):
        used.append(filled(self, config))
        return used[-1]

    filled = Sampling.filled
    monkeypatch.setattr(Sampling, "filled", watched)
    recipe = recipe_from(files["videolcm"], tiny_checkpoint, tmp_path / "run")
    watch = replace(recipe.watch, validate_every=1, prompts=("a red circle",))
    data = (Domain(frames=3, count=2),)
    with pytest.warns(UserWarning, match="distilled for few sampling steps"):
        assert train(replace(recipe, width=32, steps=1, watch=watch, data=data)) == 0
    assert [(sampling.sampler, sampling.steps, sampling.guidance) for sampling in used] == [("lcm", 4, 1.0)]
    assert [path.name for path in (tmp_path / "run/validation/step-00000001").iterdir()] == ["0-seed0.mp4"]


def test_all_are_evaluated_side_by_side_on_own_clips(files, tiny_checkpoint, tmp_path):
    folder = make_folder(tmp_path / "videos")
    settings = EvaluationSettings(
        checkpoints=tuple(files.values()), parts=(tiny_checkpoint,), clips=2, data=folder,
        only=("style_palette", "text"), sampling=Composing(seeds=1, many=2), device="cpu", jobs=1,
    )  # fmt: skip
    results = evaluate(settings)
    assert [result.about["sampling"] for result in results] == [
        "2 steps of dpmpp_2m",
        "4 steps of lcm",
        "2 steps of dpmpp_2m",
    ]
    assert [result.about["guidance"] for result in results] == [9.0, 1.0, 9.0]
    assert ["style_palette" in result.rows for result in results] == [True, True, False]
    assert any("style_palette: not measured, because the checkpoint has no style" in note for note in results[2].notes)
    assert "2 steps of dpmpp_2m or 4 steps of lcm" in as_table(settings, results)


@pytest.mark.parametrize(("name", "rate"), [("tft2v", 3), ("modelscope", 4)])
def test_own_clips_have_the_networks_rate(files, tmp_path, monkeypatch, name, rate):
    plans = []

    def watched(source, plan):
        plans.append(plan)
        return pictures_of(source, plan)

    monkeypatch.setattr("training.data.folder.pictures_of", watched)
    data = open_data(make_folder(tmp_path / "videos"), replace(read_checkpoint(files[name]).config, frames=2))
    data.sample(0, ("text",), torch.Generator())
    assert [plan.rate for plan in plans] == [rate]
