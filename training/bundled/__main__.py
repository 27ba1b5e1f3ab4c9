"""`./vc train bundled --minutes N`: train the bundled checkpoint from scratch, or from a file, within a time budget."""

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
from training.bundled import autoencoder, network, student, towers
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
"""From this many minutes of training, the file is evaluated on all held-out scenes; otherwise with --quick."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns its exit status: 0, 2 for user errors, 130 or 143 if a signal ended it."""
    argv = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(argv)
    return run_program(
        lambda: _run(options, argv), "interrupted; run the same command to continue from the last checkpoint"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vc train bundled",
        description="Train the bundled checkpoint on synthetic scenes within a time budget: autoencoder, towers, "
        "network, and the network's student for four steps. Then write OUT/bundled.safetensors and the student as a "
        "LoRA, OUT/bundled_few_steps.safetensors, and evaluate both. Run the same command again to continue after an "
        "interruption, or with more minutes to continue a finished run. If the network is trained further, its student "
        "starts again. `./vc export OUT -o FILE` writes the current network at any time.",
    )
    add = parser.add_argument
    add("--minutes", type=float, required=True, help="minutes of training, the sum of all starts of the run")
    add("--out", type=Path, default=Path("runs/bundled"), help="folder of the run (default: runs/bundled)")
    start = (
        "a checkpoint of this design: its autoencoder and towers are used unchanged, its network is trained further "
    )
    add("--start", type=Path, metavar="FILE", help=start + "(default: train everything from scratch)")
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--ranks", type=int, metavar="N", help="processes with one thread each, on a CPU (default: as many as cores)")
    add("--no-evaluation", action="store_true", help="do not evaluate the file")
    add("--design", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    return parser


def _run(options: argparse.Namespace, argv: Sequence[str]) -> int:
    if "RANK" in os.environ:
        return train(options)
    if options.ranks is not None and options.ranks < 1:
        raise UserError(f"--ranks is {options.ranks}. Expected 1 or more.")
    plan(options)  # raises errors before anything starts
    on_cpu = device_of(options) == "cpu"
    ranks = options.ranks or (cores() if on_cpu else 1)
    if ranks > 1 and not on_cpu:
        raise UserError(f"--ranks is {ranks}, but several ranks work only on a CPU. Leave it out.")
    return (launch("training.bundled", argv, ranks) if ranks > 1 else train(options)) or finish(options)


def device_of(options: argparse.Namespace) -> str:
    """Return cpu or cuda. Raises `UserError` if it is not available, or another device was requested."""
    if options.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if options.device not in ("cpu", "cuda"):
        raise UserError(f"--device is {options.device}. Expected auto, cpu or cuda.")
    return choose_device(options.device).type


def plan(options: argparse.Namespace) -> tuple[Design, Config, dict[str, float]]:
    """Return the design, the checkpoint's config, and the minutes for each part.

    Raises:
        UserError: the folder contains another run or other files, or the budget is too small.
    """
    design, config = read_design(options.design or RECIPE)
    out = options.out
    if (out / DESIGN).exists():
        keep_design(out, design, config)
    elif out.is_dir() and any(path.name != lock.FILE for path in out.iterdir()):
        raise UserError(f"Expected a run or an empty folder, but {out} contains other files. Use another --out.")
    frozen = files.frozen_files(out).items()
    done = [part for part, file in frozen if options.start is not None or file.exists()]
    return design, config, budget(design, options.minutes, used(out), done)


def used(out: Path) -> dict[str, float]:
    """Return the minutes that each part of a run has used, from its log."""
    minutes = {}
    for part in PARTS:
        log = out / part / "log.jsonl"
        for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
            with suppress(ValueError):  # an incomplete line
                minutes[part] = json.loads(line)["seconds"] / 60
    return minutes


def train(options: argparse.Namespace) -> int:
    """Train for the rest of the budget, as one rank of possibly several. Returns the exit status."""
    with joined(device_of(options)) as world, lock.locked_by_main(world, make_folder(options.out), WORK):

        def say(text: str) -> None:
            if world.main:
                print(f"vc: {text}", flush=True)

        out, frozen = options.out, files.frozen_files(options.out)
        design, config, minutes = plan(options)
        world.wait()  # until all ranks have checked the unchanged folder
        start = None if options.start is None else opened(options.start, config)
        if world.main:
            keep_design(out, design, config)
            if start is not None:
                files.take_frozen_parts(start, out)
        ranks = f"{world.size} rank{'s' if world.size > 1 else ''} ({world.device.type})"
        for part in PARTS:
            world.wait()  # until the main rank has written the previous part
            if part in frozen and frozen[part].exists():
                continue
            say(f"{part}: {minutes[part]:.1f} minutes on {ranks}")
            if part == "network":
                unet = None if start is None else load_unet(start)
                coders = files.load_frozen_parts(out, config, world.device)
                teacher = network.train(out / part, minutes[part], config, design.network, *coders, world, unet, say)
                run = teacher
            elif part == "student":
                run = student.train(out / part, minutes[part], config, design, *coders, world, teacher, say)
                if world.main:
                    student.save_student(run, out / files.STUDENT)
            else:
                module = {"autoencoder": autoencoder, "towers": towers}[part]
                run = module.train(out / part, minutes[part], getattr(design, part), world, say)
            if run.came:
                say(f"stopped; saved {out}. Run the same command to continue.")
                return 128 + run.came
        return 0


def opened(path: Path, config: Config) -> Checkpoint:
    """Open the checkpoint that a run starts from. Raises `UserError` if it has another design."""
    start = read_checkpoint(path)
    for part in ("model", "vae", "text", "image"):
        start.part(part)
    sections = ("unet", "diffusion", "extraction", "autoencoder", "towers")
    if any(getattr(start.config, name) != getattr(config, name) for name in sections):
        raise UserError(
            f"The network in {path} has another design. Leave out --start, or pass a file that this command wrote."
        )
    return start


def finish(options: argparse.Namespace) -> int:
    """Write the file, its pieces and its evaluation."""
    target = options.out / files.CHECKPOINT
    with lock.locked(options.out, WORK):  # lock again, because the ranks that locked it have ended
        files.export_run(options.out, target)
        pieces = files.split(target, options.out / files.PIECES)
    print(f"vc: {target}, and the same in {len(pieces)} pieces in {options.out / files.PIECES}", flush=True)
    print(f"vc: {options.out / files.STUDENT}, its LoRA for four steps", flush=True)
    if options.no_evaluation:
        return 0
    try:
        import av  # noqa: F401 (a codec computes the motion)
    except ImportError:
        print(
            f"vc: not evaluated, because PyAV is not installed here. Where it is, run ./vc evaluate {target}",
            flush=True,
        )
        return 0
    quick = [] if options.minutes >= FULL_EVALUATION else ["--quick"]
    command = [sys.executable, "-m", "training.evaluate", str(target), "-o", str(options.out / "evaluation"), *quick]
    command += ["--device", options.device, "--lora", str(options.out / files.STUDENT)]
    return subprocess.call(command)


if __name__ == "__main__":
    sys.exit(main())
