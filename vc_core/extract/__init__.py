"""Extract conditions from videos, create them by hand or read them from files, and draw previews of them."""

from .sources import Options, Source, extract

__all__ = ["Options", "Source", "extract"]
