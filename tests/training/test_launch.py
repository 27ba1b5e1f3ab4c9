"""The launcher: exit statuses, signals, ranks that die; and how ranks divide a recipe's batches."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest

from training import launch
from training.data.order import Order, RankOrder
from training.launch import LAUNCHED
from training.ranks import LARGE, dealt, ranks_for
from training.recipe import from_plain
from vc_core.errors import UserError

PROGRAM = "import sys; from training.launch import launch; sys.exit(launch(sys.argv[1], sys.argv[2:], 2))"


@pytest.fixture
def run(repository, tmp_path, monkeypatch):
    """Launch two ranks from this process."""
    monkeypatch.setenv("PYTHONPATH", str(repository))
    return partial(launch.launch, "tests.training.launched", ranks=2)


@pytest.fixture
def start(repository, tmp_path):
    """Start a launcher in its own process, and return when its ranks wait for a signal."""
    launchers = []

    def starts():
        command = [sys.executable, "-c", PROGRAM, "tests.training.launched", str(tmp_path), "wait"]
        environment = {**os.environ, "PYTHONPATH": str(repository)}
        launchers.append(subprocess.Popen(command, env=environment, start_new_session=True))
        wait_for(lambda: len(list(tmp_path.glob("started.*"))) == 2)
        return launchers[-1]

    yield starts
    for launcher in launchers:
        launcher.kill()
        launcher.wait()


def wait_for(condition):
    for _ in range(1500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("timed out")


def signals_of(folder):
    return [(folder / f"came.{rank}").read_text() for rank in range(2)]


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot kill or look up a process with a signal")
@pytest.mark.parametrize(
    ("what", "status", "errors"),
    [("end", 0, ""), ("fail", 2, ""), ("die", 3, "vc: bad samples\n"),
     ("kill", 137, "vc: bad samples\nvc: Rank 1 was ended by SIGKILL (usually because memory ran out). Run the "
      "same command again to resume from the last save.\n")],
)  # fmt: skip
def test_the_status_is_that_of_the_rank_that_failed_first(run, tmp_path, capfd, monkeypatch, what, status, errors):
    if what == "kill":
        monkeypatch.setattr(launch, "GRACE", 0.2)  # for the rank that waits forever
    assert run([str(tmp_path), what]) == status
    # Rank 0 has the launcher's own standard error, so that its progress is visible.
    assert capfd.readouterr().err == ("vc: no such file\n" if what == "fail" else errors)
    for rank in range(2):
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / f"started.{rank}").read_text()), 0)


@pytest.mark.skipif(os.name == "nt", reason="the console of Windows sends the signal to the ranks")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_each_rank_once_and_all_are_waited_for(start, tmp_path, number):
    launcher = start()
    os.killpg(launcher.pid, number)  # like a terminal
    assert launcher.wait(30) == 128 + number
    assert signals_of(tmp_path) == [str(int(number))] * 2


@pytest.mark.skipif(os.name == "nt", reason="Windows does not call a handler for it")
def test_ranks_save_and_end_when_their_launcher_is_killed(start, tmp_path):
    start().kill()
    wait_for(lambda: len(list(tmp_path.glob("came.*"))) == 2)
    wait_for(lambda: all(signals_of(tmp_path)))
    assert signals_of(tmp_path) == [str(int(signal.SIGTERM))] * 2


def test_starting_ranks_requires_no_library(repository):
    """The parent imports neither torch nor libraries that only training requires."""
    code = "import sys, training.launch; print({'torch', 'tyro', 'pydantic', 'yaml', 'av'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True)
    assert result.stdout == "set()\n", result.stderr


# --- How ranks divide batches ---------------------------------------------------------------------------------------


def recipe(**changes):
    data = changes.pop("data", [{"batch": 8}])
    plain = {"start": {"network": "small.json"}, "engine": {"device": "cpu"}, "data": data}
    return from_plain({**plain, **changes})


def test_by_default_there_are_as_many_ranks_as_learn_the_same(tmp_path):
    assert [ranks_for(recipe(), cores) for cores in (1, 2, 3, 4, 7, 64)] == [1, 2, 2, 4, 4, 8]
    assert ranks_for(recipe(data=[{"batch": 3}], optimizer={"accumulate": 2}), 4) == 3
    assert ranks_for(recipe(data=[{"batch": 1}]), 4) == 1
    assert ranks_for(recipe(ranks=1), 4) == 1
    assert ranks_for(recipe(ranks=4), 1) == 4
    for alone in (
        {"data": [{"batch": 8}, {"batch": 8, "frames": 1}]},
        {"engine": {"device": "cpu", "parallel": "fsdp2"}},
        {"loss": {"dropout": "released"}},
        {"start": {}},  # copies of the released network would fill the memory
    ):
        assert ranks_for(recipe(**alone), 4) == 1, alone
    large = tmp_path / "large.safetensors"
    for size, ranks in ((LARGE - 1, 4), (LARGE, 1)):
        with open(large, "wb") as file:
            file.truncate(size)
        assert ranks_for(recipe(start={"kind": "videocomposer", "checkpoint": str(large)}), 4) == ranks


def test_batches_that_cannot_be_divided_are_refused(monkeypatch):
    with pytest.raises(UserError, match="divided evenly among 3 ranks"):
        ranks_for(recipe(ranks=3), 1)
    with pytest.raises(UserError, match="4 domains, but there are only 3 ranks"):
        ranks_for(recipe(ranks=3, data=[{"batch": 3}, {"batch": 1}, {"batch": 1}, {"batch": 1}]), 1)
    monkeypatch.setattr("training.ranks.choose_device", lambda _: __import__("torch").device("cuda"))
    with pytest.raises(UserError, match=r"ranks is 2.*torchrun"):
        ranks_for(recipe(ranks=2), 4)
    assert ranks_for(recipe(), 4) == 1


@pytest.mark.parametrize(("batch", "accumulate", "ranks"), [(8, 1, 2), (3, 2, 2), (1, 8, 4), (6, 4, 8), (4, 3, 6)])
def test_a_step_uses_the_samples_of_one_process(batch, accumulate, ranks):
    full = recipe(data=[{"batch": batch, "lengths": [4, 8, 16]}], optimizer={"accumulate": accumulate})
    own = dealt(full, ranks)

    def steps(recipe, ranks):
        order, count = Order(0, 100), 0
        for _ in range(6):
            data, fewer = recipe.data[0], recipe.optimizer.accumulate
            of_ranks = [
                RankOrder(order, data.lengths, data.batch, rank, ranks, fewer).step(count) for rank in range(ranks)
            ]
            assert {len(slots) for slots in of_ranks} == {fewer}
            count = of_ranks[0][0].after
            slots = [slot for slots in of_ranks for slot in slots]
            yield sorted(n for slot in slots for n in slot.counts), {(slot.frames, slot.after) for slot in slots}

    assert list(steps(own, ranks)) == list(steps(full, 1))
    assert own.data[0].batch <= batch
    assert replace(own, data=full.data, optimizer=full.optimizer) == full


def test_domains_divide_ranks_too():
    own = dealt(recipe(data=[{"batch": 6, "ranks": 3}, {"batch": 5, "frames": 1}]), 4)
    assert [domain.batch for domain in own.data] == [2, 5]


def test_ranks_of_torchrun_are_not_launched_ranks(monkeypatch):
    monkeypatch.delenv(LAUNCHED, raising=False)
    assert not launch.follow_launcher()
