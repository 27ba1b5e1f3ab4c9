"""ComfyUI's progress bars, interruption and notes on a node."""

from __future__ import annotations

import logging

import comfy.utils

from ...vc_core.progress import Progress


def progress_bar() -> Progress:
    """Return a progress callback for the core that updates the node's progress bar. It raises on interruption."""
    bars: dict[str, comfy.utils.ProgressBar] = {}

    def report(what: str, done: int, total: int) -> None:
        bars.setdefault(what, comfy.utils.ProgressBar(total)).update_absolute(done, total)

    return report


_SHOWN: dict[tuple[str, str] | None, list[str]] = {}
"""(run id, node id) of the current node -> the notes that it has shown so far."""


def say(*notes: str) -> None:
    """Show notes for the user on the current node, and log them.

    Each note is shown once per run of the node. Earlier notes are sent again because the page shows only the last text.
    """
    from comfy_execution.utils import get_executing_context
    from server import PromptServer

    context = get_executing_context()
    run = None if context is None else (context.prompt_id, context.node_id)
    if run is None or run not in _SHOWN:
        _SHOWN.clear()  # only one node runs at a time; outside a run, every note is new
    shown = _SHOWN.setdefault(run, [])
    new = [note for note in notes if note and note not in shown]
    if not new:
        return
    shown += new
    logging.info("VideoComposer: %s", " ".join(new))
    if context is not None and PromptServer.instance is not None:
        PromptServer.instance.send_progress_text("\n".join(shown), context.node_id, PromptServer.instance.client_id)
