"""Training with less memory: weights in bfloat16, and an optimizer in the computer's memory."""

from dataclasses import replace

import pytest
import torch

from tests.training.ranks import Run, make_recipe
from tests.training.test_engine import assert_same
from training.engine import checkpoints, read_weights
from training.lora import lora_layers
from training.muon import follow
from training.ranks import World
from training.recipe import from_plain
from training.rounding import RoundedAdamW, round_randomly
from vc_core.errors import UserError


def make_run(what="all", lora_on=("spatial.block",), settings=None, **engine):
    recipe = make_recipe(batches=(4,), **(settings or {}))
    train = replace(recipe.train, what=what, lora_on=lora_on)
    return Run(replace(recipe, train=train, engine=replace(recipe.engine, **engine)), World(), torch.float32)


# --- Rounding -------------------------------------------------------------------------------------------------------


def test_values_are_rounded_to_their_neighbours_and_right_on_average():
    low, high = torch.tensor([1.0, -1.0, 3e-8, 100.0]).bfloat16(), torch.empty(4, dtype=torch.bfloat16)
    round_randomly(high, low.float(), torch.Generator().manual_seed(0))
    assert torch.equal(high, low)  # what a bfloat16 can store is unchanged

    exact = torch.tensor([1.0 + 2**-7 * 0.3, -1.0 - 2**-7 * 0.3, 0.1, 3.14159e-20])
    many = torch.empty(20_000, 4, dtype=torch.bfloat16)
    round_randomly(many, exact.expand_as(many).contiguous(), torch.Generator().manual_seed(0))
    for column, value in zip(many.float().T, exact, strict=True):
        below, above = column.unique()
        assert below < value < above
        assert above - below == pytest.approx(2**-7 * float(above.abs().log2().floor().exp2()), rel=0.51)
        assert column.mean() == pytest.approx(float(value), rel=1e-4)


def test_float32_parameters_are_changed_as_by_torch():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(3, 5)), torch.nn.Parameter(torch.randn(7))]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    settings = {"lr": 1e-2, "betas": (0.8, 0.9), "weight_decay": 0.1}
    rounded = RoundedAdamW(ours, torch.Generator(), **settings)
    reference = torch.optim.AdamW(theirs, fused=True, **settings)
    for _ in range(5):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        rounded.step()
        reference.step()
    assert all(map(torch.equal, ours, theirs))


def test_steps_that_are_smaller_than_a_bfloat16_count_on_average():
    """200 steps of 2e-5 at 1.0, where the distance to the next bfloat16 below is 4e-3."""
    parameter = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = RoundedAdamW([parameter], torch.Generator().manual_seed(0), lr=2e-5, weight_decay=0.0)
    for _ in range(200):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert parameter.detach().float().mean() == pytest.approx(1.0 - 200 * 2e-5, abs=2e-4)
    state = optimizer.state[parameter]
    assert {value.dtype for name, value in state.items() if name != "step"} == {torch.bfloat16}
    assert state["exp_avg_sq"].float().mean() == pytest.approx(1 - 0.999**200, rel=0.01)


def test_an_average_in_bfloat16_follows():
    average, weight = torch.zeros(4096, dtype=torch.bfloat16), torch.ones(4096, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    for _ in range(500):
        follow([average], [weight], 0.999, None, generator)
    assert average.float().mean() == pytest.approx(1 - 0.999**500, rel=0.01)


# --- Runs -----------------------------------------------------------------------------------------------------------


def test_matrices_and_their_gradients_and_averages_are_in_bfloat16():
    run = make_run(weights="bf16")
    run.learn(1)
    for name, parameter in run.engine.unet.named_parameters():
        expected = torch.bfloat16 if parameter.dim() > 1 else torch.float32
        state = run.engine.optimizer.state[parameter]
        tensors = (parameter, parameter.grad, run.engine.average[name], state["exp_avg"], state["exp_avg_sq"])
        assert {tensor.dtype for tensor in tensors} == {expected}, name
    assert {tensor.dtype for tensor in run.engine.weights().values()} == {torch.float32}  # for validation and export


def test_a_lora_stays_in_float32_on_weights_in_bfloat16():
    run = make_run("lora", weights="bf16")
    before = run.engine.weights(False)
    losses = run.learn(2)[1]
    layers = lora_layers(run.engine.unet)
    assert {layer.weight.dtype for layer in layers.values()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in run.engine.trained.values()} == {torch.float32}
    changed = [name for name, weight in run.engine.weights(False).items() if not torch.equal(weight, before[name])]
    assert set(changed) == set(run.engine.trained)
    assert losses == pytest.approx(make_run("lora").learn(2)[1], rel=0.01)


@pytest.mark.parametrize("what", ["all", "temporal"])
def test_learning_in_bfloat16_is_close_to_float32(what):
    settings = {"learning_rate": 2e-3, "ema": 0.0}
    exact, rounded = make_run(what, settings=settings), make_run(what, settings=settings, weights="bf16")
    (_, expected), (_, losses) = exact.learn(12), rounded.learn(12)
    assert expected[-1] < expected[0]
    assert losses == pytest.approx(expected, rel=0.05)


def test_an_offloaded_optimizer_changes_nothing():
    plain, offloaded = make_run(), make_run(offload=True)
    assert plain.learn(3) == offloaded.learn(3)
    assert_same(offloaded.engine._tensors(), plain.engine._tensors(), rtol=0.0, atol=0.0)
    for name, parameter in offloaded.engine.unet.named_parameters():
        assert torch.equal(parameter, plain.engine.trained[name]) and parameter.grad is None
        assert offloaded.engine.trained[name] is not parameter


def test_offloaded_weights_are_exact_where_the_network_is_in_bfloat16():
    run = make_run(weights="bf16", offload=True)
    run.learn(2)
    for name, parameter in run.engine.unet.named_parameters():
        exact = run.engine.trained[name]
        assert exact.dtype == torch.float32 and torch.equal(parameter, exact.to(parameter.dtype))
    matrix = run.engine.trained["conv_in.weight"]
    assert not torch.equal(matrix, matrix.bfloat16().float())


@pytest.mark.parametrize("engine", [{"weights": "bf16"}, {"offload": True}, {"weights": "bf16", "offload": True}])
def test_a_run_continues_bit_for_bit(tmp_path, engine):
    straight = make_run(**engine)
    straight.learn(3)
    first = make_run(**engine)
    first.learn(1)
    first.save(tmp_path)
    second = make_run(**engine)
    second.load(tmp_path)
    second.learn(2)
    assert_same(second.engine._tensors(), straight.engine._tensors(), rtol=0.0, atol=0.0)
    assert_same(second.engine.weights(False), straight.engine.weights(False), rtol=0.0, atol=0.0)


def test_a_run_continues_in_another_precision(tmp_path):
    exact = make_run()
    exact.learn(1)
    exact.save(tmp_path)
    rounded = make_run(weights="bf16")
    rounded.load(tmp_path)
    assert_same(rounded.engine.weights(False), exact.engine.weights(False), rtol=0.01, atol=0.0)
    rounded.learn(1)
    rounded.save(tmp_path)
    weights = read_weights(checkpoints(tmp_path)[-1])
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"engine": {"weights": "bf16", "parallel": "fsdp2"}}, "engine.weights works only with engine.parallel ddp"),
        ({"engine": {"offload": True, "parallel": "hsdp"}}, "engine.offload works only with engine.parallel ddp"),
        ({"engine": {"weights": "bf16", "precision": "fp32"}}, "requires computing in bf16"),
        ({"engine": {"weights": "bf16"}, "optimizer": {"kind": "muon"}}, "muon requires fp32 weights"),
        (
            {"engine": {"offload": True}, "loss": {"kind": "consistency"}, "start": {"kind": "checkpoint",
             "checkpoint": "x"}},
            "engine.offload does not work with loss.kind consistency",
        ),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_errors(plain, message):
    with pytest.raises(UserError, match=message):
        from_plain(plain)
