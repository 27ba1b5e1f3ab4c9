"""The synthetic scenes: reproducible, consistent with their ground truth, and described correctly by their captions."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F

from training.data.synthetic.captions import caption_tokens, captions, direction_class, motion_class
from training.data.synthetic.render import EVERYTHING, OUTLINE_WIDTH, render
from training.data.synthetic.scenes import (
    BACKGROUNDS,
    COLOR_NAMES,
    DIRECTION_WORDS,
    SHAPES,
    sample_scenes,
    scene_seeds,
    uniform,
)
from vc_core.encoders.clip import tokenize


@pytest.fixture(scope="module")
def scenes():
    return sample_scenes(scene_seeds(5, 0, 24))


@pytest.fixture(scope="module")
def rendered(scenes):
    return render(scenes)


def test_a_scene_depends_only_on_its_seed_and_index(scenes):
    alone = sample_scenes(scene_seeds(5, 7, 1))
    for field in fields(alone):
        assert torch.equal(getattr(alone, field.name), getattr(scenes[7], field.name)), field.name
    assert not torch.equal(scene_seeds(5, 0, 8), scene_seeds(6, 0, 8))
    assert captions(alone) == captions(scenes)[7:8]


def test_the_random_numbers_are_fixed_and_uniform():
    seeds = scene_seeds(0, 0, 20_000)
    assert seeds[:2].tolist() == sample_scenes(seeds[:2]).seed.tolist()
    values = uniform(seeds, 3)
    assert values.min() >= 0.0 and values.max() < 1.0
    assert torch.histc(values, 10, 0, 1).sub(2000).abs().max() < 200
    assert torch.corrcoef(torch.stack([values, uniform(seeds, 4)]))[0, 1].abs() < 0.03


def test_a_batch_renders_like_its_single_scenes(scenes, rendered):
    for index in (0, 5, 11):
        alone = render(scenes[index])
        for name in EVERYTHING:
            torch.testing.assert_close(getattr(alone, name)[0], getattr(rendered, name)[index], atol=2e-5, rtol=0)


def test_shapes_and_ranges(rendered):
    for name, channels in {"video": 3, "motion": 2, "depth": 1, "outline": 1, "object_mask": 1}.items():
        assert getattr(rendered, name).shape == (24, channels, 16, 64, 64), name
    for name in ("video", "outline"):
        values = getattr(rendered, name)
        assert values.min() >= 0.0 and values.max() <= 1.0
    assert set(rendered.object_mask.unique().tolist()) == {0.0, 1.0}
    assert rendered.depth.min() > 0.05 and rendered.depth.max() < 2.5


def test_only_the_requested_fields_are_rendered(scenes):
    result = render(scenes[:2], what=("depth",))
    assert result.depth is not None
    assert result.video is result.motion is result.outline is result.object_mask is None
    with pytest.raises(ValueError, match="dept"):
        render(scenes[:2], what=("dept",))


def test_a_later_first_frame_continues_the_clip(scenes, rendered):
    starts = torch.full((24,), 5)
    starts[3] = 9
    later = render(scenes, frames=3, first_frame=starts)
    torch.testing.assert_close(later.video[:3], rendered.video[:3, :, 5:8], atol=2e-5, rtol=0)
    torch.testing.assert_close(later.video[3], rendered.video[3, :, 9:12], atol=2e-5, rtol=0)
    assert later.motion[:, :, 0].abs().max() == 0.0
    torch.testing.assert_close(later.motion[3, :, 1:], rendered.motion[3, :, 10:12], atol=1e-4, rtol=0)


def warp_error(video: torch.Tensor, motion: torch.Tensor, trusted: torch.Tensor) -> torch.Tensor:
    """Mean difference between each frame and its predecessor moved along `motion`, over the trusted pixels."""
    frames, previous = video[:, :, 1:].transpose(1, 2).flatten(0, 1), video[:, :, :-1].transpose(1, 2).flatten(0, 1)
    flow = motion[:, :, 1:].transpose(1, 2).flatten(0, 1)
    size = video.shape[-1]
    base = torch.arange(size) + 0.5
    grid = torch.stack([base.expand(size, size) - flow[:, 0], base[:, None].expand(size, size) - flow[:, 1]], -1)
    fetched = F.grid_sample(previous, grid / size * 2 - 1, align_corners=False)
    inside = ((grid > 2) & (grid < size - 2)).all(-1)
    weight = (inside & trusted[:, 0, 1:].flatten(0, 1))[:, None].float()
    return ((frames - fetched).abs() * weight).sum() / weight.sum() / 3


def test_motion_points_to_the_origin_of_every_pixel(scenes):
    # At 96 pixels, away from edges: there, antialiasing and uncovered background mix surfaces with different motion.
    result = render(scenes[:12], size=96, frames=6)
    edges = F.max_pool3d(result.outline, (3, 13, 13), stride=1, padding=(1, 6, 6))
    moving = result.motion.abs().amax((1, 2, 3, 4)) > 0.5
    assert moving.sum() >= 6
    video, motion, trusted = result.video[moving], result.motion[moving], (edges == 0)[moving]
    right = warp_error(video, motion, trusted)
    assert right < 0.004
    assert warp_error(video, -motion, trusted) > 3 * right


def test_motion_is_the_objects_displacement_and_the_pan(scenes, rendered):
    centers = scenes.centers(torch.arange(16)) * 64
    for index in range(8):
        covered = rendered.object_mask[index, 0].bool()
        steps = centers[index, 0].diff(dim=0)
        pan = scenes.background_velocity[index] * 64
        empty = (rendered.depth[index, 0] < 0.8) & ~covered
        for frame in range(1, 16):
            for axis in range(2):
                field = rendered.motion[index, axis, frame]
                if covered[frame].any():
                    assert (field[covered[frame]] - steps[frame - 1, axis]).abs().max() < 1e-3
                assert (field[empty[frame]] - pan[axis]).abs().max() < 1e-5
    assert rendered.motion[:, :, 0].abs().max() == 0.0


def test_centers_are_those_of_the_objects(scenes, rendered):
    """For single circles entirely inside the frame, the mask's centroid is the centre."""
    checked = 0
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    circles = replace(scenes, shape=torch.zeros_like(scenes.shape), count=torch.ones_like(scenes.count))
    result, centers = render(circles, what=("object_mask",)), circles.centers(torch.arange(16)) * 64
    for index in range(len(circles)):
        for frame in (0, 8, 15):
            center = centers[index, 0, frame]
            if (center - 32).abs().max() > 31 - circles.radius[index, 0] * 64:
                continue
            mask = result.object_mask[index, 0, frame]
            centroid = torch.stack([(mask * x).sum(), (mask * y).sum()]) / mask.sum()
            assert (centroid - center).abs().max() < 0.35
            checked += 1
    assert checked > 20


def test_nearer_objects_hide_farther_ones(scenes):
    """For two overlapping circles, depth, mask and pixels are those of the nearer circle."""
    still = torch.zeros_like(scenes.velocity)
    pair = replace(
        scenes,
        count=torch.full_like(scenes.count, 2),
        shape=torch.zeros_like(scenes.shape),
        start=torch.full_like(scenes.start, 0.5),
        radius=torch.full_like(scenes.radius, 0.2),
        velocity=still,
        acceleration=still,
    )
    result = render(pair, frames=1)
    near = pair.depth.max(1).values
    torch.testing.assert_close(result.depth[:, 0, 0, 32, 32], near)
    first_near = pair.depth[:, 0] > pair.depth[:, 1]
    assert first_near.any() and not first_near.all()
    assert torch.equal(result.object_mask[:, 0, 0, 32, 32].bool(), first_near)
    shown = pair.rgb[torch.arange(len(pair)), pair.depth.argmax(1)]
    center = result.video[:, :, 0, 30:34, 30:34].mean((2, 3))
    assert (F.cosine_similarity(center, shown) > 0.995).all()


def test_the_background_is_nearer_at_the_bottom(scenes):
    depth = render(replace(scenes, start=scenes.start + 5.0), frames=1, what=("depth",)).depth[:, 0, 0]
    assert (depth.diff(dim=1) > 0).all()


def test_outlines_are_lines_of_the_stated_width(scenes):
    circle = replace(
        scenes,
        shape=torch.zeros_like(scenes.shape),
        count=torch.ones_like(scenes.count),
        start=torch.full_like(scenes.start, 0.5),
    )
    outline = render(circle, frames=1, what=("outline",)).outline
    length = 2 * math.pi * 0.95 * circle.radius[:, 0] * 64
    torch.testing.assert_close(outline.sum((1, 2, 3, 4)), length * OUTLINE_WIDTH, rtol=0.05, atol=0)
    assert outline[:, 0, 0, 32, 32].max() == 0.0


def test_sizes_agree_and_fine_grain_averages_away(scenes):
    small = render(scenes[:6], frames=2, what=("video",)).video
    large = render(scenes[:6], size=256, frames=2, what=("video",)).video
    pooled = F.avg_pool3d(large, (1, 4, 4))
    assert (pooled - small).abs().mean() < 0.02
    # At 256 every surface has the grain that pooling removes: no patch is flat.
    patches = large[:, :, 0].mean(1).unfold(1, 16, 16).unfold(2, 16, 16)
    assert patches.std(dim=(-1, -2)).min() > 0.008


def test_the_data_set_has_the_documented_mix():
    many = sample_scenes(scene_seeds(9, 0, 4000))
    assert abs((many.count == 2).float().mean() - 0.3) < 0.03
    pan = many.background_velocity
    alone = (pan != 0).any(1) & (many.velocity == pan[:, None]).all((1, 2)) & (many.acceleration == 0).all((1, 2))
    assert abs(alone.float().mean() - 0.2) < 0.03  # only the camera moves
    rest = many[(~alone).nonzero()[:, 0]]
    assert abs((rest.background_velocity != 0).any(1).float().mean() - 0.17) < 0.03
    assert abs((pan != 0).any(1).float().mean() - 1 / 3) < 0.03
    assert abs((rest.velocity[:, 0] == 0).all(1).float().mean() - 0.15) < 0.03
    assert abs((rest.acceleration[:, 0] != 0).any(1).float().mean() - 0.25) < 0.03
    centers = many.centers(torch.arange(16))
    assert centers.min() > 0.03 and centers.max() < 0.97
    # The first frame does not reveal the direction: objects near the middle move in all directions.
    middle = (centers[:, 0, 0] - 0.5).abs().amax(1) < 0.12
    assert middle.float().mean() > 0.3
    displacement = many.displacement()[middle, 0]
    assert ((displacement > 0.1).float().mean(0) - (displacement < -0.1).float().mean(0)).abs().max() < 0.1
    contrast = (many.rgb[:, :, None] - many.background_rgb[:, None]).norm(dim=-1)
    assert contrast.min() > 0.38
    assert (many.color[:, 0] != many.color[:, 1]).all()


@pytest.mark.parametrize(
    ("dx", "dy", "word"),
    [(1, 0, "right"), (-1, 0.1, "left"), (0, -1, "up"), (0.1, 1, "down"), (1, 1, "down and to the right"),
     (-1, -0.9, "up and to the left"), (0.8, -1, "up and to the right"), (-1, 1, "down and to the left")],
)  # fmt: skip
def test_direction_words(dx, dy, word):
    assert DIRECTION_WORDS[direction_class(torch.tensor([float(dx), dy]))] == word


def test_captions_are_correct(scenes):
    texts = captions(scenes, motion=1.0, background=1.0)
    direction, pace = motion_class(scenes)
    for i, text in enumerate(texts):
        assert text == text.lower()
        color, shape = COLOR_NAMES[scenes.color[i, 0]], SHAPES[scenes.shape[i, 0]]
        assert text.startswith((f"a {color} {shape} ", f"an {color} {shape} "))
        kind = BACKGROUNDS[scenes.background_kind[i]]
        assert kind in text and COLOR_NAMES[scenes.background_color[i, 0]] in text
        first = text.split(" and a")[0].split(" on ")[0].split(" in front")[0]
        if direction[i] == len(DIRECTION_WORDS):
            assert "standing still" in first
        else:
            assert DIRECTION_WORDS[direction[i]] in text.removeprefix(f"a {color}")
        assert ("slowly" in first) == bool(pace[i] == 1) and ("fast" in first) == bool(pace[i] == 2)
        other = f"{COLOR_NAMES[scenes.color[i, 1]]} {SHAPES[scenes.shape[i, 1]]}"
        assert (other in text) == bool(scenes.count[i] == 2)


def test_captions_vary_and_contain_only_the_requested_parts():
    many = sample_scenes(scene_seeds(9, 0, 1000))
    words = ("moving", "going", "standing still")
    plain = captions(many, motion=0.0, background=0.0)
    assert not any(word in text for text in plain for word in (*words, "background", "in front"))
    usual = captions(many)
    fraction = sum(any(word in text for word in words) for text in usual) / 1000
    assert abs(fraction - 0.5) < 0.05
    assert captions(many) == usual
    assert sum(a != b for a, b in zip(usual, captions(many, variation=1), strict=True)) > 500


def test_caption_tokens_equal_those_of_the_tokenizer(scenes):
    texts = captions(scenes) + captions(scenes, motion=1.0, background=1.0)
    assert torch.equal(caption_tokens(texts), tokenize(texts))


def test_scenes_index_like_a_sequence(scenes):
    assert len(scenes[2:5]) == 3 and len(scenes[-1]) == 1 and len(list(scenes)) == 24
    assert torch.equal(scenes[torch.tensor([3, 1])].seed, scenes.seed[torch.tensor([3, 1])])
    with pytest.raises(IndexError):
        scenes[24]
