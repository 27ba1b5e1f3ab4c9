"""`compose()`: conditions in, a video out. The one path that the command line, training and the tests share."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from .composer import VideoComposer
from .conditions import CONDITIONS, Condition, Schedule
from .config import Config
from .diffusion.guidance import Embedded, GuidedDenoiser
from .diffusion.samplers import Sampling, make_sampler, sample
from .diffusion.windows import WindowedDenoiser, Windows
from .encoders.autoencoder import Tiling
from .errors import UserError, shown
from .memory import told_of_memory
from .progress import Progress


@dataclass(frozen=True)
class Style:
    """A style image `(B or 1, 3, H, W)` in [0, 1] and how it is applied, see `Schedule`.

    Raises:
        UserError: an image of another shape, of whole numbers, or with values that are not finite or outside [0, 1].
    """

    image: Tensor
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.strength, self.start, self.end)

    def __post_init__(self) -> None:
        _check_rgb("style image", self.image, "batch", "height", "width")
        self.schedule.check("style")


@torch.inference_mode()
def compose(
    composer: VideoComposer,
    text: str | Sequence[str] = "",
    *,
    negative: str | Sequence[str] = "",
    conditions: Sequence[Condition] = (),
    style: Style | None = None,
    init: Tensor | None = None,
    sampling: Sampling | None = None,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    batch: int = 1,
    seed: int = 0,
    tiling: Tiling | None = None,
    progress: Progress | None = None,
    **deprecated: Any,
) -> Tensor:
    """Composes videos. Style, conditions and init serve the whole batch where they are one, else are one for each.

    Args:
        text, negative: prompts, one or one for each video; the empty prompt is no text.
        conditions: single image, single sketch and the sequences, at most one of each name. Sequences must have
            `frames` frames; heights and widths may be any, as the STC-encoders bring them to latent size, and those of
            another size than the checkpoint's config asks for are brought to it first.
        style: style image; None for no style.
        init: video to begin from, RGB `(B or 1, 3, F, H, W)` in [0, 1], that is changed rather than made from noise
            alone: resized and cropped to `size`, noised, and denoised over the share `sampling.denoise` of the
            schedule, which must be below 1 then, and 1 without.
        sampling: sampler, steps, guidance, and windows of long videos, see `Sampling`.
        frames: of each video; by default init's, else as the checkpoint was trained.
        size: (height, width) in multiples of 8; by default as the checkpoint was trained.
        batch: number of videos, where `text` is not a list that says it.
        seed: of the noise, which is drawn on the CPU: the same seed gives the same video on every device. Video i of
            a batch has the noise of `seed + i`: it is the one that is composed alone with that seed.
        tiling: how much is encoded and decoded at a time, see `Tiling`.
        progress: called as `progress(what, done, total)` with "encoding", "sampling" (after every step) and
            "decoding"; raise from it to cancel.
        deprecated: by names of earlier versions, with a DeprecationWarning: `video`, which is `init`, and the fields of
            `sampling` and `tiling`.

    Returns:
        `(B, 3, F, H, W)` float32 in [0, 1], on the CPU.

    Raises:
        UserError: an option of another type or out of its range, an init of another shape or outside [0, 1], a
            condition given twice, of another length than the video or of another batch, or one that the checkpoint has
            no STC-encoder for; too little memory.
    """
    from .encoders.autoencoder import decode

    config = composer.config
    if deprecated:
        init, sampling, tiling = _renamed(init, sampling, tiling, deprecated)
    sampling = (sampling or Sampling()).filled(config)
    texts, negatives = _listed("text", text), _listed("negative", negative)
    if init is not None:
        _check_rgb("video", init, "batch", "frames", "height", "width")
    batch = len(texts) if len(texts) > 1 and batch == 1 else batch
    frames = (config.frames if init is None else init.shape[2]) if frames is None else frames
    height, width = size or (config.height, config.width)
    windows = sampling.windows or Windows(config.frames)
    _check_video(init, sampling.denoise, frames, height, width)
    for condition in conditions:
        config.unet.check_takes(condition.name)
    if style:
        composer.check_style()
    _check_conditions(conditions, frames)
    conditions = [_as_trained(condition, (height, width), frames, config) for condition in conditions]
    given = {"text": texts, "negative": negatives, "style": style and style.image, "video": init}
    _check_batch(batch, seed, given | {condition.name: condition.tensor for condition in conditions})
    run = make_sampler(sampling, config.diffusion)
    latent_size = (height // 8, width // 8)

    with told_of_memory(composer.device, composer.advice(batch, tiling)):
        shared = {
            **encode_texts(composer, {"text": texts, "negative": negatives}, progress),
            "style": style and Embedded(style_token(composer, style.image, progress), style.schedule),
            "no_style": style and style_token(composer, None),
            "guidance": sampling.guidance,
            "condition_guidance": sampling.condition_guidance,
            "rescale": sampling.rescale,
            "steps": config.diffusion.steps,
        }
        denoisers = [
            GuidedDenoiser(composer.unet, stc=stc, **shared)
            for stc in encode_stc(composer, conditions, windows, frames, latent_size, progress)
        ]
        denoiser = denoisers[0] if len(denoisers) == 1 else WindowedDenoiser(denoisers, windows, frames)
        generators = [torch.Generator().manual_seed(seed + i) for i in range(batch)]
        noise = draw_noise(generators, (config.unet.channels, frames, *latent_size)).to(composer.device)
        source = None if init is None else encode_video(composer, init, (height, width), tiling, progress)
        latent = sample(denoiser, run.start(noise, source), run, generators, progress) / config.autoencoder.scale
        with torch.inference_mode(False):  # a tensor of inference mode could not be changed in place
            return decode(composer.autoencoder, latent, tiling, progress).to("cpu", torch.float32)


def draw_noise(generators: Sequence[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise `(B, *shape)`, float32, of CPU generators so that it does not depend on the device."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def encode_texts(
    composer: VideoComposer, prompts: Mapping[str, list[str]], progress: Progress | None = None
) -> dict[str, Tensor]:
    """The context tokens `(B, 77, D)` of each of several lists of prompts."""
    from .encoders.clip import encode_text

    towers = composer.load_towers("text", progress=progress)
    return {name: encode_text(towers, texts).to(composer.device, composer.dtype) for name, texts in prompts.items()}


def style_token(composer: VideoComposer, image: Tensor | None, progress: Progress | None = None) -> Tensor:
    """The style tokens `(B, n, D)` of an image `(B, 3, H, W)` in [0, 1]; of a zero embedding where there is none."""
    from .encoders.clip import encode_image

    if image is None:
        embedding = torch.zeros(1, 1, composer.config.unet.context_dim)
    else:
        embedding = encode_image(composer.load_towers("image", progress=progress), image.to(composer.device))
    return composer.unet.encode_style(embedding.to(composer.device, composer.dtype))


def encode_video(
    composer: VideoComposer,
    video: Tensor,
    size: tuple[int, int],
    tiling: Tiling | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """The scaled latent `(B, 4, F, h, w)` float32 of a video `(B, 3, F, H, W)` in [0, 1], brought to `size` first."""
    from .encoders.autoencoder import encode
    from .video import resize_crop

    resized = resize_crop(video.to(composer.device, torch.float32), size)
    return encode(composer.autoencoder, resized, tiling, progress) * composer.config.autoencoder.scale


def encode_stc(
    composer: VideoComposer,
    conditions: Sequence[Condition],
    windows: Windows,
    frames: int,
    size: tuple[int, int],
    progress: Progress | None,
) -> list[list[Embedded]]:
    """For each window the STC embeddings of the conditions that have any effect on it, encoded once."""
    spans = [range(span.start, span.stop) for span in windows.spans(frames)]
    seen = [[seen_by_window(c, span, windows.carry) for c in conditions] for span in spans]
    seen = [[c for c in window if c.strength != 0.0] for window in seen]
    done, total = count(1), sum(map(len, seen))

    def embedded(condition: Condition) -> Embedded:
        tensor = condition.tensor.to(composer.device, composer.dtype)
        embedding = composer.unet.encode_condition(condition.name, tensor, size)
        if progress is not None:
            progress("encoding", next(done), total)
        return Embedded(embedding, condition.schedule)

    return [[embedded(condition) for condition in window] for window in seen]


def seen_by_window(condition: Condition, frames: Sequence[int], carry: float) -> Condition:
    """What a window of these frames sees of a condition: its own frames of a sequence, the single ones with `carry`
    times their strength after the first window."""
    if CONDITIONS[condition.name].kind == "spatial":
        return replace(condition, strength=condition.strength * (carry if frames[0] else 1.0))
    tensor = condition.tensor[:, :, list(frames)]
    if condition.name == "motion" and frames[0]:
        # As in training, where a clip's first frame has no predecessor that anything could have moved from.
        tensor = torch.cat([torch.zeros_like(tensor[:, :, :1]), tensor[:, :, 1:]], dim=2)
    return replace(condition, tensor=tensor)


def _as_trained(condition: Condition, size: tuple[int, int], frames: int, config: Config) -> Condition:
    """A condition at the size that the config asks for, in pixels of the video; as it is where neither says one."""
    from .extract.refit import refit

    if config.extraction.condition_scale is None and condition.video is None:
        return condition
    length = frames if CONDITIONS[condition.name].kind == "temporal" else 1
    tensor = refit(condition.name, condition.tensor, size, length, config.extraction, condition.video or size)
    return replace(condition, tensor=tensor, video=size)


# --- Arguments ------------------------------------------------------------------------------------------------------


def _renamed(
    init: Tensor | None, sampling: Sampling | None, tiling: Tiling | None, deprecated: Mapping[str, Any]
) -> tuple[Tensor | None, Sampling, Tiling]:
    """`init`, `sampling` and `tiling`, with what is given under the names of earlier versions. Warns of them."""
    homes = {field.name: kind for kind in (Sampling, Tiling) for field in fields(kind)}
    known = {name: f"{kind.__name__.lower()}={kind.__name__}({name}=...)" for name, kind in homes.items()}
    known["video"] = "init=..."
    if unknown := [name for name in deprecated if name not in known]:
        raise TypeError(f"compose() got an unexpected keyword argument {unknown[0]!r}")
    now = ", ".join(f"{known[name]} in place of {name}=" for name in deprecated)
    # Past this function, `compose` and the wrapper of `torch.inference_mode`.
    warnings.warn(f"compose() takes other names now: give {now}.", DeprecationWarning, stacklevel=4)

    def filled(given: Any) -> Any:
        return replace(given, **{name: value for name, value in deprecated.items() if homes.get(name) is type(given)})

    return deprecated.get("video", init), filled(sampling or Sampling()), filled(tiling or Tiling())


def _listed(name: str, text: str | Sequence[str]) -> list[str]:
    listed = [text] if isinstance(text, str) else text
    if not isinstance(listed, Sequence) or not all(isinstance(prompt, str) for prompt in listed):
        raise UserError(f"{name} is {shown(text)}: expected a text, or a list of texts.")
    return list(listed)


def _check_rgb(what: str, x: Tensor, *axes: str) -> None:
    """Refuses what is no RGB `(batch, 3, ...)` in [0, 1]; resizing may have overshot that by a hundredth."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise UserError(f"The {what} is {kind}: expected a floating-point tensor of RGB in [0, 1].")
    if x.ndim != 1 + len(axes) or x.shape[1] != 3 or x.numel() == 0:
        expected = ", ".join([axes[0], "3", *axes[1:]])
        raise UserError(f"The {what} has the shape {tuple(x.shape)}: expected ({expected}).")
    low, high = (float(end) for end in x.aminmax())  # NaN where there is any
    if not (low >= -0.01 and high <= 1.01):
        raise UserError(f"The {what} has values from {low:g} to {high:g}: expected RGB in [0, 1].")


def _check_video(init: Tensor | None, denoise: float, frames: int, height: int, width: int) -> None:
    if frames < 1:
        raise UserError(f"{frames} frames cannot be composed: expected at least 1.")
    if height < 8 or width < 8 or height % 8 or width % 8:
        raise UserError(f"The size {width}x{height} is not possible: expected multiples of 8, for instance 256x256.")
    if init is None and denoise != 1.0:
        raise UserError(f"denoise {denoise} needs a video to begin with: give one, or leave denoise at 1.")
    if init is not None and denoise == 1.0:
        raise UserError("denoise 1 leaves nothing of the given video: expected less, for instance 0.6, or no video.")
    if init is not None and init.shape[2] != frames:
        raise UserError(f"The video has the shape {tuple(init.shape)}: expected (batch, 3, {frames}, height, width).")


def _check_conditions(conditions: Sequence[Condition], frames: int) -> None:
    seen = set()
    for condition in conditions:
        if condition.name in seen:
            raise UserError(f"Condition '{condition.name}' was given twice: give it once.")
        seen.add(condition.name)
        expected = 1 if CONDITIONS[condition.name].kind == "spatial" else frames
        if condition.tensor.shape[2] != expected:
            raise UserError(
                f"Condition '{condition.name}' has {condition.tensor.shape[2]} frames and the video {frames}: expected "
                f"{expected} for it; extract it with the video's frame plan."
            )


def _check_batch(batch: int, seed: int, given: Mapping[str, Sequence[str] | Tensor | None]) -> None:
    if batch < 1:
        raise UserError(f"A batch of {batch} videos is not possible: expected at least 1.")
    if not isinstance(seed, int) or not 0 <= seed <= 2**63 - batch:
        raise UserError(f"The seed {shown(seed)} is not possible: expected a whole number from 0 to {2**63 - batch}.")
    for name, each in given.items():
        if each is not None and len(each) not in (1, batch):
            one = f"1 or {batch}" if batch > 1 else "1"
            raise UserError(f"{len(each)} of '{name}' were given for a batch of {batch}: expected {one}.")
