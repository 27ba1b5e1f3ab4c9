"""The bundled checkpoint obeys each of its inputs: each test fails if that input does not reach the network.

`test_demo.py` has motion, depth, mask and sketches.
"""

import pytest
import torch

from vc_core import Condition, Sampling, Style, VideoComposer, compose
from vc_core.checkpoint.reading import BUNDLED
from vc_core.demo import CLEAN, RED, STRIPES, draw_clip, follow
from vc_core.extract.sources import Options, Source, extract

YELLOW, GREEN = (0.97, 0.89, 0.15), (0.15, 0.65, 0.22)


@pytest.fixture(scope="module")
def composer():
    return VideoComposer.load(BUNDLED)


def video_of(composer, text, *conditions, **settings):
    return compose(composer, text, conditions=conditions, sampling=Sampling(steps=10), seed=1, **settings)


def scene(composer, where, background="gradient"):
    """A clip of one frame with the disc at `where`, x and y in frame widths from the middle, as a source."""
    clip = draw_clip(where, frames=2, background=background)[:, :, 1:]
    return Source(clip, None, (composer.config.height, composer.config.width), composer.config.extraction)


def place(video, colour=RED):
    """Centre of the object in the first frame, in frame widths from the middle."""
    return follow(video[:, :, :1], colour, STRIPES)[0] / video.shape[-1] - 0.5


def test_the_text_says_the_colour(composer):
    for colour, other, name in ((YELLOW, GREEN, "yellow"), (GREEN, YELLOW, "green")):
        video = video_of(composer, f"a {name} circle on a blue and white gradient")
        areas = [
            ((video[0] - torch.tensor(c).view(3, 1, 1, 1)).norm(dim=0) < 0.35).float().mean() for c in (colour, other)
        ]
        assert areas[0] > 0.01 > areas[1], name


@pytest.mark.parametrize(("name", "least"), [("single_image", 0.6), ("single_sketch", 0.2)])
def test_the_object_of_the_first_frame_is_where_it_is_given(composer, name, least):
    """It moves with the condition by at least this fraction; the noise is the same."""
    given, results = torch.tensor([[-0.2, 0.1], [0.2, -0.15]]), []
    for where in given.tolist():
        tensor = extract(name, scene(composer, where), Options(sketch_method="edges"))
        results.append(place(video_of(composer, CLEAN, Condition(name, tensor))))
    step, moved = given[1] - given[0], results[1] - results[0]
    assert least < float(moved @ step / (step @ step)) < 1.4


def test_a_style_image_gives_its_colours(composer):
    """Two videos with the same noise and without a text, in the colours of two images."""
    images = {"warm": torch.tensor([0.9, 0.55, 0.2]), "cold": torch.tensor([0.2, 0.4, 0.8])}
    means = {}
    for name, colour in images.items():
        image = (colour.view(1, 3, 1, 1) + 0.1 * draw_clip(frames=1)[:, :, 0]).clamp(0, 1)
        means[name] = video_of(composer, "", style=Style(image)).mean((0, 2, 3, 4))
    warmer = means["warm"] - means["cold"]
    assert warmer[0] > 0.1 and warmer[2] < -0.1
