"""Read damaged files of all kinds in a child process, which may crash, and return the outcome, time and memory of each.

Tests call `outcomes`. As a program, this file is the child process.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
LONGEST = 120  # seconds without output after which a child counts as hanging; 10 are too few on a busy machine
TEXTS = {".json", ".jsonl", ".csv", ".yaml", ".txt"}

_INSERTS = (
    b"[" * 3000, b'{"a":' * 3000, b"- " * 3000, b"9" * 5000, b"x" * 100_000, b"\0", b"\xff\xfe", b"\xed\xa0\x80",
    b"NaN", b"-1e400",
    b"null", b'"', b",", b"\n", b"\r", b": ", b"&a [*a]", b"\\ud800", b"\x1b[31m", b"true", b"{}", b"[]",
)  # fmt: skip


def damaged(data: bytes, number: int, text: bool = False) -> bytes:
    """Return damaged bytes: truncated, with flipped bits, or a part overwritten, removed or repeated; by number."""
    random = np.random.default_rng(number)
    copy = bytearray(data)
    # Most of the damage is in headers, where it matters most: they are short, at the beginning or at the end.
    among = len(copy) if number % 3 == 0 else min(len(copy), 400)
    place = int(random.integers(among)) if number % 6 != 1 else len(copy) - 1 - int(random.integers(among))
    kind = number % 7
    if kind == 0:
        return bytes(copy[: random.integers(len(copy))])
    if kind == 1:
        copy[place : place + 4] = [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\x40\0"][int(random.integers(4))]
    elif kind == 2:
        del copy[place : place + int(random.integers(1, 64))]
    elif kind == 3:
        size = int(random.integers(1, 64))
        copy[place:place] = copy[place : place + size]
    elif kind == 4 and text:
        copy[place:place] = _INSERTS[int(random.integers(len(_INSERTS)))]
    elif kind == 4:
        size = int(random.integers(1, 64))
        copy[place : place + size] = random.bytes(size)
    else:
        for position in (place, *random.integers(among, size=random.integers(4))):
            copy[position] ^= 1 << int(random.integers(8))
    return bytes(copy)


Job = tuple[str, Path]
"""The name of a reader in a module, and a file for it."""
UNDAMAGED = -1
"""The number of the undamaged case, which comes first for each job."""


def outcomes(module: str, jobs: Sequence[Job], numbers: range, folder: Path) -> Iterator[dict]:
    """Yield the result for each damaged copy of each file: `job`, `case`, `outcome` ("right", "error", or what went
    wrong), `seconds` of processor time and `megabytes` above the start.

    Args:
        module: contains the readers, functions of a path. They may raise only UserError and BadSample.
        folder: an empty folder for the copies.
    """
    cases = [(job, case) for job in range(len(jobs)) for case in (UNDAMAGED, *numbers)]
    plan, log, done = folder / "plan.json", folder / "output.txt", 0
    while done < len(cases):
        named = [(reader, str(file)) for reader, file in jobs]
        plan.write_text(json.dumps({"module": module, "jobs": named, "cases": cases[done:]}))
        with open(log, "w") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzzing", plan], cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT
            )
            ended = _wait(child, log)
        lines = log.read_text(errors="replace").splitlines()
        results = [json.loads(line.removeprefix("case ")) for line in lines if line.startswith("case {")]
        yield from results
        done += len(results)
        if done < len(cases):
            why = f"died of {child.returncode}" if ended else f"no output for {LONGEST} s"
            outcome = f"{why}: {' '.join(lines[-8:])[-800:]}"
            yield {"job": cases[done][0], "case": cases[done][1], "outcome": outcome, "seconds": 0, "megabytes": 0}
            done += 1


def _wait(child: subprocess.Popen, log: Path) -> bool:
    """Wait for a child; kill it if it writes nothing for LONGEST seconds. Returns whether it ended by itself."""
    while True:
        size = log.stat().st_size
        try:
            child.wait(LONGEST)
            return True
        except subprocess.TimeoutExpired:
            if log.stat().st_size == size:
                child.kill()
                child.wait()
                return False


def main() -> None:
    import warnings

    import av

    from training.data.sample import BadSample
    from vc_core.errors import UserError

    warnings.simplefilter("ignore")
    av.logging.set_level(None)
    plan = json.loads(Path(sys.argv[1]).read_text())
    module, jobs = importlib.import_module(plan["module"]), plan["jobs"]
    warm: set[int] = set()
    for job, case in plan["cases"]:
        reader, name = jobs[job]
        read, data, path = getattr(module, reader), Path(name).read_bytes(), _copied(Path(name), job)
        if case != UNDAMAGED and job not in warm:  # do not measure the loading of libraries
            read(path)
        warm.add(job)
        path.write_bytes(data if case == UNDAMAGED else damaged(data, case, path.suffix in TEXTS))
        began, before = time.process_time(), _memory()
        try:
            read(path)
            outcome = "right"
        except (UserError, BadSample) as error:
            outcome = "error" if _is_message(str(error)) else f"bad message: {str(error)[:300]!r}"
        except Exception as error:
            outcome = f"{type(error).__name__}: {str(error)[:300]} at {_place(error)}"
        seconds, megabytes = time.process_time() - began, (_memory(peak=True) - before) / 2**20
        used = {"seconds": round(seconds, 2), "megabytes": round(megabytes)}
        print("case " + json.dumps({"job": job, "case": case, "outcome": outcome, **used}), flush=True)


def _copied(file: Path, job: int) -> Path:
    """A copy with the same name in a separate folder, together with the files of a folder `NAME.beside`."""
    path = Path(sys.argv[1]).parent / str(job) / file.name
    if not path.exists():
        path.parent.mkdir()
        for source in (file, *file.with_name(f"{file.name}.beside").glob("*")):
            (path.parent / source.name).write_bytes(source.read_bytes())
    return path


def _is_message(text: str) -> bool:
    return 20 < len(text) < 1500 and text.isprintable()


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    places = []
    while trace:
        places.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " ".join(places[-4:])


def _memory(peak: bool = False) -> int:
    """Return the resident bytes, or their peak since the last call without `peak`; 0 if the system is not Linux."""
    try:
        if not peak:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return 1024 * int(status.split("VmHWM:" if peak else "VmRSS:")[1].split()[0])


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
