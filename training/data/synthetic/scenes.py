"""Synthetic scenes: their objects and motion, and the words of their captions.

A scene depends only on one integer seed. All geometry is in units of the frame (0..1, right and down positive)
and all motion in frame widths per frame, so a scene renders at any size (`training.data.synthetic.render`).

The random numbers come from a counter-based hash, not from a generator. So scene `i` of a seed does not depend on what
was drawn before, on the batch or on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

CLIP_FRAMES = 16  # planned length of trajectories (longer clips render too, but objects may leave the frame)

SHAPES = ("circle", "square", "triangle", "diamond", "star", "ring")
BACKGROUNDS = ("stripes", "checks", "blobs", "gradient")
OBJECT_TEXTURES = ("stripes", "spots")
COLORS = {
    "red": (0.88, 0.13, 0.13),
    "orange": (0.98, 0.52, 0.08),
    "yellow": (0.97, 0.89, 0.15),
    "green": (0.15, 0.65, 0.22),
    "cyan": (0.15, 0.82, 0.88),
    "blue": (0.15, 0.28, 0.88),
    "purple": (0.56, 0.20, 0.75),
    "white": (0.97, 0.97, 0.97),
    "black": (0.10, 0.10, 0.10),
    "gray": (0.50, 0.50, 0.50),
    "brown": (0.48, 0.30, 0.15),
    "pink": (0.97, 0.58, 0.76),
}
COLOR_NAMES = tuple(COLORS)
OBJECT_COLORS = COLOR_NAMES[:8]
BACKGROUND_MUTING = 0.5  # how far background colours move towards mid grey, so that objects stand out

SLOW, FAST = 1.0 / 64, 2.0 / 64  # widths per frame: captions may say "slowly" below SLOW and "fast" above FAST
STILL = 0.1 / 64
DIRECTION_WORDS = (
    "right", "down and to the right", "down", "down and to the left",
    "left", "up and to the left", "up", "up and to the right",
)  # fmt: skip
"""One phrase per 45 degree sector, clockwise from +x because y points down."""


def mix(values: torch.Tensor) -> torch.Tensor:
    """Hash int64 values to int64 values (the splitmix64 finaliser, which requires the wrapping products of int64)."""
    wrap = 1 << 64  # the constants are above 2**63
    values = values + (0x9E3779B97F4A7C15 - wrap)
    values = (values ^ ((values >> 30) & ((1 << 34) - 1))) * (0xBF58476D1CE4E5B9 - wrap)
    values = (values ^ ((values >> 27) & ((1 << 37) - 1))) * (0x94D049BB133111EB - wrap)
    return values ^ ((values >> 31) & ((1 << 33) - 1))


def uniform(seeds: torch.Tensor, stream: int) -> torch.Tensor:
    """Numbers in [0, 1) that depend only on the seed and the stream. Same shape as `seeds`, float32."""
    bits = mix(mix(seeds) + stream * 0x632BE5AB)
    return ((bits >> 40) & 0xFFFFFF).to(torch.float32) / (1 << 24)


def scene_seeds(seed: int, start: int, count: int) -> torch.Tensor:
    """Seeds (count,) of the scenes `start .. start + count - 1` of a data set. They depend only on (seed, index)."""
    base = mix(torch.tensor(seed, dtype=torch.int64))
    return mix(base + torch.arange(start, start + count, dtype=torch.int64))


@dataclass(frozen=True)
class Scenes:
    """N scenes with up to two objects each. Every field is a tensor with leading dimension N.

    Lengths in frame widths, velocities in frame widths per frame, angles in radians, depths as MiDaS inverse depth
    divided by 20 (larger is nearer). Fields of objects are (N, 2, ...); the second object is ignored if `count` is 1.
    """

    seed: torch.Tensor  # (N,) int64
    background_kind: torch.Tensor  # (N,) index into BACKGROUNDS
    background_color: torch.Tensor  # (N, 2) index into COLOR_NAMES
    background_rgb: torch.Tensor  # (N, 2, 3)
    background_period: torch.Tensor  # (N,)
    background_angle: torch.Tensor  # (N, 3)
    background_phase: torch.Tensor  # (N, 3)
    background_velocity: torch.Tensor  # (N, 2) camera pan
    background_depth: torch.Tensor  # (N, 2) at the top, at the bottom
    count: torch.Tensor  # (N,) 1 or 2
    shape: torch.Tensor  # (N, 2) index into SHAPES
    color: torch.Tensor  # (N, 2) index into COLOR_NAMES
    rgb: torch.Tensor  # (N, 2, 3)
    radius: torch.Tensor  # (N, 2)
    tilt: torch.Tensor  # (N, 2)
    texture: torch.Tensor  # (N, 2) index into OBJECT_TEXTURES
    texture_period: torch.Tensor  # (N, 2)
    texture_angle: torch.Tensor  # (N, 2)
    depth: torch.Tensor  # (N, 2)
    start: torch.Tensor  # (N, 2, 2) centre x, y at frame 0
    velocity: torch.Tensor  # (N, 2, 2) at frame 0
    acceleration: torch.Tensor  # (N, 2, 2) frame widths per frame squared

    def __len__(self) -> int:
        return self.seed.shape[0]

    def __getitem__(self, index: int | slice | torch.Tensor) -> Scenes:
        """The selected scenes. An int selects one scene and keeps the leading dimension."""
        if isinstance(index, int):
            index = range(len(self))[index]  # raises IndexError out of range, which also ends iteration
            index = slice(index, index + 1)
        return Scenes(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def to(self, device: torch.device | str) -> Scenes:
        return Scenes(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def centers(self, times: torch.Tensor) -> torch.Tensor:
        """Object centres (N, 2, T, 2): x, y in frame widths at `times` (T,) or (N, T), in frames."""
        times = times.to(self.start.dtype)
        times = times.view(1, 1, -1, 1) if times.dim() == 1 else times[:, None, :, None]
        start, velocity, acceleration = (f[:, :, None] for f in (self.start, self.velocity, self.acceleration))
        return start + velocity * times + 0.5 * acceleration * times**2

    def displacement(self) -> torch.Tensor:
        """Net motion (N, 2, 2) of each object's centre from the first to the last of CLIP_FRAMES, in frame widths."""
        last = float(CLIP_FRAMES - 1)
        return self.velocity * last + 0.5 * self.acceleration * last**2


class _Draw:
    """Successive independent draws for N seeds; the order of the calls is part of the data set's definition."""

    def __init__(self, seeds: torch.Tensor) -> None:
        self.seeds, self.stream = seeds, 0

    def uniform(self, low: float = 0.0, high: float = 1.0, shape: tuple[int, ...] = ()) -> torch.Tensor:
        size = math.prod(shape)
        columns = [uniform(self.seeds, self.stream + i) for i in range(size)]
        self.stream += size
        return torch.stack(columns, dim=1).view(-1, *shape) * (high - low) + low

    def chance(self, probability: float, shape: tuple[int, ...] = ()) -> torch.Tensor:
        return self.uniform(shape=shape) < probability

    def index(self, count: int, shape: tuple[int, ...] = ()) -> torch.Tensor:
        return (self.uniform(shape=shape) * count).long().clamp_max(count - 1)

    def choice(self, allowed: torch.Tensor) -> torch.Tensor:
        """A random index (N,) of an allowed column for each scene, all equally likely. `allowed` is (N, K) bool."""
        scores = self.uniform(shape=(allowed.shape[1],))
        return scores.masked_fill(~allowed, -1.0).argmax(dim=1)

    def direction(self, shape: tuple[int, ...] = ()) -> torch.Tensor:
        angle = self.uniform(0.0, 2 * math.pi, shape)
        return torch.stack([angle.cos(), angle.sin()], dim=-1)


@dataclass(frozen=True)
class Palette:
    """Colours of objects and backgrounds, (K, 3) each in the order of COLOR_NAMES, and pairs that are too similar."""

    pure: torch.Tensor  # for objects
    muted: torch.Tensor  # the same colours for backgrounds
    alike: torch.Tensor  # (K, K) bool: muted pairs too similar for one background
    pale: torch.Tensor  # (K, K) bool: an object (row) has too little contrast with a background (column)


def palette(device: torch.device | str = "cpu") -> Palette:
    pure = torch.tensor(list(COLORS.values()), device=device)
    muted = pure + (0.5 - pure) * BACKGROUND_MUTING
    return Palette(pure, muted, torch.cdist(muted, muted) < 0.18, torch.cdist(pure, muted) < 0.38)


def _draw_colors(draw: _Draw) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two background colours and two object colours (N, 2) with their RGB (N, 2, 3), all clearly different."""
    colors = palette(draw.seeds.device)
    every = torch.ones(len(draw.seeds), len(COLORS), dtype=torch.bool, device=draw.seeds.device)
    first = draw.choice(every)
    second = draw.choice(~colors.alike[first])
    for_objects = every.clone()
    for_objects[:, len(OBJECT_COLORS) :] = False
    clear = for_objects & ~colors.pale.T[first] & ~colors.pale.T[second]
    main = draw.choice(clear)
    other = draw.choice(clear.scatter(1, main[:, None], False))
    background, objects = torch.stack([first, second], 1), torch.stack([main, other], 1)
    return background, colors.muted[background], objects, colors.pure[objects]


def _draw_paths(draw: _Draw) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Start, velocity and acceleration (N, 2, 2): 15% still, 60% constant, 25% curved or accelerated.

    Half of the objects start near the middle, so that the first frame does not reveal their direction. Centres stay
    within the frame for CLIP_FRAMES frames.
    """
    last = float(CLIP_FRAMES - 1)
    kind = draw.uniform(shape=(2,))[..., None]
    speed = draw.uniform(0.3 / 64, 3.2 / 64, (2,))[..., None]
    direction = draw.direction((2,))
    velocity = torch.where(kind < 0.15, 0.0, speed * direction)
    bend = draw.direction((2,)) * draw.uniform(0.5, 1.2, (2,))[..., None] * speed / last
    acceleration = torch.where(kind > 0.75, bend, 0.0)
    central = draw.chance(0.5, (2,))[..., None]
    middle = draw.uniform(0.38, 0.62, (2, 2))
    anywhere = draw.uniform(shape=(4, 2, 2))  # four candidates: the largest gap between the objects wins

    times = torch.arange(CLIP_FRAMES, device=kind.device, dtype=torch.float32).view(-1, 1, 1, 1)
    offsets = velocity * times + 0.5 * acceleration * times**2  # (T, N, 2, 2)
    reach_low, reach_high = offsets.amin(0), offsets.amax(0)
    # Motion is slowed if it would leave the frame: from the middle, or from one side to the other.
    room_low = torch.where(central, middle - 0.04, 0.88)
    room_high = torch.where(central, 0.96 - middle, 0.88)
    from_middle = torch.maximum(reach_high / room_high, -reach_low / room_low)
    span = torch.where(central, from_middle, (reach_high - reach_low) / 0.88)
    slowing = 1.0 / span.amax(-1, keepdim=True).clamp_min(1.0)
    velocity, acceleration = velocity * slowing, acceleration * slowing
    offsets, reach_low, reach_high = offsets * slowing, reach_low * slowing, reach_high * slowing
    low, high = 0.06 - reach_low, 0.94 - reach_high
    free = low + (high - low) * anywhere.transpose(0, 1)  # (4, N, 2, 2)
    candidates = torch.where(central, middle, free)
    candidates[:, :, 1] = torch.where(central[:, 0] & central[:, 1], free[:, :, 1], candidates[:, :, 1])
    paths = candidates[:, None] + offsets  # (4, T, N, 2, 2)
    gap = (paths[..., 0, :] - paths[..., 1, :]).norm(dim=-1).amin(1)  # (4, N)
    best = gap.argmax(0)
    start = candidates[best, torch.arange(len(best), device=best.device)]
    return start, velocity, acceleration


def sample_scenes(seeds: Sequence[int] | torch.Tensor) -> Scenes:
    """The scenes of these seeds (N,), on the seeds' device. Equal seeds give equal scenes.

    Of the scenes, 70% have one object and 30% two; 14% have a camera pan (0.3 to 1.5 pixels per frame at 64) in
    addition to the objects' motion; in 20% only the camera moves (up to 2.2 pixels per frame). Objects move at up to
    3.2 pixels per frame at 64 pixels.
    """
    seeds = torch.as_tensor(seeds, dtype=torch.int64).reshape(-1)
    draw = _Draw(seeds)
    background_kind = draw.index(len(BACKGROUNDS))
    background_color, background_rgb, color, rgb = _draw_colors(draw)
    # At least 22 pixels per period at 64, which an 8x8 latent can represent. A gradient spans the frame.
    period = draw.uniform(22.0 / 64, 40.0 / 64)
    stretch = torch.tensor([1.0, 1.3, 1.0, 4.0], device=seeds.device)  # in the order of BACKGROUNDS
    period = period * stretch[background_kind]
    pan = draw.direction() * draw.uniform(0.3 / 64, 1.5 / 64)[:, None]
    pan = torch.where(draw.chance(0.17)[:, None], pan, 0.0)
    top, bottom = draw.uniform(0.1, 0.3), draw.uniform(0.4, 0.7)
    first_depth, gap = draw.uniform(0.85, 1.4), draw.uniform(0.25, 0.55)
    swap = draw.chance(0.5)
    depth = torch.stack([first_depth + torch.where(swap, gap, 0.0), first_depth + torch.where(swap, 0.0, gap)], 1)
    start, velocity, acceleration = _draw_paths(draw)
    properties = {
        "background_angle": draw.uniform(0.0, 2 * math.pi, (3,)),
        "background_phase": draw.uniform(0.0, 2 * math.pi, (3,)),
        "count": torch.where(draw.chance(0.3), 2, 1),
        "shape": draw.index(len(SHAPES), (2,)),
        "radius": draw.uniform(0.165, 0.25, (2,)),
        "tilt": draw.uniform(-0.15, 0.15, (2,)),
        "texture": draw.index(len(OBJECT_TEXTURES), (2,)),
        "texture_period": draw.uniform(0.18, 0.28, (2,)),
        "texture_angle": draw.uniform(0.0, 2 * math.pi, (2,)),
    }
    # In some scenes only the camera moves: the objects move with the background.
    alone = draw.chance(0.2)[:, None]
    camera = draw.direction() * draw.uniform(0.3 / 64, 2.2 / 64)[:, None]
    distance = (camera * (CLIP_FRAMES - 1))[:, None]
    inside = torch.minimum(torch.maximum(start, 0.06 - distance.clamp_max(0.0)), 0.94 - distance.clamp_min(0.0))
    return Scenes(
        seed=seeds,
        background_kind=background_kind,
        background_color=background_color,
        background_rgb=background_rgb,
        background_period=period,
        background_velocity=torch.where(alone, camera, pan),
        background_depth=torch.stack([top, bottom], 1),
        color=color,
        rgb=rgb,
        depth=depth,
        start=torch.where(alone[..., None], inside, start),
        velocity=torch.where(alone[..., None], camera[:, None], velocity),
        acceleration=torch.where(alone[..., None], 0.0, acceleration),
        **properties,
    )
