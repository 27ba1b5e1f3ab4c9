"""`./vc prepare`: restarts, dropped clips, the command."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool

import pytest

from tests.disks import everything_in, files_up_to
from tests.training.clips import FRAMES, MOTIONS, SIZE, make_faulty_folder
from training.data import shard_writing as preparing
from training.data.domains import open_clips
from training.data.folder import read_captions
from training.data.prepare import main
from training.data.shard_writing import PLAN, SUMMARY, PrepareOptions, prepare
from training.data.shards import Shards
from training.evaluate.own_clips import open_data
from training.lock import FILE, TURN
from training.recipe import Domain
from vc_core.config import Config
from vc_core.errors import UserError


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Five complete videos, one that is cut off, and one that is missing."""
    return make_faulty_folder(tmp_path_factory.mktemp("videos"))


def options(videos, **others):
    return PrepareOptions(videos, FRAMES, SIZE, **{"sketch": "edges", **others})


def contents(folder):
    """Names and bytes of the files in a folder of shards, without the indexes."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(".index.json")}


@pytest.fixture(scope="module")
def complete(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("complete")
    prepare(options(videos), read_captions(videos), out, per_shard=2)
    return out


def test_dropped_clips_are_reported_with_the_reason(complete, videos):
    summary = json.loads((complete / SUMMARY).read_text())
    assert (summary["clips"], summary["shards"]) == (5, 4)
    assert [clip["file"] for clip in summary["dropped"]] == ["cut.mp4", "missing.mp4"]
    assert "cannot be read" in summary["dropped"][0]["reason"]
    assert "there is no file at" in summary["dropped"][1]["reason"]
    assert summary["bytes"] == sum(path.stat().st_size for path in complete.glob("*.tar"))
    shards = Shards(complete)
    assert [json.loads(shards.read(n, ["json"])[1]["json"])["file"] for n in range(5)] == list(MOTIONS)


def test_a_stopped_run_resumes_and_gives_the_same_shards(complete, videos, tmp_path, monkeypatch):
    calls, make = [], preparing.make_members

    def stopped(clip, *rest):
        calls.append(clip.number)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return make(clip, *rest)

    monkeypatch.setattr(preparing, "make_members", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare(options(videos), read_captions(videos), tmp_path, per_shard=2)
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == ["shard-000000.tar"]
    before = (tmp_path / "shard-000000.tar").stat().st_mtime_ns
    (tmp_path / ".shard-000001.123.tar").write_bytes(b"of a run that was killed")
    reports = []
    prepare(options(videos), read_captions(videos), tmp_path, 2, progress=lambda *values: reports.append(values))
    assert calls == [0, 1, 2, 3, 2, 3, 4, 5, 6]  # finished shards stay
    assert reports == [("preparing", done, 7) for done in range(3, 8)]
    assert (tmp_path / "shard-000000.tar").stat().st_mtime_ns == before
    assert contents(tmp_path) == contents(complete)
    prepare(options(videos), read_captions(videos), tmp_path, 2)
    assert len(calls) == 9 and contents(tmp_path) == contents(complete)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no process groups")
def test_a_killed_run_resumes_with_another_number_of_processes(complete, videos, tmp_path):
    settings = ["--sketch", "edges", "--frames", str(FRAMES), "--size", f"{SIZE[1]}x{SIZE[0]}"]
    command = [sys.executable, "-m", "training.data.prepare", str(videos), "-o", str(tmp_path), *settings,
               "--per-shard", "2", "--jobs", "2"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    run = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("shard-*.tar")) and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.01)
    run.kill()
    run.wait()
    assert len(list(tmp_path.glob("shard-*.tar"))) < 4 and not (tmp_path / SUMMARY).exists()
    while time.monotonic() < deadline:  # its processes end with it
        try:
            os.killpg(run.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        os.killpg(run.pid, signal.SIGKILL)
        pytest.fail("processes are left behind")
    assert subprocess.call(command, env=environment, stderr=subprocess.DEVNULL) == 0
    assert contents(tmp_path) == contents(complete)


def test_each_clip_of_a_video_has_another_start_that_depends_on_the_seed(videos, tmp_path):
    def starts(seed, name):
        prepare(options(videos, clips=3, seed=seed, sketch=None), read_captions(videos)[:1], tmp_path / name)
        shards = Shards(tmp_path / name)
        return [json.loads(shards.read(n, ["json"])[1]["json"])["plan"]["start"] for n in range(3)]

    first = starts(0, "a")
    assert len(set(first)) == 3 and first == starts(0, "b") and set(first).isdisjoint(starts(1, "c"))


def test_shards_of_another_plan_are_refused(complete, videos, tmp_path):
    before = contents(complete)
    for others, message in [
        ({"options": options(videos, seed=1)}, "different --seed[.]"),
        ({"options": options(videos, sketch=None)}, "different --sketch[.]"),
        ({"options": options(videos, layout="dense", nominal_height=48)}, "different --motion, --nominal-height[.]"),
        ({"per_shard": 3}, "different --per-shard[.]"),
        ({"entries": read_captions(videos)[1:]}, "different videos or captions[.]"),
    ]:
        arguments = {"options": options(videos), "entries": read_captions(videos), "per_shard": 2, **others}
        with pytest.raises(UserError, match=message):
            prepare(out=complete, **arguments)
    assert contents(complete) == before
    (tmp_path / "shard-000000.tar").write_bytes(b"")
    with pytest.raises(UserError, match="already contains other shards"):
        prepare(options(videos), read_captions(videos), tmp_path)
    assert not (tmp_path / PLAN).exists()


def test_a_folder_without_a_usable_file_is_an_error(videos, tmp_path):
    with pytest.raises(UserError, match="None of the files gave a clip"):
        prepare(options(videos), read_captions(videos)[5:], tmp_path)


def test_a_killed_process_is_reported(videos, tmp_path, monkeypatch):
    class Pool:
        def __init__(self, *_):
            pass

        def submit(self, *_):
            raise BrokenProcessPool

        def shutdown(self, cancel_futures):
            pass

    monkeypatch.setattr("training.pool.ProcessPoolExecutor", Pool)
    with pytest.raises(UserError, match="--jobs"):
        prepare(options(videos), read_captions(videos), tmp_path, jobs=2)


def test_the_command_prints_the_numbers_of_clips_and_dropped_clips(videos, tmp_path, capsys):
    size = f"{SIZE[1]}x{SIZE[0]}"
    arguments = [str(videos), "-o", str(tmp_path / "out"), "--frames", str(FRAMES), "--size", size, "--jobs", "1"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "5 clips in 1 shard, " in printed and "2 clips were dropped" in printed and "missing.mp4" in printed
    assert main([*arguments[:2], str(tmp_path / "twice"), *arguments[3:], "--clips", "2", "--latents", "bundled"]) == 0
    printed = capsys.readouterr().out
    assert "10 clips" in printed and printed.count("missing.mp4") == 1 and "(2 clips)" in printed
    assert main([*arguments, "--rate", "5"]) == 2
    assert "vc: " in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere"), "-o", str(tmp_path / "out")]) == 2


def test_on_a_full_disk_it_stops_and_the_same_command_resumes(videos, complete, tmp_path, capsys):
    """Clips are prepared one after the other, so a shard is written before the shard that does not fit."""
    size = f"{SIZE[1]}x{SIZE[0]}"
    command = [videos, "-o", tmp_path / "out", "--frames", FRAMES, "--size", size, "--jobs", 1, "--per-shard", 2]
    command = [*map(str, command), "--sketch", "edges"]
    sizes = [(complete / f"shard-{number:06d}.tar").stat().st_size for number in range(4)]
    with files_up_to(max(sizes) - 1):
        assert main(command) == 2
    message = capsys.readouterr().err
    full = f"shard-{sizes.index(max(sizes)):06d}.tar"
    assert f"vc: {tmp_path / 'out' / full} cannot be written (File too large). " in message
    assert "Traceback" not in message
    files = everything_in(tmp_path / "out")
    assert full not in files and not [name for name in files if name.startswith(".") and name not in (FILE, TURN)]
    assert main(command) == 0
    assert contents(tmp_path / "out") == contents(complete)


@pytest.mark.parametrize("wrong", [["--size", "30x30"], ["--frames", "0"], ["--jobs", "no"], ["--sketch", "pencil"]])
def test_options_that_are_wrong_are_refused(videos, tmp_path, wrong, capsys):
    with pytest.raises(SystemExit) as caught:
        main([str(videos), "-o", str(tmp_path), *wrong])
    message = capsys.readouterr().err.lower()
    assert caught.value.code == 2 and wrong[0] in message and ("expected" in message or "invalid choice" in message)


@pytest.mark.parametrize(
    "words", [["--sketch", "edges", "FOLDER"], ["FOLDER", "--sketch"], ["--sketch", "-o", "x", "FOLDER"]]
)
def test_sketch_accepts_a_method_or_none(tmp_path, words, capsys):
    """With a method followed by the folder, and without one followed by nothing or another option."""
    out = [] if "-o" in words else ["-o", str(tmp_path / "out")]
    assert main([str(tmp_path / "nowhere") if word == "FOLDER" else word for word in [*out, *words]]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


# --- Bad clips, and other files in the folder -----------------------------------------------------------------------


def run(folder, out, *more):
    size = f"{SIZE[1]}x{SIZE[0]}"
    return main([str(folder), "-o", str(out), "--frames", str(FRAMES), "--size", size, "--jobs", "1", *more])


def abouts(out):
    shards = Shards(out)
    return [json.loads(shards.read(n, ["json"])[1]["json"]) for n in range(len(shards))]


@pytest.mark.filterwarnings("ignore")
def test_a_bad_clip_is_dropped_and_reported_whatever_its_fault(videos, tmp_path, capsys):
    """Some of these once ended the entire command, every time."""
    rows = [
        {"file": "right.mp4", "caption": "nice \ud83d swan"},
        {"file": "right.mp4", "caption": None},
        {"file": "a\0b.mp4", "caption": "x"},
        {"file": "caf\udce9.mp4", "caption": "no such file"},
        {"file": "\ud83d.mp4", "caption": "a name that no file can have"},
        {"file": "x" * 5000 + ".mp4", "caption": "x"},
        {"file": "pipe.mp4", "caption": "x"},
        {"file": ".", "caption": "x"},
        {"file": "noise.mp4", "caption": "x"},
        {"file": "empty.mp4", "caption": ""},
        {"file": "right.mp4", "caption": "good", "license": "\ud83d", "score": float("nan"), "\udce9": 1},
    ]
    (tmp_path / "noise.mp4").write_bytes(os.urandom(4000))
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "right.mp4").write_bytes((videos / "right.mp4").read_bytes())
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for _ in range(2):
        assert run(tmp_path, tmp_path / "out") == 0
        assert "10 clips were dropped" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / SUMMARY).read_text(encoding="utf-8"))
    assert len(summary["dropped"]) == 10 and all(clip["reason"] for clip in summary["dropped"])
    (about,) = abouts(tmp_path / "out")
    assert about["caption"] == "good" and about["others"]["license"] == "\ud83d"


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="names are Unicode there")
def test_a_file_name_that_is_not_utf8_is_prepared(videos, tmp_path, capsys):
    folder = tmp_path / os.fsdecode(b"d\xe9")
    folder.mkdir()
    for stem in (b"caf\xe9", b"z"):
        (folder / os.fsdecode(stem + b".mp4")).write_bytes((videos / "right.mp4").read_bytes())
        (folder / os.fsdecode(stem + b".txt")).write_bytes(stem[:1])
    (folder / os.fsdecode(b"\xff.mp4")).write_bytes(b"noise")
    (folder / os.fsdecode(b"\xff.txt")).write_text("x")
    assert run(folder, folder / os.fsdecode(b"\xe9ut")) == 0
    capsys.readouterr().out.encode("utf-8")
    assert [about["caption"] for about in abouts(folder / os.fsdecode(b"\xe9ut"))] == ["c", "z"]


@pytest.mark.filterwarnings("ignore")
def test_any_exception_of_a_decoder_drops_its_clip_and_our_own_mistakes_are_raised(videos, tmp_path, monkeypatch):
    from training.data import folder as module

    planned = module.planned_frames

    def raises(source, *rest):
        if "left" in str(source):
            raise ZeroDivisionError("in a decoder")
        return planned(source, *rest)

    monkeypatch.setattr(module, "planned_frames", raises)
    summary = prepare(options(videos, sketch=None), read_captions(videos)[:5], tmp_path / "out")
    (dropped,) = summary["dropped"]
    assert dropped["file"] == "left.mp4" and "ZeroDivisionError in a decoder" in dropped["reason"]
    monkeypatch.setattr(preparing, "fit", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(options(videos, sketch=None), read_captions(videos)[:1], tmp_path / "other")


@pytest.mark.parametrize("inside", [".", "shards", "shards/deep"])
def test_the_same_command_works_again_with_its_output_among_the_videos(videos, tmp_path, inside, capsys):
    for name in ("right", "left"):
        (tmp_path / f"{name}.mp4").write_bytes((videos / f"{name}.mp4").read_bytes())
        (tmp_path / f"{name}.txt").write_text(f"goes {name}")
    out = tmp_path / inside
    if inside == "shards/deep":
        out.parent.mkdir()
    first = None
    for _ in range(3):
        assert run(tmp_path, out) == 0, capsys.readouterr().err
        first = first or times_of(out)
        assert times_of(out) == first and [about["caption"] for about in abouts(out)] == ["goes left", "goes right"]
        for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._right.mp4", "__MACOSX/._left.mp4", "__MACOSX/x.mp4"):
            for place in (tmp_path, out):
                (place / name).parent.mkdir(exist_ok=True)
                (place / name).write_bytes(b"noise")
    (clips,) = open_clips(Domain("folder", tmp_path, frames=FRAMES), SIZE, Config(), {}).values()
    assert [entry.caption for entry in clips.entries] == ["goes left", "goes right"]


def test_a_run_and_an_evaluation_among_the_videos_are_not_data(videos, tmp_path, tiny_config):
    """They write videos and images without texts, which would otherwise be refused when they resume."""
    for name in ("right", "left"):
        shutil.copy(videos / f"{name}.mp4", tmp_path)
        (tmp_path / f"{name}.txt").write_text(f"goes {name}")
    out = tmp_path / "runs" / "first"
    (out / "validation").mkdir(parents=True)
    shutil.copy(videos / "left.mp4", out / "validation" / "0-seed0.mp4")
    domain = Domain("folder", tmp_path, frames=FRAMES)
    (clips,) = open_clips(domain, SIZE, Config(), {}, out=out).values()
    data = open_data(tmp_path, tiny_config, out=out)
    for entries in (clips.entries, data.entries):
        assert [entry.caption for entry in entries] == ["goes left", "goes right"]
    with pytest.raises(UserError, match="1 file has no text file next to it"):
        open_clips(domain, SIZE, Config(), {})


def times_of(out):
    return {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
