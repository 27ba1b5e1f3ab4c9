"""`./vc prepare --engine ray`: the messages without Ray, the tasks, and real clusters of two workers."""

import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pytest

from tests.training.clips import FRAMES, SIZE, make_faulty_folder
from training.data import on_ray
from training.data.folder import read_captions
from training.data.on_ray import RAY, check_address, write_on_ray
from training.data.prepare import main
from training.data.shard_writing import PrepareOptions, prepare
from training.lock import FILE
from vc_core.errors import UserError

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason=f"requires Ray: pip install '{RAY}'")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Videos for four shards of two clips, the last with one."""
    return make_faulty_folder(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def options(videos):
    return PrepareOptions(videos, FRAMES, SIZE, sketch="edges")


@pytest.fixture(scope="module")
def complete(videos, options, tmp_path_factory):
    """The contents of the folder that one process writes."""
    out = tmp_path_factory.mktemp("complete")
    prepare(options, read_captions(videos), out, per_shard=2)
    return contents(out)


def contents(folder):
    """Names and bytes of all files in a folder, without its locks."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(FILE)}


def arguments(videos, out, *more):
    size = f"{SIZE[1]}x{SIZE[0]}"
    settings = ["--sketch", "edges", "--frames", str(FRAMES), "--size", size, "--per-shard", "2"]
    return [str(videos), "-o", str(out), *settings, "--engine", "ray", *more]


# --- Without Ray ----------------------------------------------------------------------------------------------------


class Lost(Exception):
    """Stands for ray.exceptions.RayError."""


class Failed(Lost):
    """Stands for ray.exceptions.RayTaskError."""

    def __init__(self, cause):
        self.cause = cause


class FakeRay(ModuleType):
    """Runs tasks in this process, the last submitted first, after sending them through pickle. `lost` are names of
    tasks whose workers are lost each time."""

    def __init__(self, gpus=0, lost=()):
        super().__init__("ray")
        self.resources, self.lost, self.calls, self.most = {"CPU": 2, "GPU": gpus}, lost, [], 0
        self.exceptions = SimpleNamespace(RayError=Lost, RayTaskError=Failed)

    def init(self, address, **settings):
        self.calls.append(("init", address, settings.get("num_cpus")))

    def shutdown(self):
        self.calls.append("shutdown")

    def cluster_resources(self):
        return self.resources

    def remote(self, **resources):
        self.task = resources

        def task(function):
            def options(name):
                return SimpleNamespace(remote=lambda *values: (name, function, pickle.dumps(values)))

            return SimpleNamespace(options=options)

        return task

    def wait(self, results):
        self.most = max(self.most, len(results))
        return results[-1:], results[:-1]

    def get(self, result):
        name, function, values = result
        self.calls.append(name)
        if name in self.lost:
            raise Lost("The worker died.\nDetails")
        try:
            function(*pickle.loads(values))
        except Exception as error:
            raise Failed(error) from error


@pytest.fixture
def fake(monkeypatch):
    def use(**settings):
        ray = FakeRay(**settings)
        monkeypatch.setitem(sys.modules, "ray", ray)
        return ray

    return use


def test_shards_of_tasks_in_any_order_are_the_same(videos, complete, tmp_path, fake, capsys):
    ray = fake()
    assert main(arguments(videos, tmp_path, "--jobs", "2")) == 0
    assert "5 clips in 4 shards" in capsys.readouterr().out
    assert contents(tmp_path) == complete
    assert ray.calls[0] == ("init", "local", 2) and ray.calls[-1] == "shutdown"
    assert ray.calls[1:-1] == [f"shard-{number:06d}.tar" for number in (3, 2, 1, 0)]
    assert (ray.task["num_cpus"], ray.task["num_gpus"], ray.task["max_retries"]) == (1, 0, 3)
    (tmp_path / "shard-000002.tar").unlink()
    ray.calls.clear()
    assert main(arguments(videos, tmp_path)) == 0
    assert ray.calls[1:-1] == ["shard-000002.tar"] and contents(tmp_path) == complete  # finished shards are skipped
    ray.calls.clear()
    assert main(arguments(videos, tmp_path)) == 0 and ray.calls == []


def test_a_shard_whose_worker_is_lost_each_time_is_reported_and_the_others_stay(
    videos, complete, tmp_path, fake, capsys
):
    ray = fake(lost=["shard-000001.tar"])
    assert main(arguments(videos, tmp_path)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(
        f"vc: {tmp_path / 'shard-000001.tar'} was not written, because Ray lost its worker 4 times"
    )
    assert "(The worker died.)" in message and "Run the same command again to resume" in message
    assert ray.calls[-1] == "shutdown"
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == ["shard-000002.tar", "shard-000003.tar"]
    fake()
    assert main(arguments(videos, tmp_path)) == 0 and contents(tmp_path) == complete


def test_an_existing_cluster_gets_as_many_tasks_as_jobs(videos, options, tmp_path, fake):
    ray, finished = fake(), []
    settings, clips = options.settings(options.caches()), range(0)
    shards = {tmp_path / f"shard-{number:06d}.tar": clips for number in range(7)}
    write_on_ray(shards, options, settings, finished.append, address="head:6379", jobs=3)
    assert ray.calls[0] == ("init", "head:6379", None) and ray.most == 3 and len(finished) == 1 + 7


def test_a_gpu_is_requested_for_each_task_and_must_exist(options, tmp_path, fake):
    with_gpu = PrepareOptions(options.folder, FRAMES, SIZE, device="cuda:0")
    fake()
    with pytest.raises(UserError, match="--device is cuda:0, but the Ray cluster has no GPU"):
        write_on_ray({tmp_path / "shard-000000.tar": []}, with_gpu, {}, lambda clips: None)
    ray = fake(gpus=1)
    with pytest.raises(UserError, match="would write other frames than this machine"):  # the CPU's settings are wrong
        write_on_ray({tmp_path / "shard-000000.tar": []}, with_gpu, {"frames": 9}, lambda clips: None)
    assert ray.task["num_gpus"] == 1 and ray.task["max_calls"] == 0


def test_a_worker_with_other_libraries_or_without_the_folders_writes_nothing(options, tmp_path, fake):
    fake()
    settings = options.settings(options.caches())
    (tmp_path / "out").mkdir()
    other = {**settings, "motion": {**settings["motion"], "av": "0.1"}}
    with pytest.raises(
        UserError, match=f"on {re.escape(socket.gethostname())} would write other motion than this machine"
    ):
        write_on_ray({tmp_path / "out" / "shard-000000.tar": []}, options, other, lambda clips: None)
    with pytest.raises(UserError, match=f"nowhere does not exist on {re.escape(socket.gethostname())}"):
        write_on_ray({tmp_path / "nowhere" / "shard-000000.tar": []}, options, settings, lambda clips: None)
    assert list((tmp_path / "out").iterdir()) == []


def test_without_ray_the_command_says_how_to_install_it(videos, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(arguments(videos, tmp_path / "out")) == 2
    assert capsys.readouterr().err == f"vc: --engine ray requires the package ray. Run: pip install '{RAY}'.\n"
    assert not (tmp_path / "out").exists()


def test_the_extra_has_the_range_of_the_message(repository):
    assert f'\nray = ["{RAY}"]' in (repository / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--part", "1/3"], "--part and --engine ray both divide the shards. Use only one of them."),
        (["--engine", "processes", "--ray-address", "auto"], "--ray-address requires --engine ray. Add it, or remove"),
        (["--ray-address", "6379"], "--ray-address is 6379. Expected HOST:PORT, or auto."),
        (["--ray-address", "ray://head:10001"], "--ray-address is ray://head:10001. Expected HOST:PORT, or auto."),
        (["--ray-address", "head:99999"], "--ray-address is head:99999. Expected HOST:PORT, or auto."),
    ],
)
def test_options_that_do_not_fit_are_refused(videos, tmp_path, fake, more, message, capsys):
    fake()
    assert main(arguments(videos, tmp_path / "out", *more)) == 2
    assert capsys.readouterr().err.startswith(f"vc: {message}") and not (tmp_path / "out").exists()


def test_a_cluster_that_does_not_exist_is_refused_at_once(videos, tmp_path, fake, capsys):
    fake()
    with socket.create_server(("localhost", 0)) as listener:
        port = listener.getsockname()[1]
    start = time.monotonic()
    assert main(arguments(videos, tmp_path / "out", "--ray-address", f"localhost:{port}")) == 2
    message = (
        rf"vc: The Ray cluster at localhost:{port} cannot be joined \(.*refused.*\)\. Start it with `ray start --head`"
    )
    assert re.match(message, capsys.readouterr().err, re.IGNORECASE) and not (tmp_path / "out").exists()
    assert time.monotonic() - start < 20


def test_a_program_that_is_not_ray_is_refused_after_a_while(fake, monkeypatch):
    fake()

    def run(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(on_ray.subprocess, "run", run)
    with socket.create_server(("localhost", 0)) as listener:
        address = f"localhost:{listener.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"{address} cannot be joined \(no answer within 30 seconds\)"):
            check_address(address)


# --- On Ray ---------------------------------------------------------------------------------------------------------


def start(repository, words, **streams):
    path = os.pathsep.join([str(repository), *filter(None, [os.environ.get("PYTHONPATH")])])
    # With Ray's own niceness of 15, its workers take minutes to start while other programs use the cores.
    ray = {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **ray}
    return subprocess.Popen([sys.executable, *words], env=environment, text=True, **streams)


def kill_a_worker(out, deadline):
    """Kill the first process with an open shard. Returns the name of the shard."""
    while time.monotonic() < deadline:
        for path in out.glob(".shard-*.tar"):  # its name contains the process
            number, process = re.fullmatch(r"\.(shard-\d+)\.(\d+)-\w+\.tar", path.name).groups()
            os.kill(int(process), signal.SIGKILL)
            return f"{number}.tar"
        time.sleep(0.002)
    raise AssertionError("no shard was started")


@needs_ray
@pytest.mark.slow
def test_a_killed_worker_changes_nothing(videos, complete, tmp_path, repository):
    words = ["-m", "training.data.prepare", *arguments(videos, tmp_path, "--jobs", "2")]
    run = start(repository, words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        killed = kill_a_worker(tmp_path, time.monotonic() + 240)
        open_then = not (tmp_path / killed).exists()
        output, errors = run.communicate(timeout=240)
    finally:
        run.kill()
        run.wait()
    assert run.returncode == 0, errors
    assert open_then and "5 clips in 4 shards" in output
    assert contents(tmp_path) == complete


CLUSTER = """
import ray
ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=2**27, logging_level="ERROR")
print(ray.get_runtime_context().gcs_address, flush=True)
input()
"""


FAILS = """
import sys
from pathlib import Path
from training.data.on_ray import write_on_ray
from training.data.shard_writing import PrepareOptions
from vc_core.errors import UserError
shards = {Path("out", f"shard-{number}.tar"): [] for number in range(9)}
try:
    write_on_ray(shards, PrepareOptions(Path(sys.argv[2])), {"frames": 9}, lambda clips: None, sys.argv[1])
except UserError as error:
    print(error)
"""


@needs_ray
@pytest.mark.slow
def test_an_existing_cluster_is_joined_and_left(videos, complete, tmp_path, repository):
    """The folders are relative, and the cluster was started in another folder. A failure on it is reported here."""
    cluster = start(repository, ["-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/")
    try:
        address = cluster.stdout.readline().strip()

        def output_of(*words):
            run = start(repository, words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path)
            output = run.communicate(timeout=280)[0]
            assert run.returncode == 0, output
            return output

        output_of("-m", "training.data.prepare", *arguments(videos, "out", "--ray-address", address))
        assert contents(tmp_path / "out") == complete
        assert "would write other frames than this machine" in output_of("-c", FAILS, address, str(videos))
        assert contents(tmp_path / "out") == complete
    finally:
        cluster.stdin.close()
        cluster.wait(60)
