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


def say(*notes: str) -> None:
    """Shows what was decided for the user on the node that runs, and in the log."""
    text = "\n".join(filter(None, notes))
    if not text:
        return
    logging.info("VideoComposer: %s", text.replace("\n", " "))
    from comfy_execution.utils import get_executing_context
    from server import PromptServer

    context = get_executing_context()
    if context is not None and PromptServer.instance is not None:
        PromptServer.instance.send_progress_text(text, context.node_id, PromptServer.instance.client_id)
