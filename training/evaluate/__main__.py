"""`./vc evaluate [CHECKPOINT ...]`, or `python -m training.evaluate`: measures, a table, JSON and pictures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from vc_core.checkpoint.reading import BUNDLED
from vc_core.disk import check_folder, folder_beside, make_folder
from vc_core.errors import UserError
from vc_core.terminal import argument, option, parsed, progress_bars, run_program

DEFAULT = {"clips": 48, "seeds": 2, "steps": 12}
QUICK = {"clips": 3, "seeds": 1, "steps": 8}
"""What --quick takes for what is not given: enough to see that it works, too little to compare by."""
DESCRIPTION = """Measures how well checkpoints obey their conditions, on held-out synthetic scenes or on clips of your
own: each condition given, taken from another one, and absent, with the same noise, and all together. Several are
compared with the first one, pair by pair. Writes a table, JSON and contact sheets."""
JSON = "evaluation.json"  # that of training.evaluate.report, which imports torch


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns its exit status: 0, 2 for users' errors, 130 for Ctrl-C."""
    return run_program(parsed(program, argv, "vc evaluate", DESCRIPTION), "interrupted; nothing was written")


def program(
    checkpoints: argument(tuple[Path, ...], "files (default: the bundled checkpoint)", "[CHECKPOINT ...]") = (),
    out: option(Path, "folder for the results (default: evaluation)", "-o") = Path("evaluation"),
    data: option(
        Path | None,
        "clips to measure on, in place of the scenes: a folder of videos with captions, or shards of ./vc prepare; "
        "only what needs no scene is measured then",
        shown="FOLDER|SHARDS",
    ) = None,
    clips: option(
        int | None,
        "number of scenes, or at most that many clips of the data, evenly spread over it (default: "
        f"{DEFAULT['clips']})",
    ) = None,
    rate: option(
        float | None,
        "of the clips of a folder, as in training (default: the checkpoint's, 4 as a rule)",
        shown="FPS",
    ) = None,
    nominal_height: option(
        int | None,
        "the folder's videos are scaled to it before their motion is taken, as in training: 336 for the released "
        "checkpoint (default: as they are)",
        shown="PIXELS",
    ) = None,
    seeds: option(int | None, f"videos of each scene or clip and wiring (default: {DEFAULT['seeds']})") = None,
    steps: option(
        int | None, f"of the sampler (default: {DEFAULT['steps']}, or 4 of a checkpoint for few steps)"
    ) = None,
    guidance: option(float | None, "scale of the guidance (default: each checkpoint's)") = None,
    only: option(
        str,
        "conditions or measures, with commas, as in motion,colour; together: also with all conditions at once "
        "(default: everything)",
        shown="NAMES",
    ) = "",
    quick: option(
        bool,
        "only to see that it works: {clips} scenes or clips, {seeds} seed, {steps} steps where nothing else is "
        "given".format(**QUICK),
    ) = False,
    parts: option(tuple[Path, ...] | None, "files that bring autoencoder and towers", shown="FILE [FILE ...]") = None,
    clip: option(
        Path | None,
        "file or folder of an OpenCLIP ViT-H/14 for the CLIP measures (default: the first checkpoint's own towers, for "
        "all)",
        shown="PATH",
    ) = None,
    fvd: option(Path | None, "I3D's weights for FVD by the package cd-fvd (default: none)", shown="FILE") = None,
    batch: option(int, "videos that are composed at a time (default: 4)") = 4,
    jobs: option(
        int | None, "processes that compose, of one thread each on a CPU (default: two there, else one)"
    ) = None,
    device: option(str, "auto, cpu, cuda, mps (default: auto)") = "auto",
) -> None:
    from training.evaluate.evaluation import EvaluationSettings, evaluate
    from training.evaluate.report import TABLE, as_table, write_report
    from training.evaluate.trials import Composing

    if parts == ():
        raise UserError("--parts needs a name: give it one, or leave it out.")
    check_replaceable(out)
    usual = QUICK if quick else DEFAULT
    numbers = {name: usual[name] if n is None else n for name, n in (("clips", clips), ("seeds", seeds))}
    settings = EvaluationSettings(
        checkpoints=checkpoints or (BUNDLED,),
        parts=parts or (),
        clips=numbers.pop("clips"),
        data=data,
        rate=rate,
        nominal_height=nominal_height,
        out=out,
        sampling=Composing(steps=steps, guidance=guidance, batch=batch, many=usual["steps"], **numbers),
        only=tuple(name.strip() for name in only.split(",") if name.strip()),
        clip=clip,
        fvd=fvd,
        device=device,
        jobs=jobs,
    )
    with progress_bars() as progress:
        results = evaluate(settings, progress)
    with folder_beside(out) as folder:
        write_report(folder, settings, results)
    print(f"{as_table(settings, results)}\n{out / TABLE}, {JSON}, and a contact sheet for each condition")


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
