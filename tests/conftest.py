"""Shared by all tests: the folders of reference values and real clips, the number of threads, the hosts to test on, and
which tests pytest-xdist must run in one worker."""

import os
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.host.finding import ComfyUI, NoHost, find_comfyuis
from tests.host.server import Host

REPOSITORY = Path(__file__).resolve().parents[1]

# The tests' tensors are small: more threads would only wait for each other. Workers of pytest-xdist use one thread
# each. torch reads this variable when it is first imported, also in subprocesses of the tests.
_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
else:
    os.environ.setdefault("OMP_NUM_THREADS", str(min(4, _cores)))

# Use the same kind of convolution kernel on every machine. The golden networks' random weights give STC embeddings with
# nearly constant channels at values around 3. The norms after them magnify rounding errors 400 times: kernels that add
# in another order differ by 1e-4 from the reference, these kernels by 3e-5.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")

# The folders with the longest tests, which run first: with short tests at the end, all workers finish together.
_FIRST = ("host", "web", "training")


def pytest_addoption(parser):
    parser.addoption(
        "--hosts",
        choices=("newest", "all"),
        default="newest",
        help="the ComfyUIs to test on: the newest one (or the one that contains this checkout), or all",
    )


def pytest_generate_tests(metafunc):
    """Make one test for each pair of reference files of a network, with the pair's name in the test's id.

    Make one test for each ComfyUI, with its version in the id; pytest runs all tests of a version, then those of the
    next. If there is no ComfyUI, the parameter is the error, which the fixture `comfyui` reports.
    """
    if "golden_pair" in metafunc.fixturenames:
        files = [
            file for kind in ("unet", "vgen") for file in _folder("VC_GOLDEN", "golden").glob(f"{kind}_*.safetensors")
        ]
        metafunc.parametrize("golden_pair", sorted(file.stem for file in files) or ["none"], scope="module")
    if "comfyui" not in metafunc.fixturenames:
        return
    try:
        comfyuis = find_comfyuis()
        chosen = comfyuis if metafunc.config.option.hosts == "all" else comfyuis[:1]
        names = [comfyui.version for comfyui in chosen]
    except (NoHost, OSError, ValueError) as error:
        chosen, names = [error], ["none"]
    metafunc.parametrize("comfyui", chosen, indirect=True, ids=names)


def pytest_itemcollected(item):
    """Store on each test the ComfyUI that it runs on, for the summary."""
    comfyui = getattr(item, "callspec", None) and item.callspec.params.get("comfyui")
    if comfyui is not None:
        item.user_properties.append(("comfyui", getattr(comfyui, "version", None)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One worker for each available core. At most 8, because each needs one or two gigabytes."""
    return min(8, _cores)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Run the tests of a file in one worker, because they share fixtures. Do the same for tests that share a running
    ComfyUI: those of one folder and version."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            version = re.search(r"\d+\.\d+\.\d+", test)
            return f"{file.rpartition('/')[0]} {version[0]}" if version else file

    config.option.loadscopereorder = False  # keep our order
    return Scheduling(config, log)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: [not item.nodeid.startswith(f"tests/{folder}/") for folder in _FIRST])


def _folder(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or REPOSITORY.parent / "shared" / default)


def _shared_folder(variable: str, default: str) -> Path:
    folder = _folder(variable, default)
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist. Set {variable} to use another folder")
    return folder


def pytest_terminal_summary(terminalreporter):
    """Print each reason for skipped tests, with their number, and the versions of ComfyUI that were tested."""
    skips = [report for report in terminalreporter.getreports("skipped") if isinstance(report.longrepr, tuple)]
    for reason, count in Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skips).items():
        terminalreporter.write_line(f"{count} skipped: {reason}")
    kinds = ("passed", "failed", "error", "skipped")
    reports = [report for kind in kinds for report in terminalreporter.getreports(kind)]
    reports = [report for report in reports if isinstance(report, pytest.TestReport)]
    on_hosts = [(report, version) for report in reports for key, version in report.user_properties if key == "comfyui"]
    if on_hosts:
        tested = dict.fromkeys(version for report, version in on_hosts if version and not report.skipped)
        terminalreporter.write_line(f"ComfyUI {' and '.join(tested)} tested" if tested else "no ComfyUI tested")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The project's root folder."""
    return REPOSITORY


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of reference values, from VC_GOLDEN. Without it, the test is skipped."""
    return _shared_folder("VC_GOLDEN", "golden")


@pytest.fixture(scope="session")
def clips_dir() -> Path:
    """The folder of real clips and images, from VC_CLIPS. Without it, the test is skipped."""
    return _shared_folder("VC_CLIPS", "clips")


@pytest.fixture(scope="session")
def comfyui(request) -> ComfyUI:
    """The ComfyUI to test, with `--hosts all` one after another. Without any, the test is skipped."""
    if isinstance(request.param, NoHost):
        pytest.skip(str(request.param))
    if isinstance(request.param, Exception):  # a variable does not name a ComfyUI
        raise pytest.fail.Exception(str(request.param), pytrace=False)
    return request.param


@pytest.fixture(scope="session")
def host(comfyui, tmp_path_factory):
    """A running ComfyUI with this pack, shared by all tests that need it; see `tests/host/server.py`."""
    running = Host.start(tmp_path_factory.mktemp("comfyui"), comfyui=comfyui)
    yield running
    running.stop()
