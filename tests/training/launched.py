"""A program for the tests of the launcher: `python -m tests.training.launched FOLDER WHAT`, one rank of several.

Each rank waits for the others, does WHAT, and notes in FOLDER which signals came. No torch, so that it starts at once.
"""

import os
import signal
import sys
import time
from pathlib import Path

from training.launch import LOST, follow_launcher


def main(folder, what):
    rank, came = int(os.environ["RANK"]), []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: came.append(n))
    follow_launcher()
    (folder / f"started.{rank}").write_text(str(os.getpid()))
    while len(list(folder.glob("started.*"))) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.01)
    threads = {os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]}
    if what == "end" and threads == {"1"}:
        return 0
    if what == "fail":  # both of the same, as of a file that is not there, and rank 0 after the other
        time.sleep(0.3 * (rank == 0))
        print("vc: no such file", file=sys.stderr)
        return 2
    if what in ("die", "kill"):  # rank 1 alone, which the other notices or not
        if rank == 1:
            print("vc: bad samples", file=sys.stderr, flush=True)
            return 3 if what == "die" else os.kill(os.getpid(), signal.SIGKILL)
        if what == "die":
            return LOST
    while not came:
        time.sleep(0.01)
    time.sleep(0.5)  # saves; what would come twice, comes now
    (folder / f"came.{rank}").write_text(" ".join(map(str, came)))
    return 128 + came[0]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
