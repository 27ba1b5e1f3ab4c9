"""`./vc upscale`: enlarge a video with VGen's super-resolution network SR600."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from tyro.conf import arg

from ..diffusion.super_resolution import GUIDANCE, LEVELS, RESCALE, STEPS
from ..diffusion.windows import Windows
from ..encoders.autoencoder import Tiling
from ..errors import UserError
from ..terminal import Bars, argument, option, progress_bars
from ..upscaling import NEGATIVE, SUFFIX, suggested_size, upscale
from ..video import plan_frames, read_frames
from ..video.limits import allow, megapixels_option
from ..video.writing import check_videos, write_video
from .checks import check_inputs
from .compose import load, memory_note
from .conditions import named_as, probed
from .options import options_type, texts_of
from .setting_types import Count, Fraction, Size
from .settings import TITLES, Settings, as_option

_Levels = Annotated[int, Field(ge=1, le=1000)]
_SHARED = ("window", "overlap", "device", "dtype", "compute", "offload", "chunk", "tile")
_TITLES = {name: TITLES[name] for name in (*_SHARED, "parts")} | {"start": "super-resolution"}
"""Settings of `./vc compose` that are also options here -> their groups."""


@dataclasses.dataclass
class Prompts:
    text: option(str, "what the video shows (default: empty)", shown="TEXT") = ""
    negative: option(str | None, "negative prompt (default: VGen's)", shown="TEXT") = None
    plain: option(bool, "do not append VGen's phrases to --text (default: append them)") = False


@dataclasses.dataclass
class Sizes:
    size: option(
        Size | None, "size of the result, multiples of 8 (default: the video's shape with as many pixels as 1280x720)"
    ) = None
    frames: option(Count | None, "number of frames to enlarge (default: all from --start on)") = None
    steps: option(Count, f"steps of the inversion, and again of the denoising (default: {STEPS})") = STEPS
    levels: option(
        _Levels, f"noise levels of 1000 to go up to (default: {LEVELS}; far fewer make the video fade, as in VGen)"
    ) = LEVELS
    guidance: option(float, f"guidance scale (default: {GUIDANCE:g})") = GUIDANCE
    rescale: option(Fraction, f"correction of over-saturation, 0 to 1 (default: {RESCALE})") = RESCALE


def command(
    source: argument(Path, "a video, or a folder of images", "IN"),
    out: option(Path, "output: .mp4, .webm, .gif or .webp, or a folder for .png frames", "-o", shown="OUT"),
    checkpoint: option(Path, "VGen's sr_step_110000_ema.pth, or a file converted from it", shown="FILE"),
    prompts: Annotated[Prompts, arg(name="prompt", prefix_name=False)],
    sizes: Annotated[Sizes, arg(name="super-resolution", prefix_name=False)],
    options: options_type(_TITLES, {}),
    max_megapixels: megapixels_option() = None,
) -> None:
    """
    Example:
      ./vc upscale out.mp4 -o large.mp4 --checkpoint sr_step_110000_ema.pth --parts v2-1_512-ema-pruned.ckpt \\
        --text "a red fox in the snow"
    """
    allow(max_megapixels)
    shared = {**texts_of(options), "video": source, "checkpoint": checkpoint}
    with progress_bars() as progress:
        for line in run(shared, out, vars(prompts), vars(sizes), progress):
            progress.write(line)


def run(shared: dict[str, Any], out: Path, prompts: dict[str, Any], sizes: dict[str, Any], progress: Bars) -> list[str]:
    """Upscale a video and write it. Returns lines to print.

    Args:
        shared: texts of settings of `./vc compose`.
        prompts, sizes: values by the fields of `Prompts` and `Sizes`.

    Raises:
        UserError: a file is missing or unreadable, the checkpoint is another network, the output cannot be written, or
            memory ran out.
    """
    settings = Settings().with_options(shared)
    check_inputs(settings, _label)
    if out.resolve() == settings.video.resolve():
        raise UserError(f"The output {out} would overwrite the input. Choose another name.")
    check_videos(out)
    info = probed(settings.video)
    frames = sizes.pop("frames") or max(1, round((info.duration - settings.start) * info.rate))
    plan = plan_frames(info, frames, info.rate, settings.start)
    composer = load(settings, progress, super_resolution=True)
    config = composer.config
    size = sizes.pop("size") or suggested_size((info.height, info.width), config)
    windows = Windows(settings.window or config.frames, settings.overlap)
    full = dataclasses.replace(
        settings, size=size, frames=frames, window=windows.length, guidance=sizes["guidance"], negative=NEGATIVE
    )
    if line := memory_note(full, composer):
        progress.note(line)
    video = upscale(
        composer,
        read_frames(settings.video, plan),
        prompts["text"] if prompts["plain"] else f"{prompts['text']}{SUFFIX}".removeprefix(", "),
        negative=NEGATIVE if prompts["negative"] is None else prompts["negative"],
        size=size,
        windows=windows,
        tiling=Tiling(**named_as(Tiling, settings)),
        progress=progress,
        **sizes,
    )
    write_video(out, video, plan.rate, progress=progress)
    height, width = size
    return [f"{out}: {frames} frames of {width}x{height}, {float(plan.rate):g} per second"]


def _label(name: str) -> str:
    return "IN" if name == "video" else as_option(name)
