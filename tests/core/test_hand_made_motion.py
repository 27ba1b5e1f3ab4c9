"""Motion made by hand: tracks, a box and an arrow, and camera moves."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vc_core.errors import UserError
from vc_core.extract.drawing import EASINGS, Rectangle, eased, place
from vc_core.extract.motion.camera import CameraMove, camera_field
from vc_core.extract.motion.tracks import Track, tracks_field

SIZE, FRAMES = (48, 64), 5
quick = settings(max_examples=20, deadline=None)


def track(*points) -> torch.Tensor:
    return torch.tensor(points, dtype=torch.float64)


def texture(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Smooth colours (3, ...) of places in pixels, defined everywhere."""
    waves = [(0.21, 0.13, 0), (-0.11, 0.24, 1), (0.17, -0.19, 2)]
    return torch.stack([0.5 + 0.4 * torch.sin(a * x + b * y + c) for a, b, c in waves])


def grid(size) -> tuple[torch.Tensor, torch.Tensor]:
    y, x = torch.meshgrid(*(torch.arange(side) + 0.5 for side in size), indexing="ij")
    return x, y


def sample(picture: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A picture (C, H, W) at places (h, w) in pixels, bilinearly."""
    height, width = picture.shape[-2:]
    places = torch.stack([x / width * 2 - 1, y / height * 2 - 1], dim=-1).to(picture)
    return F.grid_sample(picture[None], places[None], padding_mode="border", align_corners=False)[0]


def warped(video: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """Each frame but the first, made of the one before by the field: (C, F - 1, H, W)."""
    x, y = grid(video.shape[-2:])
    frames = range(1, video.shape[1])
    return torch.stack([sample(video[:, f - 1], x - field[0, 0, f], y - field[0, 1, f]) for f in frames], dim=1)


# --- easing and the canvas ------------------------------------------------------------------------------------


@pytest.mark.parametrize("easing", EASINGS)
def test_easings_go_from_0_to_1_and_never_back(easing):
    progress = eased(11, easing)
    assert progress[0] == 0 and progress[-1] == 1 and (progress.diff() > 0).all()
    first, last = progress.diff()[[0, -1]].tolist()
    assert (first < 0.06) == (easing in ("ease_in", "ease_in_out"))
    assert (last < 0.06) == (easing in ("ease_out", "ease_in_out"))
    assert eased(1, easing).tolist() == [0]


def test_easing_is_refused_in_one_sentence():
    with pytest.raises(UserError, match=r"Unknown easing 'bounce'\. Expected one of linear"):
        eased(4, "bounce")
    with pytest.raises(UserError, match="at least 1 frame, got 0"):
        eased(0)


def test_a_canvas_covers_the_video_as_an_image_of_its_size_would():
    corners = track((0, 0), (200, 100), (100, 50))
    assert place((100, 200), (50, 100)).to_video(corners).tolist() == [[0, 0], [100, 50], [50, 25]]
    # A canvas that is wider than the video gets the same height, and its sides are cut off.
    assert place((100, 200), (50, 50)).to_video(corners).tolist() == [[-25, 0], [75, 50], [25, 25]]
    x, y = place((100, 200), (50, 50)).pixels()
    assert (x[0], x[-1], y[0, 0]) == (51, 149, 1)
    with pytest.raises(UserError, match="canvas is 0x10"):
        place((10, 0), (8, 8))


# --- fields of tracks -----------------------------------------------------------------------------------------


def test_content_at_a_point_moves_with_it():
    points = track((10.5, 10.5), (20.5, 14.5), (24.5, 30.5), (24.5, 30.5), (20.5, 30.5))
    field = tracks_field([points], FRAMES, SIZE, radius=6)
    assert field.shape == (1, 2, FRAMES, *SIZE) and field.dtype == torch.float32
    assert not field[:, :, 0].any()
    for frame in range(1, FRAMES):
        x, y = (points[frame] - 0.5).int().tolist()
        assert field[0, :, frame, y, x].tolist() == (points[frame] - points[frame - 1]).tolist()
    at_first = field[0, :, 1, 10, 10]
    assert at_first.tolist() == [0, 0]  # the influence has left with the point
    assert (field[0, :, 3] == 0).all()  # the point rests


@pytest.mark.parametrize("falloff", ["gaussian", "hard"])
def test_influence_ends(falloff):
    field = tracks_field([track((20, 20), (24, 20))], 2, SIZE, radius=8, falloff=falloff)[0, 0, 1] / 4
    x, y = grid(SIZE)
    distance = torch.hypot(x - 24, y - 20)
    assert (field[distance > 13] == 0).all() and field.min() == 0
    if falloff == "hard":
        assert torch.equal(field == 1, distance <= 8) and torch.equal(field == 0, distance > 8)
    else:
        near = distance < 12
        assert torch.allclose(field[near], torch.exp(-0.5 * (distance[near] / 4) ** 2), atol=1e-5)


def test_where_tracks_overlap_they_blend():
    right, down = track((20, 20), (24, 20)), track((24, 16), (24, 20))
    single = tracks_field([right], 2, SIZE, radius=8)
    assert torch.allclose(tracks_field([right, right], 2, SIZE, radius=8), single, atol=1e-6)
    both = tracks_field([right, down], 2, SIZE, radius=8)
    assert torch.allclose(both[0, 0, 1], both[0, 1, 1]) and torch.allclose(both[0, 0], single[0, 0] / 2, atol=1e-6)
    far = track((50, 40), (46, 40))
    apart = tracks_field([right, far], 2, SIZE, radius=4)
    alone = tracks_field([right], 2, SIZE, radius=4), tracks_field([far], 2, SIZE, radius=4)
    assert torch.allclose(apart, sum(alone), atol=1e-6)
    # A track that does not move keeps its surroundings still.
    slowed = tracks_field([right, track((30, 20))], 2, SIZE, radius=8)[0, 0, 1]
    assert 0 < slowed[20, 27] < 0.6 * single[0, 0, 1, 20, 27]


@quick
@given(st.integers(-6, 6), st.integers(-6, 6), st.lists(st.tuples(*[st.floats(20, 40)] * 2), min_size=1, max_size=4))
def test_shifting_the_track_shifts_the_field(right, down, points):
    field = tracks_field([track(*points)], FRAMES, (60, 60), radius=9)
    moved = tracks_field([track(*points) + torch.tensor([right, down])], FRAMES, (60, 60), radius=9)
    assert torch.allclose(moved, field.roll((down, right), (-2, -1)), atol=1e-4)


@quick
@given(st.sampled_from([2, 3]), st.floats(2, 12), st.booleans())
def test_a_track_means_the_same_on_every_canvas(factor, radius, wider):
    drawn = [track((20, 10), (30, 40), (44, 20))]
    field = tracks_field(drawn, FRAMES, SIZE, radius=radius)
    scaled = [points * factor for points in drawn]
    canvas = tuple(side * factor for side in SIZE)
    assert torch.allclose(tracks_field(scaled, FRAMES, SIZE, canvas, radius * factor), field, atol=1e-4)
    if wider:  # the canvas stands out by 10 of its pixels on both sides
        shifted = [points + torch.tensor([10, 0]) for points in scaled]
        canvas = (canvas[0], canvas[1] + 20)
        assert torch.allclose(tracks_field(shifted, FRAMES, SIZE, canvas, radius * factor), field, atol=1e-4)


def test_a_mask_moves_with_its_track():
    points = track((20, 20), (23, 22), (30, 24), (30, 30), (26, 30))
    x, y = grid(SIZE)
    mask = ((x - 18).abs() < 6) & ((y - 22).abs() < 4)
    field = tracks_field([points], FRAMES, SIZE, mask=mask[None, None].float())
    for frame in range(1, FRAMES):
        dx, dy = (points[frame] - points[0]).int().tolist()
        inside = mask.roll((dy, dx), (-2, -1))
        step = (points[frame] - points[frame - 1]).float()[:, None, None]
        assert torch.allclose(field[0, :, frame], step * inside, atol=1e-4)
    # With a radius too, only what both reach.
    near = tracks_field([points], FRAMES, SIZE, mask=mask[None, None].float(), radius=3, falloff="hard")
    assert 0 < (near != 0).sum() < (field != 0).sum()


def test_a_mask_of_every_frame_is_used_unchanged():
    masks = torch.zeros(1, 1, 3, *SIZE)
    masks[..., 1, :10, :10] = masks[..., 2, 40:, 40:] = 1
    field = tracks_field([track((5, 5), (9, 7))], 3, SIZE, mask=masks)
    assert torch.equal(field, masks * torch.tensor([2.0, 1.0]).view(1, 2, 1, 1, 1))


def test_a_mask_up_to_the_edge_continues_beyond_it():
    field = tracks_field([track((10, 10), (30, 20))], FRAMES, SIZE, mask=torch.ones(1, 1, 6, 8))
    assert torch.allclose(field[:, :, 1:], torch.tensor([5.0, 2.5]).view(1, 2, 1, 1, 1).expand(-1, -1, 4, *SIZE))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tracks": []}, "at least one track"),
        ({"radius": 0}, "radius of influence .* above 0, got 0"),
        ({"radius": math.nan}, "radius of influence .* above 0, got nan"),
        ({"falloff": "soft"}, "gaussian, hard"),
        ({"mask": torch.ones(1, 1, 3, 8, 8)}, "1, 1, 5 or 1"),
        ({"mask": torch.full((1, 1, 8, 8), 255)}, "outside 0..1"),
        ({"canvas": (0, 8)}, "canvas"),
        ({"frames": 0}, "at least 1 frame, got 0"),
    ],
)
def test_tracks_that_cannot_be_drawn_are_reported(options, says):
    with pytest.raises(UserError, match=says):
        tracks_field(**({"tracks": [track((1, 1), (2, 2))], "frames": FRAMES, "size": SIZE} | options))


# --- boxes ----------------------------------------------------------------------------------------------------


def test_everything_in_a_box_moves_along_its_path():
    boxed = Track(track((30, 30), (34, 30), (34, 36)), Rectangle(8, 6, 24, 20))  # the path may begin anywhere
    field = tracks_field([boxed], 3, SIZE, radius=2)
    for frame, (left, top, step) in enumerate([(8, 6, (0, 0)), (12, 6, (4, 0)), (12, 12, (0, 6))]):
        expected = torch.zeros(2, *SIZE)
        expected[:, top : top + 14, left : left + 16] = torch.tensor(step).float()[:, None, None]
        assert torch.equal(field[0, :, frame], expected), frame
    tiny = Track(track((10, 10), (14, 10)), Rectangle(10.1, 10.1, 10.2, 10.2))
    assert (tracks_field([tiny], 2, SIZE)[0, 0, 1] != 0).sum() == 1  # not nothing


@pytest.mark.parametrize("easing", EASINGS)
def test_the_content_of_a_box_moves_with_it(easing):
    boxed = Track(track((0, 0), (16, 10)), Rectangle(8, 6, 24, 20))
    field, progress, (x, y) = tracks_field([boxed], FRAMES, SIZE, easing=easing), eased(FRAMES, easing), grid(SIZE)
    inside = (field != 0).any(dim=1).float()
    assert inside[0, -1].sum() == inside[0, -1, 16:30, 24:40].sum() == 16 * 14
    # What is in the box in the first frame is in it in the last one.
    video = torch.stack([texture(x - 16 * s, y - 10 * s) for s in progress], dim=1)
    within = F.max_pool2d(1 - inside[0, 1:, None], 5, stride=1, padding=2)[:, 0] == 0
    assert (warped(video, field) - video[:, 1:]).abs().amax(0)[within].max() < 0.02


# --- cameras --------------------------------------------------------------------------------------------------


def at(field: torch.Tensor, frame: int, place) -> np.ndarray:
    """The field at a place inside the frame. Fields of cameras are affine, so this is exact."""
    x, y = (torch.full((1, 1), float(value)) for value in place)
    return sample(field[0, :, frame], x, y)[:, 0, 0].numpy()


def test_content_moves_against_the_camera():
    pan = camera_field(CameraMove(pan=(0.5, -0.25)), 5, (40, 80))
    assert torch.allclose(pan[0, 0, 1:], torch.tensor(-10.0)) and torch.allclose(pan[0, 1, 1:], torch.tensor(2.5))
    zoom = camera_field(CameraMove(zoom=2), 2, (40, 80))  # the content goes outwards
    assert at(zoom, 1, (60, 30)) == pytest.approx([10, 5])
    roll = camera_field(CameraMove(roll=90), 2, (40, 80))  # clockwise: what is at the top now was at the right
    assert at(roll, 1, (40, 10)) == pytest.approx([-10, -10])
    for field in (pan, zoom, roll):
        assert not field[:, :, 0].any()


def test_a_clip_of_one_frame_does_not_move():
    assert camera_field(CameraMove(pan=(1, 1), zoom=3, roll=50), 1, SIZE).abs().max() == 0


moves = st.builds(
    CameraMove,
    pan=st.tuples(*[st.floats(-0.3, 0.3)] * 2),
    zoom=st.floats(0.5, 2),
    roll=st.floats(-90, 90),
    easing=st.sampled_from(list(EASINGS)),
)


def step_matrix(move: CameraMove, fraction: float, size) -> np.ndarray:
    """A step of a camera as a 3 x 3 matrix: the product of the single transforms."""
    height, width = size
    cx, cy = width / 2, height / 2
    angle, factor = math.radians(-move.roll * fraction), move.zoom**fraction
    to, back = np.eye(3), np.eye(3)
    to[:2, 2], back[:2, 2] = (-cx, -cy), (cx, cy)
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    shift = np.eye(3)
    shift[:2, 2] = -fraction * move.pan[0] * width, -fraction * move.pan[1] * height
    return shift @ back @ np.diag([factor, factor, 1]) @ turn @ to


@quick
@given(moves, st.floats(10, 54), st.floats(10, 38))
def test_cameras_are_exact(move, x, y):
    """At each place, the field is the displacement from the place that the inverse transform gives."""
    field = camera_field(move, FRAMES, SIZE)
    for frame in range(1, FRAMES):
        step = step_matrix(move, float(eased(FRAMES, move.easing).diff()[frame - 1]), SIZE)
        before = np.linalg.solve(step, [x, y, 1])[:2]
        assert at(field, frame, (x, y)) == pytest.approx(np.array([x, y]) - before, abs=1e-4)


def test_the_steps_of_a_roll_and_a_zoom_add_up():
    """Following a point along the field from the first frame to the last."""
    for move, target in ((CameraMove(roll=-90), (32, 34)), (CameraMove(zoom=2, easing="ease_in_out"), (52, 24))):
        field, here = camera_field(move, 16, SIZE), np.array([42.0, 24.0])
        for frame in range(1, 16):
            start = here
            for _ in range(60):  # the field is defined at the end of each step
                here = start + at(field, frame, here)
        assert here == pytest.approx(target, abs=1e-2)


def test_warping_each_frame_by_the_field_gives_the_next():
    move = CameraMove(pan=(0.1, -0.05), zoom=1.3, roll=25, easing="ease_out")
    field, (x, y), frames = camera_field(move, 8, (64, 64)), grid((64, 64)), []
    where = np.eye(3)
    for fraction in [0, *eased(8, "ease_out").diff().tolist()]:
        where = step_matrix(move, fraction, (64, 64)) @ where
        back = torch.from_numpy(np.linalg.inv(where)).float()
        frames.append(texture(*(row[0] * x + row[1] * y + row[2] for row in back[:2])))
    video = torch.stack(frames, dim=1)
    inside = (slice(None), slice(None), slice(6, -6), slice(6, -6))
    assert (warped(video, field) - video[:, 1:])[inside].abs().max() < 0.02
    assert (warped(video, -field) - video[:, 1:])[inside].abs().max() > 0.3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"zoom": 0}, "zoom is 0"),
        ({"zoom": math.inf}, "camera's zoom"),
        ({"roll": math.nan}, "camera's roll"),
        ({"pan": (0, math.inf)}, "camera's pan"),
    ],
)
def test_impossible_cameras_are_reported(options, says):
    with pytest.raises(UserError, match=says):
        CameraMove(**options)
