"""One step: only kept inputs are computed, random values belong to the sample, images skip the temporal layers."""

import copy
import dataclasses

import pytest
import torch

from tests.core.pictures import Greys
from training.data.sample import Batch, Sample
from training.frozen import Encoders, gather_parts
from training.objective import NAMES, Objective, keep_for, kept_of
from training.recipe import Domain, Loss, Recipe, Start
from training.start import begin
from training.step import Step, leave_out_for_images
from vc_core.conditions import CONDITIONS, condition_size
from vc_core.config import ExtractionConfig
from vc_core.errors import UserError
from vc_core.model.blocks import TemporalConv, TemporalTransformer
from vc_core.model.unet import UNet3D

SIZE = (32, 40)


class Counted(Encoders):
    """Encoders that count for how many samples they computed each input."""

    counts: dict

    def _count(self, name, sources):
        self.counts = getattr(self, "counts", {}) | {name: len(sources)}

    def latents(self, video):
        self._count("latents", video)
        return super().latents(video)

    def text(self, prompts):
        if list(prompts) != [""]:
            self._count("text", prompts)
        return super().text(prompts)

    def style(self, image):
        self._count("style", image)
        return super().style(image)

    def condition(self, name, source):
        self._count(name, source)
        return super().condition(name, source)


@pytest.fixture(scope="module")
def recipe(tiny_checkpoint):
    return Recipe(start=Start("videocomposer", tiny_checkpoint), height=32, width=40, data=(Domain(frames=3),), seed=2)


@pytest.fixture
def step(recipe):
    started = begin(recipe)
    unet = started.unet.eval()  # no dropout, which uses torch's own generator
    encoders = Counted(started.config, gather_parts(recipe), SIZE)
    encoders.options.loaded["depth"] = Greys()  # instead of a depth network
    return Step(unet, encoders, Objective(started.config.diffusion, recipe.loss), recipe)


def picture(number, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(number))


def sample(number, kept, frames=3, cached=False):
    conditions = {}
    for name, spec in CONDITIONS.items():
        if name in kept and (cached or name in ("motion", "mask", "single_image")):
            length = frames if spec.kind == "temporal" else 1
            conditions[name] = picture(number, spec.channels, length, *condition_size(name, SIZE))
    return Sample(
        key=f"clip {number}",
        latents=picture(number, 4, frames, 4, 5) if cached else None,
        video=None if cached else picture(number, 3, frames, *SIZE),
        text=f"a red circle {number}" if "text" in kept else "",
        style=picture(number, 3, 48, 40) if "style" in kept else None,
        conditions=conditions,
        source=None if cached else picture(number, 3, frames, 48, 60),
    )


def batch(numbers, kept=None, **settings):
    kept = kept_of(numbers, 2, Loss()) if kept is None else kept
    samples = [
        sample(number, {name for name in NAMES if kept[name][row]}, **settings) for row, number in enumerate(numbers)
    ]
    return Batch(samples, kept, numbers)


def keeping(names, count=2):
    return {name: torch.full((count,), name in names) for name in NAMES}


def test_only_kept_inputs_are_computed(step):
    kept = keeping(())
    kept["text"][1] = kept["sketch"][0] = kept["single_sketch"][1] = kept["depth"][1] = True
    losses, timesteps = step(batch([3, 4], kept))
    assert step.encoders.counts == {"latents": 2, "text": 1, "sketch": 1, "single_sketch": 1, "depth": 1}
    assert losses.shape == timesteps.shape == (2,) and losses.requires_grad


def test_cached_inputs_are_not_computed_again(step):
    step(batch([3, 4], keeping(set(NAMES) - {"text", "style"}), cached=True))
    assert not hasattr(step.encoders, "counts")


def test_a_cached_sample_has_the_same_loss(step):
    plain = batch([5], keeping(NAMES, 1))
    inputs = step.inputs(plain)
    tokens = {"text_tokens": inputs.text[0], "style_embedding": inputs.style[0], "latents": inputs.latents[0]}
    conditions = {name: tensor[0] for name, tensor in inputs.conditions.items()}
    cached = Sample("cached", **tokens, conditions=conditions)
    torch.testing.assert_close(step(Batch([cached], plain.kept, [5]))[0], step(plain)[0], rtol=1e-6, atol=1e-7)


def test_a_sample_with_a_missing_input_is_named(step):
    incomplete = Sample("clip 9", video=picture(1, 3, 3, *SIZE))
    with pytest.raises(UserError, match="clip 9 requires 'motion'"):
        step(Batch([incomplete], keeping(["motion"], 1), [9]))


@torch.no_grad()
def test_a_samples_loss_does_not_depend_on_its_batch(step):
    together, all_timesteps = step(batch([10, 11, 12]))
    for row, number in enumerate((10, 11, 12)):
        alone, timesteps = step(batch([number]))
        assert timesteps == all_timesteps[row]
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-6)
    assert torch.equal(step(batch([10, 11, 12]))[0], together)


def test_a_missing_network_is_an_error_and_not_replaced(step, tmp_path, monkeypatch):
    monkeypatch.setenv("VC_MODELS", str(tmp_path))
    config = dataclasses.replace(step.encoders.config, extraction=ExtractionConfig())
    encoders = Encoders(config, {}, SIZE)
    for name, file in (("depth", "midas_v3_dpt_large"), ("sketch", "table5_pidinet")):
        with pytest.raises(UserError, match=file):
            encoders.condition(name, torch.zeros(1, 3, 2, *SIZE))
    with pytest.raises(UserError, match=r"start\.parts"):
        encoders.latents(torch.zeros(1, 3, 2, *SIZE))


def test_bf16_gives_almost_the_same_loss(step):
    """Autocast is for the trained network; the frozen ones have their own dtypes."""
    training_batch = batch([1, 2], keeping(NAMES))
    (expected, _), inputs = step(training_batch), step.inputs(training_batch)
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = step(training_batch)
        for ours, exact in zip(vars(step.inputs(training_batch)).values(), vars(inputs).values(), strict=True):
            if isinstance(exact, torch.Tensor):
                assert torch.equal(ours, exact)
    losses.mean().backward()
    torch.testing.assert_close(losses, expected, rtol=0.05, atol=0.0)
    assert losses.dtype == torch.float32 and not torch.equal(losses, expected)


def test_a_fraction_of_the_steps_has_no_style_token(step):
    """All batches of a step agree, although they have different samples."""
    step.recipe = dataclasses.replace(step.recipe, loss=Loss(no_style=0.3))

    def plain(number):
        batches = [
            dataclasses.replace(batch([n], keeping(["style"], 1), cached=True), after=number) for n in (number, 99)
        ]
        return [step.inputs(part).style is None for part in batches]

    steps = [plain(number) for number in range(40)]
    assert all(first == second for first, second in steps)
    assert 5 <= sum(first for first, _ in steps) <= 20


def test_stage_1_has_only_text(recipe, tiny_config):
    recipe = dataclasses.replace(recipe, stage=1, loss=Loss(text_dropout=0.1))
    started = begin(recipe)
    step = Step(started.unet, Encoders(started.config, gather_parts(recipe), SIZE),
                Objective(started.config.diffusion), recipe)  # fmt: skip
    keep = keep_for(recipe, recipe.data[0], started.config.unet.inputs)
    training_batch = batch([1, 2], keep([1, 2]))
    assert step.inputs(training_batch).style is None and step.inputs(training_batch).conditions == {}
    step(training_batch)[0].mean().backward()
    for name, parameter in started.unet.named_parameters():
        assert (parameter.grad is None) == name.startswith(("stc.", "style_")), name


def test_a_perfect_network_has_no_loss(step):
    """A network that returns the objective's target has a loss of zero."""
    training_batch = batch([7], keeping(["text"], 1), cached=True)
    latents = step.inputs(training_batch).latents
    _, target, _ = step.objective.draw(latents, step.recipe.seed, [7])
    parameter = torch.zeros((), requires_grad=True)
    perfect = copy.copy(step)

    class Perfect(UNet3D):
        def forward(self, *_):
            return target + parameter

    perfect.unet = Perfect(step.unet.config)
    assert perfect(training_batch)[0] == 0.0


# --- Images ---------------------------------------------------------------------------------------------------------


def temporal_names(unet):
    modules = [n for n, m in unet.named_modules() if isinstance(m, TemporalConv | TemporalTransformer)]
    return {n for n, _ in unet.named_parameters() if n.startswith(tuple(f"{name}." for name in modules))}


def test_an_image_gives_temporal_parameters_gradients_of_zeros(step):
    unet = step.unet
    step(batch([1, 2], keeping(NAMES), frames=1))[0].mean().backward()
    temporal = temporal_names(unet)
    assert len(temporal) > 100 and "temporal_in.proj_out.weight" in temporal
    for name, parameter in unet.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any() != (name in temporal), name


@torch.no_grad()
def test_an_image_skips_the_temporal_layers(tiny_unet):
    torch.manual_seed(0)
    images = leave_out_for_images(copy.deepcopy(tiny_unet))
    spatial = copy.deepcopy(tiny_unet)
    for name, parameter in spatial.named_parameters():
        if name in temporal_names(spatial) and name.endswith(
            ("convs.3.weight", "convs.3.bias", "proj_out.weight", "proj_out.bias")
        ) and ".block." not in name:  # fmt: skip
            parameter.zero_()
    x, context = torch.randn(2, 4, 1, 4, 5), torch.randn(2, 77, 16)
    t = torch.tensor([20, 800])
    assert torch.equal(images(x, t, context), spatial(x, t, context))
    assert not torch.allclose(images(x, t, context), tiny_unet(x, t, context), atol=1e-3)
    video = torch.randn(2, 4, 3, 4, 5)
    assert torch.equal(images(video, t, context), tiny_unet(video, t, context))


def test_copies_skip_their_own_layers(tiny_unet):
    other = copy.deepcopy(leave_out_for_images(copy.deepcopy(tiny_unet)))
    assert other.temporal_in.without_on_images and not tiny_unet.temporal_in.without_on_images
    assert set(other.state_dict()) == set(tiny_unet.state_dict())


def test_images_are_computed_again_in_the_backward_pass(step):
    """Activation checkpointing runs blocks a second time, outside of the network's forward."""
    from torch.utils.checkpoint import checkpoint

    training_batch = batch([1, 2], keeping(["text"]), frames=1, cached=True)
    step(training_batch)[0].mean().backward()
    expected = {name: p.grad.clone() for name, p in step.unet.named_parameters() if p.grad is not None}
    step.unet.zero_grad()
    block = step.unet.middle
    original = block.forward
    block.forward = lambda *args: checkpoint(original, *args, use_reentrant=False)
    step(training_batch)[0].mean().backward()
    for name, gradient in expected.items():
        torch.testing.assert_close(step.unet.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-6)
