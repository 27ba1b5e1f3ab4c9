"""Helpers for the tests of the data sets: a folder of small videos, and a spy."""

import csv
import json

import torch

from tests.core.moving_clips import OWN, encode, moving
from vc_core.config import ExtractionConfig

SIZE = (32, 40)
"""(height, width) of the training; the conditions' larger size is 1.5 times that."""
FRAMES = 3
EVERYTHING = ("text", "style", "motion", "depth", "sketch", "mask", "single_image", "single_sketch")
EDGES = ExtractionConfig(sketch="edges", depth="relative")

MOTIONS = {"right.mp4": (3, 0), "left.mp4": (-3, 0), "down.mp4": (0, 2), "still.mp4": (0, 0), "up.mp4": (0, -2)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_folder(folder, motions=MOTIONS):
    """Write videos of known motion, `captions.csv` for them, and the same captions as `others.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, motion in motions.items():
        encode(folder / name, moving(*motion), **OWN)
    rows = [{"file": name, "caption": f"a scene, {name.split('.')[0]}", "license": "CC0"} for name in motions]
    with open(folder / "captions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["file", "caption", "license"])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "others.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return folder


def make_faulty_folder(folder):
    """`make_folder`, and a video that is cut off, and a caption without a video."""
    make_folder(folder)
    (folder / "cut.mp4").write_bytes((folder / "up.mp4").read_bytes()[:700])
    with open(folder / "captions.csv", "a", encoding="utf-8") as file:
        file.write("cut.mp4,cut off,\nmissing.mp4,missing,\n")
    return folder


class Spy:
    """Replaces functions by wrappers that count the calls."""

    def __init__(self, monkeypatch):
        self.monkeypatch, self.calls = monkeypatch, {}

    def watch(self, module, *names):
        for name in names:
            self.monkeypatch.setattr(module, name, self._counted(name, getattr(module, name)))

    def _counted(self, name, function):
        self.calls[name] = 0

        def counted(*args, **kwargs):
            self.calls[name] += 1
            return function(*args, **kwargs)

        return counted


def same(a, b):
    """Assert that two samples are bit-identical."""
    for name, value in vars(a).items():
        other = getattr(b, name)
        if isinstance(value, dict):
            assert value.keys() == other.keys() and all(torch.equal(value[key], other[key]) for key in value), name
        else:
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name
    return True
