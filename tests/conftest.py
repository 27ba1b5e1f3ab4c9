"""What all tests share: where the reference values and real clips lie, and how many threads they may use."""

import os
from collections import Counter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# The tests' tensors are small: more threads than this only wait for each other. torch reads it when it is first
# imported, in the tests' subprocesses too.
_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
os.environ.setdefault("OMP_NUM_THREADS", str(min(4, _cores)))

# One kind of convolution kernel wherever the tests run. The golden networks' random weights give STC embeddings whose
# channels are nearly constant at values around 3; the norms after them magnify the last bit's rounding 400 times, so
# kernels that add in another order differ by 1e-4 where these differ by 3e-5 from the reference.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")


def _shared_folder(variable: str, default: str) -> Path:
    folder = Path(os.environ.get(variable) or REPOSITORY.parent / "shared" / default)
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; {variable} names another folder")
    return folder


def pytest_terminal_summary(terminalreporter):
    """Says once for each reason how many tests were skipped, thus what is needed to run them."""
    reports = [report for report in terminalreporter.getreports("skipped") if isinstance(report.longrepr, tuple)]
    for reason, count in Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports).items():
        terminalreporter.write_line(f"{count} skipped: {reason}")


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
def comfyui() -> tuple[str, str]:
    """The folder of a ComfyUI and its Python; the test is skipped where there is none."""
    from tests.host.server import NoHost, find_comfyui

    try:
        folder, python = find_comfyui()
    except NoHost as reason:
        pytest.skip(str(reason))
    return str(folder), str(python)


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    """A running ComfyUI with this pack in it, one for all tests that need one; see `tests/host/server.py`.

    They are skipped where there is no ComfyUI.
    """
    from tests.host.server import Host, NoHost

    try:
        running = Host.start(tmp_path_factory.mktemp("comfyui"))
    except NoHost as reason:
        pytest.skip(str(reason))
    except OSError as error:  # a variable that names no ComfyUI
        raise pytest.fail.Exception(str(error), pytrace=False) from None
    yield running
    running.stop()
