"""Text and image towers (open_clip): prompts to 77 tokens, a style image to one token.

As the released code uses them (its "FrozenOpenCLIPEmbedder" with the penultimate layer, and its visual embedder):
text is the last but one layer's output through the final norm, without projection; an image is its projected
embedding, not normalised. The same functions serve OpenCLIP's ViT-H/14 and the bundled small towers.
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
"""OpenAI's CLIP statistics of RGB in [0, 1], which OpenCLIP's ViT-H/14 was trained with too."""


def new_towers(sizes: TowersConfig, device: str | torch.device = "cpu") -> CLIP:
    """Towers with fresh weights. `device` is `meta` for ones without memory for their weights."""
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
    "There is no image tower, which a style image needs: name a file that has one, such as OpenCLIP ViT-H/14's CLIP "
    "vision file."
)


# --- Text -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from open_clip import SimpleTokenizer  # its vocabulary comes with the package

    return SimpleTokenizer(context_length=LENGTH)


def tokenize(prompts: list[str]) -> torch.Tensor:
    """Token numbers (B, 77) int64: start, words, end, then zeros. Longer prompts are cut, with a warning that names the
    words that are lost."""
    tokenizer = _tokenizer()
    tokens = tokenizer(list(prompts))
    for prompt, row in zip(prompts, tokens, strict=True):
        # Only what fills its row can be too long; most prompts need not be encoded again.
        if row[-1] and (lost := tokenizer.encode(prompt)[LENGTH - 2 :]):
            warnings.warn(
                f"The prompt has {len(lost)} tokens more than the {LENGTH - 2} that are used, so these words "
                f"were cut: '{shorten(tokenizer.decode(lost), 200)}'; shorten it.",
                stacklevel=2,
            )
    return tokens


def text_layers(model: CLIP, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Outputs (B, L, D) of the last two text layers, each through the final norm, with gradients. As attention is
    causal, `tokens` (B, L) may be shorter than 77: what is cut off at the end changes nothing before it."""
    return [model.ln_final(states) for states in list(_text_states(model, tokens))[-2:]]


def _text_states(model: CLIP, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    """The embedded tokens, then the output of each text block, (B, L, D) all of them."""
    length, dtype = tokens.shape[1], model.token_embedding.weight.dtype
    x = model.token_embedding(tokens) + model.positional_embedding[:length].to(dtype)
    mask = model.attn_mask[:length, :length].to(dtype)
    yield x
    for block in model.transformer.resblocks:
        x = block(x, attn_mask=mask)
        yield x


@torch.no_grad()
def encode_text(model: CLIP, prompts: list[str]) -> torch.Tensor:
    """Context tokens (B, 77, D) of prompts, in the tower's type, on its device: the penultimate layer through the final
    norm, no projection. Longer prompts are cut, with a warning. Raises `UserError` where no text tower was loaded."""
    if model.transformer is None:
        raise UserError(
            "There is no text tower: name a file that has one, such as Stable Diffusion 2.1's text encoder."
        )
    return encode_tokens(model, tokenize(prompts))


@torch.no_grad()
def encode_tokens(model: CLIP, tokens: torch.Tensor) -> torch.Tensor:
    """`encode_text` of token numbers (B, L), see `tokenize`."""
    tokens = tokens.to(model.positional_embedding.device)
    # The last block is not run, and need not be there; `layers` counts it nevertheless.
    penultimate = next(islice(_text_states(model, tokens), model.transformer.layers - 1, None))
    return model.ln_final(penultimate)


# --- Images ---------------------------------------------------------------------------------------------------------


def preprocess(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Images (B, 3, H, W) in [0, 1] to the tower's input (B, 3, *size): `fitted`, by OpenAI's mean and deviation."""
    image = fitted(image, size)
    mean, std = (image.new_tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return (image - mean) / std


def fitted(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Images (B, 3, H, W) in [0, 1] as the tower sees them, (B, 3, *size) in [0, 1]: the shorter side resized to fit
    (bicubic, antialiased), the centre cropped."""
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
    """Style token (B, 1, D) of images (B, 3, H, W) with RGB in [0, 1], in the tower's type, on its device: projected,
    not normalised. Raises `UserError` for another shape, or where no image tower was loaded."""
    if model.visual is None:
        raise UserError(NO_IMAGE_TOWER)
    if image.dim() != 4 or image.shape[1] != 3:
        raise UserError(
            f"The style image has shape {tuple(image.shape)} where (B, 3, H, W) was expected; give RGB images."
        )
    weight = model.visual.conv1.weight
    pixels = preprocess(image.to(weight.device, torch.float32), model.visual.image_size).to(weight.dtype)
    return model.visual(pixels)[:, None]
