"""A program for the tests of the launcher: `python -m tests.training.launched FOLDER WHAT`, one rank of several.

Each rank waits for the others, does WHAT, and writes to FOLDER which signals it received. It starts quickly without
torch.
"""

import os
import signal
import sys
import time
from pathlib import Path

from training.launch import LOST, follow_launcher


def main(folder, what):
    rank, received = int(os.environ["RANK"]), []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: received.append(n))
    follow_launcher()
    (folder / f"started.{rank}").write_text(str(os.getpid()))
    while len(list(folder.glob("started.*"))) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.01)
    threads = {os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]}
    if what == "end" and threads == {"1"}:
        return 0
    if what == "fail":  # both for the same reason, such as a missing file, and rank 0 after the other
        time.sleep(0.3 * (rank == 0))
        print("vc: no such file", file=sys.stderr)
        return 2
    if what in ("die", "kill"):  # only rank 1; the other notices it or not
        if rank == 1:
            print("vc: bad samples", file=sys.stderr, flush=True)
            return 3 if what == "die" else os.kill(os.getpid(), signal.SIGKILL)
        if what == "die":
            return LOST
    while not received:
        time.sleep(0.01)
    time.sleep(0.5)  # "saves"; a second signal would arrive now
    (folder / f"came.{rank}").write_text(" ".join(map(str, received)))
    return 128 + received[0]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
