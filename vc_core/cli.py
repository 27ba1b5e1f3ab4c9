"""The command line: `./vc COMMAND`, or `python -m vc_core COMMAND`."""

import argparse
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .errors import UserError
from .terminal import USERS_ERROR, progress_bars, run_program


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status: 0, 2 for what the user can mend, 130 for Ctrl-C, 1 for our mistakes."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in HANDED_ON:
        folder, hand_on = HANDED_ON[argv[0]]
        if not (PROJECT / folder).is_dir():
            print(
                f"vc: {argv[0]} needs the folder {folder}, which is not in {PROJECT}, where the core alone is "
                "installed: run it in a checkout of the project's repository.",
                file=sys.stderr,
            )
            return USERS_ERROR
        return hand_on(argv[1:])
    arguments = _parser(next((word for word in argv if not word.startswith("-")), "")).parse_args(argv)
    try:
        return run_program(lambda: arguments.run(arguments), debug=arguments.debug)
    except Exception as error:
        if arguments.debug:
            raise
        print(f"vc: {_sentence(error)}", file=sys.stderr)
        return 1


def _sentence(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    return f"unexpected {type(error).__name__}: {error} (--debug shows where it came from)"


def _parser(chosen: str) -> argparse.ArgumentParser:
    """The parser, with the options of the chosen command alone: those of others would have to import torch."""
    parser = argparse.ArgumentParser(prog="vc", description="VideoComposer: videos composed from conditions.")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in (
        ("test", "run the tests (--all: the slow ones too)"),
        ("prepare", "make shards for training out of a folder of videos or images"),
        ("train", "train by a recipe"),
        ("export", "make a checkpoint or a LoRA of what a run has learned"),
        ("evaluate", "measure how well checkpoints obey their conditions"),
        ("bench", "measure speed and memory, as ratios in one run"),
    ):
        commands.add_parser(name, help=summary).set_defaults(
            run=lambda _: parser.error("--debug goes with other commands")
        )
    for name, add, run, summary in (
        ("demo", _demo_arguments, _demo, "compose two small videos that obey a clip's motion, and measure them"),
        ("compose", _compose_arguments, _compose, "compose videos from conditions, again from a video, or many"),
        ("extract", _extract_arguments, _extract, "make a condition of a video or an image, and look at it"),
        ("info", _info_arguments, _info, "say what a file holds and whether it is whole"),
        (
            "convert",
            _convert_arguments,
            _convert,
            "write networks under other names, in another type, or as one file",
        ),
        ("doctor", _doctor_arguments, _doctor, "say what works here, what is missing and where to get it"),
    ):
        command = commands.add_parser(
            name, help=summary, description=summary[0].upper() + summary[1:] + ".", allow_abbrev=False
        )
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        if name == chosen:
            add(command)
        command.set_defaults(run=run)
    return parser


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
HANDED_ON = {  # by the command: the folder that it needs, and what runs it
    "test": ("tests", _test),
    "prepare": ("training", _program("training.data.prepare")),
    "train": ("training", _program("training")),
    "export": ("training", _program("training.export")),
    "evaluate": ("training", _program("training.evaluate")),
    "bench": ("benchmarks", _bench),
}


# --- demo -----------------------------------------------------------------------------------------------------------


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--out", type=Path, default=Path("demo"), help="folder for the results (default: demo)")
    parser.add_argument("--checkpoint", type=Path, help="another checkpoint than the bundled one")
    parser.add_argument("--seed", type=int, default=0)


def _demo(arguments: argparse.Namespace) -> None:
    from .demo import run_demo

    with progress_bars() as progress:
        summary = run_demo(arguments.out, arguments.checkpoint, arguments.seed, progress)
    for line in summary:
        print(line)


# --- compose --------------------------------------------------------------------------------------------------------


def _compose_arguments(parser: argparse.ArgumentParser) -> None:
    from .commands.settings import SETTINGS
    from .video.limits import add_limits

    files = parser.add_argument_group("settings from files", "Options given besides override what the file says.")
    files.add_argument(
        "--from", dest="source", type=Path, metavar="FILE",
        help="a .yaml or .json of settings (keys are the options' names, paths are relative to it), or a video, folder "
        "or sheet that this command wrote: the same again",
    )  # fmt: skip
    files.add_argument(
        "--batch", type=Path, metavar="RUNS", help="a .yaml list of settings, or 'runs:' with 'defaults:': all of them"
    )
    _add_settings(parser, {name: setting.group for name, setting in SETTINGS.items()}, {"out": "-o"})
    add_limits(parser)


def _add_settings(parser: argparse.ArgumentParser, groups: dict[str, str], short: dict[str, str]) -> None:
    """Options of the table of settings: for each of `groups` the group that it is shown in, some with a second name."""
    from .commands.settings import SETTINGS, as_option

    added: dict[str, Any] = {}
    for name, group in groups.items():
        if group not in added:
            added[group] = parser.add_argument_group(group)
        setting, names = SETTINGS[name], [as_option(name), *([short[name]] if name in short else [])]
        kind = setting.kind
        shape = {"metavar": kind.form} if kind.form else {"action": argparse.BooleanOptionalAction}
        added[group].add_argument(
            *sorted(names, key=len), dest=name, default=argparse.SUPPRESS, help=setting.help, **shape, **kind.option
        )


def _compose(arguments: argparse.Namespace) -> int | None:
    from .commands.running import gather, run
    from .commands.settings import SETTINGS

    options = {name: value for name, value in vars(arguments).items() if name in SETTINGS}
    if arguments.batch is not None:
        return _compose_many(arguments, options)
    with progress_bars() as progress:
        result = run(gather(arguments.source, options, progress), progress=progress)
    for line in result.summary:
        print(line)
    return None


def _compose_many(arguments: argparse.Namespace, options: dict[str, Any]) -> int:
    from .commands.running import gather_many, run_all

    for name, given in (("--from", arguments.source), ("--out", "out" in options), ("--sheet", "sheet" in options)):
        if given:
            raise UserError(f"{name} does not go with --batch: write it into {arguments.batch}, in each run.")
    runs = gather_many(arguments.batch, options)
    failed = []
    with progress_bars() as progress:
        for number, outcome in enumerate(run_all(runs, progress), 1):
            if outcome.error is not None:
                failed.append(f"run {number}, {outcome.settings.out}: {_sentence(outcome.error)}")
                if arguments.debug:
                    traceback.print_exception(outcome.error)
            for line in outcome.result.summary if outcome.result else failed[-1:]:
                progress.write(f"[{number}/{len(runs)}] {line}")
    if failed:
        print(f"vc: {len(failed)} of {len(runs)} runs failed:", *failed, sep="\n  ", file=sys.stderr)
    return 2 if failed else 0


# --- extract --------------------------------------------------------------------------------------------------------


def _extract_arguments(parser: argparse.ArgumentParser) -> None:
    from .commands.extraction import COLUMNS, KINDS, OPTIONS, SHORT
    from .video.limits import add_limits

    add = parser.add_argument
    add("kind", metavar="KIND", choices=KINDS, help=f"what to make: {', '.join(KINDS)}")
    add("file", metavar="FILE", type=Path, help="a video; an image too for style, single_image and single_sketch")
    add("-o", "--out", metavar="OUT", type=Path, required=True,
        help="a .safetensors: `condition` (1, C, F, H, W), and how it was made as JSON in its metadata")  # fmt: skip
    add("--preview", type=Path, metavar="OUT", help="also something to look at: a .png, or a video")
    add("--json", action="store_true", help="print a summary as JSON")
    add("--checkpoint", type=Path, metavar="FILE",
        help="make it as this one was trained, or as the `bundled` one (default: as the released one)")  # fmt: skip
    add("--vectors", action="store_true",
        help=f"for motion: also `vectors`, rows of {', '.join(COLUMNS)} (pixels of the source), the blocks of the "
        "released path whatever the checkpoint; their layout, height, width and fps are in the metadata")  # fmt: skip
    _add_settings(parser, {name: f"for {', '.join(kinds)}" for name, kinds in OPTIONS.items()}, SHORT)
    add_limits(parser)


def _extract(arguments: argparse.Namespace) -> None:
    import json

    from .commands.extraction import extract_file, preview, request_of, save_extraction, summary

    request = request_of(vars(arguments))
    with progress_bars() as progress:
        made = extract_file(request, progress)
        written = [save_extraction(made, arguments.out)]
        if arguments.preview is not None:
            written.append(preview(made, arguments.preview))
    told = summary(made)
    if arguments.json:
        print(json.dumps(told, indent=2))
        return
    shape = " x ".join(map(str, told["shape"]))
    print(f"{arguments.out}: {arguments.kind}, {shape}, from {told['least']:.3g} to {told['most']:.3g}")
    for path in written[1:]:
        print(f"{path}: to look at")
    if told["note"]:
        print(told["note"])


# --- info and convert -----------------------------------------------------------------------------------------------


def _info_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, nargs="?", help="the file (default: the bundled checkpoint)")
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def _info(arguments: argparse.Namespace) -> int:
    import json

    from .checkpoint import BUNDLED
    from .inspection import as_mapping, as_text, inspect

    with progress_bars() as progress:
        info = inspect(arguments.file or BUNDLED, progress)
    print(json.dumps(as_mapping(info), indent=2) if arguments.json else as_text(info))
    return 0 if info.whole else 2


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="IN", help="a file that ./vc info knows")
    parser.add_argument("out", type=Path, metavar="OUT", help="a .safetensors, or a .pth as released")
    parser.add_argument("--add", type=Path, action="append", default=[], metavar="FILE",
                        help="a file that brings further parts; may be repeated")  # fmt: skip
    parser.add_argument("--parts", metavar="NAMES", help="what to write, with commas: model, vae, text, image")
    parser.add_argument("--layout", help="whose names: videocomposer, released, taesd, ldm, diffusers, open_clip, "
                        "transformers (default: released for a .pth of a network, else videocomposer)")  # fmt: skip
    parser.add_argument("--dtype", help="fp32, fp16, bf16 or fp8 (default: as it is)")


def _convert(arguments: argparse.Namespace) -> None:
    from .conversion import convert
    from .inspection import as_text

    parts = arguments.parts and [name.strip() for name in arguments.parts.split(",")]
    with progress_bars() as progress:
        info = convert(
            arguments.source,
            arguments.out,
            add=arguments.add,
            parts=parts,
            layout=arguments.layout,
            dtype=arguments.dtype,
            progress=progress,
        )
    print(as_text(info, brief=True))


# --- doctor ---------------------------------------------------------------------------------------------------------


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    parser.add_argument("--hash", action="store_true", help="also compare the SHA-256 of the models that are found")


def _doctor(arguments: argparse.Namespace) -> int:
    import json

    from .commands.doctor import as_text, examine

    with progress_bars() as progress:
        findings = examine(arguments.hash, progress)
    print(json.dumps(findings, indent=2) if arguments.json else as_text(findings))
    return 0 if findings["works"] else 2
