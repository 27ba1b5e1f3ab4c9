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
from .errors import nearest
from .terminal import USERS_ERROR, argument, option, parsed, progress_bars, run_program, sentence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns its exit status: 0; 2 for errors that the user can fix; 130 for Ctrl-C; 1 for our bugs."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in PROGRAMS:
        folder, run, _ = PROGRAMS[argv[0]]
        if not (PROJECT / folder).is_dir():
            return _refused(
                f"The command {argv[0]} requires the folder {folder}, but only the core is installed in {PROJECT}. Run "
                "the command in a checkout of the project's repository."
            )
        return run(argv[1:])
    terminal.debugging, argv = "--debug" in argv, [word for word in argv if word != "--debug"]
    if argv and argv[0] in PROGRAMS:
        return _refused(f"--debug does not work with the command {argv[0]}. Remove it.")
    if argv[:1] in (["-h"], ["--help"]):
        print(_usage())
        return 0
    if not argv or argv[0] not in COMMANDS:
        names = [*PROGRAMS, *COMMANDS]
        problem = f"Unknown command {argv[0]}.{nearest(argv[0], names)}" if argv else "The command is missing."
        return _refused(f"{problem} Expected one of {', '.join(names)}.")
    if not find_spec("tyro"):
        return _refused("The command line requires the library tyro, which is not installed. Run pip install tyro.")
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


def _refused(message: str) -> int:
    print(f"vc: {message}", file=sys.stderr)
    return USERS_ERROR


def _usage() -> str:
    summaries = {name: row[-1] for name, row in (PROGRAMS | COMMANDS).items()}
    lines = [f"  {name:<10}{summary}" for name, summary in summaries.items()]
    return "\n".join(
        ["usage: vc [--debug] COMMAND ...", "", "VideoComposer: compose videos from conditions.", "", *lines]
    )


# --- test, clean, prepare, train, export, evaluate, bench: other programs, which this package does not import -------


def _test(arguments: list[str]) -> int:
    """Run pytest in the project's folder, without the slow tests unless the first argument is --all.

    With pytest-xdist, one process per core; a -n in the arguments overrides it.
    """
    everything = arguments[:1] == ["--all"]
    selection = arguments[1:] if everything else ["-m", "not slow", *arguments]
    processes = ["-n", "auto"] if find_spec("xdist") else []
    return subprocess.call([sys.executable, "-m", "pytest", *processes, *selection], cwd=PROJECT)


def _program(module: str) -> Callable[[list[str]], int]:
    """Return a function that runs a module of the project as a program, from any working folder."""

    def run(arguments: list[str]) -> int:
        path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
        command, environment = [sys.executable, "-m", module, *arguments], {**os.environ, "PYTHONPATH": path}
        if os.name == "nt":  # its callers do not wait for a program that replaces this process
            return subprocess.call(command, env=environment)
        # Replaces this process: a signal to it reaches the training, which saves before it exits.
        os.execve(sys.executable, command, environment)

    return run


def _bench(arguments: list[str]) -> int:
    """Run one of the scripts in benchmarks/ by its name."""
    names = sorted(path.stem for path in (PROJECT / "benchmarks").glob("*.py"))
    if arguments and arguments[0] in names:
        folder = PROJECT / "benchmarks"
        # They import each other, which PYTHONSAFEPATH prevents without their folder in PYTHONPATH.
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path}
        return subprocess.call([sys.executable, str(folder / f"{arguments[0]}.py"), *arguments[1:]], env=environment)
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"usage: vc bench NAME ...\n\nMeasure speed and memory. NAME is one of {', '.join(names)}.")
        return 0
    problem = (
        f"Unknown benchmark {arguments[0]}.{nearest(arguments[0], names)}"
        if arguments
        else "The name of the benchmark is missing."
    )
    return _refused(f"{problem} Expected one of {', '.join(names)}.")


PROJECT = Path(__file__).resolve().parents[1]
PROGRAMS: dict[str, tuple[str, Callable[[list[str]], int], str]] = {
    "test": ("tests", _test, "run the tests (--all: also the slow ones)"),
    "clean": ("training", _program("training.data.clean"), "split videos at cuts, and drop unsuitable clips"),
    "prepare": (
        "training",
        _program("training.data.prepare"),
        "create training shards from a folder of videos or images",
    ),
    "train": ("training", _program("training"), "train with a recipe"),
    "export": ("training", _program("training.export"), "create a checkpoint or a LoRA from a training run"),
    "evaluate": ("training", _program("training.evaluate"), "measure how well checkpoints follow their conditions"),
    "bench": ("benchmarks", _bench, "measure speed and memory"),
}
"""Command -> the folder that it requires, the function that runs it, and its summary."""


# --- demo, doctor, get ----------------------------------------------------------------------------------------------


def _demo(
    out: option(Path, "folder for the results (default: demo)", "-o", shown="FOLDER") = Path("demo"),
    checkpoint: option(Path | None, "checkpoint (default: the bundled one)", shown="FILE") = None,
    seed: option(int, "seed of the noise (default: 0)") = 0,
) -> None:
    from .demo import run_demo

    with progress_bars() as progress:
        summary = run_demo(out, checkpoint, seed, progress)
    for line in summary:
        print(line)


def _doctor(
    json: option(bool, "print the results as JSON") = False,
    hash: option(bool, "also check the SHA-256 of the installed models") = False,
) -> int:
    from .commands.doctor import as_text, examine

    with progress_bars() as progress:
        findings = examine(hash, progress)
    print(json_text.dumps(findings, indent=2) if json else as_text(findings))
    return 0 if findings["works"] else 2


def _of(module: str, name: str) -> Callable[[], Any]:
    """Return a function that imports a command. Its options need torch, which is slow to import."""
    return lambda: getattr(import_module(f"{__package__}.commands.{module}"), name)


def _get(
    names: argument(tuple[str, ...], "names of the files; without a name, list all files", "[NAME ...]") = (),
    to: option(
        Path | None, "folder to download into (default: the folders that ./vc doctor shows)", shown="FOLDER"
    ) = None,
) -> None:
    from .commands.get import as_text, get

    if not names:
        print(as_text())
        return
    with progress_bars() as progress:
        get(names, to, progress)


COMMANDS: dict[str, tuple[Callable[[], Callable[..., int | None]], str]] = {
    "demo": (lambda: _demo, "compose small videos that follow a clip, and measure them"),
    "compose": (_of("options", "compose"), "compose videos from conditions, repeat a run, or run many"),
    "upscale": (_of("upscale", "command"), "enlarge a video with VGen's super-resolution network SR600"),
    "extract": (_of("options", "extract"), "extract a condition from a video or an image, and preview it"),
    "info": (_of("networks", "info"), "show a file's contents and check that it is complete"),
    "convert": (_of("networks", "convert"), "convert networks to another layout or dtype, or join them in one file"),
    "doctor": (lambda: _doctor, "show what works here, what is missing, and where to get it"),
    "get": (lambda: _get, "download files that ./vc doctor lists"),
}
"""Command -> a function that returns the command's function, and its summary."""
