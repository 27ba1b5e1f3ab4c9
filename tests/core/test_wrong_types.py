"""Plain mistakes in Python: a UserError that names the argument, as vc_core/README.md promises."""

import re

import numpy as np
import pytest
import torch

from vc_core import Condition, Sampling, Style, Tiling, UserError, VideoComposer, Windows, compose
from vc_core.config import Config
from vc_core.extract import Source, extract
from vc_core.video import plan_frames

MOTION = torch.zeros(1, 2, 3, 32, 40)
IMAGE = torch.rand(1, 3, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"conditions": Condition("motion", MOTION)}, "conditions is of the type Condition. Expected a list"),
        ({"conditions": [MOTION]}, "An item of conditions is of the type Tensor. Expected a Condition"),
        ({"conditions": MOTION}, "An item of conditions is of the type Tensor"),
        ({"style": IMAGE}, "style is of the type Tensor. Expected a Style, such as Style(image)"),
        ({"frames": "3"}, "frames is '3'. Expected an integer"),
        ({"size": "64x64"}, "size has 5 items. Expected (height, width)"),
        ({"size": (32.0, 40)}, "The height is 32.0. Expected an integer"),
        ({"sampling": 20}, "sampling is 20. Expected a Sampling"),
        ({"tiling": 4}, "tiling is 4. Expected a Tiling"),
        ({"init": np.zeros((1, 3, 3, 32, 40))}, "init is of the type ndarray. Expected a tensor"),
        ({"batch": "2"}, "batch is '2'. Expected an integer"),
        ({"seed": "2"}, "seed must be an integer"),
        ({"text": 3}, "text is 3. Expected a string"),
        ({"composer": "a.safetensors"}, "composer is 'a.safetensors'. Expected a VideoComposer"),
    ],
)
def test_compose(tiny_composer, arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        compose(**{"composer": tiny_composer, "text": "a", **arguments})


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (
            lambda: Condition("motion", MOTION.numpy()),
            "Condition 'motion' is of the type ndarray. Expected a torch tensor",
        ),
        (lambda: Condition(["motion"], MOTION), "Unknown condition ['motion']"),
        (lambda: Condition("motion", MOTION, "0.5"), "The strength of condition 'motion' is '0.5'. Expected a number"),
        (lambda: Style(IMAGE.numpy()), "The style image has the type ndarray"),
        (lambda: Style(IMAGE, end="1"), "The end of condition 'style' is '1'. Expected a number"),
        (lambda: Sampling(steps="4"), "steps is '4'. Expected an integer"),
        (lambda: Sampling(denoise="1"), "denoise must be a finite number"),
        (lambda: Sampling(windows=16), "windows is 16. Expected a Windows"),
        (lambda: Sampling(sigmas=[1.0, 0.0]), "sigmas is of the type list. Expected a tensor"),
        (lambda: Windows("16"), "The length of windows is '16'. Expected an integer"),
        (lambda: Tiling("4"), "chunk is '4'. Expected an integer"),
        (lambda: VideoComposer.load(loras="a.pth"), "loras is 'a.pth'. Expected a dict"),
        (lambda: VideoComposer.load(loras={"a.pth": "big"}), "The strength of the LoRA a.pth is 'big'"),
        (lambda: VideoComposer.load(None), "path is None. Expected the path"),
        (lambda: VideoComposer.load(parts=3), "An item of parts is 3. Expected the path"),
        (lambda: VideoComposer.load(device=None), "Unknown device 'None'"),
        (lambda: extract("sketch", Source("a.mp4", None, (64, 64), Config().extraction)), "plan is None. Expected the"),
        (lambda: extract("motion", Source(IMAGE[:, :, None], None, (64, 64), Config().extraction)), "plan is None."),
        (lambda: plan_frames("a.mp4"), "info is 'a.mp4'. Expected what probe() returns"),
    ],
)
def test_everything_else(create, message):
    with pytest.raises(UserError, match=re.escape(message)):
        create()


def test_numbers_of_numpy_are_numbers():
    assert Condition("motion", MOTION, np.float32(0.5)).strength == 0.5
    assert Tiling(np.int64(4)).chunk == Windows(np.int64(4)).length == 4
