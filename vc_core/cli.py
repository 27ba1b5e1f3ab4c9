"""The command line: `./vc COMMAND`, or `python -m vc_core COMMAND`."""

from __future__ import annotations

import json as json_text
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from inspect import getdoc
from pathlib import Path
from typing import Any

from . import terminal
from .terminal import USERS_ERROR, argument, option, parsed, progress_bars, run_program, sentence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status: 0, 2 for what the user can mend, 130 for Ctrl-C, 1 for our mistakes."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in HANDED_ON:
        folder, hand_on, _ = HANDED_ON[argv[0]]
        if not (PROJECT / folder).is_dir():
            return _refused(
                f"{argv[0]} needs the folder {folder}, which is not in {PROJECT}, where the core alone is installed: "
                "run it in a checkout of the project's repository."
            )
        return hand_on(argv[1:])
    terminal.debugging, argv = "--debug" in argv, [word for word in argv if word != "--debug"]
    if argv and argv[0] in HANDED_ON:
        return _refused("--debug goes with other commands.")
    if argv[:1] in (["-h"], ["--help"]):
        print(_usage())
        return 0
    if not argv or argv[0] not in COMMANDS:
        return _refused(f"expected one of the commands {', '.join([*HANDED_ON, *COMMANDS])}.")
    if not find_spec("tyro"):
        return _refused("the command line needs the library tyro, which is not installed: run pip install tyro.")
    load, summary = COMMANDS[argv[0]]
    program = load()
    description = f"{summary[0].upper()}{summary[1:]}.\n\n{getdoc(program) or ''}".rstrip()
    work = parsed(program, argv[1:], f"vc {argv[0]}", description)
    try:
        return run_program(work)
    except Exception as error:
        if terminal.debugging:
            raise
        print(f"vc: {sentence(error)}", file=sys.stderr)
        return 1


def _refused(sentence: str) -> int:
    print(f"vc: {sentence}", file=sys.stderr)
    return USERS_ERROR


def _usage() -> str:
    summaries = {name: row[-1] for name, row in (HANDED_ON | COMMANDS).items()}
    lines = [f"  {name:<10}{summary}" for name, summary in summaries.items()]
    return "\n".join(
        ["usage: vc [--debug] COMMAND ...", "", "VideoComposer: videos composed from conditions.", "", *lines]
    )


# --- test, prepare, train, export, evaluate, bench: other programs, which this package does not import ---------------


def _test(arguments: list[str]) -> int:
    """pytest in the project's folder, without the slow tests unless the first argument is --all.

    With pytest-xdist as many at a time as there are cores; another -n in the arguments counts.
    """
    everything = arguments[:1] == ["--all"]
    selection = arguments[1:] if everything else ["-m", "not slow", *arguments]
    at_a_time = ["-n", "auto"] if find_spec("xdist") else []
    return subprocess.call([sys.executable, "-m", "pytest", *at_a_time, *selection], cwd=PROJECT)


def _program(module: str) -> Callable[[list[str]], int]:
    """A module of the project as a program, which need not lie in the folder that the user is in."""

    def run(arguments: list[str]) -> int:
        path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
        command, environment = [sys.executable, "-m", module, *arguments], {**os.environ, "PYTHONPATH": path}
        if os.name == "nt":  # where the caller would not wait for what takes its place
            return subprocess.call(command, env=environment)
        # In the place of this process: a signal to it is for the training, which saves before it leaves.
        os.execve(sys.executable, command, environment)

    return run


def _bench(arguments: list[str]) -> int:
    """One of the scripts in benchmarks/, by its name."""
    there = sorted(path.stem for path in (PROJECT / "benchmarks").glob("*.py"))
    if not arguments or arguments[0] not in there:
        print(f"usage: vc bench NAME ...: expected one of {', '.join(there)}", file=sys.stderr)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    return subprocess.call([sys.executable, str(PROJECT / "benchmarks" / f"{arguments[0]}.py"), *arguments[1:]])


PROJECT = Path(__file__).resolve().parents[1]
HANDED_ON: dict[str, tuple[str, Callable[[list[str]], int], str]] = {
    "test": ("tests", _test, "run the tests (--all: the slow ones too)"),
    "prepare": (
        "training",
        _program("training.data.prepare"),
        "make shards for training out of a folder of videos or images",
    ),
    "train": ("training", _program("training"), "train by a recipe"),
    "export": ("training", _program("training.export"), "make a checkpoint or a LoRA of what a run has learned"),
    "evaluate": ("training", _program("training.evaluate"), "measure how well checkpoints obey their conditions"),
    "bench": ("benchmarks", _bench, "measure speed and memory, as ratios in one run"),
}
"""By the command: the folder that it needs, what runs it, and what it is for."""


# --- demo, doctor, get ----------------------------------------------------------------------------------------------


def _demo(
    out: option(Path, "folder for the results (default: demo)", "-o") = Path("demo"),
    checkpoint: option(Path | None, "another checkpoint than the bundled one") = None,
    seed: option(int, "") = 0,
) -> None:
    from .demo import run_demo

    with progress_bars() as progress:
        summary = run_demo(out, checkpoint, seed, progress)
    for line in summary:
        print(line)


def _doctor(
    json: option(bool, "the same as JSON") = False,
    hash: option(bool, "also compare the SHA-256 of the models that are found") = False,
) -> int:
    from .commands.doctor import as_text, examine

    with progress_bars() as progress:
        findings = examine(hash, progress)
    print(json_text.dumps(findings, indent=2) if json else as_text(findings))
    return 0 if findings["works"] else 2


def _of(module: str, name: str) -> Callable[[], Any]:
    """One of the commands whose options need torch to be imported."""
    return lambda: getattr(import_module(f"{__package__}.commands.{module}"), name)


def _get(
    names: argument(tuple[str, ...], "files by their names; without any, those that there are", "[NAME ...]") = (),
    to: option(Path | None, "folder for them (default: that of ./vc doctor, where the nodes read them)") = None,
) -> None:
    from .commands.get import as_text, get

    if not names:
        print(as_text())
        return
    with progress_bars() as progress:
        get(names, to, progress)


COMMANDS: dict[str, tuple[Callable[[], Callable[..., int | None]], str]] = {
    "demo": (lambda: _demo, "compose two small videos that obey a clip's motion, and measure them"),
    "compose": (_of("options", "compose"), "compose videos from conditions, again from a video, or many"),
    "extract": (_of("options", "extract"), "make a condition of a video or an image, and look at it"),
    "info": (_of("networks", "info"), "say what a file holds and whether it is whole"),
    "convert": (_of("networks", "convert"), "write networks under other names, in another type, or as one file"),
    "doctor": (lambda: _doctor, "say what works here, what is missing and where to get it"),
    "get": (lambda: _get, "download files that ./vc doctor lists"),
}
"""By the command: what gives the function of its options, and what it is for."""
