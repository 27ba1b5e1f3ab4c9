"""Data sets return conditions at the size in the network's config, and a step accepts no other size."""

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.core.pictures import Greys
from tests.training.clips import EVERYTHING, FRAMES, SIZE, generator
from tests.training.shards import LONG, keep_all
from training.data.domains import open_clips
from training.data.folder import FolderClips, read_captions
from training.data.sample import Batch
from training.data.sample_fields import Form
from training.data.shard_writing import PrepareOptions, prepare
from training.data.shards import ShardClips, Shards
from training.data.synthetic.clips import DrawnScenes, SyntheticClips
from training.evaluate.examples import held_out_clips
from training.evaluate.own_clips import open_data, read_clips
from training.frozen import Encoders, gather_parts
from training.objective import Objective
from training.recipe import Domain, Recipe, Start
from training.start import begin
from training.step import Step
from vc_core.checkpoint.reading import read_checkpoint, save_checkpoint
from vc_core.conditions import CONDITIONS
from vc_core.config import Config, ExtractionConfig
from vc_core.errors import UserError
from vc_core.extract.refit import refit
from vc_core.extract.sketch.methods import edges
from vc_core.video import resize_crop

SCALES = (None, 4, 8, 12)


def extraction(scale):
    return ExtractionConfig("dense", "pixels", "edges", "relative", scale)


def at(name, scale, size=SIZE):
    return tuple(side // 8 * (scale or (8 if name == "motion" else 12)) for side in size)


def form(scale, frames=FRAMES):
    return Form(SIZE, frames, extraction(scale), style_size=24)


@pytest.fixture(scope="module")
def dense(videos, tmp_path_factory):
    """Shards of dense motion with sketches."""
    out = tmp_path_factory.mktemp("out") / "dense"
    prepare(PrepareOptions(videos, LONG, SIZE, rate=5, layout="dense", sketch="edges"), read_captions(videos)[:2], out)
    return out


def check_sizes(sample, scale, size=SIZE):
    for name, tensor in sample.conditions.items():
        assert tensor.shape[-2:] == at(name, scale, size), name
    if "mask" in sample.conditions:
        assert set(sample.conditions["mask"][3].unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("scale", SCALES)
def test_folders_and_shards_have_the_networks_size(videos, dense, scale):
    folder = FolderClips(videos, read_captions(videos), form(scale), 5)
    for data in (folder, ShardClips(Shards(dense), form(scale))):
        sample = data.sample(0, EVERYTHING, generator())
        assert {"motion", "mask", "single_image"} <= set(sample.conditions)
        check_sizes(sample, scale)
        assert sample.source.shape[-2:] == at("depth", None)  # for annotators


@pytest.mark.parametrize("scale", [4, 8])
def test_one_set_of_shards_serves_networks_of_every_size(dense, scale):
    """Smaller conditions are those of the table's size, scaled down; vectors stay in pixels of the video."""
    large, small = (ShardClips(Shards(dense), form(s)).sample(0, EVERYTHING, generator()) for s in (None, scale))
    assert torch.equal(large.video, small.video) and torch.equal(large.source, small.source)
    for name in ("sketch", "single_sketch", "single_image"):
        expected = resize_crop(large.conditions[name][None], at(name, scale))[0]
        assert torch.equal(small.conditions[name], expected), name
    vectors = [sample.conditions["motion"][0, 1:, 4:-4, 4:-4].mean() for sample in (large, small)]
    assert abs(vectors[0]) > 1 and vectors[1].item() == pytest.approx(vectors[0].item(), rel=0.1)


@pytest.mark.parametrize("scale", SCALES)
def test_scenes_have_the_networks_size(scale):
    data = SyntheticClips(DrawnScenes(1, 2), 4, 24, condition_scale=scale)
    table = SyntheticClips(DrawnScenes(1, 2), 4, 24)
    sample = data.sample(1, EVERYTHING, generator(3))
    assert set(sample.conditions) == set(CONDITIONS)
    check_sizes(sample, scale, (64, 64))
    for name in ("depth", "sketch", "single_image"):
        small, large = (clips.sample(1, {name}, generator(3)).conditions[name] for clips in (data, table))
        torch.testing.assert_close(small, resize_crop(large[None], at(name, scale, (64, 64)))[0], atol=1e-5, rtol=0)
    # Vectors are augmented at the network's size, and stay in pixels of the video.
    small, large = (clips.sample(0, {"motion"}, generator(3)).conditions["motion"] for clips in (data, table))
    assert 0.6 < small[small != 0].abs().mean() / large[large != 0].abs().mean() < 1.6
    config = Config(extraction=extraction(scale))
    (opened,) = open_clips(Domain(count=3, frames=4), (64, 64), config, {}).values()
    check_sizes(opened.sample(0, EVERYTHING, generator()), scale, (64, 64))


@pytest.fixture
def step_of(tiny_checkpoint, tmp_path):
    """Returns a training step of the tiny network with this scale in its checkpoint's config."""

    def create(scale):
        checkpoint = read_checkpoint(tiny_checkpoint)
        config = dataclasses.replace(checkpoint.config, extraction=extraction(scale))
        path = Path(tmp_path / f"{scale}.safetensors")
        save_checkpoint(path, config, {name: part.tensors.state() for name, part in checkpoint.parts.items()})
        recipe = Recipe(start=Start("videocomposer", path), height=32, width=40, data=(Domain(frames=3),), seed=2)
        started = begin(recipe)
        assert started.config.extraction.condition_scale == scale  # training keeps it
        encoders = Encoders(started.config, gather_parts(recipe), SIZE)
        encoders.options.loaded["depth"] = Greys()  # instead of a depth network
        return Step(started.unet.eval(), encoders, Objective(started.config.diffusion, recipe.loss), recipe)

    return create


def batch_of(videos, scale):
    data = FolderClips(videos, read_captions(videos), dataclasses.replace(form(scale), style_size=32), 5)
    return Batch([data.sample(i, EVERYTHING, generator(i)) for i in range(2)], keep_all([0, 1]), [0, 1])


@pytest.mark.parametrize("scale", SCALES)
def test_a_step_trains_on_conditions_of_the_networks_size(videos, step_of, scale):
    step, batch = step_of(scale), batch_of(videos, scale)
    conditions = step.inputs(batch).conditions
    sizes = {name: tuple(tensor.shape[-2:]) for name, tensor in conditions.items()}
    assert sizes == {name: at(name, scale) for name in CONDITIONS}
    # Lines as in inference: drawn at the table's size, then scaled down.
    source = torch.stack([sample.source for sample in batch.samples])
    torch.testing.assert_close(conditions["sketch"], resize_crop(edges(source), at("sketch", scale)))
    torch.testing.assert_close(conditions["depth"], resize_crop(source.mean(1, keepdim=True), at("depth", scale)))
    assert torch.isfinite(step(batch)[0]).all()


def test_a_step_accepts_no_conditions_of_another_size(videos, step_of):
    with pytest.raises(UserError, match=r"right.mp4 contains 'motion' at 40x32, but the network expects 20x16"):
        step_of(4).inputs(batch_of(videos, None))


@pytest.mark.parametrize("scale", [None, 4])
def test_evaluation_clips_have_the_networks_size(dense, tiny_config, scale):
    config = dataclasses.replace(tiny_config, extraction=extraction(scale))
    clips = held_out_clips(1, config)
    for name, tensor in clips.conditions.items():
        assert tensor.shape[-2:] == at(name, scale, (32, 32)), name
    table = held_out_clips(1, dataclasses.replace(tiny_config, extraction=extraction(None))).conditions
    assert torch.equal(clips.conditions["sketch"], refit("sketch", table["sketch"], (32, 32), 3, extraction(scale)))
    own = read_clips(open_data(dense, config), 2)
    assert own.conditions["motion"].shape[-2:] == at("motion", scale)
    assert own.truth.motion_mask.shape[-2:] == own.truth.motion.shape[-2:] == SIZE
