"""Entry point of the ComfyUI nodes. Outside ComfyUI it does nothing."""

import importlib.util

if importlib.util.find_spec("comfy_api") is not None:
    from .nodes.extension import comfy_entrypoint

    WEB_DIRECTORY = "./web"

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
