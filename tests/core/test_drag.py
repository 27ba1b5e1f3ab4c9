"""Cut and drag: where the points of an image move, and the draft that they give."""

import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vc_core import cli
from vc_core.commands import drafts
from vc_core.extract.drawing import Rectangle
from vc_core.extract.motion.camera import CameraMove, camera_field
from vc_core.extract.motion.drag import camera_paths, drag, filled, tracks_paths
from vc_core.extract.motion.tracks import Track

SIZE, FRAMES = (48, 64), 5
RIGHT = Track(torch.tensor([[20.0, 24.0], [32.0, 24.0]]).double())
BOXED = Track(RIGHT.points, Rectangle(12, 16, 28, 32))


def square():
    """A red square on a grey ground that becomes brighter to the right, (1, 3, 48, 64)."""
    image = torch.linspace(0.2, 0.6, SIZE[1]).expand(1, 3, *SIZE).clone()
    image[:, :, 20:28, 16:24] = torch.tensor([0.9, 0.0, 0.0]).view(1, 3, 1, 1)
    return image


def along(*tracks, **options):
    return lambda points: tracks_paths(tracks, FRAMES, SIZE, points, **options)


def centre(frame):
    """The centre of the red of a frame (3, H, W), as x and y."""
    red = (frame[0] - frame[1]).clamp(min=0)
    y, x = (torch.arange(side) + 0.5 for side in frame.shape[1:])
    return [float((red * x).sum() / red.sum()), float((red * y[:, None]).sum() / red.sum())]


@pytest.mark.parametrize("move", [CameraMove((0.2, -0.1)), CameraMove(zoom=1.3), CameraMove((0.1, 0.0), 0.8, 20.0)])
def test_a_camera_moves_points_along_its_field(move):
    points = torch.tensor([[32.0, 24.0], [28.0, 20.0], [40.0, 30.0]])
    paths, field = camera_paths(move, FRAMES, SIZE, points), camera_field(move, FRAMES, SIZE)
    assert torch.equal(paths[0], points)
    for number in range(1, FRAMES):
        grid = paths[number] / torch.tensor([64.0, 48.0]) * 2 - 1
        step = F.grid_sample(field[:, :, number], grid[None, None], align_corners=False)[0, :, 0].T
        torch.testing.assert_close(paths[number] - paths[number - 1], step, atol=1e-3, rtol=0)


def test_tracks_move_what_is_near_as_one():
    points = torch.tensor([[20.0, 24.0], [22.0, 22.0], [50.0, 24.0]])
    paths = along(RIGHT)(points)
    assert torch.equal(paths[-1] - points, torch.tensor([[12.0, 0.0], [12.0, 0.0], [0.0, 0.0]]))
    torch.testing.assert_close(paths[:, 0, 0], torch.linspace(20, 32, FRAMES))
    assert torch.equal(along(RIGHT, radius=1.0)(points)[-1, 1], points[1])
    far = torch.tensor([[12.5, 16.5], [29.0, 24.0]])  # inside and outside the box
    assert torch.equal(along(BOXED)(far)[-1] - far, torch.tensor([[12.0, 0.0], [0.0, 0.0]]))
    assert torch.equal(along(RIGHT, RIGHT)(points), along(RIGHT)(points))


def test_a_mask_says_what_moves():
    mask = torch.zeros(1, 1, 1, *SIZE)
    mask[..., 20:28, 16:24] = 1
    points = torch.tensor([[17.0, 21.0], [26.0, 24.0]])
    assert torch.equal(along(RIGHT, mask=mask)(points)[-1] - points, torch.tensor([[12.0, 0.0], [0.0, 0.0]]))


def test_a_point_that_is_not_visible_moves_nothing():
    hidden = Track(RIGHT.points, visible=torch.tensor([True, False]))
    assert torch.equal(along(hidden)(RIGHT.points[:1].float())[-1], RIGHT.points[:1].float())


@pytest.mark.parametrize("distance", [2.0, 12.0], ids=["slow", "fast"])
def test_the_draft_shows_the_motion_and_what_is_behind(distance):
    track = Track(torch.tensor([[20.0, 24.0], [20.0 + distance, 24.0]]).double(), Rectangle(16, 20, 24, 28))
    image = square()
    draft = drag(image, SIZE, along(track), 0.5, 0.9)
    assert torch.equal(draft.init[:, :, 0], image)
    for number in range(FRAMES):
        x, y = centre(draft.init[0, :, number])
        assert abs(x - 20 - distance * number / (FRAMES - 1)) < 0.4 and abs(y - 24) < 0.3
    red = (draft.init[0, 0] - draft.init[0, 1] > 0.2).sum((1, 2))
    assert red.max() - red.min() <= 16  # nothing of the square stays behind
    assert (draft.init[0, :, :, :, 40:] - image[0, :, None, :, 40:]).abs().max() < 0.02  # nothing else moves


def test_the_mask_marks_what_moves():
    draft = drag(square(), SIZE, along(BOXED), 0.5, 0.9, grow=2)
    assert draft.mask.shape == (1, 1, FRAMES, *SIZE)
    assert sorted(draft.mask.unique().tolist()) == pytest.approx([0.5, 0.9])
    for number in range(FRAMES):
        inside = (draft.mask[0, 0, number] < 0.7).nonzero()
        shift = round(12 * number / (FRAMES - 1))
        assert inside.amin(0).tolist() == [14, 10 + shift] and inside.amax(0).tolist() == [33, 29 + shift]
    everything = drag(
        square(), SIZE, lambda points: camera_paths(CameraMove((0.25, 0)), FRAMES, SIZE, points), 0.5, 0.9
    )
    assert (everything.mask[0, 0, -1, :, :44] < 0.7).all() and (everything.mask[0, 0, -1, :, 54:] > 0.7).all()


def test_the_edge_is_filled_with_what_is_near_under_a_camera():
    """A square in the middle moves with the camera, too: it must not be taken for what is behind."""
    image = square()
    image[:, :, 20:28, 16:24], image[:, :, 20:28, 28:36] = 0.4, torch.tensor([0.9, 0.0, 0.0]).view(1, 3, 1, 1)
    move = CameraMove((0.15, 0.0), 1.2, 5.0)
    draft = drag(image, SIZE, lambda points: camera_paths(move, FRAMES, SIZE, points), 0.5, 0.9)
    red = draft.init[0, 0] - draft.init[0, 1] > 0.2
    assert red.any() and not red[..., 44:].any()


def test_an_object_may_cross_the_edge():
    track = Track(torch.tensor([[8.0, 24.0], [20.0, 24.0]]).double(), Rectangle(0, 8, 16, 40))
    draft = drag(square(), SIZE, along(track), 0.5, 0.9)
    assert (draft.init[0, :, :, :, 40:] - square()[0, :, None, :, 40:]).abs().max() < 0.02


def test_holes_are_filled_from_their_surroundings():
    image = torch.zeros(1, 1, 16, 16)
    image[..., :8], known = 1.0, torch.ones(1, 1, 16, 16, dtype=torch.bool)
    known[..., 4:12, 2:6] = False
    damaged = torch.where(known, image, 100.0)
    torch.testing.assert_close(filled(damaged, known)[..., 2:6], image[..., 2:6])
    assert torch.equal(filled(damaged, known)[known], image[known])


def test_compose_starts_from_the_dragged_image(tiny_checkpoint, tmp_path, monkeypatch):
    Image.fromarray((square()[0].movedim(0, -1) * 255).byte().numpy()).save(tmp_path / "first.png")
    (tmp_path / "tracks.json").write_text(json.dumps([{"x": 20, "y": 24}, {"x": 32, "y": 24}]))
    passed = {}

    def watched(image, size, paths, inside, outside):
        passed.update(size=size, paths=paths, fractions=(inside, outside))
        return drag(image, size, paths, inside, outside)

    monkeypatch.setattr(drafts, "drag", watched)
    arguments = [
        *("compose", "--checkpoint", tiny_checkpoint, "--steps", 2, "--image", tmp_path / "first.png"),
        *("--tracks", tmp_path / "tracks.json", "--canvas", "64x48", "--pan", "0.1,0", "--drag", "--drag-inside", 0.4),
        *("--frames", 3, "-o", tmp_path / "out.webp"),
    ]
    assert cli.main([str(argument) for argument in arguments]) == 0
    assert passed["size"] == (32, 40) and passed["fractions"] == (0.4, 0.75)
    points = torch.tensor([[13.0, 16.0], [36.0, 16.0]])  # the first is at the track: (20 * 2/3 - 4/3, 24 * 2/3)
    moved = passed["paths"](points)[-1] - points
    torch.testing.assert_close(moved, torch.tensor([[8.0 - 4.0, 0.0], [-4.0, 0.0]]), atol=0.01, rtol=0)
