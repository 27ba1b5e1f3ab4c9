"""Conditions of a video with one length and size, adapted to another."""

import pytest
import torch

from vc_core.conditions import CONDITIONS, condition_size
from vc_core.config import ExtractionConfig
from vc_core.extract.refit import refit

POINTS, DENSE = ExtractionConfig(), ExtractionConfig("dense", "pixels", "edges", "relative")


def condition_for(name, size, frames):
    spec = CONDITIONS[name]
    count = 1 if spec.kind == "spatial" else frames
    tensor = torch.rand(1, spec.channels, count, *condition_size(name, size))
    if name == "motion":
        tensor[:, :, 0] = 0
    return tensor


@pytest.mark.parametrize("name", CONDITIONS)
def test_any_length_and_size(name):
    tensor = condition_for(name, (64, 64), 16)
    assert refit(name, tensor, (64, 64), 16, DENSE) is tensor
    for size, frames in (((64, 96), 16), ((128, 128), 9), ((64, 64), 30), ((32, 32), 1)):
        fitted = refit(name, tensor, size, frames, DENSE)
        count = 1 if CONDITIONS[name].kind == "spatial" else frames
        assert fitted.shape == (1, CONDITIONS[name].channels, count, *condition_size(name, size))


@pytest.mark.parametrize("frames", [2, 7, 16, 17, 31, 100])
@pytest.mark.parametrize("extraction", [DENSE, POINTS])
def test_objects_end_at_the_same_place(frames, extraction):
    field = torch.zeros(1, 2, 16, 64, 64)
    field[:, 0, 1:] = 1.5
    total = refit("motion", field, (64, 64), frames, extraction).sum(2)
    torch.testing.assert_close(total, field.sum(2), rtol=1e-5, atol=1e-5)


def test_vectors_in_pixels_of_the_video_are_scaled_with_it():
    field = torch.zeros(1, 2, 4, 64, 64)
    field[:, 1, 1:] = 2.0
    assert refit("motion", field, (128, 128), 4, DENSE)[0, 1, 1:].unique().tolist() == [4.0]
    assert refit("motion", field, (128, 128), 4, POINTS)[0, 1, 1:].unique().tolist() == [2.0]


def test_a_mask_stays_sharp_and_what_is_painted_stays_empty():
    keep = torch.zeros(1, 1, 2, 96, 96)
    keep[..., :40] = 1
    mask = torch.cat([(torch.rand(1, 3, 2, 96, 96) * 2 - 1) * keep, keep], dim=1)
    fitted = refit("mask", mask, (88, 104), 2, DENSE)
    assert fitted[:, 3].unique().tolist() == [0.0, 1.0]
    assert not (fitted[:, :3] * (1 - fitted[:, 3:])).any()
