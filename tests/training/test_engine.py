"""The engine: ranks, steps, checkpoints."""

import errno
import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.disks import ADVICE, everything_in, files_up_to
from tests.training.ranks import SCENARIOS, STEPS, Run, make_recipe, make_unet
from training.engine import checkpoints, rate, read_state, read_weights
from training.ranks import World, lanes_of
from training.recipe import Optimizer
from vc_core.errors import UserError

SINGLE = make_recipe(batches=(4,))
"""The recipe of a single process, with the batch of two ranks together."""


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def single():
    """A run in one process, with twice the batch of each of two ranks, and its norms."""
    run = Run(SINGLE, World())
    norms, _ = run.learn()
    return run, norms


QUICK, FOUR = ("accumulated", "fsdp2", "images", "bf16"), ("fsdp2_four", "hsdp_four")
SLOW = tuple(pytest.param(name, marks=pytest.mark.slow) for name in ("ddp", "fsdp2_accumulated", "hsdp"))


@pytest.fixture(scope="module")
def two(repository, single, tmp_path_factory):
    """The folder with the results of two ranks for the quick scenarios."""
    folder = tmp_path_factory.mktemp("ranks")
    single[0].save(folder / "one")
    return run_ranks(repository, folder, QUICK)


@pytest.fixture(scope="module")
def two_more(repository, tmp_path_factory):
    """The folder with the results of two ranks for the other scenarios."""
    others = [name for name in SCENARIOS if name not in (*QUICK, *FOUR)]
    return run_ranks(repository, tmp_path_factory.mktemp("ranks"), others)


@pytest.fixture(scope="module")
def four(repository, tmp_path_factory):
    """The folder with the results of four ranks, which torchrun starts as on two nodes with two GPUs each."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2", "--local-addr=localhost"]
    torchrun += ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{free_port()}"]
    return run_processes(repository, folder, FOUR, [(torchrun, {})] * 2)


def run_ranks(repository, folder, names):
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    ranks = [([], {**address, "RANK": str(rank), "LOCAL_RANK": "0"}) for rank in range(2)]
    return run_processes(repository, folder, names, ranks)


def run_processes(repository, folder, names, starts):
    """Run ranks.py in several processes, each with options of Python and variables of its own."""
    program = [str(repository / "tests" / "training" / "ranks.py"), str(folder), *names]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
    processes = [
        subprocess.Popen([sys.executable, *options, *program], text=True, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, env={**shared, **variables})
        for options, variables in starts
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.terminate()  # torchrun ends its ranks
    assert not any(process.returncode for process in processes), "\n".join(outputs)
    return folder


def weights_of(folder, name, kind="weights"):
    return torch.load(folder / f"{name}.pt", weights_only=True)[kind]


def assert_same(weights, expected, **tolerance):
    assert weights.keys() == expected.keys()
    tolerance = tolerance or {"rtol": 0.0, "atol": 1e-6}
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], **tolerance, msg=lambda m, name=name: f"{name}: {m}")


# --- Ranks ----------------------------------------------------------------------------------------------------------


def test_ranks_are_divided_among_the_domains():
    def owners(size, ranks):
        return [lanes_of(rank, size, ranks)[0].domain for rank in range(size)]

    assert owners(4, [3, 1]) == [0, 0, 0, 1]
    assert owners(8, [3, 1]).count(1) == 2
    assert owners(2, [3, 1]) == [0, 1]
    assert owners(7, [1]) == [0] * 7
    for size in (3, 5, 16):
        lanes = [lanes_of(rank, size, [2, 1, 1]) for rank in range(size)]
        assert all(len(lanes_of_rank) == 1 for lanes_of_rank in lanes)
        for domain in range(3):
            own = [lane for (lane,) in lanes if lane.domain == domain]
            assert [lane.rank for lane in own] == list(range(len(own)))
            assert {lane.ranks for lane in own} == {len(own)}
    assert [(lane.domain, lane.rank, lane.ranks) for lane in lanes_of(0, 1, [3, 1])] == [(0, 0, 1), (1, 0, 1)]
    with pytest.raises(UserError, match="2 ranks"):
        lanes_of(0, 2, [1, 1, 1])


def test_messages_of_all_ranks_are_gathered_on_each(two):
    for rank in range(2):
        assert torch.load(two / f"gathered.{rank}.pt", weights_only=True) == ["bad on rank 0", "bad on rank 1"]


@pytest.mark.parametrize("name", ["accumulated", "fsdp2", *SLOW])
def test_two_ranks_learn_the_same_as_one_with_twice_the_batch(single, request, name):
    assert_learned(single, request.getfixturevalue("two" if name in QUICK else "two_more"), name)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "copies"), [("fsdp2_four", 1), ("hsdp_four", 2)])
def test_four_sharded_ranks_learn_the_same_as_one_and_one_continues_their_checkpoint(single, four, name, copies):
    """FSDP2 shards the weights over all ranks; HSDP has a copy per node, sharded over its two ranks."""
    assert_learned(single, four, name, ranks=4)
    elements = [torch.load(four / f"{name}.{rank}.pt", weights_only=True)["elements"] for rank in range(4)]
    assert sum(elements) == copies * sum(p.numel() for p in single[0].engine.unet.parameters())
    assert max(elements) < sum(elements) / 2
    expected = Run(SINGLE, World())
    expected.learn(2 * STEPS)
    run = Run(SINGLE, World())
    run.load(four / name)
    run.learn()
    assert_same(run.engine.weights(False), expected.engine.weights(False))


def test_weights_in_bf16_are_the_same_on_all_ranks(two, single):
    """Although they are rounded at random. They change in the same directions as in fp32."""
    first, second = (torch.load(two / f"bf16.{rank}.pt", weights_only=True)["sum"] for rank in range(2))
    assert first == second
    start, rounded = make_unet().state_dict(), weights_of(two, "bf16")
    changes = [
        torch.cat([(weights[name].double() - start[name]).flatten() for name in start])
        for weights in (rounded, single[0].engine.weights(False))
    ]
    # 0.46, and 0 if they were unrelated: AdamW's first steps are as long where the gradient is only rounding.
    assert torch.cosine_similarity(*changes, dim=0) > 0.3


def assert_learned(single, folder, name, ranks=2):
    """Assert that ranks have learned from the same samples as a single process, and the same."""
    run, norms = single
    assert weights_of(folder, name, "norms") == pytest.approx(norms, rel=1e-6)
    assert_same(weights_of(folder, name), run.engine.weights(False))
    assert_same(weights_of(folder, name, "average"), run.engine.weights())
    seen = [n for rank in range(ranks) for n in torch.load(folder / f"{name}.{rank}.pt", weights_only=True)["seen"]]
    assert sorted(seen) == sorted(run.step.seen) == list(range(4 * STEPS))


@pytest.mark.parametrize("name", ["images", pytest.param("images_fsdp2", marks=pytest.mark.slow)])
def test_a_rank_on_images_and_one_on_videos_learn_the_same_as_one_process(request, name):
    two = request.getfixturevalue("two" if name in QUICK else "two_more")
    run = Run(SCENARIOS["images"], World())
    run.learn()
    assert_same(weights_of(two, name), run.engine.weights(False))


def test_more_ranks_of_a_domain_do_not_change_its_weight():
    """A domain's loss is the mean over its batches, however many there are."""
    few, many = (make_recipe(batches=(2, images), frames=(3, 1), ema=0.0) for images in (1, 1))
    run = Run(few, World())
    weights = [(lane.ranks, run.engine._weight(lane)) for lane in run.lanes]
    assert weights == [(1, 1 / 3), (1, 2 / 3)]
    engine = Run(many, World()).engine
    engine.world = World(size=4)
    weights = [engine._weight(lanes_of(rank, 4, [3, 1])[0]) for rank in range(4)]
    # Gradients are averaged over the ranks.
    assert sum(weights[:3]) / 4 == pytest.approx(1 / 3)
    assert weights[3] / 4 == pytest.approx(2 / 3)


# --- Steps ----------------------------------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_and_falls_by_a_cosine():
    settings = Optimizer(warmup=10, final_rate=0.1)
    rates = [rate(step, 110, settings) for step in (0, 9, 10, 60, 110, 200)]
    assert rates == pytest.approx([0.1, 1, 1, 0.55, 0.1, 0.1])
    assert rate(60, 110, replace(settings, decay="constant")) == 1.0


def test_gradients_are_clipped_and_norms_are_of_before():
    run = Run(make_recipe(clip=1e-3), World())
    norms, _ = run.learn(1)
    assert norms[0] > 1e-2
    clipped = torch.stack([p.grad.norm() for p in run.engine.trained.values()]).norm()
    assert float(clipped) == pytest.approx(1e-3, rel=1e-3)


def test_a_gradient_that_is_not_finite_stops_the_run_and_changes_nothing():
    run = Run(make_recipe(), World())
    with torch.no_grad():
        run.engine.unet.conv_out.bias.fill_(torch.inf)
    before = run.engine.weights(False)
    with pytest.raises(UserError, match="not finite in step 0"):
        run.learn(1)
    assert_same(run.engine.weights(False), before, rtol=0.0, atol=0.0)


def test_the_average_follows_the_weights():
    run = Run(make_recipe(ema=0.5), World())
    expected = run.engine.weights(False)
    for step in range(4):
        run.learn(1)
        decay = min(0.5, (1 + step) / (10 + step))
        weights = run.engine.weights(False)
        expected = {name: decay * mean + (1 - decay) * weights[name] for name, mean in expected.items()}
    assert_same(run.engine.weights(), expected, rtol=0.0, atol=1e-12)
    assert not Run(make_recipe(ema=0.0), World()).engine.average


def test_checkpointing_changes_nothing(single):
    run = Run(replace(SINGLE, engine=replace(SINGLE.engine, checkpointing=True)), World())
    run.learn()
    assert_same(run.engine.weights(False), single[0].engine.weights(False), rtol=0.0, atol=1e-12)


@pytest.mark.slow
def test_blocks_are_compiled_also_where_activations_are_recomputed(monkeypatch):
    import torch._dynamo  # takes seconds

    compiled = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled(module, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    recipe = replace(SINGLE, engine=replace(SINGLE.engine, compile=True, checkpointing=True))
    Run(recipe, World()).learn(1)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] >= 1 and not counters["graph_break"]


@pytest.mark.parametrize("clips", [1, 8])
def test_it_overfits_a_few_clips(clips):
    run = Run(make_recipe(batches=(8,), frames=(2,), learning_rate=5e-3, ema=0.0), World(), torch.float32, clips)
    _, losses = run.learn(28)
    assert sum(losses[-5:]) < sum(losses[:5]) / 2


# --- Checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_run_continues_bit_for_bit(tmp_path, kind):
    recipe = make_recipe(kind=kind, betas=(0.9, 0.99))
    straight = Run(recipe, World(), torch.float32)
    straight.learn(3)
    first = Run(recipe, World(), torch.float32)
    first.learn(1)
    first.save(tmp_path)
    second = Run(recipe, World(), torch.float32)
    second.load(tmp_path)
    second.learn(2)
    assert second.engine.steps == 3
    assert_same(second.engine._tensors(), straight.engine._tensors(), rtol=0.0, atol=0.0)
    assert first.step.seen + second.step.seen == straight.step.seen


def test_checkpoints_of_sharded_ranks_are_read_by_one_process_and_vice_versa(single, two):
    expected = Run(SINGLE, World())
    expected.learn(2 * STEPS)
    run = Run(SINGLE, World())
    run.load(two / "fsdp2")
    run.learn()
    assert_same(run.engine.weights(False), expected.engine.weights(False))
    assert_same(torch.load(two / "resumed.pt", weights_only=True), expected.engine.weights(False))
    average = read_weights(checkpoints(two / "fsdp2")[-1])
    assert_same(average, weights_of(two, "fsdp2", "average"), rtol=0.0, atol=0.0)


def test_the_last_checkpoints_are_kept_and_incomplete_ones_are_ignored(tmp_path):
    recipe = make_recipe()
    run = Run(replace(recipe, engine=replace(recipe.engine, keep=2)), World())
    for step in range(1, 5):
        run.engine.steps = step
        run.save(tmp_path)
    (tmp_path / "checkpoints" / ".step-00000009.part").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000003", "step-00000004"]
    assert read_state(checkpoints(tmp_path)[-1])["step"] == 4


def test_a_checkpoint_of_another_run_is_an_error_that_names_the_difference(tmp_path):
    run = Run(make_recipe(), World())
    run.learn(1)
    folder = run.save(tmp_path)
    with pytest.raises(UserError, match=r"with another network, optimizer.*average\."):
        Run(make_recipe(ema=0.0), World()).load(tmp_path)
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged"):
        Run(make_recipe(), World()).load(tmp_path)
    with pytest.raises(UserError, match="is not a checkpoint of a run"):
        read_state(tmp_path)


def test_a_save_that_fails_leaves_the_checkpoints_as_they_were(tmp_path, monkeypatch):
    run = Run(make_recipe(), World())
    run.learn(1)
    run.save(tmp_path)
    run.learn(1)

    before = everything_in(tmp_path)
    with files_up_to(8192), pytest.raises(UserError, match=ADVICE):
        run.save(tmp_path)
    assert everything_in(tmp_path) == before

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("training.engine.os.fsync", fail)  # after the tensors, at the end
        with pytest.raises(UserError, match=f"step-00000002 {ADVICE}Free space"):
            run.save(tmp_path)
    assert everything_in(tmp_path) == before
    run.save(tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000001", "step-00000002"]
