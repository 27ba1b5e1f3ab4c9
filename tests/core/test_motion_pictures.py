"""Pictures of motion fields, for people to look at."""

import pytest
import torch

from vc_core.errors import UserError
from vc_core.extract.drawing import Rectangle
from vc_core.extract.motion.camera import CameraMove, camera_field
from vc_core.extract.motion.tracks import Track, tracks_field
from vc_core.extract.pictures import SMALLEST, arrows_picture, flow_picture


def single_vector(dx: float, dy: float, x: int = 32, y: int = 24) -> torch.Tensor:
    field = torch.zeros(1, 2, 2, 48, 64)
    field[0, :, 1, y, x] = torch.tensor([dx, dy])
    return field


def constant(dx: float, dy: float) -> torch.Tensor:
    field = torch.zeros(1, 2, 2, 16, 16)
    field[0, :, 1] = torch.tensor([dx, dy]).view(2, 1, 1)
    return field


@pytest.mark.parametrize(
    ("vector", "colour"),
    [((1, 0), (1, 0, 0)), ((-1, 0), (0, 1, 1)), ((0, 1), (1, 0.8, 0)), ((0, -1), (0.5, 0, 1))],
)
def test_flow_has_the_colours_of_the_wheel(vector, colour):
    picture = flow_picture(constant(*vector), full=1)
    assert picture.shape == (1, 3, 2, 16, 16)
    assert picture[:, :, 0].min() == 1  # rest is white
    assert picture[0, :, 1, 0, 0].numpy() == pytest.approx(colour, abs=0.2)
    pale = flow_picture(constant(*vector), full=2)[0, :, 1, 0, 0]
    assert torch.allclose(1 - pale, (1 - picture[0, :, 1, 0, 0]) / 2, atol=0.01)
    assert torch.allclose(flow_picture(constant(*vector), full=0.1), picture, atol=0.01)  # no more than full


def test_a_stray_vector_does_not_pale_the_rest():
    field = constant(1, 0)
    field[0, :, 1, 0, 0] = torch.tensor([10_000.0, 0.0])
    assert flow_picture(field)[0, 1, 1, 8, 8] < 0.8
    assert flow_picture(constant(0, 0)).min() == 1


def test_flow_of_sparse_vectors_can_be_seen():
    coloured = (flow_picture(single_vector(3, 0)) < 0.9).any(dim=1)[0, 1]
    assert 9 <= coloured.sum() <= 49 and coloured[24, 32]
    dense = torch.zeros(1, 2, 2, 48, 64)
    dense[0, 0, 1, 10:20, 10:20] = 1
    assert (flow_picture(dense) < 1).any(dim=1).sum() == 100  # what is dense is shown as it is


def test_arrows_show_where_content_came_from():
    frames = torch.rand(1, 3, 2, 48, 64)
    picture = arrows_picture(single_vector(8, 0), frames, gain=1)
    scale = -(-SMALLEST // 48)
    assert picture.shape == (1, 3, 2, 48 * scale, 64 * scale) and min(picture.shape[-2:]) >= SMALLEST
    plain = arrows_picture(torch.zeros(1, 2, 2, 48, 64), frames)
    assert torch.equal(picture[:, :, 0], plain[:, :, 0])  # nothing moves at the first frame
    drawn = (picture != plain).any(dim=1)[0, 1]
    y, x = drawn.nonzero(as_tuple=True)
    assert x.max() / scale == pytest.approx(32.5, abs=1) and x.min() / scale == pytest.approx(24.5, abs=1)
    assert y.float().mean() / scale == pytest.approx(24.5, abs=0.3)
    thickness = drawn.sum(dim=0)
    assert thickness[int(31.8 * scale)] > thickness[int(26 * scale)]  # the head is where the content is now
    longer = (arrows_picture(single_vector(8, 0), frames, gain=2) != plain).any(dim=1)[0, 1]
    assert longer.nonzero()[:, 1].min() / scale == pytest.approx(16.5, abs=1)


def test_small_frames_are_enlarged_by_an_integer_factor():
    frames = torch.rand(1, 3, 2, 48, 64)
    scale = -(-SMALLEST // 48)
    picture = arrows_picture(torch.zeros(1, 2, 2, 48, 64), frames)
    enlarged = frames.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    assert torch.allclose(picture, enlarged, atol=0.51 / 255)


def test_arrows_of_a_dense_field_are_on_a_grid():
    picture = arrows_picture(camera_field(CameraMove(pan=(0.2, 0.1)), 3, (64, 64)), torch.zeros(1, 3, 1, 16, 16))
    assert picture.shape == (1, 3, 3, 256, 256)
    yellow = (picture[0, 0, 2] > 0.7) & (picture[0, 2, 2] < 0.4)
    cells = yellow.float().unfold(0, 32, 32).unfold(1, 32, 32).mean(dim=(-1, -2))
    assert (cells > 0.02).all() and (cells < 0.6).all()
    box = arrows_picture(
        tracks_field([Track(torch.tensor([[0.0, 0.0], [2.0, 2.0]]), Rectangle(0, 0, 16, 16))], 3, (64, 64))
    )
    assert torch.equal(box[0, :, 2, 128:, 128:], torch.full((3, 128, 128), 115 / 255))  # no arrows where nothing is


def test_pictures_of_what_is_not_a_field_are_reported():
    for function in (flow_picture, arrows_picture):
        with pytest.raises(UserError, match=r"\(1, 2, frames"):
            function(torch.zeros(1, 3, 2, 8, 8))
    with pytest.raises(UserError, match="frames under the arrows"):
        arrows_picture(single_vector(1, 1), torch.rand(1, 3, 5, 48, 64))


@pytest.mark.parametrize("length", [0.1, 30])
def test_arrows_fit_their_cells_however_far_content_moves(length):
    field = single_vector(0, length)
    drawn = (arrows_picture(field) != arrows_picture(torch.zeros_like(field))).any(dim=1)[0, 1]
    y, _ = drawn.nonzero(as_tuple=True)
    assert (y.max() - y.min()) / 6 == pytest.approx(1.25 * 3, abs=0.7)  # 6 pixels for each, cells of 3
