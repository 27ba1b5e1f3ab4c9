"""Two processes in one folder: the second learns who has the lock; a killed process leaves no lock behind."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.training.clips import FRAMES, SIZE, make_folder
from training.data import shard_writing as preparing
from training.data.folder import read_captions
from training.data.prepare import main as prepare_main
from training.data.shard_writing import PrepareOptions, prepare
from training.lock import FILE, locked, locked_by_main
from training.ranks import World
from vc_core.errors import UserError

HOLD = """
import sys, time
from pathlib import Path
from training.lock import locked
with locked(Path(sys.argv[1]), "./vc train"):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path, repository):
    """Another process that has locked the folder."""
    command = [sys.executable, "-c", HOLD, tmp_path]
    process = subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_process_learns_who_has_the_lock(tmp_path, other):
    message = rf"{tmp_path} is in use by \./vc train \(process {other.pid} on {socket.gethostname()}\)\. Wait"
    for _ in range(2):  # an attempt changes nothing
        with pytest.raises(UserError, match=message), locked(tmp_path, "./vc prepare"):
            pass


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_process_leaves_no_lock(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / FILE).exists()
    with locked(tmp_path, "./vc prepare"):
        assert json.loads((tmp_path / FILE).read_bytes()[1:])["process"] == os.getpid()


def test_a_lock_is_released_however_the_work_ends(tmp_path):
    for error in (KeyboardInterrupt, UserError("no"), SystemExit(3)):
        with pytest.raises(BaseException), locked(tmp_path, "work"):  # noqa: B017 (any of them)
            raise error
    message = rf"work \(process {os.getpid()} on "
    with locked(tmp_path, "work"), pytest.raises(UserError, match=message), locked(tmp_path, "other"):
        pass
    (tmp_path / FILE).write_text("not JSON")
    with locked(tmp_path, "work"):
        pass


def test_the_first_rank_locks_and_all_ranks_end_if_it_cannot(tmp_path):
    class Rank(World):
        def most(self, number):
            return 1  # the lock was refused on another rank

    with pytest.raises(SystemExit, match="75"), locked_by_main(Rank(1, 2), tmp_path, "work"):
        pass
    with (
        locked(tmp_path, "work"),
        pytest.raises(UserError, match="in use by"),
        locked_by_main(World(), tmp_path, "again"),
    ):
        pass
    with locked_by_main(World(), tmp_path, "work"):
        pass


# --- Preparing ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("videos"))


def test_a_second_prepare_leaves_the_first_ones_open_shard_alone(videos, tmp_path, monkeypatch, capsys):
    """The second starts while the first writes its second shard; the result of the first does not change."""
    make, out, second = preparing.make_members, tmp_path / "shards", []
    options, captions = PrepareOptions(videos, FRAMES, SIZE), read_captions(videos)
    size = f"{SIZE[1]}x{SIZE[0]}"
    command = [videos, "-o", out, "--frames", FRAMES, "--size", size, "--per-shard", 2, "--jobs", 1]

    def meanwhile(clip, *rest):
        if clip.number == 3:
            before = sorted(path.name for path in out.iterdir())
            second.append(prepare_main([str(word) for word in command]))
            assert sorted(path.name for path in out.iterdir()) == before
            assert [name for name in before if name.startswith(".shard-000001")]
        return make(clip, *rest)

    monkeypatch.setattr(preparing, "make_members", meanwhile)
    summary = prepare(options, captions, out, per_shard=2)
    assert second == [2] and summary["clips"] == 5
    assert (
        f"{out} is in use by ./vc prepare (process {os.getpid()} on {socket.gethostname()})." in capsys.readouterr().err
    )
    monkeypatch.undo()
    prepare(options, captions, tmp_path / "alone", per_shard=2)
    for shard in (tmp_path / "alone").glob("*.tar"):
        assert (out / shard.name).read_bytes() == shard.read_bytes()


def test_the_processes_of_one_prepare_work_together(videos, tmp_path):
    options = PrepareOptions(videos, FRAMES, SIZE)
    assert prepare(options, read_captions(videos), tmp_path / "two", per_shard=2, jobs=2)["clips"] == 5
