"""Rendering of synthetic scenes: pixels, exact motion, depth, outlines and masks, batched and at any size.

Surfaces are procedural functions of position, and edges are signed distances. So every frame is antialiased, motion can
be a fraction of a pixel, and the ground truth is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .scenes import BACKGROUNDS, OBJECT_TEXTURES, SHAPES, Scenes, mix

EVERYTHING = ("video", "motion", "depth", "outline", "object_mask")
OUTLINE_WIDTH = 1.5  # in pixels
GRAIN_CELLS = (1 / 80, 1 / 128)  # in frame widths: a few pixels at 256, removed by area averaging at 64
GRAIN_AMPLITUDE = 0.15
OBJECT_SHADES = (0.76, 1.0)  # darkest and brightest factor of an object's colour in its texture
_TILE = 128


@dataclass(frozen=True)
class Rendered:
    """The requested results of `render`; the others are None. Pixels are pixels of the rendered size."""

    video: torch.Tensor | None  # (B, 3, F, H, W) RGB in [0, 1]
    motion: torch.Tensor | None  # (B, 2, F, H, W) dx, dy in pixels from the previous frame; frame 0 is zero
    depth: torch.Tensor | None  # (B, 1, F, H, W) MiDaS inverse depth / 20
    outline: torch.Tensor | None  # (B, 1, F, H, W) 0..1, lines bright
    object_mask: torch.Tensor | None  # (B, 1, F, H, W) 1 where the first object is visible, else 0


@dataclass(frozen=True)
class _Layer:
    """One object in each of M scenes."""

    distance: torch.Tensor  # (M, F, H, W) signed, in pixels, negative inside
    surface: torch.Tensor | None  # (M, 3, F, H, W) RGB, if the video is requested
    depth: torch.Tensor  # (M,)
    step: torch.Tensor  # (M, F, 2) in pixels


def _wave(phase: torch.Tensor) -> torch.Tensor:
    """A sine with steeper flanks, in [-1, 1]. Unlike a square wave, it is nowhere flat."""
    value = phase.sin_()
    return value * (1.5 - 0.5 * value * value)


def _wide(values: torch.Tensor) -> torch.Tensor:
    """(M,) to (M, 1, 1, 1), to broadcast with fields (M, F, H, W)."""
    return values.view(-1, 1, 1, 1)


def _value_noise(x: torch.Tensor, y: torch.Tensor, salt: torch.Tensor) -> torch.Tensor:
    """Bilinear noise in [-0.5, 0.5] of lattice coordinates x, y (M, F, H, W); `salt` (M,) shifts the lattice."""
    table = mix(torch.arange(_TILE * _TILE, device=x.device))
    table = ((table >> 40) & 0xFFFF).to(torch.float32) / 0xFFFF - 0.5
    x, y = x + _wide((mix(salt) & 0x7F).to(x.dtype)), y + _wide((mix(salt + 1) & 0x7F).to(x.dtype))
    column, row = x.floor(), y.floor()
    fx, fy = x - column, y - row
    column, row = column.long(), row.long()

    def lattice(i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return table[(j & (_TILE - 1)) * _TILE + (i & (_TILE - 1))]

    top = torch.lerp(lattice(column, row), lattice(column + 1, row), fx)
    bottom = torch.lerp(lattice(column, row + 1), lattice(column + 1, row + 1), fx)
    return torch.lerp(top, bottom, fy)


def _grained(rgb: torch.Tensor, x: torch.Tensor, y: torch.Tensor, salt: torch.Tensor, size: int) -> torch.Tensor:
    """A surface (M, 3, F, H, W) with fine grain at its own coordinates, faded out where cells are below two pixels."""
    weights = [min(max((cell * size - 1.4) / 1.2, 0.0), 1.0) for cell in GRAIN_CELLS]
    noises = [
        _value_noise(x / cell, y / cell, salt + 7919 * octave) * (weight * GRAIN_AMPLITUDE)
        for octave, (cell, weight) in enumerate(zip(GRAIN_CELLS, weights, strict=True))
        if weight > 0.0
    ]
    return rgb + sum(noises)[:, None] if noises else rgb


def _pattern(scenes: Scenes, kind: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Blend in [0, 1] between the two background colours at surface coordinates x, y (M, F, H, W)."""

    def phase(i: int, turn: float = 0.0, scale: float = 1.0) -> torch.Tensor:
        angle = scenes.background_angle[:, i] + turn
        rate = 2 * math.pi / (scenes.background_period * scale)
        return x * _wide(angle.cos() * rate) + y * _wide(angle.sin() * rate) + _wide(scenes.background_phase[:, i])

    if kind == "stripes":
        value = _wave(phase(0))
    elif kind == "checks":
        value = _wave(phase(0)) * _wave(phase(0, turn=math.pi / 2))
    elif kind == "blobs":
        value = (phase(0).sin_() + phase(1, scale=1.15).sin_() + phase(2, scale=1.3).sin_()) * 0.5
        value = value.clamp_(-1.0, 1.0)
        value = value * (1.5 - 0.5 * value * value)
    else:  # gradient, with a faint ripple across it, so that it is nowhere flat
        value = 0.85 * phase(0).sin_() + 0.15 * phase(0, turn=math.pi / 2, scale=0.25).sin_()
    return value.mul_(0.5).add_(0.5)


def _background_video(scenes: Scenes, x: torch.Tensor, y: torch.Tensor, size: int) -> torch.Tensor:
    """Background RGB (M, 3, F, H, W) at surface coordinates (M, F, H, W) that may have F = 1."""
    blend = torch.empty(x.shape, device=x.device)
    for index, kind in enumerate(BACKGROUNDS):
        (chosen,) = (scenes.background_kind == index).nonzero(as_tuple=True)
        if len(chosen):
            blend[chosen] = _pattern(scenes[chosen], kind, x[chosen], y[chosen])
    first, second = scenes.background_rgb[:, :, :, None, None, None].unbind(1)
    return _grained(first + (second - first) * blend[:, None], x, y, scenes.seed, size)


def _polygon_distance(x: torch.Tensor, y: torch.Tensor, corners: list[tuple[float, float]]) -> torch.Tensor:
    """Signed distance to a polygon of unit size: distance to the nearest edge, sign by the crossing rule."""
    nearest = torch.full_like(x, 1e9)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        px, py = x - ax, y - ay
        along = ((px * ex + py * ey) * (1.0 / (ex * ex + ey * ey))).clamp_(0.0, 1.0)
        nearest = torch.minimum(nearest, (px - along * ex).square_() + (py - along * ey).square_())
        if ey != 0.0:
            crosses = (y >= min(ay, by)) & (y < max(ay, by))
            inside ^= crosses & (px < py * (ex / ey))
    nearest = nearest.sqrt_()
    return torch.where(inside, -nearest, nearest)


def _regular(count: int, radii: tuple[float, ...]) -> list[tuple[float, float]]:
    """Corners of a polygon on circles of the given radii in turn, the first at the top."""
    turns = [2 * math.pi * i / count - math.pi / 2 for i in range(count)]
    return [(radii[i % len(radii)] * math.cos(t), radii[i % len(radii)] * math.sin(t)) for i, t in enumerate(turns)]


def unit_distance(shape: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Signed distance at x, y to the shape of radius 1 around the origin, negative inside."""
    if shape == "circle":
        return torch.hypot(x, y) - 0.95
    if shape == "ring":
        return (torch.hypot(x, y) - 0.72).abs_() - 0.27
    if shape == "square":
        dx, dy = x.abs() - 0.82, y.abs() - 0.82
        return torch.hypot(dx.clamp_min(0.0), dy.clamp_min(0.0)) + torch.maximum(dx, dy).clamp_max_(0.0)
    if shape == "diamond":
        # By symmetry one quarter is enough: the distance to the edge from (0.68, 0) to (0, 1.1).
        x, y = x.abs(), y.abs()
        ex, ey = -0.68, 1.1
        px = x - 0.68
        along = ((px * ex + y * ey) / (ex * ex + ey * ey)).clamp_(0.0, 1.0)
        distance = torch.hypot(px - along * ex, y - along * ey)
        return torch.where(px * ey - y * ex < 0.0, -distance, distance)
    if shape == "triangle":
        return _polygon_distance(x, y + 0.12, _regular(3, (1.2,)))
    return _polygon_distance(x, y, _regular(10, (1.15, 0.52)))  # star


def _layer(
    scenes: Scenes, slot: torch.Tensor, x: torch.Tensor, y: torch.Tensor, times: torch.Tensor, size: int, shaded: bool
) -> _Layer:
    """Object `slot` (M,) of each scene, sampled at pixel centres x (1, 1, 1, W), y (1, 1, H, 1), at times (M, F)."""
    rows = torch.arange(len(scenes), device=slot.device)

    def pick(values: torch.Tensor) -> torch.Tensor:
        return values[rows, slot]

    center = pick(scenes.centers(times))  # (M, F, 2)
    step = torch.diff(center, dim=1, prepend=center[:, :1]) * size
    dx = x - center[..., 0][:, :, None, None]  # (M, F, 1, W)
    dy = y - center[..., 1][:, :, None, None]  # (M, F, H, 1)
    radius, tilt = pick(scenes.radius), pick(scenes.tilt)
    cos, sin = _wide(tilt.cos() / radius), _wide(tilt.sin() / radius)
    u, v = dx * cos + dy * sin, dy * cos - dx * sin  # in radii, upright with the object
    distance = torch.empty_like(u)
    for index, shape in enumerate(SHAPES):
        (chosen,) = (pick(scenes.shape) == index).nonzero(as_tuple=True)
        if len(chosen):
            distance[chosen] = unit_distance(shape, u[chosen], v[chosen])
    distance *= _wide(radius * size)
    surface = None
    if shaded:
        angle, rate = pick(scenes.texture_angle), 2 * math.pi / pick(scenes.texture_period)
        along = (dx * _wide(angle.cos() * rate) + dy * _wide(angle.sin() * rate)).sin_()
        across = (dy * _wide(angle.cos() * rate) - dx * _wide(angle.sin() * rate)).sin_()
        spots = _wide(pick(scenes.texture) == OBJECT_TEXTURES.index("spots"))
        dark, bright = OBJECT_SHADES
        shade = torch.where(spots, along * across, along).mul_((bright - dark) / 2).add_((bright + dark) / 2)
        salt = pick(scenes.seed[:, None].expand(-1, 2)) + slot + 1
        surface = pick(scenes.rgb)[:, :, None, None, None] * shade[:, None]
        surface = _grained(surface, dx.expand_as(u), dy.expand_as(u), salt, size)
    return _Layer(distance, surface, pick(scenes.depth), step)


def _composite(video: torch.Tensor, layer: _Layer) -> torch.Tensor:
    """Draw an object over a video (M, 3, F, H, W), antialiased over one pixel."""
    coverage = (0.5 - layer.distance).clamp_(0.0, 1.0)
    return torch.lerp(video, layer.surface, coverage[:, None].expand_as(layer.surface))


def _line(layer: _Layer) -> torch.Tensor:
    return (OUTLINE_WIDTH / 2 + 0.5 - layer.distance.abs()).clamp_(0.0, 1.0)


def render(
    scenes: Scenes,
    size: int = 64,
    frames: int = 16,
    first_frame: int | torch.Tensor = 0,
    what: tuple[str, ...] = EVERYTHING,
) -> Rendered:
    """Render scenes at size x size pixels.

    Args:
        scenes: B scenes; the result is on their device.
        size, frames: width and height in pixels, and F.
        first_frame: the first frame, for all scenes or for each (B,).
        what: which of EVERYTHING to compute. Skipping `video` skips all textures.

    Returns:
        `Rendered`. Motion is the displacement of the surface at a pixel of frame f since frame f - 1 (of the object,
        or of the background), so it is exact and dense. In the first rendered frame it is zero. Motion, depth and mask
        are evaluated at the pixel's centre; video and outline are antialiased.

    Raises:
        ValueError: `what` contains an unknown name.
    """
    if unknown := set(what) - set(EVERYTHING):
        raise ValueError(f"Unknown names for what to render: {sorted(unknown)}. Expected some of {EVERYTHING}.")
    device, count = scenes.seed.device, len(scenes)
    first = torch.as_tensor(first_frame, device=device, dtype=torch.float32).expand(count)
    times = first[:, None] + torch.arange(frames, device=device)  # (B, F)
    pixels = (torch.arange(size, device=device) + 0.5) / size
    x, y = pixels.view(1, 1, 1, -1), pixels.view(1, 1, -1, 1)

    # Every scene has a near layer; only scenes with two objects have a far layer.
    (two,) = (scenes.count == 2).nonzero(as_tuple=True)
    near_slot = torch.where(scenes.count == 2, scenes.depth.argmax(1), 0)
    near = _layer(scenes, near_slot, x, y, times, size, "video" in what)
    far = _layer(scenes[two], 1 - near_slot[two], x, y, times[two], size, "video" in what)
    near_inside, far_inside = near.distance < 0.0, far.distance < 0.0
    layers = ((far, far_inside, two), (near, near_inside, slice(None)))

    video = motion = depth = outline = mask = None
    if "video" in what:
        video = torch.empty(count, 3, frames, size, size, device=device)
        moving = (scenes.background_velocity != 0.0).any(1)
        for pans in (False, True):  # a still background is computed once for all frames
            (chosen,) = (moving == pans).nonzero(as_tuple=True)
            if len(chosen):
                at = times[chosen][:, : None if pans else 1, None, None]
                velocity = scenes.background_velocity[chosen]
                bx, by = x - _wide(velocity[:, 0]) * at, y - _wide(velocity[:, 1]) * at
                grid = torch.broadcast_shapes(bx.shape, by.shape)
                video[chosen] = _background_video(scenes[chosen], bx.expand(grid), by.expand(grid), size)
        if len(two):
            video[two] = _composite(video[two], far)
        video = _composite(video, near).clamp_(0.0, 1.0)
    if "motion" in what:
        pan = (scenes.background_velocity * size)[:, None].expand(-1, frames, -1)
        motion = pan.permute(0, 2, 1)[..., None, None].expand(-1, -1, -1, size, size).clone()
        for layer, inside, rows in layers:
            step = layer.step.permute(0, 2, 1)[..., None, None]
            motion[rows] = torch.where(inside[:, None], step, motion[rows])
        motion[:, :, 0] = 0.0
    if "depth" in what:
        top, bottom = scenes.background_depth.view(count, 2, 1, 1, 1, 1).unbind(1)
        depth = (top + (bottom - top) * y[None]).expand(-1, -1, frames, -1, size).clone()
        for layer, inside, rows in layers:
            depth[rows] = torch.where(inside[:, None], layer.depth.view(-1, 1, 1, 1, 1), depth[rows])
    if "outline" in what:
        outline = _line(near)
        if len(two):
            hidden = (0.5 - near.distance[two]).clamp_(0.0, 1.0)
            outline[two] = torch.maximum(outline[two], _line(far) * (1.0 - hidden))
        outline = outline[:, None]
    if "object_mask" in what:
        first_is_near = _wide(near_slot == 0)
        mask = near_inside & first_is_near
        mask[two] |= far_inside & ~near_inside[two] & ~first_is_near[two]
        mask = mask[:, None].float()
    return Rendered(video, motion, depth, outline, mask)
