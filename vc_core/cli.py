"""The command line: `./vc COMMAND`, or `python -m vc_core COMMAND`."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vc_core.conditions import CONDITIONS, check_schedule
from vc_core.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status: 0, 2 for what the user can mend, 130 for Ctrl-C, 1 for our mistakes."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in HANDED_ON:
        return HANDED_ON[argv[0]](argv[1:])
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except UserError as error:
        if arguments.debug:
            raise
        print(f"vc: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vc: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if arguments.debug:
            raise
        print(f"vc: unexpected {type(error).__name__}: {error} (--debug shows where it came from)", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vc", description="VideoComposer: videos composed from conditions.")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in (("test", "run the tests (--all: the slow ones too)"), ("train", "train or evaluate a part")):
        commands.add_parser(name, help=summary).set_defaults(
            run=lambda _: parser.error("--debug goes with other commands")
        )
    for name, add, run, summary in (
        ("demo", _demo_arguments, _demo, "compose two small videos that obey a clip's motion, and measure them"),
        ("compose", _compose_arguments, _compose, "compose a video from conditions"),
        ("info", _info_arguments, _info, "say what a checkpoint is"),
    ):
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        add(command)
        command.set_defaults(run=run)
    return parser


# --- test and train: other programs, which this package does not import ---------------------------------------------


def _test(arguments: list[str]) -> int:
    """pytest in the project's folder, without the slow tests unless the first argument is --all."""
    everything = arguments[:1] == ["--all"]
    selection = arguments[1:] if everything else ["-m", "not slow", *arguments]
    return subprocess.call([sys.executable, "-m", "pytest", *selection], cwd=PROJECT)


def _train(arguments: list[str]) -> int:
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    return subprocess.call([sys.executable, "-m", "training", *arguments], env={**os.environ, "PYTHONPATH": path})


PROJECT = Path(__file__).resolve().parents[1]
HANDED_ON = {"test": _test, "train": _train}


# --- demo -----------------------------------------------------------------------------------------------------------


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--out", type=Path, default=Path("demo"), help="folder for the results (default: demo)")
    parser.add_argument("--checkpoint", type=Path, help="another checkpoint than the bundled one")
    parser.add_argument("--seed", type=int, default=0)


def _demo(arguments: argparse.Namespace) -> None:
    from vc_core.demo import run_demo

    with _progress("composing") as progress:
        summary = run_demo(arguments.out, arguments.checkpoint, arguments.seed, progress)
    for line in summary:
        print(line)


# --- compose --------------------------------------------------------------------------------------------------------


def _compose_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_argument_group("conditions from a video")
    source.add_argument("--video", type=Path, help="the source clip")
    source.add_argument(
        "--use", default="", metavar="NAMES", help=f"what to take from it, with commas: {', '.join(CONDITIONS)}"
    )
    source.add_argument("--start", type=float, default=0.0, help="where to begin in the clip, in seconds")
    source.add_argument("--rate", type=float, help="frames a second to take (default: 4, more where the clip is short)")
    source.add_argument("--mask", type=Path, help="image or video for --use mask: white is painted anew")
    images = parser.add_argument_group("conditions from images, and text")
    images.add_argument("--text", default="", help="the prompt")
    images.add_argument("--negative", default="", help="the negative prompt")
    images.add_argument("--image", type=Path, help="the single image: how the video begins")
    images.add_argument("--sketch", type=Path, help="the single sketch: a drawing, taken as it is")
    images.add_argument("--sketch-lines", choices=("bright", "dark"), default="dark", help="what its lines are")
    images.add_argument("--style", type=Path, help="the style image")
    for kind, form in (("strength", "NAME=FACTOR"), ("schedule", "NAME=START:END")):
        images.add_argument(
            f"--{kind}", action="append", default=[], metavar=form, help=f"a condition's {kind}, for instance "
            + ("motion=0.5" if kind == "strength" else "style=0:0.6 (fractions of the sampling)"),
        )  # fmt: skip
    video = parser.add_argument_group("the video")
    video.add_argument("-o", "--out", type=Path, required=True, help="the .mp4 to write")
    video.add_argument("--checkpoint", type=Path, help="another checkpoint than the bundled one")
    video.add_argument("--frames", type=int, help="number of frames (default: as the checkpoint was trained)")
    video.add_argument("--size", help="WIDTHxHEIGHT in multiples of 8 (default: as the checkpoint was trained)")
    video.add_argument("--fps", type=float, help="frames a second of the result (default: the source's, else 8)")
    video.add_argument("--scale", type=int, help="enlarge the pixels of the result this many times (default: to 256)")
    video.add_argument("--sampler", default="dpmpp_2m", help="dpmpp_2m or ddim (the released loop)")
    video.add_argument("--steps", type=int, default=20)
    video.add_argument("--guidance", type=float, help="guidance scale (default: the checkpoint's)")
    video.add_argument("--seed", type=int, default=0)


def _compose(arguments: argparse.Namespace) -> None:
    from vc_core.checkpoint import BUNDLED
    from vc_core.conditions import Condition
    from vc_core.extract import as_sketch
    from vc_core.extract.sources import Source, condition_size, extract
    from vc_core.pipeline import Style, VideoComposer, compose
    from vc_core.video import plan_frames, probe, read_image, resize_crop, write_video

    _check_out(arguments.out, ".mp4")
    if arguments.fps is not None and not 0 < arguments.fps <= 1000:
        raise UserError(f"--fps {arguments.fps} is not possible: expected frames a second above 0, at most 1000.")
    if arguments.scale is not None and not 1 <= arguments.scale <= 64:
        raise UserError(f"--scale {arguments.scale} is not possible: expected a whole number from 1 to 64.")
    names = [name.strip() for name in arguments.use.split(",") if name.strip()]
    applied = _applied(arguments.strength, arguments.schedule)
    if names and arguments.video is None:
        raise UserError(f"--use {arguments.use} needs a source: give --video FILE.")
    if arguments.video is not None and not names:
        raise UserError(f"--video {arguments.video} is not used: say what to take from it, for instance --use motion.")
    if arguments.mask is not None and "mask" not in names:
        raise UserError(f"--mask {arguments.mask} is not used: add mask to --use.")
    size = None if arguments.size is None else _size(arguments.size)

    composer = VideoComposer.load(arguments.checkpoint or BUNDLED)
    config = composer.config
    size = size or (config.height, config.width)
    frames = config.frames if arguments.frames is None else arguments.frames
    tensors, fps = {}, arguments.fps or config.rate
    if names:
        plan = plan_frames(probe(arguments.video), frames, arguments.rate, arguments.start)
        source = Source(arguments.video, plan, size, config.extraction, arguments.mask)
        tensors = {name: extract(name, source) for name in names}
        fps = arguments.fps or float(plan.rate)
    for name, path in (("single_image", arguments.image), ("single_sketch", arguments.sketch)):
        if path is not None and name in tensors:
            raise UserError(f"The condition '{name}' was given twice, by --use and by {path}: give it once.")
    if arguments.image is not None:
        image = resize_crop(read_image(arguments.image), condition_size("single_image", size))
        tensors["single_image"] = image[:, :, None]
    if arguments.sketch is not None:
        sketch = as_sketch(read_image(arguments.sketch), arguments.sketch_lines)
        tensors["single_sketch"] = resize_crop(sketch, condition_size("single_sketch", size))[:, :, None]
    wired = {*tensors, *(["style"] if arguments.style is not None else [])}
    if unused := set(applied) - wired:
        raise UserError(f"--strength or --schedule names {', '.join(sorted(unused))}: name conditions that are given.")
    style = None
    if arguments.style is not None:
        style = Style(read_image(arguments.style), **applied.get("style", {}))
    conditions = [Condition(name, tensor, **applied.get(name, {})) for name, tensor in tensors.items()]

    with _progress("composing") as progress:
        video = compose(
            composer,
            arguments.text,
            negative=arguments.negative,
            style=style,
            conditions=conditions,
            frames=frames,
            size=size,
            guidance=arguments.guidance,
            sampler=arguments.sampler,
            steps=arguments.steps,
            seed=arguments.seed,
            progress=progress,
        )
    scale = max(1, 256 // min(size)) if arguments.scale is None else arguments.scale
    write_video(arguments.out, video, fps, scale=scale)
    print(f"{arguments.out}: {frames} frames of {size[1] * scale}x{size[0] * scale} at {fps:g} a second")


def _check_out(path: Path, suffix: str) -> None:
    if path.suffix.lower() != suffix:
        raise UserError(f"{path} cannot be written: expected a name that ends in {suffix}.")
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the name of a file.")
    if not path.parent.is_dir():
        raise UserError(f"{path}: its folder does not exist: make the folder {path.parent} or choose another one.")


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise UserError(f"The size '{text}' cannot be read: expected WIDTHxHEIGHT, for instance 256x256.")
    return int(height), int(width)


def _applied(strengths: Sequence[str], schedules: Sequence[str]) -> dict[str, dict[str, float]]:
    """How each condition is applied, by name: arguments of `Condition` and `Style`."""
    applied: dict[str, dict[str, float]] = {}
    for text in strengths:
        name, _, factor = text.partition("=")
        applied.setdefault(name, {})["strength"] = _number(factor, f"--strength {text}", "NAME=FACTOR")
    for text in schedules:
        name, _, span = text.partition("=")
        start, _, end = span.partition(":")
        where, form = f"--schedule {text}", "NAME=START:END"
        applied.setdefault(name, {}).update(start=_number(start, where, form), end=_number(end, where, form))
    for name, how in applied.items():
        check_schedule(name, how.get("strength", 1.0), how.get("start", 0.0), how.get("end", 1.0))
    return applied


def _number(text: str, where: str, form: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{where} cannot be read: expected {form}.") from None


# --- info -----------------------------------------------------------------------------------------------------------


def _info_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, nargs="?", help="the file (default: the bundled one)")


def _info(arguments: argparse.Namespace) -> None:
    import json

    from vc_core.checkpoint import BUNDLED, read_checkpoint

    checkpoint = read_checkpoint(arguments.checkpoint or BUNDLED)
    print(f"{checkpoint.path}: {checkpoint.config.name}")
    for part, tensors in checkpoint.parts.items():
        size = sum(t.numel() * t.element_size() for t in tensors.values()) / 1e6
        count = sum(t.numel() for t in tensors.values()) / 1e6
        print(f"  {part}: {count:.1f} M parameters in {len(tensors)} tensors, {size:.1f} MB")
    for sentence in checkpoint.assumed:
        print(f"  assumed: {sentence}")
    for name in checkpoint.extra[:10]:
        print(f"  not used: {name}")
    print(json.dumps(json.loads(checkpoint.config.to_json()), indent=2))


@contextmanager
def _progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar as `compose()` drives it; it starts anew with every video."""
    from tqdm import tqdm

    with tqdm(desc=label, unit="step", dynamic_ncols=True) as bar:

        def report(done: int, total: int) -> None:
            if done < bar.n or bar.total != total:
                bar.reset(total)
            bar.update(done - bar.n)

        yield report
