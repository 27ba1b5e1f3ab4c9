"""Two at once in one folder: the second is told who is at work; a process that was killed leaves nothing behind."""

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
from training.lock import FILE, held, held_by
from training.ranks import World
from vc_core.errors import UserError

HOLD = """
import sys, time
from pathlib import Path
from training.lock import held
with held(Path(sys.argv[1]), "./vc train"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path, repository):
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLD, tmp_path]
    process = subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_is_told_who_holds_the_folder(tmp_path, other):
    said = rf"{tmp_path}: \./vc train \(process {other.pid} on {socket.gethostname()}\) is at work in it: wait"
    for _ in range(2):  # asking changes nothing
        with pytest.raises(UserError, match=said), held(tmp_path, "./vc prepare"):
            pass


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_process_that_was_killed_holds_nothing(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / FILE).exists()
    with held(tmp_path, "./vc prepare"):
        assert json.loads((tmp_path / FILE).read_bytes()[1:])["process"] == os.getpid()


def test_what_was_held_is_free_again_however_it_ended(tmp_path):
    for error in (KeyboardInterrupt, UserError("no"), SystemExit(3)):
        with pytest.raises(BaseException), held(tmp_path, "work"):  # noqa: B017 (whatever it is)
            raise error
    said = rf"work \(process {os.getpid()} on "
    with held(tmp_path, "work"), pytest.raises(UserError, match=said), held(tmp_path, "other"):
        pass
    (tmp_path / FILE).write_text("no JSON at all")
    with held(tmp_path, "work"):
        pass


def test_of_ranks_the_first_holds_and_all_leave(tmp_path):
    class Rank(World):
        def most(self, number):
            return 1  # another rank was refused

    with pytest.raises(SystemExit, match="75"), held_by(Rank(1, 2), tmp_path, "work"):
        pass
    with held(tmp_path, "work"), pytest.raises(UserError, match="at work"), held_by(World(), tmp_path, "again"):
        pass
    with held_by(World(), tmp_path, "work"):
        pass


# --- Preparing ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("videos"))


def test_a_second_prepare_leaves_the_first_ones_open_shard_alone(videos, tmp_path, monkeypatch, capsys):
    """The second starts while the first one writes its second shard; the first gives what it gives alone."""
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
    assert f"./vc prepare (process {os.getpid()} on {socket.gethostname()}) is at work in it" in capsys.readouterr().err
    monkeypatch.undo()
    prepare(options, captions, tmp_path / "alone", per_shard=2)
    for shard in (tmp_path / "alone").glob("*.tar"):
        assert (out / shard.name).read_bytes() == shard.read_bytes()


def test_the_processes_of_one_prepare_work_together(videos, tmp_path):
    options = PrepareOptions(videos, FRAMES, SIZE)
    assert prepare(options, read_captions(videos), tmp_path / "two", per_shard=2, jobs=2)["clips"] == 5
