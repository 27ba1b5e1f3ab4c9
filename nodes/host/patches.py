"""Model patches of stock nodes, at the places where the network has what they patch.

ComfyUI counts the blocks of Stable Diffusion's UNet, whose spatial layers this network has: `("input", 0)` is the first
convolution, `("input", 1)` the block after it, `("middle", 0)` and `("output", 0)` follow. Each frame is an image to a
patch: its tensors are `(B F, C, h, w)` and `(B F, h w, C)`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from itertools import pairwise
from typing import Any

from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor, nn

from ...vc_core.model.blocks import Attention
from ...vc_core.model.unet import UNet3D
from .running import say

OPTIONS: ContextVar[dict[str, Any]] = ContextVar("transformer_options")
"""The `transformer_options` of the forward that runs, which the core's blocks know nothing of; see `options_of`."""

Place = tuple[str, int]
_ATTENTIONS = ("attn1", "attn2")
_BLOCK_PATCHES = ("emb_patch", "input_block_patch", "input_block_patch_after_skip", "output_block_patch")
_KNOWN = {*_BLOCK_PATCHES, *(f"{kind}_{which}" for kind in _ATTENTIONS for which in ("patch", "output_patch"))}


def options_of(options: Mapping[str, Any], x: Tensor) -> dict[str, Any]:
    """The options of a forward on x `(B, C, F, h, w)`, with what stock networks put there for patches."""
    batch, channels, frames, *size = x.shape
    return {**options, "original_shape": [batch * frames, channels, *size]}


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """ComfyUI's attention of the moment, with what a node may have put in its place; see the core's `Attend`."""
    return optimized_attention(q, k, v, heads=heads, transformer_options=OPTIONS.get())


def open_to_patches(unet: UNet3D) -> frozenset[Place]:
    """Calls the patches of a run around and in the blocks of a network. Returns the places that have attention."""
    places = [
        (("input", 0), unet.temporal_in),
        *((("input", i + 1), block) for i, block in enumerate(unet.encoder)),
        (("middle", 0), unet.middle),
        *((("output", i), block) for i, block in enumerate(unet.decoder)),
    ]
    unet.time_out.register_forward_hook(partial(_after_embedding, unet.config.width))
    for (place, block), (_, following) in pairwise(places):
        if place[0] == "input":
            block.register_forward_hook(partial(_after_input, place))
            following.register_forward_pre_hook(partial(_after_skip, place))
    for place, block in places:
        if place[0] == "output":
            block.register_forward_pre_hook(partial(_before_output, place))
    attentive = [(place, block.spatial) for place, block in places[1:] if block.spatial is not None]
    for index, (place, spatial) in enumerate(attentive):
        spatial.register_forward_pre_hook(partial(_before_attention, index))
        for kind in _ATTENTIONS:
            attention = getattr(spatial.block, kind)
            attention.forward = partial(_patched_attention, attention, kind, place)
    return frozenset(place for place, _ in attentive)


def tell_unknown(options: Mapping[str, Any], places: Collection[Place]) -> None:
    """Says on the node which patches have no place in a network with attention at these places."""
    unknown = sorted(set(_unknown(options, places)))
    if unknown:
        say(f"These patches of the model have no effect on it: {', '.join(unknown)}.")


def _unknown(options: Mapping[str, Any], places: Collection[Place]) -> Iterator[str]:
    for name, patches in options.get("patches", {}).items():
        if name not in _KNOWN:
            yield from (f"{_author(patch)} ({name})" for patch in patches)
    for kind, replacements in options.get("patches_replace", {}).items():
        for key, patch in replacements.items():
            if kind not in _ATTENTIONS:
                yield f"{_author(patch)} ({kind})"
            elif key[:2] not in places or key[2:] not in ((), (0,)):
                yield f"{_author(patch)} ({kind} of {' '.join(map(str, key))})"


def _author(patch: Any) -> str:
    """The node that a patch is of: most are functions inside of its class."""
    return getattr(patch, "__qualname__", type(patch).__qualname__).partition(".")[0]


def _at(place: Place, **more: Any) -> dict[str, Any]:
    return {**OPTIONS.get(), "block": place, "block_index": 0, **more}


def _patches(name: str) -> list[Callable]:
    return OPTIONS.get().get("patches", {}).get(name, [])


def _patched_attention(
    attention: Attention, kind: str, place: Place, x: Tensor, context: Tensor | None = None
) -> Tensor:
    """What `Attention.forward` gives, see there, with the patches of ComfyUI's own Transformer blocks."""
    replacements = OPTIONS.get().get("patches_replace", {}).get(kind, {})
    replace = replacements.get((*place, 0), replacements.get(place))
    before, after = _patches(f"{kind}_patch"), _patches(f"{kind}_output_patch")
    if replace is None and not before and not after:
        return Attention.forward(attention, x, context)
    context = x if context is None else context.repeat_interleave(len(x) // len(context), dim=0)
    value, heads = context, attention.heads
    extra = _at(place, n_heads=heads, dim_head=attention.to_q.out_features // heads, attn_precision=None)
    for patch in before:
        x, context, value = patch(x, context, value, extra)
    q, k, v = attention.to_q(x), attention.to_k(context), attention.to_v(value)
    out = attention.to_out(attend(q, k, v, heads) if replace is None else replace(q, k, v, extra))
    for patch in after:
        out = patch(out, extra)
    return out


def _before_attention(index: int, transformer: nn.Module, args: tuple) -> None:
    OPTIONS.get().update(activations_shape=list(args[0].shape), transformer_index=index)


def _after_embedding(width: int, layer: nn.Module, args: tuple, embedding: Tensor) -> Tensor:
    for patch in _patches("emb_patch"):
        embedding = patch(embedding, width, OPTIONS.get())
    return embedding


def _after_input(place: Place, block: nn.Module, args: tuple, h: Tensor) -> Tensor:
    for patch in _patches("input_block_patch"):
        h = patch(h, _at(place))
    return h


def _after_skip(place: Place, following: nn.Module, args: tuple) -> tuple:
    h, *rest = args
    for patch in _patches("input_block_patch_after_skip"):
        h = patch(h, _at(place))
    return h, *rest


def _before_output(place: Place, block: nn.Module, args: tuple) -> tuple:
    h, skip, *rest = args
    for patch in _patches("output_block_patch"):
        h, skip = patch(h, skip, _at(place))
    return h, skip, *rest
