"""Work in several processes: results in order, errors, and processes that are killed."""

import os
import signal
import time
from functools import partial

import pytest

from training.pool import in_order
from vc_core.errors import UserError


def worked(item):
    """Take longer for earlier items; raise or die for special ones."""
    if item == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "wrong":
        raise UserError("This item is wrong.")
    time.sleep(0.2 / (1 + item))
    return os.getpid(), item


def waits_for_another_process(folder, item):
    """Return when another process has an item too. However slowly one of them starts, both are used."""
    (folder / str(os.getpid())).touch()
    end = time.monotonic() + 120
    while len(list(folder.iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    return worked(item)


def test_results_are_in_order_and_from_several_processes(tmp_path):
    results = list(in_order(partial(waits_for_another_process, tmp_path), range(8), 2, "killed"))
    assert [item for _, item in results] == list(range(8))
    processes = {process for process, _ in results}
    assert len(processes) == 2 and os.getpid() not in processes


def test_items_are_submitted_only_a_few_ahead():
    submitted = []
    results = in_order(worked, (submitted.append(item) or item for item in range(50)), 2, "killed", ahead=2)
    assert next(results)[1] == 0
    assert len(submitted) == 5
    results.close()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="requires SIGKILL")
def test_a_killed_process_is_reported():
    with pytest.raises(UserError, match="Use fewer --jobs"):
        list(in_order(worked, [0, "killed", 1], 2, "A process was killed. Use fewer --jobs."))


def test_an_error_in_a_process_is_raised_here():
    with pytest.raises(UserError, match="This item is wrong"):
        list(in_order(worked, [0, "wrong"], 2, "killed"))
