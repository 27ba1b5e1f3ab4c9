"""How long things report where they are."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""`progress(what, done, total)`, for instance `progress("sampling", 3, 20)`; what it raises ends the work."""
