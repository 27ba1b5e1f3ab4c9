"""`./vc evaluate [CHECKPOINT ...]`, or `python -m training.evaluate`: measure, and write a table, JSON and images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from vc_core.checkpoint.reading import BUNDLED, BUNDLED_LORA
from vc_core.commands.setting_types import BUNDLED as BUNDLED_NAME
from vc_core.diffusion.samplers import SAMPLERS
from vc_core.disk import check_folder, folder_beside, make_folder
from vc_core.errors import UserError
from vc_core.terminal import argument, each, option, parsed, progress_bars, run_program

DEFAULT = {"clips": 48, "seeds": 2, "steps": 12}
QUICK = {"clips": 3, "seeds": 1, "steps": 8}
"""Defaults with --quick: enough to check that it works, too little for comparisons."""
DESCRIPTION = """Measure how well checkpoints follow their conditions, on held-out synthetic scenes or on your own
clips. Each condition is tested with the same noise in three ways: given, taken from another clip, and absent. More
videos use all conditions together. Several checkpoints are compared with the first one, pair by pair. Writes a
report in one HTML file, a table, JSON and contact sheets."""
JSON = "evaluation.json"  # as in training.evaluate.report, which imports torch


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns its exit status: 0, 2 for user errors, 130 for Ctrl-C."""
    return run_program(parsed(program, argv, "vc evaluate", DESCRIPTION), "interrupted; nothing was written")


def program(
    checkpoints: argument(
        tuple[Path, ...], "checkpoint files (default: the bundled checkpoint)", "[CHECKPOINT ...]"
    ) = (),
    out: option(Path, "folder for the results (default: evaluation)", "-o") = Path("evaluation"),
    data: option(
        Path | None,
        "measure on these clips instead of scenes: a folder of videos with captions, or shards from ./vc prepare; "
        "measures that require scenes are skipped",
        shown="FOLDER|SHARDS",
    ) = None,
    clips: option(
        int | None,
        f"number of scenes, or maximum number of clips from --data, evenly spread (default: {DEFAULT['clips']})",
    ) = None,
    clip_list: option(
        Path | None,
        "evaluate exactly the clips of this clips.json, which every evaluation writes; --data must contain the same "
        "files",
        shown="FILE",
    ) = None,
    rate: option(
        float | None,
        "frames per second of a folder's clips, as in training (default: the checkpoint's rate, usually 4)",
        shown="FPS",
    ) = None,
    nominal_height: option(
        int | None,
        "height that a folder's videos are scaled to before motion is extracted, as in training: 336 for the released "
        "checkpoint (default: not scaled)",
        shown="PIXELS",
    ) = None,
    seeds: option(int | None, f"seeds per scene or clip (default: {DEFAULT['seeds']})") = None,
    steps: option(
        int | None, f"sampling steps (default: {DEFAULT['steps']}, or 4 for a checkpoint for few steps)"
    ) = None,
    guidance: option(float | None, "guidance scale (default: each checkpoint's)") = None,
    sampler: option(
        str | None, f"sampler: {', '.join(SAMPLERS)} (default: each checkpoint's, usually dpmpp_2m)", shown="NAME"
    ) = None,
    only: option(
        str,
        "conditions or measures, separated by commas, such as motion,colour; the name 'together' also composes with "
        "all conditions at once (default: everything)",
        shown="NAMES",
    ) = "",
    quick: option(
        bool,
        "only check that it works: defaults become {clips} scenes or clips, {seeds} seed, {steps} steps".format(
            **QUICK
        ),
    ) = False,
    parts: option(
        tuple[Path, ...] | None, "files with the autoencoder and the text and image towers", shown="FILE [FILE ...]"
    ) = None,
    lora: option(
        each(Path),
        "also evaluate the first checkpoint with this LoRA, in few steps if it was distilled for them; 'bundled' "
        "is the bundled checkpoint's; may be repeated",
        shown="FILE",
    ) = (),
    clip: option(
        Path | None,
        "file or folder of an OpenCLIP ViT-H/14 for the CLIP measures (default: the towers of the first checkpoint)",
        shown="PATH",
    ) = None,
    fvd: option(Path | None, "I3D weights for FVD by the package cd-fvd (default: no FVD)", shown="FILE") = None,
    vbench: option(
        Path | None,
        "folder for VBench: writes videos and texts as its custom input, and reads the results that it has written "
        "there for these videos",
        shown="FOLDER",
    ) = None,
    raft: option(
        Path | None,
        "weights of torchvision's RAFT for ObjMC, the error of tracks: raft_large or raft_small (default: no ObjMC)",
        shown="FILE",
    ) = None,
    tracks: option(
        Path | None,
        "JSON file with the target tracks of the clips for ObjMC, in pixels of the composed video (default: RAFT's "
        "tracks)",
        shown="FILE",
    ) = None,
    batch: option(int, "videos per batch (default: 4)") = 4,
    jobs: option(
        int | None, "processes that compose, with one thread each on a CPU (default: 2 on a CPU, otherwise 1)"
    ) = None,
    device: option(str, "auto, cpu, cuda, mps (default: auto)") = "auto",
) -> None:
    from training.evaluate.clip_list import NAME as CLIPS
    from training.evaluate.evaluation import EvaluationSettings, evaluate
    from training.evaluate.page import PAGE, write_page
    from training.evaluate.report import TABLE, as_table, write_report
    from training.evaluate.trials import Composing
    from training.evaluate.vbench import check_vbench, export

    if parts == ():
        raise UserError("--parts is empty. Pass at least one file, or leave it out.")
    if clip_list is not None and clips is not None:
        raise UserError("--clip-list already says which clips to evaluate. Leave out --clips.")
    check_replaceable(out)
    if vbench is not None and out.resolve() in (vbench.resolve(), *vbench.resolve().parents):
        raise UserError(f"--vbench {vbench} is inside -o {out}, which is replaced every time. Use another folder.")
    usual = QUICK if quick else DEFAULT
    numbers = {name: usual[name] if n is None else n for name, n in (("clips", clips), ("seeds", seeds))}
    settings = EvaluationSettings(
        checkpoints=checkpoints or (BUNDLED,),
        parts=parts or (),
        loras=tuple(BUNDLED_LORA if str(file) == BUNDLED_NAME else file for file in lora),
        clips=numbers.pop("clips"),
        data=data,
        clip_list=clip_list,
        rate=rate,
        nominal_height=nominal_height,
        out=out,
        sampling=Composing(
            steps=steps, guidance=guidance, sampler=sampler, batch=batch, many=usual["steps"], **numbers
        ),
        only=tuple(name.strip() for name in only.split(",") if name.strip()),
        clip=clip,
        fvd=fvd,
        vbench=vbench,
        raft=raft,
        tracks=tracks,
        device=device,
        jobs=jobs,
    )
    if vbench is not None:
        check_vbench(vbench)
    with progress_bars() as progress:
        results = evaluate(settings, progress)
        if vbench is not None:
            results = export(vbench, results, settings.sampling.seeds, progress)
    with folder_beside(out) as folder:
        write_report(folder, settings, results)
        write_page(folder / PAGE, settings, results)
    print(as_table(settings, results))
    print(f"Wrote {out / PAGE}, {TABLE}, {JSON}, {CLIPS} and a contact sheet per condition.")


def check_replaceable(out: Path) -> None:
    """Check that the folder for the results can be created, or contains only earlier results.

    Raises:
        UserError: the folder cannot be used; the message says why.
    """
    make_folder(out.parent)
    check_folder(out)
    if out.is_dir() and any(out.iterdir()) and not (out / JSON).is_file():
        raise UserError(f"Expected an evaluation or an empty folder, but {out} contains other files. Use another -o.")


if __name__ == "__main__":
    sys.exit(main())
