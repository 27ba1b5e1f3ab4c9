"""Functions that format parts of messages."""

import pytest

from vc_core.errors import counted, shorten


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
