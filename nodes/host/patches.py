"""Support for the model patches of stock nodes.

ComfyUI numbers the blocks of Stable Diffusion's UNet, whose spatial layers this network has: `("input", 0)` is the
first convolution, `("input", 1)` the block after it, then `("middle", 0)` and `("output", 0)`. A patch treats each
frame as an image: its tensors are `(B F, C, h, w)` and `(B F, h w, C)`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any

from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor, nn

from ...vc_core.model.blocks import Attention
from ...vc_core.model.unet import UNet3D
from .running import say

OPTIONS: ContextVar[dict[str, Any]] = ContextVar("transformer_options")
"""The `transformer_options` of the current forward, which the core's blocks do not pass on; see `options_of`."""

Place = tuple[str, int]
_ATTENTIONS = ("attn1", "attn2")
_BLOCK_PATCHES = ("emb_patch", "input_block_patch", "input_block_patch_after_skip", "output_block_patch")
_SUPPORTED = {*_BLOCK_PATCHES, *(f"{kind}_{which}" for kind in _ATTENTIONS for which in ("patch", "output_patch"))}


def options_of(options: Mapping[str, Any], x: Tensor) -> dict[str, Any]:
    """Return the options for x `(B, C, F, h, w)`, with the entries that stock networks add for patches."""
    batch, channels, frames, *size = x.shape
    return {**options, "original_shape": [batch * frames, channels, *size]}


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Compute attention by ComfyUI's current function, or the one that a node set; see the core's `Attend`."""
    return optimized_attention(q, k, v, heads=heads, transformer_options=OPTIONS.get())


class PatchedAttention(Attention):
    """An attention that shares its layers with the original, and calls the patches of ComfyUI's transformer blocks."""

    def __init__(self, attention: Attention, kind: str, place: Place):
        nn.Module.__init__(self)
        self.__dict__.update(attention.__dict__)
        self.kind, self.place = kind, place

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        replacements = OPTIONS.get().get("patches_replace", {}).get(self.kind, {})
        replace = replacements.get((*self.place, 0), replacements.get(self.place))
        before, after = _patches(f"{self.kind}_patch"), _patches(f"{self.kind}_output_patch")
        if replace is None and not before and not after:
            return super().forward(x, context)
        value = context = x if context is None else context.repeat_interleave(len(x) // len(context), dim=0)
        head_dim = self.to_q.out_features // self.heads
        extra = _at(self.place, n_heads=self.heads, dim_head=head_dim, attn_precision=None)
        for patch in before:
            x, context, value = patch(x, context, value, extra)
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(value)
        out = self.to_out(self.attend(q, k, v, self.heads) if replace is None else replace(q, k, v, extra))
        for patch in after:
            out = patch(out, extra)
        return out


def open_to_patches(unet: UNet3D) -> frozenset[Place]:
    """Make the blocks of a network call a run's patches. Returns the places that have attention."""
    inputs = [(("input", i), block) for i, block in enumerate((unet.temporal_in, *unet.encoder))]
    outputs = [(("output", i), block) for i, block in enumerate(unet.decoder)]
    places = [*inputs, (("middle", 0), unet.middle), *outputs]
    unet.time_out.register_forward_hook(partial(_after_embedding, unet.config.width))
    for (place, block), (_, following) in zip(inputs, places[1:], strict=False):
        block.register_forward_hook(partial(_after_input, place))
        following.register_forward_pre_hook(partial(_after_skip, place))
    for place, block in outputs:
        block.register_forward_pre_hook(partial(_before_output, place))
    attentive = [(place, block.spatial) for place, block in places[1:] if block.spatial is not None]
    for index, (place, spatial) in enumerate(attentive):
        spatial.register_forward_pre_hook(partial(_before_attention, index))
        for kind in _ATTENTIONS:
            setattr(spatial.block, kind, PatchedAttention(getattr(spatial.block, kind), kind, place))
    return frozenset(place for place, _ in attentive)


def report_unknown(options: Mapping[str, Any], places: Collection[Place]) -> None:
    """Report patches that have no effect on a network with attention at these places."""
    unknown = {
        f"{_author(patch)} ({name})"
        for name, patches in options.get("patches", {}).items()
        for patch in patches
        if name not in _SUPPORTED
    }
    for kind, replacements in options.get("patches_replace", {}).items():
        for key, patch in replacements.items():
            if kind not in _ATTENTIONS:
                unknown.add(f"{_author(patch)} ({kind})")
            elif key[:2] not in places or key[2:] not in ((), (0,)):
                unknown.add(f"{_author(patch)} ({kind} of {' '.join(map(str, key))})")
    if unknown:
        say(f"These patches have no effect on this model: {', '.join(sorted(unknown))}.")


def _author(patch: Any) -> str:
    """Return the name of a patch's node: most patches are functions inside the node's class."""
    return getattr(patch, "__qualname__", type(patch).__qualname__).partition(".")[0]


def _at(place: Place, **more: Any) -> dict[str, Any]:
    return {**OPTIONS.get(), "block": place, "block_index": 0, **more}


def _patches(name: str) -> list[Callable]:
    return OPTIONS.get().get("patches", {}).get(name, [])


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
