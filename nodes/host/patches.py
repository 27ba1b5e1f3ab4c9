"""Model patches of stock nodes, at the places where the network has what they patch.

ComfyUI counts the blocks of Stable Diffusion's UNet, whose spatial layers this network has: `("input", 1)` is the first
block after the first convolution, `("middle", 0)` and `("output", 0)` follow. Each frame is an image to a patch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import cache, partial
from typing import Any

from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor, nn

from ...vc_core.model.unet import UNet3D

OPTIONS: ContextVar[Mapping[str, Any]] = ContextVar("transformer_options")
"""The `transformer_options` of the forward that runs, which the core's blocks know nothing of."""

Place = tuple[str, int]
_KNOWN = {"input_block_patch", "input_block_patch_after_skip", "output_block_patch"}
_KNOWN_REPLACEMENTS = {"attn1", "attn2"}


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """ComfyUI's attention of the moment, with what a node may have put in its place; see the core's `Attend`."""
    return optimized_attention(q, k, v, heads=heads, transformer_options=OPTIONS.get())


def attend_at(kind: str, place: Place, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention `attn1` or `attn2` of a spatial Transformer, or what a patch replaces it with."""
    replacements = OPTIONS.get().get("patches_replace", {}).get(kind, {})
    replace = replacements.get((*place, 0), replacements.get(place))
    if replace is None:
        return attend(q, k, v, heads)
    return replace(q, k, v, {**_at(place), "n_heads": heads, "dim_head": q.shape[-1] // heads, "attn_precision": None})


def open_to_patches(unet: UNet3D) -> None:
    """Makes the places of a network known to `attend_at`, and calls the block patches around its blocks."""
    places = [
        *((("input", i + 1), block) for i, block in enumerate(unet.encoder)),
        (("middle", 0), unet.middle),
        *((("output", i), block) for i, block in enumerate(unet.decoder)),
    ]
    for place, block in places:
        if block.spatial is not None:
            for kind in ("attn1", "attn2"):
                getattr(block.spatial.block, kind).attend = partial(attend_at, kind, place)
        if place[0] == "input":
            block.register_forward_hook(partial(_after_input, place))
        if place[0] == "output":
            block.register_forward_pre_hook(partial(_before_output, place))


def check_known(options: Mapping[str, Any]) -> None:
    """Says once which patches have no place in this network."""
    patches, replacements = options.get("patches", {}), options.get("patches_replace", {})
    unknown = {n for n in patches if n not in _KNOWN} | {n for n in replacements if n not in _KNOWN_REPLACEMENTS}
    if unknown:
        _warn(tuple(sorted(unknown)))


@cache
def _warn(names: tuple[str, ...]) -> None:
    logging.warning("VideoComposer: these patches of the model have no effect on it: %s", ", ".join(names))


def _at(place: Place) -> dict[str, Any]:
    return {**OPTIONS.get(), "block": place, "block_index": 0}


def _patches(name: str) -> list[Callable]:
    return OPTIONS.get().get("patches", {}).get(name, [])


def _after_input(place: Place, block: nn.Module, args: tuple, h: Tensor) -> Tensor:
    for name in ("input_block_patch", "input_block_patch_after_skip"):
        for patch in _patches(name):
            h = patch(h, _at(place))
    return h


def _before_output(place: Place, block: nn.Module, args: tuple) -> tuple:
    h, skip, *rest = args
    for patch in _patches("output_block_patch"):
        h, skip = patch(h, skip, _at(place))
    return h, skip, *rest
