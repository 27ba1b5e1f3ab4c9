"""The synthetic data set: scenes, their pixels and ground truth, their captions."""

from .captions import captions
from .render import EVERYTHING, Rendered, render
from .scenes import Scenes, sample_scenes, scene_seeds

__all__ = ["EVERYTHING", "Rendered", "Scenes", "captions", "render", "sample_scenes", "scene_seeds"]
