"""Text and image towers (open_clip): encode prompts as 77 tokens, and a style image as one token.

The towers are used as in the released code (its "FrozenOpenCLIPEmbedder" with the penultimate layer, and its visual
embedder). Text is the output of the last but one layer after the final norm, without projection. An image is its
projected embedding, not normalised. The functions work with OpenCLIP's ViT-H/14 and with the bundled small towers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from ..config import TowersConfig
from ..errors import UserError

if TYPE_CHECKING:
    from open_clip.model import CLIP


LENGTH = 77
"""Tokens of a prompt."""
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
"""OpenAI's CLIP statistics of RGB in [0, 1]. OpenCLIP's ViT-H/14 was trained with them too."""


def new_towers(sizes: TowersConfig, device: str | torch.device = "cpu") -> CLIP:
    """Create towers with random weights. With the device `meta`, the weights need no memory."""
    from open_clip.model import CLIP

    text = {"width": sizes.text_width, "heads": sizes.text_heads, "layers": sizes.text_layers}
    image = {"width": sizes.image_width, "head_width": sizes.image_head_width, "layers": sizes.image_layers}
    with torch.device(device):
        return CLIP(
            sizes.embed_dim,
            text_cfg={"context_length": LENGTH, "vocab_size": 49408, **text},
            vision_cfg={"image_size": sizes.image_size, "patch_size": sizes.patch_size, **image},
        )


NO_IMAGE_TOWER = (
    "A style image requires an image tower, but no image tower is loaded. Add a file with one, such as OpenCLIP "
    "ViT-H/14's CLIP vision file."
)


# --- Text -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from open_clip import SimpleTokenizer  # the package contains its vocabulary

    return SimpleTokenizer(context_length=LENGTH)


def tokenize(prompts: list[str]) -> torch.Tensor:
    """Token numbers (B, 77) int64: start, words, end, then zeros. Longer prompts are cut, with a warning that shows
    the lost words."""
    tokenizer = _tokenizer()
    tokens = tokenizer(list(prompts))
    for prompt, row in zip(prompts, tokens, strict=True):
        # Only a prompt that fills its row can be too long: most prompts are encoded only once.
        if row[-1] and (lost := tokenizer.encode(prompt)[LENGTH - 2 :]):
            warnings.warn(
                f"The prompt is {len(lost)} tokens longer than the {LENGTH - 2} that are used. Its last words were "
                f"cut: '{shorten(tokenizer.decode(lost), 200)}'. Shorten the prompt.",
                stacklevel=2,
            )
    return tokens


def text_layers(model: CLIP, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Outputs (B, L, D) of the last two text layers, each after the final norm, with gradients. `tokens` (B, L) may be
    shorter than 77: attention is causal, so missing tokens at the end change nothing before them."""
    return [model.ln_final(states) for states in list(_text_states(model, tokens))[-2:]]


def _text_states(model: CLIP, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    """The embedded tokens, then the output of each text block, each (B, L, D)."""
    length, dtype = tokens.shape[1], model.token_embedding.weight.dtype
    x = model.token_embedding(tokens) + model.positional_embedding[:length].to(dtype)
    mask = model.attn_mask[:length, :length].to(dtype)
    yield x
    for block in model.transformer.resblocks:
        x = block(x, attn_mask=mask)
        yield x


@torch.no_grad()
def encode_text(model: CLIP, prompts: list[str]) -> torch.Tensor:
    """Context tokens (B, 77, D) of prompts, in the tower's dtype, on its device: the penultimate layer's output after
    the final norm, no projection. Longer prompts are cut, with a warning. Raise `UserError` without a text tower."""
    if model.transformer is None:
        raise UserError(
            "The prompt requires a text tower, but no text tower is loaded. Add a file with one, such as Stable "
            "Diffusion 2.1's text encoder."
        )
    return encode_tokens(model, tokenize(prompts))


@torch.no_grad()
def encode_tokens(model: CLIP, tokens: torch.Tensor) -> torch.Tensor:
    """Like `encode_text`, for token numbers (B, L) of `tokenize`."""
    tokens = tokens.to(model.positional_embedding.device)
    # The last block does not run and need not exist, but `layers` counts it.
    penultimate = next(islice(_text_states(model, tokens), model.transformer.layers - 1, None))
    return model.ln_final(penultimate)


# --- Images ---------------------------------------------------------------------------------------------------------


def preprocess(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The tower's input (B, 3, *size) for images (B, 3, H, W) in [0, 1]: `fitted`, then normalised."""
    image = fitted(image, size)
    mean, std = (image.new_tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return (image - mean) / std


def fitted(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize images (B, 3, H, W) in [0, 1] to cover `size` (bicubic, antialiased), then crop the centre. Return
    (B, 3, *size) in [0, 1]."""
    height, width = image.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    resized = (max(round(height * scale), size[0]), max(round(width * scale), size[1]))
    if resized != (height, width):
        image = F.interpolate(image.float(), resized, mode="bicubic", antialias=True, align_corners=False)
        image = image.clamp(0.0, 1.0)  # bicubic overshoots at edges
    top, left = (resized[0] - size[0]) // 2, (resized[1] - size[1]) // 2
    return image[..., top : top + size[0], left : left + size[1]]


@torch.no_grad()
def encode_image(model: CLIP, image: torch.Tensor) -> torch.Tensor:
    """Style token (B, 1, D) of images (B, 3, H, W), RGB in [0, 1], in the tower's dtype, on its device: projected, not
    normalised. Raise `UserError` for another shape, or without an image tower."""
    if model.visual is None:
        raise UserError(NO_IMAGE_TOWER)
    if image.dim() != 4 or image.shape[1] != 3:
        raise UserError(
            f"The style image has the shape {tuple(image.shape)}. Expected (B, 3, H, W). Pass an RGB image."
        )
    weight = model.visual.conv1.weight
    pixels = preprocess(image.to(weight.device, torch.float32), model.visual.image_size).to(weight.dtype)
    return model.visual(pixels)[:, None]
