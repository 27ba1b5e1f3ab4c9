"""One step: only what is kept is made, what is drawn is a sample's own, images leave the temporal layers out."""

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
    """Encoders that remember of how many samples they made what."""

    made: dict

    def _count(self, what, given):
        self.made = getattr(self, "made", {}) | {what: len(given)}

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
    unet = started.unet.eval()  # what layers drop is drawn from torch's own generator
    encoders = Counted(started.config, gather_parts(recipe), SIZE)
    encoders.options.loaded["depth"] = Greys()  # no network of depth is at hand
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


def test_only_what_is_kept_is_made(step):
    kept = keeping(())
    kept["text"][1] = kept["sketch"][0] = kept["single_sketch"][1] = kept["depth"][1] = True
    losses, timesteps = step(batch([3, 4], kept))
    assert step.encoders.made == {"latents": 2, "text": 1, "sketch": 1, "single_sketch": 1, "depth": 1}
    assert losses.shape == timesteps.shape == (2,) and losses.requires_grad


def test_what_is_cached_is_not_made_again(step):
    step(batch([3, 4], keeping(set(NAMES) - {"text", "style"}), cached=True))
    assert not hasattr(step.encoders, "made")


def test_a_cached_sample_counts_as_one_that_is_made(step):
    whole = batch([5], keeping(NAMES, 1))
    made = step.inputs(whole)
    tokens = {"text_tokens": made.text[0], "style_embedding": made.style[0], "latents": made.latents[0]}
    conditions = {name: tensor[0] for name, tensor in made.conditions.items()}
    cached = Sample("cached", **tokens, conditions=conditions)
    torch.testing.assert_close(step(Batch([cached], whole.kept, [5]))[0], step(whole)[0], rtol=1e-6, atol=1e-7)


def test_a_sample_without_what_it_keeps_is_named(step):
    lacking = Sample("clip 9", video=picture(1, 3, 3, *SIZE))
    with pytest.raises(UserError, match="clip 9 keeps 'motion'"):
        step(Batch([lacking], keeping(["motion"], 1), [9]))


@torch.no_grad()
def test_a_samples_loss_does_not_depend_on_its_batch(step):
    together, of_all = step(batch([10, 11, 12]))
    for row, number in enumerate((10, 11, 12)):
        alone, timesteps = step(batch([number]))
        assert timesteps == of_all[row]
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-6)
    assert torch.equal(step(batch([10, 11, 12]))[0], together)


def test_a_missing_network_is_named_before_anything_is_made_up(step, tmp_path, monkeypatch):
    monkeypatch.setenv("VC_MODELS", str(tmp_path))
    config = dataclasses.replace(step.encoders.config, extraction=ExtractionConfig())
    encoders = Encoders(config, {}, SIZE)
    for name, file in (("depth", "midas_v3_dpt_large"), ("sketch", "table5_pidinet")):
        with pytest.raises(UserError, match=file):
            encoders.condition(name, torch.zeros(1, 3, 2, *SIZE))
    with pytest.raises(UserError, match=r"start\.parts"):
        encoders.latents(torch.zeros(1, 3, 2, *SIZE))


def test_bf16_is_near(step):
    """Autocast is for the network that trains; the frozen ones have types of their own."""
    given = batch([1, 2], keeping(NAMES))
    (expected, _), inputs = step(given), step.inputs(given)
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = step(given)
        for ours, exact in zip(vars(step.inputs(given)).values(), vars(inputs).values(), strict=True):
            if isinstance(exact, torch.Tensor):
                assert torch.equal(ours, exact)
    losses.mean().backward()
    torch.testing.assert_close(losses, expected, rtol=0.05, atol=0.0)
    assert losses.dtype == torch.float32 and not torch.equal(losses, expected)


def test_a_share_of_the_steps_has_no_style_token(step):
    """Of whole steps: their ranks and batches, which have other samples, agree."""
    step.recipe = dataclasses.replace(step.recipe, loss=Loss(no_style=0.3))

    def plain(number):
        each = [dataclasses.replace(batch([n], keeping(["style"], 1), cached=True), after=number) for n in (number, 99)]
        return [step.inputs(one).style is None for one in each]

    found = [plain(number) for number in range(40)]
    assert all(one == other for one, other in found)
    assert 5 <= sum(one for one, _ in found) <= 20


def test_stage_1_has_text_alone(recipe, tiny_config):
    recipe = dataclasses.replace(recipe, stage=1, loss=Loss(text_dropout=0.1))
    started = begin(recipe)
    step = Step(started.unet, Encoders(started.config, gather_parts(recipe), SIZE),
                Objective(started.config.diffusion), recipe)  # fmt: skip
    keep = keep_for(recipe, recipe.data[0], started.config.unet.inputs)
    given = batch([1, 2], keep([1, 2]))
    assert step.inputs(given).style is None and step.inputs(given).conditions == {}
    step(given)[0].mean().backward()
    for name, parameter in started.unet.named_parameters():
        assert (parameter.grad is None) == name.startswith(("stc.", "style_")), name


def test_v_and_epsilon_of_a_perfect_network_cost_nothing(step):
    """The loss is of what the objective asks for: a network that knows the noise has none."""
    given = batch([7], keeping(["text"], 1), cached=True)
    latents = step.inputs(given).latents
    _, target, _ = step.objective.drawn(latents, step.recipe.seed, [7])
    parameter = torch.zeros((), requires_grad=True)
    perfect = copy.copy(step)

    class Perfect(UNet3D):
        def forward(self, *_):
            return target + parameter

    perfect.unet = Perfect(step.unet.config)
    assert perfect(given)[0] == 0.0


# --- Images ---------------------------------------------------------------------------------------------------------


def temporal_names(unet):
    found = [n for n, m in unet.named_modules() if isinstance(m, TemporalConv | TemporalTransformer)]
    return {n for n, _ in unet.named_parameters() if n.startswith(tuple(f"{name}." for name in found))}


def test_an_image_gives_temporal_parameters_gradients_of_zeros(step):
    unet = step.unet
    step(batch([1, 2], keeping(NAMES), frames=1))[0].mean().backward()
    temporal = temporal_names(unet)
    assert len(temporal) > 100 and "temporal_in.proj_out.weight" in temporal
    for name, parameter in unet.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any() != (name in temporal), name


@torch.no_grad()
def test_an_image_takes_the_2d_path(tiny_unet):
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


def test_copies_leave_out_their_own_layers(tiny_unet):
    one = leave_out_for_images(copy.deepcopy(tiny_unet))
    other = copy.deepcopy(one)
    assert other.temporal_in.without_on_images and not tiny_unet.temporal_in.without_on_images
    assert set(other.state_dict()) == set(tiny_unet.state_dict())


def test_images_are_computed_again_in_the_backward_pass(step):
    """Activation checkpointing runs blocks a second time, outside of the forward."""
    from torch.utils.checkpoint import checkpoint

    given = batch([1, 2], keeping(["text"]), frames=1, cached=True)
    step(given)[0].mean().backward()
    expected = {name: p.grad.clone() for name, p in step.unet.named_parameters() if p.grad is not None}
    step.unet.zero_grad()
    block = step.unet.middle
    original = block.forward
    block.forward = lambda *args: checkpoint(original, *args, use_reentrant=False)
    step(given)[0].mean().backward()
    for name, gradient in expected.items():
        torch.testing.assert_close(step.unet.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-6)
