"""Consistency distillation: the loss of a step, the target network, the recipe, complete runs, and what they export."""

import copy
import signal
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler

from tests.training.interrupted import train_interrupted
from tests.training.test_step import SIZE, batch, keeping
from tests.training.test_trainer import assert_equal_runs
from training.consistency import Consistency
from training.distillation import ConsistencyStep
from training.engine import Learner, checkpoints
from training.export import export
from training.frozen import Encoders, gather_parts
from training.lora import add_lora, lora_layers, save_lora
from training.objective import NAMES, draw_noise, keep_for
from training.ranks import Lane, World
from training.recipe import RECIPES, Distillation, Domain, Engine, Loss, Optimizer, Recipe, Start, Train, read_recipe
from training.start import begin
from training.trainer import train
from vc_core.checkpoint.conversion import convert
from vc_core.checkpoint.inspection import as_text, inspect
from vc_core.commands.conditions import fill_in
from vc_core.commands.settings import Settings
from vc_core.composer import VideoComposer
from vc_core.config import Config, DiffusionConfig, UNetConfig
from vc_core.diffusion.samplers import Sampling, make_sampler
from vc_core.errors import UserError
from vc_core.families import VGEN_NEGATIVE
from vc_core.model.unet import UNet3D
from vc_core.pipeline import compose

EPSILON, V = DiffusionConfig(), DiffusionConfig(prediction="v_prediction", zero_terminal_snr=True)


@pytest.fixture
def recipe(tiny_checkpoint, tmp_path):
    return Recipe(
        out=tmp_path / "run", start=Start("checkpoint", tiny_checkpoint), height=SIZE[0], width=SIZE[1], seed=2,
        steps=10, data=(Domain(frames=3, without=("depth",)),),
        loss=Loss(kind="consistency"), distillation=Distillation(negative="blurry"),
        optimizer=Optimizer(learning_rate=1e-3, warmup=0, ema=0.95), engine=Engine(device="cpu"),
    )  # fmt: skip


def started(recipe):
    """Return the step and the learner of a run before its first step."""
    start = begin(recipe)
    step = ConsistencyStep(start.unet, Encoders(start.config, gather_parts(recipe), SIZE), recipe, start.guidance)
    learner = Learner(start.unet, step, recipe, World())
    step.attach(learner)
    return step, learner


def moved(weights, seed):
    """Change weights in place, at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in weights:
            tensor += 0.02 * torch.randn(tensor.shape, generator=generator)


# --- One step -------------------------------------------------------------------------------------------------------


def schedulers(config):
    settings = dict(
        beta_start=config.beta_start, beta_end=config.beta_end, beta_schedule="scaled_linear", clip_sample=False,
        prediction_type=config.prediction, rescale_betas_zero_snr=config.zero_terminal_snr, set_alpha_to_one=False,
    )  # fmt: skip
    ddim, lcm = DDIMScheduler(**settings), LCMScheduler(**settings)
    ddim.set_timesteps(50)
    return ddim, lcm


def by_hand(config, networks, inputs, noise, timestep, guidance, negative):
    """The loss of one sample that keeps text, style and motion, by diffusers' schedulers, as arXiv 2310.04378 and VGen
    describe it. `networks`: student, teacher, target."""
    (ddim, lcm), (student, teacher, target) = schedulers(config), networks

    def predicted(unet, x, t, text, style):
        context = torch.cat([text, unet.encode_style(style)], dim=1)
        stc = unet.encode_condition("motion", inputs.conditions["motion"], tuple(x.shape[-2:]))
        return unet(x, torch.tensor([t]), context, stc)

    def result(unet, x, t):
        output = predicted(unet, x, t, inputs.text, inputs.style)
        alpha = ddim.alphas_cumprod[t]
        clean = (x - (1 - alpha) ** 0.5 * output) / alpha**0.5
        if config.prediction == "v_prediction":
            clean = alpha**0.5 * x - (1 - alpha) ** 0.5 * output
        skip, out = lcm.get_scalings_for_boundary_condition_discrete(torch.tensor(t))
        return skip * x + out * clean

    x = ddim.add_noise(inputs.latents, noise, torch.tensor([timestep]))
    cond = predicted(teacher, x, timestep, inputs.text, inputs.style)
    uncond = predicted(teacher, x, timestep, negative, torch.zeros_like(inputs.style))
    earlier = ddim.step(cond + guidance * (cond - uncond), timestep, x).prev_sample
    error = result(student, x, timestep) - result(target, earlier, max(timestep - 20, 0))
    return ((error**2 + 0.001**2).sqrt() - 0.001).mean()


@pytest.mark.parametrize("config", [EPSILON, V], ids=["epsilon", "v"])
@pytest.mark.parametrize("guidance", [None, 5.0])
def test_the_loss_of_a_step_is_that_of_the_papers(recipe, config, guidance, monkeypatch):
    """Without `guidance` in the recipe, w is the checkpoint's guidance scale, 2."""
    recipe = replace(recipe, distillation=Distillation(guidance=guidance, negative="blurry"))
    step, learner = started(recipe)
    step.consistency = Consistency(config, 0.001)
    teacher = copy.deepcopy(step.unet).eval()
    moved(learner.trained.values(), 1)
    moved(learner.average.values(), 2)
    step.unet.eval()  # no dropout in the student, which uses torch's own generator
    target = copy.deepcopy(teacher)
    target.load_state_dict(learner.average)
    kept = keeping({"text", "style", "motion"}, 1)
    for number in (0, 1, 2):
        own = batch([number], kept)
        losses, timesteps = step(own)
        inputs, noise = step.inputs(own), draw_noise(recipe.seed, [number], (4, 3, 4, 5))
        expected = by_hand(
            config, (step.unet, teacher, target), inputs, noise, int(timesteps), 2.0 if guidance is None else guidance,
            step.encoders.text(["blurry"]),
        )  # fmt: skip
        torch.testing.assert_close(losses[0], expected, rtol=1e-4, atol=1e-6)
        assert losses.requires_grad and (int(timesteps) + 1) % 20 == 0


def test_timesteps_are_the_samplers_and_equally_frequent():
    consistency = Consistency(V, 0.001)
    timesteps, below = consistency.draw(3, list(range(5000)))
    values, counts = timesteps.unique(return_counts=True)
    assert values.tolist() == list(range(19, 1000, 20))
    assert counts.min() >= 98 and counts.max() <= 102
    assert torch.equal(below, (timesteps - 20).clamp(min=0))


@pytest.mark.parametrize("config", [EPSILON, V], ids=["epsilon", "v"])
def test_the_student_returns_its_input_at_timestep_0_and_otherwise_the_samplers_result(config):
    consistency, x = Consistency(config, 0.001), torch.randn(1, 4, 3, 4, 5)
    prediction = torch.randn(x.shape)
    assert torch.equal(consistency.result(x, prediction, torch.tensor([0])), x)
    sampler = make_sampler(Sampling("lcm", 4, guidance=1.0), config)
    last = sampler.keys[-1]
    sampler.scheduler.set_begin_index(3)
    expected = sampler.scheduler.step(prediction, last, x).prev_sample  # no noise is added in the last step
    torch.testing.assert_close(consistency.result(x, prediction, last[None]), expected)


def test_moving_content_weighs_more():
    consistency, still = Consistency(V, 0.001), torch.zeros(1, 4, 2, 4, 4)
    latents = still.clone()
    latents[:, :, 1, :2] = 1.0
    moving, resting = still.clone(), still.clone()
    moving[:, :, 1, :2], resting[:, :, 1, 2:] = 1.0, 1.0
    first, second = (consistency.losses(error, still, latents, gain=6.0) for error in (moving, resting))
    assert first == pytest.approx(7 * float(second))
    assert consistency.losses(moving, still, latents) == consistency.losses(resting, still, latents)


def test_the_target_network_follows_with_095_from_the_first_step(recipe):
    step, learner = started(recipe)
    assert {f"unet.{name}" for name in learner.average} == {*step._target}
    keep = keep_for(recipe, recipe.data[0], step.unet.config.inputs)
    for number in (0, 1):
        before = {name: tensor.clone() for name, tensor in learner.average.items()}
        learner.update([(Lane(0, 0, 1), batch([number], keep([number])))])
        for name, average in step._target.items():
            name = name.removeprefix("unet.")
            expected = 0.95 * before[name] + 0.05 * learner.trained[name]
            torch.testing.assert_close(average, expected, rtol=0.0, atol=1e-6)
    changed = [
        name for name, weight in learner.trained.items() if not torch.equal(weight, step._teacher[f"unet.{name}"])
    ]
    assert changed and learner.unet.training


def test_the_teacher_of_a_lora_is_the_network_without_it(recipe, tmp_path):
    """Also of a LoRA whose distillation continues, which changes the network from the first step on."""
    unet = begin(replace(recipe, loss=Loss(), distillation=Distillation())).unet.eval()
    plain = copy.deepcopy(unet)
    add_lora(unet, 4, None, ["spatial.block"])
    moved([layer.lora_up.weight for layer in lora_layers(unet).values()], 1)
    save_lora(tmp_path / "lora.safetensors", unet)
    step, _ = started(replace(recipe, train=Train(what="lora", lora_from=tmp_path / "lora.safetensors")))
    own = batch([0], keeping({"text", "motion"}, 1))
    inputs = step.inputs(own)
    given = (torch.randn(1, 4, 3, 4, 5), torch.tensor([500]), inputs, own.kept)
    with step._frozen():
        taught, target = step._predicted(step._teacher, *given), step._predicted(step._target, *given)
        step.unet = plain
        torch.testing.assert_close(taught, step.predict(*given))
        assert not torch.allclose(target, taught, atol=1e-3)


def test_text_is_never_dropped_and_conditions_as_in_stage_2(recipe):
    numbers, inputs = list(range(200)), UNetConfig().inputs
    kept = keep_for(recipe, recipe.data[0], inputs)(numbers)
    usual = keep_for(replace(recipe, loss=Loss(), distillation=Distillation()), recipe.data[0], inputs)(numbers)
    assert kept["text"].all() and not usual["text"].all()
    assert all(torch.equal(kept[name], usual[name]) for name in NAMES if name != "text")
    assert not keep_for(recipe, Domain(without=("text",)), inputs)(numbers)["text"].any()


# --- The recipe -----------------------------------------------------------------------------------------------------


def test_the_recipe_has_vgens_settings():
    recipe = read_recipe(RECIPES / "lcm.yaml")
    assert recipe.distils and recipe.distillation == Distillation(guidance=None, negative=None, huber=0.001)
    assert (recipe.optimizer.learning_rate, recipe.optimizer.ema) == (3e-5, 0.95)
    assert (recipe.width, recipe.height) == (448, 256)
    assert Config().guidance == 9.0


@pytest.mark.parametrize(("tokens", "negative"), [(1, ""), (4, VGEN_NEGATIVE)])
def test_the_negative_prompt_of_vgens_networks_is_vgens(recipe, tiny_config, tokens, negative):
    config = replace(tiny_config, unet=replace(tiny_config.unet, style_tokens=tokens))
    encoders = Encoders(config, gather_parts(recipe), SIZE)
    recipe = replace(recipe, distillation=Distillation())
    step = ConsistencyStep(UNet3D(config.unet), encoders, recipe, 9.0)
    assert torch.equal(step.negative, encoders.text([negative]))
    assert not torch.equal(step.negative, encoders.text(["a red circle"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": Start()}, "requires a complete checkpoint as the teacher"),
        ({"optimizer": Optimizer(ema=0.0)}, "optimizer.ema is 0"),
        ({"engine": Engine(parallel="fsdp2")}, "works only with ddp"),
        ({"loss": Loss(kind="consistency", prediction="epsilon")}, "loss.prediction does not work with"),
        ({"loss": Loss(kind="consistency", offset_noise=0.1)}, "loss.offset_noise does not work with"),
        ({"loss": Loss()}, "section distillation works only with loss.kind consistency"),
    ],
)
def test_contradictions_are_errors(recipe, changes, message):
    with pytest.raises(UserError, match=message):
        replace(recipe, **changes)


def test_a_network_for_few_steps_cannot_teach(recipe, tiny_checkpoint, tmp_path):
    convert(tiny_checkpoint, tmp_path / "few.safetensors", few_steps=True)
    with pytest.raises(UserError, match=r"few\.safetensors was distilled .* already"):
        begin(replace(recipe, start=Start("checkpoint", tmp_path / "few.safetensors")))


def test_the_student_is_for_few_steps_and_has_its_teachers_network(recipe, tiny_config):
    start = begin(recipe)
    assert start.config.few_steps and (start.config.guidance, start.guidance) == (1.0, 2.0)
    assert start.config.unet == tiny_config.unet and start.config.diffusion == tiny_config.diffusion
    assert start.fresh == ()


# --- Complete runs --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tiny_checkpoint, tmp_path_factory):
    """Return runs of 4 steps on synthetic scenes, a folder by what they train."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "recipe.yaml").write_text(
        f"""
height: 32
width: 32
steps: 4
ranks: 1
start: {{kind: checkpoint, checkpoint: {tiny_checkpoint}}}
data: [{{kind: synthetic, frames: 3, batch: 2, count: 5}}]
loss: {{kind: consistency}}
optimizer: {{learning_rate: 1e-3, warmup: 2, ema: 0.95}}
train: {{lora_rank: 2, lora_on: [spatial.block]}}
engine: {{device: cpu, keep: 9}}
watch: {{log_every: 1}}
"""
    )
    for what in ("all", "lora"):
        assert train(of_run(folder, what)) == 0
    return folder


def of_run(folder, what, *options):
    return read_recipe(folder / "recipe.yaml", ["--train.what", what, "--out", str(folder / what), *map(str, options)])


@pytest.mark.parametrize("what", ["all", "lora"])
def test_an_interrupted_run_is_the_same_run(runs, tmp_path, what):
    """The network has dropout; the target network is saved as the average."""
    recipe = of_run(runs, what, "--out", tmp_path)
    assert train_interrupted(recipe, signal.SIGTERM, 2) == 143
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002"]
    assert train(recipe) == 0
    assert_equal_runs(tmp_path, runs / what)


def defaults(config):
    full, _ = fill_in(Settings(), config)
    return full.sampler, full.steps, full.guidance


def test_an_exported_checkpoint_is_for_few_steps(runs, tmp_path):
    export(runs / "all", tmp_path / "student.safetensors")
    composer = VideoComposer.load(tmp_path / "student.safetensors")
    assert defaults(composer.config) == ("lcm", 4, 1.0)
    assert "distilled for few steps: 4 steps of lcm, guidance scale 1" in as_text(
        inspect(tmp_path / "student.safetensors")
    )
    assert torch.isfinite(compose(composer, "a red circle", frames=2, size=(32, 32))).all()


def test_an_exported_lora_makes_its_checkpoint_one_for_few_steps(runs, tiny_checkpoint, tmp_path):
    student, plain = tmp_path / "student.safetensors", tmp_path / "plain.safetensors"
    export(runs / "lora", student)
    save_lora(plain, begin(replace(of_run(runs, "lora"), loss=Loss())).unet)

    def config_with(*loras, strength=1.0, **overrides):
        return VideoComposer.load(tiny_checkpoint, loras=dict.fromkeys(loras, strength), overrides=overrides).config

    assert defaults(config_with(student)) == defaults(config_with(plain, student)) == ("lcm", 4, 1.0)
    assert defaults(config_with(plain)) == defaults(config_with()) == ("dpmpp_2m", 20, 2.0)
    assert defaults(config_with(student, strength=0.0)) == ("dpmpp_2m", 20, 2.0)
    assert defaults(config_with(student, few_steps=False)) == ("dpmpp_2m", 20, 2.0)


def test_a_merged_lora_is_a_checkpoint_for_few_steps(runs, tmp_path):
    export(runs / "lora", tmp_path / "merged.safetensors", merge=True)
    assert defaults(VideoComposer.load(tmp_path / "merged.safetensors").config) == ("lcm", 4, 1.0)
