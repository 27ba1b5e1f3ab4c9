"""Progress bars, interrupting and messages on a node, in ComfyUI's way."""

from __future__ import annotations

import logging

import comfy.utils

from ...vc_core.progress import Progress


def progress_bar() -> Progress:
    """The core's progress as the node's progress bar. Interrupting raises from it."""
    bars: dict[str, comfy.utils.ProgressBar] = {}

    def report(what: str, done: int, total: int) -> None:
        bars.setdefault(what, comfy.utils.ProgressBar(total)).update_absolute(done, total)

    return report


_SAID: dict[tuple[str, str] | None, list[str]] = {}
"""What the node that runs, by the ids of the run and of the node, has said so far."""


def say(*notes: str) -> None:
    """Shows what was decided for the user on the node that runs, and in the log.

    Each note is said once in a run of the node, below the earlier ones: the page shows the last text only.
    """
    from comfy_execution.utils import get_executing_context
    from server import PromptServer

    context = get_executing_context()
    run = None if context is None else (context.prompt_id, context.node_id)
    if run is None or run not in _SAID:
        _SAID.clear()  # one node runs at a time; outside of any, each note is a new one
    said = _SAID.setdefault(run, [])
    new = [note for note in notes if note and note not in said]
    if not new:
        return
    said += new
    logging.info("VideoComposer: %s", " ".join(new))
    if context is not None and PromptServer.instance is not None:
        PromptServer.instance.send_progress_text("\n".join(said), context.node_id, PromptServer.instance.client_id)
