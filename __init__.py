"""ComfyUI's door to VideoComposer. Outside ComfyUI it is closed, and harmless."""

import importlib.util

if importlib.util.find_spec("comfy_api") is not None:
    from .nodes.extension import comfy_entrypoint

    WEB_DIRECTORY = "./web"

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
