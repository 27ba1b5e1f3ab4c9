"""The entry point that ComfyUI calls."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .host import folders


class VideoComposerExtension(ComfyExtension):
    """Register the nodes and the model folder."""

    async def on_load(self) -> None:
        folders.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        folders.register()  # older versions never call on_load
        from . import conditions, example, keeping, loaders, motion, sampling, stc, texts, upscaling

        modules = (loaders, conditions, motion, keeping, stc, texts, sampling, upscaling, example)
        return [node for module in modules for node in module.NODES]


async def comfy_entrypoint() -> VideoComposerExtension:
    return VideoComposerExtension()
