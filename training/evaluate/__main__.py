"""`./vc evaluate [CHECKPOINT ...]`, or `python -m training.evaluate`: measures, a table, JSON and pictures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vc_core.atomic import check_folder, folder_beside
from vc_core.checkpoint import BUNDLED
from vc_core.disk import make_folder
from vc_core.errors import UserError
from vc_core.terminal import progress_bars, run_program

DEFAULT = {"clips": 48, "seeds": 2, "steps": 12}
QUICK = {"clips": 3, "seeds": 1, "steps": 8}
"""What --quick takes for what is not given: enough to see that it works, too little to compare by."""
JSON = "evaluation.json"  # that of training.evaluate.report, which imports torch


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns its exit status: 0, 2 for users' errors, 130 for Ctrl-C."""
    arguments = _parser().parse_args(argv)
    return run_program(lambda: print(_run(arguments)), "interrupted; nothing was written")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vc evaluate",
        description="Measures how well checkpoints obey their conditions, on held-out synthetic scenes or on clips of "
        "your own: each condition given, taken from another one, and absent, with the same noise, and all together. "
        "Several are compared with the first one, pair by pair. Writes a table, JSON and contact sheets.",
    )
    add = parser.add_argument
    add("checkpoints", type=Path, nargs="*", metavar="CHECKPOINT", help="files (default: the bundled checkpoint)")
    add("-o", "--out", type=Path, default=Path("evaluation"), help="folder for the results (default: evaluation)")
    add("--data", type=Path, metavar="FOLDER|SHARDS", help="clips to measure on, in place of the scenes: a folder of "
        "videos with captions, or shards of ./vc prepare; only what needs no scene is measured then")  # fmt: skip
    add("--clips", type=int, help="number of scenes, or at most that many clips of the data, evenly spread over it "
        f"(default: {DEFAULT['clips']})")  # fmt: skip
    add("--rate", type=float, metavar="FPS", help="of the clips of a folder, as in training (default: the released "
        "rule, 4 as a rule)")  # fmt: skip
    add("--nominal-height", type=int, metavar="PIXELS", help="the folder's videos are scaled to it before their motion "
        "is taken, as in training: 336 for the released checkpoint (default: as they are)")  # fmt: skip
    add("--seeds", type=int, help=f"videos of each scene or clip and wiring (default: {DEFAULT['seeds']})")
    add("--steps", type=int, help=f"of the sampler (default: {DEFAULT['steps']})")
    add("--guidance", type=float, help="scale of the guidance (default: each checkpoint's)")
    add("--only", default="", metavar="NAMES", help="conditions or measures, with commas, as in motion,colour; "
        "together: also with all conditions at once (default: everything)")  # fmt: skip
    add("--quick", action="store_true", help="only to see that it works: {clips} scenes or clips, {seeds} seed, "
        "{steps} steps where nothing else is given".format(**QUICK))  # fmt: skip
    add("--parts", type=Path, nargs="+", default=[], metavar="FILE", help="files that bring autoencoder and towers")
    add("--clip", type=Path, metavar="PATH", help="file or folder of an OpenCLIP ViT-H/14 for the CLIP measures "
        "(default: the first checkpoint's own towers, for all)")  # fmt: skip
    add("--fvd", type=Path, metavar="FILE", help="I3D's weights for FVD by the package cd-fvd (default: none)")
    add("--batch", type=int, default=4, help="videos that are composed at a time (default: 4)")
    add("--jobs", type=int, help="processes that compose, of one thread each on a CPU (default: two there, else one)")
    add("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    return parser


def _run(arguments: argparse.Namespace) -> str:
    from training.evaluate.evaluation import Settings, evaluate
    from training.evaluate.report import TABLE, as_table, write_report
    from training.evaluate.trials import Composing

    check_replaceable(arguments.out)
    numbers = {name: getattr(arguments, name) for name in DEFAULT}
    numbers = {name: (QUICK if arguments.quick else DEFAULT)[name] if n is None else n for name, n in numbers.items()}
    settings = Settings(
        checkpoints=tuple(arguments.checkpoints) or (BUNDLED,),
        parts=tuple(arguments.parts),
        clips=numbers.pop("clips"),
        data=arguments.data,
        rate=arguments.rate,
        nominal_height=arguments.nominal_height,
        out=arguments.out,
        sampling=Composing(guidance=arguments.guidance, batch=arguments.batch, **numbers),
        only=tuple(name.strip() for name in arguments.only.split(",") if name.strip()),
        clip=arguments.clip,
        fvd=arguments.fvd,
        device=arguments.device,
        jobs=arguments.jobs,
    )
    with progress_bars() as progress:
        results = evaluate(settings, progress)
    with folder_beside(arguments.out) as folder:
        write_report(folder, settings, results)
    return f"{as_table(settings, results)}\n{arguments.out / TABLE}, {JSON}, and a contact sheet for each condition"


def check_replaceable(out: Path) -> None:
    """Refuses a folder for the results that cannot be made or holds anything else than earlier results.

    Raises:
        UserError: it says why.
    """
    make_folder(out.parent)
    check_folder(out)
    if out.is_dir() and any(out.iterdir()) and not (out / JSON).is_file():
        raise UserError(f"{out}: holds other files than an evaluation's: give another folder with -o.")


if __name__ == "__main__":
    sys.exit(main())
