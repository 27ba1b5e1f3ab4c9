"""`./vc prepare --part I/N`: several processes in one folder, restarts, refused combinations."""

import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from tests.training.clips import FRAMES, SIZE, make_faulty_folder
from training.data import shard_writing as preparing
from training.data.folder import read_captions
from training.data.prepare import main
from training.data.shard_writing import PLAN, SUMMARY, PrepareOptions, prepare
from training.lock import FILE, locked, locked_part
from vc_core.errors import UserError

SETTINGS = ["--sketch", "edges", "--frames", str(FRAMES), "--size", f"{SIZE[1]}x{SIZE[0]}", "--per-shard", "2"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Videos for four shards of two clips, the last with one."""
    return make_faulty_folder(tmp_path_factory.mktemp("videos"))


def prepared(videos, out, part=None, **others):
    options = PrepareOptions(videos, FRAMES, SIZE, sketch="edges", seed=others.pop("seed", 0))
    return prepare(options, read_captions(videos), out, **{"per_shard": 2, "part": part, **others})


def contents(folder):
    """Names and bytes of all files in a folder, without its locks."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(FILE)}


def shards(folder):
    return sorted(int(path.stem[6:]) for path in folder.glob("shard-*.tar"))


def command(videos, out, *more):
    return [sys.executable, "-m", "training.data.prepare", str(videos), "-o", str(out), *SETTINGS, *more]


@pytest.fixture(scope="module")
def complete(videos, tmp_path_factory):
    """The contents of the folder that one process writes."""
    out = tmp_path_factory.mktemp("complete")
    prepared(videos, out)
    return contents(out)


def meanwhile(monkeypatch, number, work):
    """Do some work in the middle of a shard: before the clip with this number is prepared."""
    make = preparing.make_members

    def make_members(clip, *rest):
        if clip.number == number:
            monkeypatch.setattr(preparing, "make_members", make)
            work()
        return make(clip, *rest)

    monkeypatch.setattr(preparing, "make_members", make_members)


def test_a_part_writes_every_nth_shard_and_the_last_part_the_summary(videos, complete, tmp_path):
    reports = []
    assert prepared(videos, tmp_path, (3, 3), progress=lambda *values: reports.append(values)) is None
    assert shards(tmp_path) == [2] and reports == [("preparing", 1, 2), ("preparing", 2, 2)]
    assert prepared(videos, tmp_path, (1, 3)) is None
    assert shards(tmp_path) == [0, 2, 3] and not (tmp_path / SUMMARY).exists()
    assert prepared(videos, tmp_path, (2, 3))["clips"] == 5
    assert contents(tmp_path) == complete
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    for part in ((1, 3), (2, 3), (9, 9), None):  # the ninth of nine parts has no shard
        assert prepared(videos, tmp_path, part)["shards"] == 4
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}


def test_a_run_without_parts_finishes_what_parts_have_left(videos, complete, tmp_path):
    assert prepared(videos, tmp_path, (2, 2)) is None
    assert prepared(videos, tmp_path)["shards"] == 4
    assert contents(tmp_path) == complete


def test_parts_at_the_same_time(videos, complete, tmp_path, monkeypatch):
    """Part 2 works while part 1 has an open shard, and part 3 while both have one."""
    unfinished = tmp_path / ".shard-000003.1-a.tar"  # of a killed process, perhaps on another machine

    def third():
        unfinished.write_bytes(b"half")
        before = sorted(tmp_path.glob(".shard-*"))
        assert prepared(videos, tmp_path, (3, 3)) is None and len(before) == 3
        assert sorted(tmp_path.glob(".shard-*")) == before

    def second():
        meanwhile(monkeypatch, 3, third)
        assert prepared(videos, tmp_path, (2, 3)) is None

    meanwhile(monkeypatch, 1, second)
    assert prepared(videos, tmp_path, (1, 3))["clips"] == 5  # nobody else has a lock now
    assert not unfinished.exists() and contents(tmp_path) == complete


def test_parts_and_other_runs_that_cannot_work_together_are_refused(videos, complete, tmp_path, monkeypatch, capsys):
    here = f"(process {os.getpid()} on {socket.gethostname()})"
    wait = f"{tmp_path} is in use by ./vc prepare{{}} {here}. Wait until it ends, or choose another folder."
    other = (
        f"{tmp_path} is in use by ./vc prepare --part 1/2 {here}, but --part is {{}}. Use the same number of parts for "
        "all of them, or wait until the others end."
    )

    def refused(part, message):
        before = contents(tmp_path)
        assert main([*command(videos, tmp_path)[3:], "--jobs", "1", *(["--part", part] if part else [])]) == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"vc: {message}"
        assert contents(tmp_path) == before

    def during_a_part():
        for part, message in [
            (None, wait.format(" --part 1/2")),
            ("1/2", wait.format(" --part 1/2")),
            ("1/12", other.format("1/12")),
            ("3/4", other.format("3/4")),
        ]:
            refused(part, message)

    def during_a_complete_run():
        for part in ("1/2", "2/2", None):
            refused(part, wait.format(""))

    meanwhile(monkeypatch, 1, during_a_part)
    assert prepared(videos, tmp_path, (1, 2)) is None
    meanwhile(monkeypatch, 3, during_a_complete_run)
    assert prepared(videos, tmp_path)["clips"] == 5
    assert contents(tmp_path) == complete


def test_a_part_of_another_plan_is_refused(videos, tmp_path):
    prepared(videos, tmp_path, (1, 2))
    before = contents(tmp_path)
    assert PLAN in before
    for others, message in [({"seed": 1}, "different --seed[.]"), ({"per_shard": 3}, "different --per-shard[.]")]:
        with pytest.raises(UserError, match=message):
            prepared(videos, tmp_path, (2, 2), **others)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("part", ["0/3", "4/3", "-1/3", "x", "1", "1/2/3", "1/0", "1.5/2"])
def test_parts_that_do_not_exist_are_refused(videos, tmp_path, part, capsys):
    with pytest.raises(SystemExit) as caught:
        main([str(videos), "-o", str(tmp_path / "out"), f"--part={part}"])
    assert caught.value.code == 2 and not (tmp_path / "out").exists()
    message = f"vc: --part is {part}. Expected I/N, with I from 1 to N, such as 3/8. See ./vc prepare --help.\n"
    assert capsys.readouterr().err == message


def test_the_command_says_whether_parts_are_missing(videos, tmp_path, capsys):
    all_parts = [*command(videos, tmp_path)[3:], "--jobs", "1"]
    assert main([*all_parts, "--part", "1/2"]) == 0
    assert (
        capsys.readouterr().out == f"{tmp_path}: Part 1/2 is complete, others are not. The last one writes {SUMMARY}.\n"
    )
    assert main([*all_parts, "--part", "2/2"]) == 0
    assert f"{tmp_path}: 5 clips in 4 shards" in capsys.readouterr().out


@pytest.mark.slow
def test_parts_in_processes_one_of_them_killed_and_started_again(videos, complete, tmp_path, repository):
    def start(number):
        arguments = command(videos, tmp_path, "--part", f"{number}/2", "--jobs", "1")
        return subprocess.Popen(arguments, cwd=repository, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def wait_for(pattern):
        deadline = time.monotonic() + 120
        while not (paths := list(tmp_path.glob(pattern))):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return paths

    first, second = start(1), start(2)
    try:
        wait_for(".shard-000001.*")  # of part 2
        second.kill()
        second.wait()
        second = start(2)
        assert [first.wait(120), second.wait(120)] == [0, 0]
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
    prepared(videos, tmp_path)  # only removes what may be left of the killed part
    assert contents(tmp_path) == complete


# --- Turns ----------------------------------------------------------------------------------------------------------


def test_turns_are_taken_one_after_the_other(tmp_path):
    """A part waits while another one has its turn, and learns whether it is alone."""
    events = []

    def other():
        with locked_part(tmp_path, "work", (2, 2)) as turn, turn() as alone:
            events.append(("second", alone))

    with locked_part(tmp_path, "work", (1, 2)) as turn:
        with turn() as alone:
            events.append(("first", alone))
            thread = threading.Thread(target=other)
            thread.start()
            time.sleep(0.3)
            assert len(events) == 1
        thread.join(30)
    assert events == [("first", True), ("second", False)]


def test_a_part_respects_the_lock_of_another_command(tmp_path):
    message = r"in use by \./vc train"
    with (
        locked(tmp_path, "./vc train"),
        pytest.raises(UserError, match=message),
        locked_part(tmp_path, "work", (1, 2)),
    ):
        pass
