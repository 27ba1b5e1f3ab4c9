"""Conditions out of a video, made by hand, and from elsewhere; pictures of them."""

from .sources import Options, Source, extract

__all__ = ["Options", "Source", "extract"]
