"""Write shards on Ray (https://docs.ray.io): one task per shard, on a local cluster of its own or on an existing one.

A task writes its shard with the code of a single process, so the shards are the same. All nodes need the project, the
videos and the folder of shards at the same paths.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from training.data.shard_writing import PrepareOptions, Shard, caches_of_worker, write_shards
from training.launch import cores
from vc_core.errors import UserError

RAY = "ray>=2.40,<3"
CONNECT, JOIN = 5.0, 30.0
"""Seconds for a cluster to accept a connection, and for joining it."""
RETRIES = 3
"""How often a shard is started again after its worker was lost, for example with its node or because memory ran out."""
QUEUED = 1000
"""Shards that Ray knows at a time. Without a limit, it would have the captions of all of them in memory."""
OBJECTS = 2**27
"""Bytes for Ray's shared memory on a local cluster. Tasks return nothing."""


def check_address(address: str | None) -> None:
    """Check that Ray is installed, and that the cluster at the address can be joined. Raises `UserError`."""
    _ray()
    if address is None:
        return
    if address != "auto":
        try:
            place = urlsplit(f"//{address}")
            if not (place.hostname and place.port) or place.netloc != address:
                raise ValueError
        except ValueError:
            raise UserError(f"--ray-address is {address}. Expected HOST:PORT, or auto.") from None
        try:
            socket.create_connection((place.hostname, place.port), CONNECT).close()
        except OSError as error:
            raise _unreachable(address, str(error)) from error
    # In a process of its own, because Ray tries for minutes to join another program, and cannot be interrupted.
    join = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')"
    command = [sys.executable, "-c", join, address]
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=JOIN)
    except subprocess.TimeoutExpired as error:
        raise _unreachable(address, f"no answer within {JOIN:.0f} seconds") from error
    if result.returncode:
        raise _unreachable(address, (result.stderr.strip().splitlines() or ["no reason"])[-1])


def write_on_ray(
    shards: Mapping[Path, Shard],
    options: PrepareOptions,
    settings: Mapping[str, Any],
    finished: Callable[[int], None],
    address: str | None = None,
    jobs: int | None = None,
) -> None:
    """Write shards as tasks of Ray, see `shard_writing.write_shards`.

    Args:
        finished: called after each shard, with its number of clips.
        address: of an existing cluster, see `check_address`; None: a local one, which ends with this call.
        jobs: number of tasks at a time. By default a local cluster has one per core, and another one has no limit.

    Raises:
        UserError: as `write_shards`; the cluster cannot be joined or has no GPU for these options; the workers of a
            shard were lost each time, or other versions are installed there.
    """
    if not shards:
        return
    ray = _ray()
    finished(0)  # the first shard takes a while
    with _cluster(ray, address, jobs):
        gpus = int(options.device.startswith("cuda"))
        if ray.cluster_resources().get("GPU", 0) < gpus:
            raise UserError(f"--device is {options.device}, but the Ray cluster has no GPU. Use --device cpu.")
        # By default, a worker with a GPU ends after each task, and would load the networks again.
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES, max_calls=0)(_write)
        variables = {name: value for name, value in os.environ.items() if name.startswith("VC_")}
        waiting, running = iter(shards.items()), {}
        limit = jobs if address and jobs else QUEUED
        while True:
            for path, shard in islice(waiting, limit - len(running)):
                result = task.options(name=path.name).remote(
                    os.getcwd(), variables, path, shard, options, settings
                )  # fmt: skip
                running[result] = path, len(shard)
            if not running:
                return
            for result in ray.wait([*running])[0]:
                path, clips = running.pop(result)
                _check_result(ray, result, path)
                finished(clips)


def _write(
    folder: str,
    variables: Mapping[str, str],
    path: Path,
    shard: Shard,
    options: PrepareOptions,
    settings: Mapping[str, Any],
) -> None:
    """Write a shard, on a worker. `folder` and `variables` are the current folder and environment of the command."""
    host = socket.gethostname()
    for needed in (folder, path.parent, options.folder):
        if not Path(folder, needed).is_dir():
            raise UserError(f"{needed} does not exist on {host}. All nodes of the Ray cluster need the same paths.")
    os.chdir(folder)  # messages about dropped clips contain paths as the user wrote them
    os.environ.update(variables)
    caches = caches_of_worker(options)
    theirs = options.settings(caches)
    if theirs != settings:
        names = [name for name in settings if theirs.get(name) != settings[name]]
        raise UserError(
            f"The worker of Ray on {host} would write other {' and '.join(names)} than this machine. Install the same "
            "libraries and networks on all nodes."
        )
    write_shards({path: shard}, options, settings, lambda clips: None, caches)


def _check_result(ray: ModuleType, result: Any, path: Path) -> None:
    """Raise what a task has raised, and `UserError` if Ray has given it up."""
    try:
        ray.get(result)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise UserError(
            f"{path} was not written, because Ray lost its worker {RETRIES + 1} times, usually because memory ran out "
            f"({_first_line(error)}). Run the same command again to resume after the finished shards."
        ) from error


@contextmanager
def _cluster(ray: ModuleType, address: str | None, jobs: int | None) -> Iterator[None]:
    """Join a cluster, or start a local one; leave or end it afterwards."""
    own = {} if address else {"num_cpus": jobs or cores(), "object_store_memory": OBJECTS}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise a local cluster reports to Ray's authors
    try:
        ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _unreachable(address, _first_line(error)) from error
    try:
        yield
    finally:
        ray.shutdown()


def _unreachable(address: str | None, reason: str) -> UserError:
    if address is None:
        return UserError(f"Ray cannot be started on this machine ({reason}). Use --engine processes.")
    return UserError(
        f"The Ray cluster at {address} cannot be joined ({reason[:300]}). Start it with `ray start --head`, run this "
        "command on one of its nodes, and check --ray-address. Finished shards stay."
    )


def _ray() -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--engine ray requires the package ray. Run: pip install '{RAY}'.") from error
    return ray


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
