"""The measures of the evaluation: of scenes compared with themselves, which is perfect, and with other scenes."""

import math

import pytest
import torch

from training.data.synthetic.render import render
from training.data.synthetic.scenes import DIRECTION_WORDS, SHAPES
from training.evaluate.camera import camera_step, visible_axes
from training.evaluate.examples import after_first, held_out_clips, held_out_scenes
from training.evaluate.judge import load_judge
from training.evaluate.measures import (
    MEASURES,
    SLOWEST,
    Features,
    direction,
    displacement,
    displacement_error,
    displacement_fraction,
    endpoint_error,
    equal,
    nearer_palette,
    neighbour_similarity,
    object_steps,
    outline_gradient,
    outline_overlap,
    outlines,
    overlap,
    palette_distance,
    path,
    path_error,
    pixel_error,
    similarity,
)
from training.evaluate.objects import NOTHING, SIDE, find_objects, shapes_of
from training.evaluate.statistics import estimate, explained, slope
from vc_core.composer import VideoComposer

COUNT = 12


@pytest.fixture(scope="module")
def composer():
    return VideoComposer.load()


@pytest.fixture(scope="module")
def clips(composer):
    """Clips for the evaluation of the bundled checkpoint."""
    return held_out_clips(COUNT, composer.config)


@pytest.fixture(scope="module")
def features(clips, composer):
    """Features of the scenes themselves, as of composed videos."""
    return Features((clips.truth.video * 255).round().to(torch.uint8), clips.texts, load_judge(None, composer))


PERFECT = {  # minimum figures of the scenes themselves, or maximum if low is better
    "consistency": 0.98, "similarity": 0.6, "colour": 1.0, "shape": 1.0, "style_similarity": 0.97, "first_frame": 0.003,
    "direction": 1.0, "sharpness": 1.0, "style_palette": 1.0, "style_palette_beside_text": 1.0,
    **dict.fromkeys(("motion_slope", "motion_r2", "object_slope", "object_r2", "camera_slope", "camera_r2"), 0.97),
    "single_sketch_overlap": 0.99, "outline_overlap": 0.99, "sketch_overlap": 0.95, "depth_overlap": 0.95,
    "mask_overlap": 0.95, "kept": 0.003, "endpoint": 0.01, "path": 0.01,
    "displacement": 0.01, "motion_control": 0.001,
    "way": 0.97, "way_slow": 0.9, "way_middle": 0.97, "way_fast": 0.97, "motion_consistency": 0.98,
}  # fmt: skip


@pytest.mark.parametrize("name", PERFECT)
def test_scenes_score_perfectly_against_themselves_and_badly_against_others(name, features, clips):
    row = MEASURES[name]
    another = Features(
        features.pixels, clips.texts[1:] + clips.texts[:1], features.judge
    )  # with the same cached values
    another.__dict__.update({key: value for key, value in features.__dict__.items() if key not in ("texts", "pixels")})
    figures = row.of(features, clips.truth), row.of(another, clips.truth.of(torch.arange(COUNT).roll(-1)))
    own, other = (estimate(values[:, None].numpy(), row.statistic).mean for values in figures)
    if row.relative:
        own, other = own / own, other / own
    if row.better == "low":
        assert own <= PERFECT[name] and other > max(3 * own, 0.01)
    elif row.better == "high":
        chance = 0.5 if "palette" in name else 0.0  # one of two palettes is always closer
        assert own >= PERFECT[name] and other < (0.85 if chance else 0.6) * own
    else:
        assert own >= PERFECT[name]
        if "slope" in name:
            assert abs(own - 1) < 0.03 and abs(other) < 0.5
        if "way" in name:  # per scene: too far in one scene does not compensate too short in another
            off, off_other = ((values - 1).abs().nanmean() for values in figures)
            assert off <= 0.1 and off_other > 0.3


def test_objects_are_completely_visible_at_first_and_partly_later(clips):
    mask = clips.truth.mask
    first = mask[:, 0]
    assert not first[..., [0, -1], :].any() and not first[..., [0, -1]].any()
    area = mask.sum((-2, -1)).float()
    assert (area.amin(1) / area[:, 0]).min() > 0.5


def test_every_measure_has_a_known_trial_and_is_in_the_table_above():
    from training.evaluate.trials import TRIALS

    assert {row.trial for row in MEASURES.values()} == set(TRIALS)
    # Those that require an optical flow are in test_evaluate_tracking.py.
    assert set(PERFECT) == {name for name, row in MEASURES.items() if not row.needs_flow}


# --- Objects --------------------------------------------------------------------------------------------------------


def test_objects_are_found_at_any_size():
    scenes = held_out_scenes(6)
    for size in (64, 100):
        objects = find_objects(render(scenes, size, 16, what=("video",)).video)
        assert objects.color.tolist() == scenes.color[:, 0].tolist()
        assert shapes_of(objects.mask).tolist() == scenes.shape[:, 0].tolist()


def test_nothing_is_found_on_a_background_without_an_object():
    scenes = held_out_scenes(8)
    video = render(scenes, SIDE, 3, what=("video", "object_mask"))
    ground = scenes.background_rgb[:, 0, :, None, None, None]  # the object painted over
    empty = torch.where(
        torch.nn.functional.max_pool3d(video.object_mask, (1, 5, 5), 1, (0, 2, 2)) > 0, ground, video.video
    )
    assert (find_objects(empty).color == NOTHING).all()
    features = Features(empty, [""] * 8, None)
    assert path(features.objects.mask).isnan().all()
    assert shapes_of(features.objects.mask).tolist() == [NOTHING] * 8


def test_nothing_counts_as_wrong_even_if_nothing_is_the_truth():
    assert equal(torch.tensor([0, 1, NOTHING, NOTHING]), torch.tensor([0, 2, 1, NOTHING])).tolist() == [1, 0, 0, 0]


def test_objects_are_recognized_in_frames_that_show_them_completely():
    at = torch.arange(SIDE) + 0.5
    y, x = torch.meshgrid(at, at, indexing="ij")
    mask = torch.zeros(1, 4, SIDE, SIDE, dtype=torch.bool)
    for frame, middle in enumerate((30, -6, -6, -6)):  # the last three frames show only the lower rim
        far = torch.hypot(x - 30, y - middle)
        mask[0, frame] = (far > 5.4) & (far < 11.9)
    ring = SHAPES.index("ring")
    assert shapes_of(mask).item() == ring != shapes_of(mask[:, 1:]).item()


def test_the_colours_of_many_objects_are_found():
    scenes = held_out_scenes(60)
    objects = find_objects(render(scenes, SIDE, 2, what=("video",)).video)
    assert (objects.color == scenes.color[:, 0]).float().mean() > 0.96


# --- Motion ---------------------------------------------------------------------------------------------------------


def block(*corners):
    """Return masks (1, F, 32, 32) of a square of 8 pixels with its corner at these positions."""
    mask = torch.zeros(1, len(corners), 32, 32, dtype=torch.bool)
    for frame, (x, y) in enumerate(corners):
        mask[0, frame, y : y + 8, x : x + 8] = True
    return mask


def test_paths_are_relative_to_their_start():
    measured, target = block((4, 4), (20, 20), (12, 2)), block((0, 8), (16, 16), (8, 10))
    assert path(measured)[0].tolist() == [[0, 0], [0.5, 0.5], [0.25, -2 / 32]]
    assert path_error(measured, target).item() == pytest.approx((8 / 32 + 4 / 32) / 2)
    assert displacement_error(measured, target).item() == pytest.approx(4 / 32)


def test_frames_without_the_object_are_left_out_of_its_path():
    assert path_error(block((8, 8), (40, 40), (8, 12)), block((8, 8), (8, 8), (8, 8))).item() == pytest.approx(4 / 32)
    assert path_error(block((40, 40), (8, 8)), block((8, 8), (8, 8))).isnan().all()


def test_the_displacement_fraction_is_1_along_0_across_and_minus_1_backwards():
    target = block((8, 8), (16, 8))
    for end, fraction in (((16, 8), 1.0), ((12, 8), 0.5), ((8, 16), 0.0), ((0, 8), -1.0)):
        assert displacement_fraction(block((8, 8), end), target).item() == pytest.approx(fraction)
    assert displacement_error(block((8, 8), (8, 8)), target).item() == pytest.approx(8 / 32)


def test_lost_objects_and_static_targets_have_no_displacement_fraction():
    target, lost = block((8, 8), (16, 8)), block((8, 8), (40, 40))
    assert displacement_error(lost, target).isnan().all()
    assert displacement_fraction(target, block((8, 8), (8, 8))).isnan().all()
    assert displacement_fraction(target, target, fastest=0.1).isnan().all()
    assert displacement_fraction(target, target, slowest=0.2, fastest=0.3).item() == pytest.approx(1.0)


def test_the_end_point_error_counts_only_in_the_mask():
    mask = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    mask[:, :, 0] = True  # the upper half
    target = torch.zeros(1, 2, 2, 4, 4)
    target[0, 0, 1, :2] = 0.1
    assert after_first(mask, (4, 4)).sum() == 8  # none of the first frame
    motion = torch.zeros_like(target)
    motion[0, 1, 1] = 0.05
    assert endpoint_error(motion, target, after_first(mask, (4, 4))).item() == pytest.approx(math.hypot(0.1, 0.05))
    assert endpoint_error(motion, target, after_first(~mask, (4, 4))).item() == pytest.approx(0.05)
    assert endpoint_error(motion, target, after_first(mask & False, (4, 4))).isnan().all()


def test_directions_are_between_the_first_and_the_last_frame_that_show_the_object():
    eight = [(16, 8), (16, 16), (8, 16), (0, 16), (0, 8), (0, 0), (8, 0), (16, 0)]  # in the order of DIRECTION_WORDS
    for number, corner in enumerate(eight):
        assert direction(block((8, 8), corner)).item() == number
    assert direction(block((8, 8), (8, 8))).item() == len(DIRECTION_WORDS)  # it stands still
    assert direction(block((40, 40), (8, 8), (16, 8), (40, 40))).item() == 0
    assert direction(block((40, 40), (40, 40))).item() == NOTHING
    assert displacement(block((40, 40), (8, 8), (16, 8))).tolist() == [[0.25, 0.0]]


def test_slow_targets_do_not_count_and_lost_objects_are_missing():
    target, lost = block((8, 8), (16, 8)), block((8, 8), (40, 40))
    assert object_steps(target, target)[0].tolist() == [[0.25, 0.25], [0.0, 0.0]]
    assert object_steps(target, block((8, 8), (8, 8))).isnan().all()
    missing = object_steps(lost, target)
    assert missing[0, :, 0].tolist() == [0.25, 0.0] and missing[0, :, 1].isnan().all()
    assert estimate(missing[:, None].numpy(), slope).missing == 1.0


@pytest.fixture(scope="module")
def panned():
    """Scenes with a moving camera, their videos, and the masks of their objects."""
    scenes = held_out_scenes(60)
    scenes = scenes[(scenes.background_velocity.norm(dim=1) >= SLOWEST).nonzero(as_tuple=True)[0][:16]]
    rendered = render(scenes, SIDE, 16, what=("video", "object_mask"))
    return scenes, rendered.video, rendered.object_mask[:, 0] > 0.5


def camera_line(panned, video, mask=None):
    """Return slope and R² of the line through target and measured camera steps."""
    scenes, clean, objects = panned
    axes = visible_axes(clean, objects)
    step = camera_step(video, objects if mask is None else mask)
    pairs = torch.stack([torch.einsum("bki,bi->bk", axes, motion) for motion in (scenes.background_velocity, step)], 2)
    return estimate(pairs[:, None].numpy(), slope).mean, estimate(pairs[:, None].numpy(), explained).mean


def test_camera_motion_is_measured_behind_objects_and_with_noise(panned):
    _, video, objects = panned
    noisy = (video + 0.02 * torch.randn(video.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    for frames, least in ((video, 0.99), (noisy, 0.98)):
        slope, explained = camera_line(panned, frames)
        assert abs(slope - 1) < 0.04 and explained > least
    slope, explained = camera_line(panned, video.flip(2))
    assert abs(slope + 1) < 0.04  # backwards
    slope, _ = camera_line(panned, video[:, :, :1].expand_as(video))
    assert abs(slope) < 1e-3
    slope, _ = camera_line(panned, video[:, :, ::2], objects[:, ::2])
    assert abs(slope - 2) < 0.08
    assert camera_line(panned, video, objects & False)[1] < explained  # objects would count as background


def test_motion_of_stripes_is_visible_only_across_them():
    at = torch.arange(64) / 64
    y, x = torch.meshgrid(at, at, indexing="ij")
    stripes = (0.5 + 0.4 * torch.sin(20 * (x + y))).expand(1, 3, 4, 64, 64)
    checks = stripes * (0.5 + 0.4 * torch.sin(20 * (x - y)))
    nowhere = torch.zeros(1, 4, 64, 64, dtype=torch.bool)
    across, along = visible_axes(stripes, nowhere)[0]
    assert across.abs().tolist() == pytest.approx([0.5**0.5] * 2, abs=1e-3) and along.isnan().all()
    assert visible_axes(checks, nowhere)[0].tolist() == [[1, 0], [0, 1]]


# --- Outlines, pixels, embeddings -----------------------------------------------------------------------------------


def test_outlines_may_be_a_pixel_off_but_not_more():
    lines = torch.zeros(1, 1, 20, 20, dtype=torch.bool)
    lines[..., 8, 4:16] = True
    assert outline_overlap(lines, lines).item() == 1
    assert outline_overlap(lines.roll(1, -2), lines).item() == 1
    assert outline_overlap(lines.roll(4, -2), lines).item() == 0
    assert outline_overlap(lines | lines.roll(6, -2), lines).item() == pytest.approx(2 / 3)  # half of them are wrong
    assert outline_overlap(lines & False, lines).item() == 0
    assert overlap(lines.roll(6, -1), lines).item() == pytest.approx(6 / 18)


def test_outlines_are_those_of_the_objects():
    video = torch.full((1, 3, 1, 64, 64), 0.2)
    video[..., 20:44, 20:44] = 0.9
    lines = outlines(video)[0, 0]
    assert lines[40:56, 40:56].sum() == 0 and lines.sum() > 60


def test_blurred_outlines_are_less_sharp_and_noise_makes_them_hardly_sharper(clips):
    from kornia.filters import gaussian_blur2d

    video, mask = clips.truth.video, clips.truth.mask
    own = outline_gradient(video, mask)

    def sharpness(video):
        return (outline_gradient(video, find_objects(video).mask) / own).nanmean().item()

    def blurred(sigma):
        frames = gaussian_blur2d(video.transpose(1, 2).flatten(0, 1), (13, 13), (sigma, sigma))
        return frames.unflatten(0, (COUNT, -1)).transpose(1, 2)

    noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(0))
    assert sharpness(video) == pytest.approx(1, abs=0.02)
    assert sharpness(blurred(1.0)) < 0.8 and sharpness(blurred(2.0)) < 0.5
    assert sharpness((video + 0.05 * noise).clamp(0, 1)) < 1.06
    assert outline_gradient(video, mask & False).isnan().all()


def test_a_palette_does_not_depend_on_positions():
    video, image = torch.zeros(1, 3, 4, 8, 8), torch.zeros(1, 3, 16, 16)
    video[:, 0, ..., :2] = 1.0  # a quarter of it red
    image[:, 0, 12:] = 1.0
    assert palette_distance(video, image).item() < 1e-6
    other = image.clone()
    other[:, 1, 8:] = 1.0
    assert palette_distance(video, other).item() > 0.05
    assert nearer_palette(video, image, other).item() == 1 and nearer_palette(video, other, image).item() == 0


def test_pixel_errors_are_root_mean_squares_where_they_count():
    video, truth = torch.zeros(1, 3, 1, 2, 2), torch.zeros(1, 3, 1, 2, 2)
    video[..., 0, :] = 0.5
    where = torch.zeros(1, 1, 1, 2, 2, dtype=torch.bool)
    where[..., 1, :] = True
    assert pixel_error(video, truth).item() == pytest.approx(math.sqrt(0.125))
    assert pixel_error(video, truth, where).item() == 0 and pixel_error(video, truth, ~where).item() == 0.5


def test_similarities_are_mean_cosines():
    frames = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]])
    assert neighbour_similarity(frames).item() == pytest.approx(0.5)
    assert similarity(frames, torch.tensor([[3.0, 0.0]])).item() == pytest.approx(2 / 3)
