"""Functions that format parts of messages."""

import pytest

from vc_core.errors import UserError, about, counted, shorten


@pytest.mark.parametrize(
    "number, words, text",
    [
        (1, ("video",), "1 video"),
        (3, ("image",), "3 images"),
        (0, ("image",), "0 images"),
        (1, ("tensor is", "tensors are"), "1 tensor is"),
        (2, ("tensor is", "tensors are"), "2 tensors are"),
    ],
)
def test_a_number_has_its_noun(number, words, text):
    assert counted(number, *words) == text


def test_many_names_are_shortened():
    assert shorten(["a", "b"], 3) == "a, b" and shorten(list("abcde"), 3) == "a, b, c and 2 more"


@pytest.mark.parametrize(
    ("path", "message", "expected"),
    [
        ("out", "Pass an output.", "out: Pass an output."),
        ("file", "The file contains no settings.", "file: The file contains no settings."),
        ("out", "out contains no settings.", "out contains no settings."),
        ("a.mp4", "x/data.mp4 is too short.", "a.mp4: x/data.mp4 is too short."),
        ("x/a.mp4", "Expected a video, but x/a.mp4 is a folder.", "Expected a video, but x/a.mp4 is a folder."),
    ],
)
def test_a_path_is_named_once(path, message, expected):
    with pytest.raises(UserError) as caught, about(path):
        raise UserError(message)
    assert str(caught.value) == expected
