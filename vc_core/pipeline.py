"""`compose()`: conditions in, a video out. The command line, training and the tests all use it."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import count
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from .composer import VideoComposer
from .conditions import CONDITIONS, Condition, Schedule
from .config import Config
from .diffusion.guidance import Embedded, GuidedDenoiser
from .diffusion.hold import Hold, reduced
from .diffusion.noise import arranged_noise, motion_for_noise
from .diffusion.samplers import Sampling, make_sampler, sample
from .diffusion.texts import check_frames, frame_read, tokens_of_window
from .diffusion.tiles import TiledNetwork
from .diffusion.windows import WindowedDenoiser, Windows
from .encoders.autoencoder import Tiling
from .errors import UserError, check_type, counted, shown
from .memory import report_out_of_memory
from .progress import Progress


@dataclass(frozen=True)
class Style:
    """A style image `(B or 1, 3, H, W)` in [0, 1] and how it is applied, see `Schedule`.

    Raises:
        UserError: an image of another shape, of integers, or with values that are not finite or outside [0, 1].
    """

    image: Tensor
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.strength, self.start, self.end)

    def __post_init__(self) -> None:
        check_rgb("style image", self.image, "batch", "height", "width")
        self.schedule.check("style")


@torch.inference_mode()
def compose(
    composer: VideoComposer,
    text: str | Sequence[str] | Mapping[int, str] = "",
    *,
    negative: str | Sequence[str] = "",
    conditions: Sequence[Condition] = (),
    style: Style | None = None,
    init: Tensor | None = None,
    denoise_mask: Tensor | None = None,
    sampling: Sampling | None = None,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    batch: int = 1,
    seed: int = 0,
    tiling: Tiling | None = None,
    progress: Progress | None = None,
    **deprecated: Any,
) -> Tensor:
    """Compose videos. Pass one style, condition and init for the entire batch, or one for each video.

    Args:
        text, negative: prompts, one for all videos or one for each. The empty prompt means no text. `text` may also be
            a schedule for all videos, a mapping of frames to prompts, see `vc_core.diffusion.texts`.
        conditions: at most one condition of each name. Temporal ones must have `frames` frames. Heights and widths may
            be any: the STC-encoders resize conditions to the latent size. If the checkpoint's config sets the size of
            conditions, they are resized to that first.
        style: style image; None for no style.
        init: video to start from and change, RGB `(B or 1, 3, F, H, W)` in [0, 1]. It is resized and cropped to
            `size`, noised, and denoised over the last part of the schedule, the fraction `sampling.denoise`. This must
            be below 1 with init, and 1 without.
        denoise_mask: the fraction of the noise schedule over which each place of init is denoised, `(B or 1, 1, F, H,
            W)` in [0, 1]: 0 keeps init, 1 is new, and `sampling.denoise` limits it. It is resized and cropped like
            init; the latent has the mean of each 8x8 pixels, in every frame. See `vc_core.diffusion.hold`.
        sampling: sampler, steps, guidance, windows of long videos and tiles of large frames, see `Sampling`.
        frames: frames of each video; by default init's, else as the checkpoint was trained.
        size: (height, width) in multiples of 8; by default as the checkpoint was trained.
        batch: number of videos, unless `text` is a list of several prompts.
        seed: seed of the noise. Noise is generated on the CPU, so a seed gives the same video on every device. Video i
            of a batch uses `seed + i`, and is the same as if it was composed alone with that seed.
        tiling: how much is encoded and decoded at a time, see `Tiling`.
        progress: called as `progress(what, done, total)` with "encoding", "sampling" (after every step) and
            "decoding". Raise an exception from it to cancel.
        deprecated: argument names of earlier versions, with a DeprecationWarning: `video` for `init`, and the fields of
            `sampling` and `tiling`.

    Returns:
        `(B, 3, F, H, W)` float32 in [0, 1], on the CPU.

    Raises:
        UserError: an option has a wrong type or value, init has a wrong shape or values outside [0, 1], a condition was
            passed twice, has another number of frames or videos, or is not supported by the checkpoint, or memory ran
            out.
        TypeError: an unknown argument.
    """
    from .encoders.autoencoder import decode

    for name, (kind, expected) in _TYPES.items():
        check_type(name, locals()[name], kind, expected)
    config = composer.config
    if deprecated:
        init, sampling, tiling = _renamed(init, sampling, tiling, deprecated)
    sampling = (sampling or Sampling()).filled(config)
    texts, negatives = _by_frame(text), _listed("negative", negative)
    if init is not None:
        check_rgb("init video", init, "batch", "frames", "height", "width")
    prompts = max(texts.values(), key=len)
    batch = len(prompts) if len(prompts) > 1 and batch == 1 else batch
    frames = (config.frames if init is None else init.shape[2]) if frames is None else frames
    if size and len(size) != 2:
        raise UserError(f"size has {counted(len(size), 'item')}. Expected (height, width), such as (256, 256).")
    height, width = size or (config.height, config.width)
    windows = sampling.windows or Windows(config.frames)
    check_type("The height", height, Integral, "an integer")
    check_type("The width", width, Integral, "an integer")
    _check_video(init, denoise_mask, sampling.denoise, frames, height, width)
    check_frames(texts, frames)
    if len(texts) > 1:
        frame_read(windows.spans(frames)[0], frames)  # raises if there is only one window
    for condition in conditions:
        check_type("An item of conditions", condition, Condition, "a Condition, such as Condition('motion', tensor)")
        config.unet.check_supports(condition.name)
    if style:
        composer.check_style()
    _check_conditions(conditions, frames)
    conditions = [_as_trained(condition, (height, width), frames, config) for condition in conditions]
    inputs = {"text": prompts, "negative": negatives, "style": style and style.image, "init": init}
    inputs["denoise_mask"] = denoise_mask
    _check_batch(batch, seed, inputs | {condition.name: condition.tensor for condition in conditions})
    motion = motion_for_noise(sampling.noise, conditions, config.extraction)
    sampler = make_sampler(sampling, config.diffusion)
    latent_size = (height // 8, width // 8)
    network = composer.unet
    if sampling.tiles is not None:
        sampling.tiles.check(config.unet)
        network = TiledNetwork(network, sampling.tiles)

    with report_out_of_memory(composer.device, composer.advice(batch, tiling)):
        encoded = encode_texts(composer, {**texts, "negative": negatives}, progress)
        shared = {
            "negative": encoded.pop("negative"),
            "style": style and Embedded(style_token(composer, style.image, progress), style.schedule),
            "no_style": style and style_token(composer, None),
            "guidance": sampling.guidance,
            "condition_guidance": sampling.condition_guidance,
            "rescale": sampling.rescale,
            "steps": config.diffusion.steps,
        }
        stcs = encode_stc(composer, conditions, windows, frames, latent_size, progress)
        denoisers = [
            GuidedDenoiser(network, text=tokens_of_window(encoded, span, frames), stc=stc, **shared)
            for span, stc in zip(windows.spans(frames), stcs, strict=True)
        ]
        denoiser = denoisers[0] if len(denoisers) == 1 else WindowedDenoiser(denoisers, windows, frames)
        generators = [torch.Generator().manual_seed(seed + i) for i in range(batch)]
        noise = draw_noise(generators, (config.unet.channels, frames, *latent_size))
        noise = arranged_noise(sampling.noise, noise, seed, windows, motion).to(composer.device)
        init_latent = None if init is None else encode_video(composer, init, (height, width), tiling, progress)
        hold = None
        if denoise_mask is not None:
            mask = _latent_mask(denoise_mask, (height, width)).to(composer.device)
            hold = Hold(init_latent, noise, mask, config.diffusion.steps)
            init_latent = None if sampling.denoise == 1 else init_latent
        latent = sample(denoiser, sampler.start(noise, init_latent), sampler, generators, progress, hold)
        latent = latent / config.autoencoder.scale
        with torch.inference_mode(False):  # so that callers can change the result in place
            return decode(composer.autoencoder, latent, tiling, progress).to("cpu", torch.float32)


def draw_noise(generators: Sequence[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise `(B, *shape)`, float32, from CPU generators, so that it does not depend on the device."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def encode_texts(
    composer: VideoComposer, prompts: Mapping[Any, list[str]], progress: Progress | None = None
) -> dict[Any, Tensor]:
    """The context tokens `(B, 77, D)` of several lists of B prompts, by name, on the composer's device in its dtype.
    Raise `UserError` if the checkpoint's text tower is missing."""
    from .encoders.clip import encode_text

    towers = composer.load_towers("text", progress=progress)
    return {name: encode_text(towers, texts).to(composer.device, composer.dtype) for name, texts in prompts.items()}


def style_token(composer: VideoComposer, image: Tensor | None, progress: Progress | None = None) -> Tensor:
    """The n style tokens `(B, n, D)` of images `(B, 3, H, W)` in [0, 1]; without an image, those `(1, n, D)` of an
    embedding of zeros. Raise `UserError` if an image is passed and the checkpoint's image tower is missing."""
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
    """The scaled latent `(B, 4, F, h, w)`, float32, of a video `(B, 3, F, H, W)` in [0, 1] that is first resized to
    `size`."""
    from .encoders.autoencoder import encode
    from .video import resize_crop

    resized = resize_crop(video.to(composer.device, torch.float32), size)
    return encode(composer.autoencoder, resized, tiling, progress) * composer.config.autoencoder.scale


def _latent_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A denoise mask `(B, 1, F, H, W)` for a video of `size`, at the size of the latent."""
    from .video import resize_crop

    return reduced(resize_crop(mask.float(), size))


def encode_stc(
    composer: VideoComposer,
    conditions: Sequence[Condition],
    windows: Windows,
    frames: int,
    latent_size: tuple[int, int],
    progress: Progress | None,
) -> list[list[Embedded]]:
    """The STC embeddings, for each window, of the conditions that affect it, at the latent's (height, width). Each
    condition is encoded once per window, before sampling, and not at every step."""
    spans = [range(span.start, span.stop) for span in windows.spans(frames)]
    visible = [[seen_by_window(c, span, windows.carry) for c in conditions] for span in spans]
    visible = [[c for c in window if c.strength != 0.0] for window in visible]
    done, total = count(1), sum(map(len, visible))

    def embedded(condition: Condition) -> Embedded:
        tensor = condition.tensor.to(composer.device, composer.dtype)
        embedding = composer.unet.encode_condition(condition.name, tensor, latent_size)
        if progress is not None:
            progress("encoding", next(done), total)
        return Embedded(embedding, condition.schedule)

    return [[embedded(condition) for condition in window] for window in visible]


def seen_by_window(condition: Condition, frames: Sequence[int], carry: float) -> Condition:
    """A condition for a window of these frames: the window's frames of a temporal condition. A spatial condition has
    `carry` times its strength after the first window."""
    if CONDITIONS[condition.name].kind == "spatial":
        return replace(condition, strength=condition.strength * (carry if frames[0] else 1.0))
    tensor = condition.tensor[:, :, list(frames)]
    if condition.name == "motion" and frames[0]:
        # As in training: a clip's first frame has no previous frame, so nothing moved.
        tensor = torch.cat([torch.zeros_like(tensor[:, :, :1]), tensor[:, :, 1:]], dim=2)
    return replace(condition, tensor=tensor)


def _as_trained(condition: Condition, size: tuple[int, int], frames: int, config: Config) -> Condition:
    """Resize a condition as the config requires, and its vectors to the video's pixels. No sizes: no change."""
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
    """`init`, `sampling` and `tiling` with values from deprecated arguments. Warn about these."""
    group_of = {field.name: kind for kind in (Sampling, Tiling) for field in fields(kind)}
    replacements = {name: f"{kind.__name__.lower()}={kind.__name__}({name}=...)" for name, kind in group_of.items()}
    replacements["video"] = "init=..."
    if unknown := [name for name in deprecated if name not in replacements]:
        raise TypeError(f"compose() got an unexpected keyword argument {unknown[0]!r}")
    names = ", ".join(f"{replacements[name]} instead of {name}=" for name in deprecated)
    # Skip this function, `compose` and the wrapper of `torch.inference_mode`.
    warnings.warn(f"Some arguments of compose() are deprecated. Use {names}.", DeprecationWarning, stacklevel=4)

    def filled(group: Any) -> Any:
        return replace(
            group, **{name: value for name, value in deprecated.items() if group_of.get(name) is type(group)}
        )

    return deprecated.get("video", init), filled(sampling or Sampling()), filled(tiling or Tiling())


def _by_frame(text: str | Sequence[str] | Mapping[int, str]) -> dict[int, list[str]]:
    """Return the prompts, one or one for each video, by the frames that they are for, in order."""
    if not isinstance(text, Mapping):
        return {0: _listed("text", text)}
    if not text or not all(type(frame) is int and isinstance(prompt, str) for frame, prompt in text.items()):
        raise UserError(f"text is {shown(dict(text))}. Expected prompts by the numbers of their frames.")
    return {frame: [text[frame]] for frame in sorted(text)}


_TYPES: dict[str, tuple[Any, str]] = {
    "composer": (VideoComposer, "a VideoComposer, as VideoComposer.load() returns it"),
    "conditions": (Collection, "a list of Conditions, also for one"),
    "style": (Style | None, "a Style, such as Style(image)"),
    "init": (Tensor | None, "a tensor (1, 3, F, H, W), such as read_frames() returns"),
    "sampling": (Sampling | None, "a Sampling, such as Sampling(steps=10)"),
    "frames": (Integral | None, "an integer"),
    "size": (Sequence | None, "(height, width), such as (256, 256)"),
    "batch": (Integral, "an integer"),
    "tiling": (Tiling | None, "a Tiling, such as Tiling(chunk=4)"),
}
"""Arguments of `compose` -> their type, and what to expect. The others have checks of their own."""


def _listed(name: str, text: str | Sequence[str]) -> list[str]:
    listed = [text] if isinstance(text, str) else text
    if not isinstance(listed, Sequence) or not all(isinstance(prompt, str) for prompt in listed):
        raise UserError(f"{name} is {shown(text)}. Expected a string, or a list of strings.")
    return list(listed)


def check_rgb(what: str, x: Tensor, *axes: str) -> None:
    """Refuse a tensor that is not RGB `(batch, 3, ...)` in [0, 1]. Resizing may exceed this range by a hundredth."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise UserError(f"The {what} has the type {kind}. Expected a floating-point tensor of RGB in [0, 1].")
    if x.ndim != 1 + len(axes) or x.shape[1] != 3 or x.numel() == 0:
        expected = ", ".join([axes[0], "3", *axes[1:]])
        raise UserError(f"The {what} has the shape {tuple(x.shape)}. Expected ({expected}).")
    low, high = (float(end) for end in x.aminmax())  # NaN if there is any
    if not (low >= -0.01 and high <= 1.01):
        raise UserError(f"The {what} has values from {low:g} to {high:g}. Expected RGB in [0, 1].")


def _check_video(
    init: Tensor | None, mask: Tensor | None, denoise: float, frames: int, height: int, width: int
) -> None:
    if frames < 1:
        raise UserError(f"frames must be at least 1, got {frames}.")
    check_size(height, width)
    if init is None and denoise != 1.0:
        raise UserError(f"denoise {denoise} requires an init video. Pass one, or set denoise to 1.")
    if mask is not None:
        _check_mask(init, mask)
    elif init is not None and denoise == 1.0:
        raise UserError("denoise 1 keeps nothing of the init video. Use a lower value, such as 0.6, or pass no init.")
    if init is not None and init.shape[2] != frames:
        shape = tuple(init.shape)
        raise UserError(f"The init video has the shape {shape}. Expected (batch, 3, {frames}, height, width).")


def _check_mask(init: Tensor | None, mask: Tensor) -> None:
    if init is None:
        raise UserError("A denoise mask requires an init video. Pass one as init.")
    if not isinstance(mask, Tensor) or mask.ndim != 5 or mask.shape[1:3] != (1, init.shape[2]):
        actual = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise UserError(f"The denoise mask is {actual}. Expected a tensor (batch, 1, {init.shape[2]}, height, width).")
    if not ((mask >= 0) & (mask <= 1)).all():
        raise UserError("The denoise mask has values outside 0 to 1. Use 0 to keep init, and 1 for what is new.")


def check_size(height: int, width: int) -> None:
    if height < 8 or width < 8 or height % 8 or width % 8:
        raise UserError(f"The size must be multiples of 8, such as 256x256. Got {width}x{height}.")


def _check_conditions(conditions: Sequence[Condition], frames: int) -> None:
    seen = set()
    for condition in conditions:
        if condition.name in seen:
            raise UserError(f"Condition '{condition.name}' was passed twice. Pass it once.")
        seen.add(condition.name)
        expected = 1 if CONDITIONS[condition.name].kind == "spatial" else frames
        if condition.tensor.shape[2] != expected:
            raise UserError(
                f"Condition '{condition.name}' has {condition.tensor.shape[2]} frames. Expected {expected} for a video "
                f"of {counted(frames, 'frame')}. Extract it with the video's frame plan."
            )


def _check_batch(batch: int, seed: int, inputs: Mapping[str, Sequence[str] | Tensor | None]) -> None:
    if batch < 1:
        raise UserError(f"batch must be at least 1, got {batch}.")
    if not isinstance(seed, int) or not 0 <= seed <= 2**63 - batch:
        raise UserError(f"seed must be an integer from 0 to {2**63 - batch}, got {shown(seed)}.")
    for name, items in inputs.items():
        if items is not None and len(items) not in (1, batch):
            expected = f"1 or {batch}" if batch > 1 else "1"
            raise UserError(f"'{name}' has {len(items)} items for a batch of {batch}. Expected {expected}.")
