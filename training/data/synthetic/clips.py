"""The synthetic data set: tensors of scenes, cached or drawn when needed, and training clips from them, with the errors
of real extractors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.order import draw_below
from training.data.sample import Sample
from training.data.synthetic.captions import caption_tokens, captions
from training.data.synthetic.render import render
from training.data.synthetic.scenes import CLIP_FRAMES, Scenes, sample_scenes, scene_seeds
from vc_core.conditions import CONDITIONS, condition_size, drawing_size
from vc_core.disk import make_folder, written_beside
from vc_core.encoders.clip import encode_image, encode_tokens, fitted
from vc_core.extract.sketch.methods import edges
from vc_core.progress import Progress
from vc_core.video import resize_crop

SHARD = 128  # clips per file
CAPTIONS = 4  # cached per clip
STILLS = 4  # evenly spaced frames of each clip with a cached style embedding
DRAWN = 0.4  # fraction of sketches that are outlines as people draw them; the others are the extractor's edges
MOVING, RECTANGLE = 0.5, 0.8  # thresholds for masks: below the first moving, below the second a rectangle, else half
BLOCKS = (1, 2, 4)  # sides of a codec's blocks, in pixels of the condition
JITTER, WRONG, MISSING = 0.15, 0.02, 0.3  # maxima: vector noise in pixels, fractions of spurious and missing vectors

# --- Tensors of scenes, frames first: cached in files, or drawn -----------------------------------------------------


def make_shard(
    seeds: Tensor, autoencoder: Any, towers: Any, size: int = 64, batch: int = 16, scale: int | None = None
) -> dict[str, Tensor]:
    """All training inputs of the scenes of `seeds` (N,), frames first, in small types, on the encoders' device.

    Args:
        batch: number of scenes to compute at once.
        scale: scale of the conditions, see `condition_size`.

    Returns:
        latents (N, F, 4, h, w), text (N, CAPTIONS, 77, D) and style (N, STILLS, D) in half precision; video, edges and
        outline (N, F, C, S, S) as bytes of 0..1, depth in half, object (the first object's mask) as bytes, at the
        conditions' size S; motion (N, F, 2, S', S') in half, in pixels of the video.
    """
    from vc_core.encoders.autoencoder import Tiling, encode

    device = next(autoencoder.parameters()).device
    drawn_size = drawing_size("depth", (size, size))[0]
    maps_size = condition_size("depth", (size, size), scale)
    motion_size = condition_size("motion", (size, size), scale)[0]
    shards = []
    for chunk in seeds.split(batch):
        cpu_scenes = sample_scenes(chunk.cpu())
        scenes = sample_scenes(chunk.to(device))
        small = render(scenes, size, what=("video",)).video
        fields = render(scenes, motion_size, what=("motion",))
        large = render(scenes, drawn_size, what=("video", "depth", "outline", "object_mask"))
        stills = small[:, :, :: CLIP_FRAMES // STILLS].transpose(1, 2).flatten(0, 1)
        tokens = torch.cat([caption_tokens(captions(cpu_scenes, variation)) for variation in range(CAPTIONS)])
        shards.append(
            {
                # In the autoencoder's dtype, and on a CPU a few frames at a time.
                "latents": encode(autoencoder, small, Tiling(16 if device.type == "cpu" else 1024)).half(),
                "text": encode_tokens(towers, tokens).unflatten(0, (CAPTIONS, -1)).transpose(0, 1).half(),
                "style": encode_image(towers, stills).unflatten(0, (len(scenes), -1)).squeeze(2).half(),
                "video": _as_bytes(resize_crop(large.video, maps_size)),
                "edges": _as_bytes(resize_crop(edges(large.video), maps_size)),
                "outline": _as_bytes(resize_crop(large.outline, maps_size)),
                "object": _as_bytes(resize_crop(large.object_mask, maps_size).round()),
                "depth": resize_crop(large.depth, maps_size).half(),
                "motion": (fields.motion * (size / motion_size)).half(),
            }
        )
    joined = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
    tokens = ("text", "style")
    return {k: v if k in tokens else v.transpose(1, 2).contiguous() for k, v in joined.items()}


def _as_bytes(values: Tensor) -> Tensor:
    """0..1 as bytes of 0..255."""
    return (values * 255).round().to(torch.uint8)


def build_cache(
    folder: Path,
    seed: int,
    count: int,
    autoencoder: Any,
    towers: Any,
    size: int = 64,
    progress: Progress | None = None,
) -> list[Path]:
    """Write the missing shards of the first `count` scenes of a seed. Returns the paths of all shards, for `ClipCache`.

    Args:
        size: pixels of a side.
        progress: called as `progress("scenes", done, count)`.
    """
    make_folder(folder)
    paths = []
    for first in range(0, count, SHARD):
        number = min(SHARD, count - first)
        partial = "" if number == SHARD else f"-{number}"
        path = folder / f"{seed:04d}-{first:06d}{partial}.safetensors"
        if not path.exists():
            shard = make_shard(scene_seeds(seed, first, number), autoencoder, towers, size)
            with written_beside(path) as temporary:
                safetensors.torch.save_file(shard, temporary)
        paths.append(path)
        if progress is not None:
            progress("scenes", first + number, count)
    return paths


class ClipCache:
    """The clips of several shards of `make_shard`. Only requested tensors and frames are read."""

    def __init__(self, paths: Sequence[Path]):
        self.files = [safetensors.safe_open(path, framework="pt") for path in paths]
        self.counts = [file.get_slice("latents").get_shape()[0] for file in self.files]

    def __len__(self) -> int:
        return sum(self.counts)

    def read(self, name: str, index: int, frames: slice = slice(None)) -> Tensor:
        """One tensor of one clip in its stored type, by default all frames."""
        shard = 0
        while index >= self.counts[shard]:
            index -= self.counts[shard]
            shard += 1
        return self.files[shard].get_slice(name)[index, frames.start : frames.stop][:: frames.step or 1]


@dataclass(frozen=True)
class DrawnScenes:
    """The scenes of a seed, drawn when they are read: any number of scenes, without a cache.

    Tensors have the names, shapes and types of `make_shard`, without those that require an autoencoder or towers. The
    video at the training size, `small`, replaces the latents.
    """

    seed: int
    count: int
    size: int = 64

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Scenes:
        return _scene(self.seed, index)

    def read(self, name: str, index: int, frames: slice = slice(None)) -> Tensor:
        """One tensor of one scene. Frames before or after the requested ones are not rendered."""
        first, last, step = frames.indices(CLIP_FRAMES)
        what = {"small": "video", "edges": "video", "object": "object_mask"}.get(name, name)
        scale = 8 if name == "small" else CONDITIONS["motion" if name == "motion" else "depth"].scale
        tensor = getattr(render(self.scene(index), scale * self.size // 8, last - first, first, (what,)), what)
        if name == "edges":
            tensor = edges(tensor)
        if name not in ("motion", "depth"):
            tensor = _as_bytes(tensor)
        return tensor[0].transpose(0, 1)[::step]


@lru_cache(maxsize=4)  # for the several tensors of one sample
def _scene(seed: int, index: int) -> Scenes:
    return sample_scenes(scene_seeds(seed, index, 1))


# --- Windows, and the errors of real extractors ---------------------------------------------------------------------


def draw_window(length: int, frames: int, generator: torch.Generator) -> slice:
    """Draw a window of `frames` frames in a clip of `length` frames.

    Short windows use every frame, or every few frames up to the clip's length: large motion in few frames teaches
    motion at a fraction of the cost.
    """
    stride = 1 + draw_below(max((length - 1) // (frames - 1), 1), generator) if frames > 1 else 1
    span = (frames - 1) * stride
    start = draw_below(length - span, generator)
    return slice(start, start + span + 1, stride)


def stored_for(name: str) -> tuple[str, ...]:
    """Names of the stored tensors for a condition other than a sketch."""
    return {"mask": ("video", "object"), "single_image": ("video",)}.get(name, (name,))


def spoiled(name: str, tensors: Mapping[str, Tensor], stride: Tensor, generator: torch.Generator | None) -> Tensor:
    """Compute one condition of B clips `(B, F, C, H, W)` from its stored tensors, with the errors of real extractors.

    Args:
        tensors: by name, as `make_shard` stores them.
        stride: `(B,)`, strides of the clips' windows. Motion is multiplied by the stride; for the few curved paths this
            is an approximation from the last frame's motion.
        generator: on the tensors' device; None for the device's own.
    """
    if name == "motion":
        return spoil_motion(tensors["motion"].float() * stride.view(-1, 1, 1, 1, 1), generator)
    if name == "depth":
        return tensors["depth"].float()
    if name == "mask":
        video, objects = (tensors[stored].float() / 255 for stored in ("video", "object"))
        keep = draw_mask(objects, generator)
        return torch.cat([(video * 2 - 1) * keep, keep], dim=2)
    (only,) = tensors.values()
    return only.float() / 255


def draw_mask(objects: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw masks of B clips, `(B, F, 1, S, S)`, 1 to keep and 0 to repaint: the object (a moving mask), a rectangle, or
    half of the frame is repainted.

    Args:
        objects: 1 inside the first object, else 0, in the same shape.
    """
    batch, frames, _, size, _ = objects.shape
    kind, *lots = torch.rand(5, batch, 1, 1, 1, 1, device=objects.device, generator=generator).unbind()
    flat = objects.flatten(0, 1)
    grown = [F.max_pool2d(flat, 2 * by + 1, 1, by).view_as(objects) > 0.5 for by in range(1, 2 + size // 16)]
    by = (lots[0] * len(grown)).long()
    moving = torch.stack(grown, -1).gather(-1, by.expand(*objects.shape)[..., None])[..., 0]

    rectangle = kind < RECTANGLE
    # Height and width, as fractions of the frame.
    sides = [torch.where(rectangle, 0.25 + 0.5 * lots[i], 0.5) for i in (0, 1)]
    # Half of the frame is also a rectangle: as wide or as high as the frame, at one of its sides.
    across = lots[1] < 0.5
    sides = [torch.where(~rectangle & (across if i else ~across), 1.0, sides[i]) for i in (0, 1)]
    starts = [torch.where(rectangle, lots[2 + i], (lots[0] >= 0.5).float()) * (1 - sides[i]) for i in (0, 1)]
    at = torch.arange(size, device=objects.device)
    first = [(start * size).floor() for start in starts]
    last = [start + (side * size).floor() for start, side in zip(first, sides, strict=True)]
    rows, columns = ((at >= first[i]) & (at < last[i]) for i in (0, 1))
    area = (rows.transpose(-1, -2) & columns).expand(-1, frames, -1, -1, -1)
    return 1 - torch.where(kind < MOVING, moving, area).float()


def spoil_motion(motion: Tensor, generator: torch.Generator | None) -> Tensor:
    """Change exact motion of B clips `(B, F, 2, S, S)` to look like a codec's: blocks, a little noise, spurious and
    missing vectors.

    The first frame's motion is zero, as in every motion field.
    """
    batch, frames, _, size, _ = motion.shape

    def random(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, device=motion.device, generator=generator)

    jitter, wrong, missing, careless, block = (random(1, 1, 1, 1) for _ in range(5))
    result = torch.empty_like(motion)
    for number, side in enumerate(BLOCKS):
        grid = motion[..., side // 2 :: side, side // 2 :: side]
        cells = grid.shape[-1]
        lots = random(frames, 1, cells, cells)
        noise = torch.randn(grid.shape, device=motion.device, generator=generator)
        grid = grid + JITTER * jitter * noise * (grid != 0)
        lots = torch.where(careless < 0.5, lots, 0.5)  # half of the clips have neither spurious nor missing vectors
        grid = torch.where(lots < WRONG * wrong, 1.5 * noise, grid)
        grid = torch.where(lots > 1 - MISSING * missing, 0.0, grid)
        filled = grid.repeat_interleave(side, -1).repeat_interleave(side, -2)[..., :size, :size]
        chosen = (block * len(BLOCKS)).long() == number
        result = torch.where(chosen, filled, result)
    return torch.cat([torch.zeros_like(result[:, :1]), result[:, 1:]], dim=1)


# --- As samples -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SyntheticClips:
    """Clips of scenes from a cache with latents and tokens, or drawn when they are needed.

    Attributes:
        frames: per clip.
        style_size: pixels of a side of style images, for drawn scenes.
        scale: the factor of the autoencoder's latents. The cached latents are stored without it.
        condition_scale: see `vc_core.config.ExtractionConfig`.
    """

    tensors: ClipCache | DrawnScenes
    frames: int = CLIP_FRAMES
    style_size: int = 224
    scale: float = 1.0
    condition_scale: int | None = None

    def __len__(self) -> int:
        return len(self.tensors)

    def sample(self, index: int, inputs: Collection[str], generator: torch.Generator) -> Sample:
        """See `training.data.sample.Clips`."""
        window = draw_window(CLIP_FRAMES, self.frames, generator)
        encode = self._drawn if isinstance(self.tensors, DrawnScenes) else self._cached
        encoded = encode(index, inputs, window, generator)
        conditions = {}
        for name in CONDITIONS:
            if name in inputs:
                own = window if CONDITIONS[name].kind == "temporal" else slice(window.start, window.start + 1, 1)
                conditions[name] = self._condition(name, index, own, generator).transpose(0, 1)
        return Sample(f"scene {index}", conditions=conditions, **encoded)

    def _cached(
        self, index: int, inputs: Collection[str], window: slice, generator: torch.Generator
    ) -> dict[str, Tensor]:
        text, still = draw_below(CAPTIONS, generator), draw_below(STILLS, generator)
        fields: dict[str, Tensor] = {
            "latents": self.tensors.read("latents", index, window).float().transpose(0, 1) * self.scale
        }
        if "text" in inputs:
            fields["text_tokens"] = self.tensors.read("text", index, slice(text, text + 1))[0].float()
        if "style" in inputs:
            fields["style_embedding"] = self.tensors.read("style", index, slice(still, still + 1)).float()
        return fields

    def _drawn(
        self, index: int, inputs: Collection[str], window: slice, generator: torch.Generator
    ) -> dict[str, Tensor | str]:
        variation, still = draw_below(2**30, generator), draw_below(CLIP_FRAMES, generator)
        fields: dict[str, Tensor | str] = {
            "video": self.tensors.read("small", index, window).transpose(0, 1).float() / 255
        }
        if "text" in inputs:
            fields["text"] = captions(self.tensors.scene(index), variation)[0]
        if "style" in inputs:
            picture = self.tensors.read("small", index, slice(still, still + 1)).float() / 255
            fields["style"] = fitted(picture, (self.style_size,) * 2)[0]
        return fields

    def _condition(self, name: str, index: int, window: slice, generator: torch.Generator) -> Tensor:
        """One condition of one clip, `(F, C, H, W)`, frames first, at the network's size."""
        needed = stored_for(name)
        if name in ("sketch", "single_sketch"):  # outlines as people draw them, or the extractor's edges
            needed = ("outline",) if float(torch.rand((), generator=generator)) < DRAWN else ("edges",)
        own = CONDITIONS[name].scale  # the tensors are stored at this scale of the table
        tensors = {}
        for stored in needed:
            tensor = self.tensors.read(stored, index, window).float()
            size = tuple(side * (self.condition_scale or own) // own for side in tensor.shape[-2:])
            tensors[stored] = resize_crop(tensor, size)[None]
        return spoiled(name, tensors, torch.tensor([window.step]), generator)[0]
