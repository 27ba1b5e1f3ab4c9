"""What all tests share: where the reference values and real clips lie, how many threads they may use, and which of
them stay together where pytest-xdist runs some at a time."""

import os
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.host.finding import ComfyUI, NoHost, find_comfyuis
from tests.host.server import Host

REPOSITORY = Path(__file__).resolve().parents[1]

# The tests' tensors are small: more threads than this only wait for each other, and workers of pytest-xdist have one
# each. torch reads it when it is first imported, in the tests' subprocesses too.
_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
else:
    os.environ.setdefault("OMP_NUM_THREADS", str(min(4, _cores)))

# One kind of convolution kernel wherever the tests run. The golden networks' random weights give STC embeddings whose
# channels are nearly constant at values around 3; the norms after them magnify the last bit's rounding 400 times, so
# kernels that add in another order differ by 1e-4 where these differ by 3e-5 from the reference.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")

# The folders whose tests take longest, which begin first: at the end are short ones, and all workers end together.
_FIRST = ("host", "web", "training")


def pytest_addoption(parser):
    parser.addoption(
        "--hosts",
        choices=("newest", "all"),
        default="newest",
        help="the ComfyUIs to test on: the newest that is found (or the one that holds this checkout), or all",
    )


def pytest_generate_tests(metafunc):
    """Each pair of reference files of a network is a test of its own, with the pair's name in its id.

    Tests that need a ComfyUI are there once for each, by its version; pytest runs all of one, then all of the next.
    Where none is found, what is wrong takes its place, and the fixture `comfyui` tells it.
    """
    if "golden_pair" in metafunc.fixturenames:
        files = [
            file for kind in ("unet", "vgen") for file in _folder("VC_GOLDEN", "golden").glob(f"{kind}_*.safetensors")
        ]
        metafunc.parametrize("golden_pair", sorted(file.stem for file in files) or ["none"], scope="module")
    if "comfyui" not in metafunc.fixturenames:
        return
    try:
        found = find_comfyuis()
        chosen = found if metafunc.config.option.hosts == "all" else found[:1]
        names = [one.version for one in chosen]
    except (NoHost, OSError, ValueError) as error:
        chosen, names = [error], ["none"]
    metafunc.parametrize("comfyui", chosen, indirect=True, ids=names)


def pytest_itemcollected(item):
    """Notes on a test on which ComfyUI it runs, for the summary."""
    comfyui = getattr(item, "callspec", None) and item.callspec.params.get("comfyui")
    if comfyui is not None:
        item.user_properties.append(("comfyui", getattr(comfyui, "version", None)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One for each core that may be used; each takes a gigabyte or two, so not more than some."""
    return min(8, _cores)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests stay in one worker, as they share what they have made; so do all that share a running ComfyUI:
    those of one folder on one version."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            version = re.search(r"\d+\.\d+\.\d+", test)
            return f"{file.rpartition('/')[0]} {version[0]}" if version else file

    config.option.loadscopereorder = False  # the order is ours
    return Scheduling(config, log)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: [not item.nodeid.startswith(f"tests/{folder}/") for folder in _FIRST])


def _folder(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or REPOSITORY.parent / "shared" / default)


def _shared_folder(variable: str, default: str) -> Path:
    folder = _folder(variable, default)
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; {variable} names another folder")
    return folder


def pytest_terminal_summary(terminalreporter):
    """Says once for each reason how many tests were skipped, thus what is needed to run them, and what was tested."""
    skips = [one for one in terminalreporter.getreports("skipped") if isinstance(one.longrepr, tuple)]
    for reason, count in Counter(one.longrepr[2].removeprefix("Skipped: ") for one in skips).items():
        terminalreporter.write_line(f"{count} skipped: {reason}")
    reports = [one for kind in ("passed", "failed", "error", "skipped") for one in terminalreporter.getreports(kind)]
    reports = [one for one in reports if isinstance(one, pytest.TestReport)]
    asked = [(one, version) for one in reports for key, version in one.user_properties if key == "comfyui"]
    if asked:
        tested = dict.fromkeys(version for one, version in asked if version and not one.skipped)
        terminalreporter.write_line(f"ComfyUI {' and '.join(tested)} tested" if tested else "no ComfyUI tested")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The project's root folder."""
    return REPOSITORY


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of reference values, from VC_GOLDEN; the test is skipped where it is absent."""
    return _shared_folder("VC_GOLDEN", "golden")


@pytest.fixture(scope="session")
def clips_dir() -> Path:
    """The folder of real clips and images, from VC_CLIPS; the test is skipped where it is absent."""
    return _shared_folder("VC_CLIPS", "clips")


@pytest.fixture(scope="session")
def comfyui(request) -> ComfyUI:
    """The ComfyUI that is tested, with `--hosts all` each after the other; where there is none, the test is skipped."""
    if isinstance(request.param, NoHost):
        pytest.skip(str(request.param))
    if isinstance(request.param, Exception):  # a variable that names no ComfyUI
        raise pytest.fail.Exception(str(request.param), pytrace=False)
    return request.param


@pytest.fixture(scope="session")
def host(comfyui, tmp_path_factory):
    """A running ComfyUI with this pack in it, one for all tests that need one; see `tests/host/server.py`."""
    running = Host.start(tmp_path_factory.mktemp("comfyui"), comfyui=comfyui)
    yield running
    running.stop()
