"""`./vc train bundled --minutes N`: the bundled checkpoint from nothing, or from a file, by a budget of time."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from training import lock
from training.bundled import autoencoder, network, towers
from training.bundled import export as files
from training.bundled.design import FILE as DESIGN
from training.bundled.design import PARTS, RECIPE, Design, budget, keep_design, read_design
from training.launch import cores, launch
from training.ranks import joined
from vc_core.checkpoint.loading import load_unet
from vc_core.checkpoint.reading import Checkpoint, read_checkpoint
from vc_core.composer import choose_device
from vc_core.config import Config
from vc_core.disk import make_folder
from vc_core.errors import UserError
from vc_core.terminal import run_program

WORK = "./vc train bundled"

FULL_EVALUATION = 60.0
"""Minutes of training from which on the file is evaluated on all held-out scenes; below a quick look will do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns its exit status: 0, 2 for users' errors, 130 and 143 where signals ended it."""
    argv = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(argv)
    return run_program(lambda: _run(options, argv), "interrupted; the same command goes on from the last checkpoint")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vc train bundled",
        description="Trains the bundled checkpoint on synthetic scenes by a budget of time: autoencoder, towers, "
        "network; then writes OUT/bundled.safetensors and evaluates it. The same command goes on where it was "
        "interrupted, and with a larger budget from where it ended. `./vc export OUT -o FILE` writes what there is at "
        "any moment.",
    )
    add = parser.add_argument
    add("--minutes", type=float, required=True, help="of training, all starts of the run together")
    add("--out", type=Path, default=Path("runs/bundled"), help="folder of the run (default: runs/bundled)")
    start = "a checkpoint of this design: its autoencoder and towers are taken as they are, and its network is trained "
    add("--start", type=Path, metavar="FILE", help=start + "on (default: everything from nothing)")
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--ranks", type=int, metavar="N", help="processes of one thread each on a CPU (default: as many as cores)")
    add("--no-evaluation", action="store_true", help="end with the file")
    add("--design", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    return parser


def _run(options: argparse.Namespace, argv: Sequence[str]) -> int:
    if "RANK" in os.environ:
        return train(options)
    if options.ranks is not None and options.ranks < 1:
        raise UserError(f"--ranks is {options.ranks}: expected 1 or more.")
    plan(options)  # what cannot be done is refused before anything starts
    on_cpu = device_of(options) == "cpu"
    ranks = options.ranks or (cores() if on_cpu else 1)
    if ranks > 1 and not on_cpu:
        raise UserError(f"--ranks is {ranks}, and several ranks are for a CPU: leave it out.")
    return (launch("training.bundled", argv, ranks) if ranks > 1 else train(options)) or finish(options)


def device_of(options: argparse.Namespace) -> str:
    """cpu or cuda. Raises `UserError` where that is not there, or another one was asked for."""
    if options.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if options.device not in ("cpu", "cuda"):
        raise UserError(f"--device is {options.device}: expected auto, cpu or cuda.")
    return choose_device(options.device).type


def plan(options: argparse.Namespace) -> tuple[Design, Config, dict[str, float]]:
    """The design, the checkpoint's config, and the minutes for each part.

    Raises:
        UserError: the folder is another run's or holds something else, or the budget is too small.
    """
    design, config = read_design(options.design or RECIPE)
    out = options.out
    if (out / DESIGN).exists():
        keep_design(out, design, config)
    elif out.is_dir() and any(path.name != lock.FILE for path in out.iterdir()):
        raise UserError(f"{out}: holds other files than a run's: give another folder with --out.")
    frozen = files.frozen_files(out).items()
    done = [part for part, file in frozen if options.start is not None or file.exists()]
    return design, config, budget(design, options.minutes, used(out), done)


def used(out: Path) -> dict[str, float]:
    """Minutes that each part of a run has used, as its log says."""
    found = {}
    for part in PARTS:
        log = out / part / "log.jsonl"
        for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
            with suppress(ValueError):  # a line that was half written
                found[part] = json.loads(line)["seconds"] / 60
    return found


def train(options: argparse.Namespace) -> int:
    """Trains what is left of the budget, as one rank of maybe several. Returns the exit status."""
    with joined(device_of(options)) as world, lock.locked_by_main(world, make_folder(options.out), WORK):

        def say(text: str) -> None:
            if world.main:
                print(f"vc: {text}", flush=True)

        out, frozen = options.out, files.frozen_files(options.out)
        design, config, minutes = plan(options)
        world.wait()  # for all to have seen the folder as it was
        start = None if options.start is None else opened(options.start, config)
        if world.main:
            keep_design(out, design, config)
            if start is not None:
                files.take_frozen_parts(start, out)
        ranks = f"{world.size} rank{'s' if world.size > 1 else ''} ({world.device.type})"
        for part in PARTS:
            world.wait()  # for the main one to have written what was made before
            if part in frozen and frozen[part].exists():
                continue
            say(f"{part}: {minutes[part]:.1f} minutes on {ranks}")
            if part == "network":
                begun = None if start is None else load_unet(start)
                coders = files.load_frozen_parts(out, config, world.device)
                run = network.train(out / part, minutes[part], config, design.network, *coders, world, begun, say)
            else:
                module = {"autoencoder": autoencoder, "towers": towers}[part]
                run = module.train(out / part, minutes[part], getattr(design, part), world, say)
            if run.came:
                say(f"stopped; saved {out}. The same command goes on from there.")
                return 128 + run.came
        return 0


def opened(path: Path, config: Config) -> Checkpoint:
    """The checkpoint that a run begins with. Raises `UserError` where it is of another design."""
    start = read_checkpoint(path)
    for part in ("model", "vae", "text", "image"):
        start.part(part)
    sections = ("unet", "diffusion", "extraction", "autoencoder", "towers")
    if any(getattr(start.config, name) != getattr(config, name) for name in sections):
        raise UserError(
            f"{path}: its network is of another design: leave out --start, or give a file that this command wrote."
        )
    return start


def finish(options: argparse.Namespace) -> int:
    """Writes the file, its pieces and its evaluation."""
    target = options.out / files.CHECKPOINT
    with lock.locked(options.out, WORK):  # again: the ranks held the lock, and have ended
        files.export_run(options.out, target)
        pieces = files.split(target, options.out / files.PIECES)
    print(f"vc: {target}, and the same in {len(pieces)} pieces in {options.out / files.PIECES}", flush=True)
    if options.no_evaluation:
        return 0
    try:
        import av  # noqa: F401 (its motion is made by a codec)
    except ImportError:
        print(f"vc: not evaluated, as PyAV is not installed here: ./vc evaluate {target}", flush=True)
        return 0
    quick = [] if options.minutes >= FULL_EVALUATION else ["--quick"]
    command = [sys.executable, "-m", "training.evaluate", str(target), "-o", str(options.out / "evaluation"), *quick]
    command += ["--device", options.device]
    return subprocess.call(command)


if __name__ == "__main__":
    sys.exit(main())
