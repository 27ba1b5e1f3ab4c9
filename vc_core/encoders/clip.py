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
from torch import nn

from ..config import TowersConfig
from ..errors import UserError
from ..layouts import fill, names_of
from ..progress import Progress
from .layouts import is_known_extra, layout_of

if TYPE_CHECKING:
    from open_clip.model import CLIP

    from ..checkpoint import Part

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
"""OpenAI's CLIP statistics of RGB in [0, 1], which OpenCLIP's ViT-H/14 was trained with too."""


def open_clip_config(towers: TowersConfig) -> dict[str, Any]:
    """A checkpoint's tower sizes in open_clip's own form."""
    return {
        "embed_dim": towers.embed_dim,
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": towers.text_width,
            "heads": towers.text_heads,
            "layers": towers.text_layers,
        },
        "vision_cfg": {
            "image_size": towers.image_size,
            "patch_size": towers.patch_size,
            "width": towers.image_width,
            "layers": towers.image_layers,
            "head_width": towers.image_head_width,
        },
    }


def build_clip(config: dict[str, Any], device: str | torch.device = "cpu") -> CLIP:
    """A CLIP model with fresh weights from a config in open_clip's own form (`embed_dim`, `text_cfg`, `vision_cfg`).

    Args:
        device: `meta` for one without memory for its weights.

    Raises:
        UserError: a part is missing, or names a setting that open_clip does not have.
    """
    from open_clip.model import CLIP

    try:
        with torch.device(device):
            return CLIP(**config)
    except (TypeError, KeyError) as error:
        raise UserError(
            f"The towers' config does not fit open_clip's CLIP ({error}); it needs embed_dim, text_cfg and vision_cfg "
            "as in open_clip's model configs."
        ) from error


def load_towers(
    config: TowersConfig,
    text: Part | None,
    image: Part | None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    whole: bool = False,
    progress: Progress | None = None,
) -> CLIP:
    """The text and image towers of files, in evaluation mode, without gradients.

    The weights are views of the mapped files where type and device allow it. A tower without a file is left out:
    `encode_text` or `encode_image` then refuses.

    Args:
        text, image: the parts of these names of one checkpoint or two, in any layout of `vc_core.encoders.layouts`.
        whole: also what encoding never uses, the last text block, the text projection and the logit scale, as training
            needs. Stable Diffusion 2.x's text encoder in transformers' layout comes without.

    Raises:
        UserError: tensors are missing or of another shape; the message lists them, and says so first where a whole
            tower is of another width.
    """
    model = build_clip(open_clip_config(config), "meta")
    visual, model.visual = model.visual, None
    known = set() if text is None else names_of(layout_of("text", text.layout, model, text.tensors.shapes))
    if text is None:
        _leave_out(model, "token_embedding", "positional_embedding", "transformer", "ln_final", "attn_mask")
    elif not whole:
        del model.transformer.resblocks[-1]
    if text is None or not whole:
        _leave_out(model, "text_projection", "logit_scale")
    if text is not None:
        _fill_tower(model, text, known, dtype, device, progress)
        model.attn_mask = _causal_mask(model.context_length).to(device, dtype)
    if image is not None:
        _fill_tower(visual, image, set(), dtype, device, progress)
        model.visual = visual
    return model.eval().requires_grad_(False)


def _leave_out(model: CLIP, *names: str) -> None:
    """Sets modules, parameters and buffers to None, which torch then counts as absent."""
    for name in names:
        setattr(model, name, None)


def _causal_mask(length: int) -> torch.Tensor:
    """0 where a token (row) may attend to another (column), minus infinity to those after it."""
    return torch.full((length, length), float("-inf")).triu(1)


# A parameter whose last dimension is the tower's width.
_WIDE = {"text": "token_embedding.weight", "image": "class_embedding"}


def _fill_tower(
    tower: nn.Module,
    part: Part,
    known: set[str],
    dtype: torch.dtype,
    device: str | torch.device,
    progress: Progress | None,
) -> None:
    """`known` are the names of what is left out on purpose; any other that has no place is warned of."""

    def ignored(name: str) -> bool:
        return name in known or is_known_extra(part.name, name)

    tensors = part.tensors
    layout = layout_of(part.name, part.layout, tower, tensors.shapes)
    wide = layout[_WIDE[part.name]]
    found, expected = tensors.shapes.get(wide.names[0]), wide.shape[-1]
    if found and found[-1] != expected:
        raise UserError(
            f"{tensors.source} is of another model: its {part.name} tower is {found[-1]} wide, expected {expected} "
            "(Stable Diffusion 1.x and SDXL have others); name a file of the tower that the checkpoint was trained "
            "with, for the released network OpenCLIP's ViT-H/14."
        )
    fill(tower, layout, tensors, f"the {part.name} tower", dtype, device, progress, ignored)


@lru_cache(maxsize=4)
def _tokenizer(context_length: int) -> Any:
    from open_clip import SimpleTokenizer  # its vocabulary comes with the package

    return SimpleTokenizer(context_length=context_length)


def tokenize(prompts: list[str], context_length: int = 77) -> torch.Tensor:
    """Token numbers (B, context_length) int64: start, words, end, then zeros.

    Longer prompts are cut, with a warning that names the words that are lost.
    """
    tokenizer = _tokenizer(context_length)
    tokens = tokenizer(list(prompts))
    for prompt, row in zip(prompts, tokens, strict=True):
        # Only what fills its row can be too long; most prompts need not be encoded again.
        if row[-1] and (lost := tokenizer.encode(prompt)[context_length - 2 :]):
            warnings.warn(
                f"The prompt has {len(lost)} tokens more than the {context_length - 2} that are used, so these words "
                f"were cut: '{shorten(tokenizer.decode(lost), 200)}'; shorten it.",
                stacklevel=2,
            )
    return tokens


def text_layers(model: CLIP, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Outputs (B, L, D) of the last two text layers, each through the final norm, with gradients.

    `tokens` (B, L) may be shorter than the model's context: attention is causal, so what is cut off at the end
    changes nothing before it.
    """
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
    """Context tokens (B, 77, D) of prompts: the penultimate layer through the final norm, no projection.

    The result is in the tower's type, on its device. Prompts beyond 77 tokens are cut, with a warning.

    Raises:
        UserError: the text tower was not loaded.
    """
    if model.transformer is None:
        raise UserError(
            "There is no text tower: name a file that has one, such as Stable Diffusion 2.1's text encoder."
        )
    return encode_tokens(model, tokenize(prompts, model.context_length))


@torch.no_grad()
def encode_tokens(model: CLIP, tokens: torch.Tensor) -> torch.Tensor:
    """`encode_text` of token numbers (B, L), see `tokenize`."""
    tokens = tokens.to(model.positional_embedding.device)
    # The last block is not run, and need not be there; `layers` counts it nevertheless.
    penultimate = next(islice(_text_states(model, tokens), model.transformer.layers - 1, None))
    return model.ln_final(penultimate)


def preprocess(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Images (B, 3, H, W) in [0, 1] to the tower's input (B, 3, *size): `fitted`, by OpenAI's mean and deviation."""
    image = fitted(image, size)
    mean = torch.tensor(IMAGE_MEAN, device=image.device, dtype=image.dtype).view(3, 1, 1)
    std = torch.tensor(IMAGE_STD, device=image.device, dtype=image.dtype).view(3, 1, 1)
    return (image - mean) / std


def fitted(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Images (B, 3, H, W) in [0, 1] as the tower sees them, (B, 3, *size) in [0, 1].

    The shorter side is resized to fit (bicubic, antialiased), the centre cropped.
    """
    height, width = image.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    resized = (max(round(height * scale), size[0]), max(round(width * scale), size[1]))
    if resized != (height, width):
        image = F.interpolate(image.float(), resized, mode="bicubic", antialias=True, align_corners=False)
        image = image.clamp(0.0, 1.0)  # bicubic overshoots at edges
    top, left = (resized[0] - size[0]) // 2, (resized[1] - size[1]) // 2
    return image[..., top : top + size[0], left : left + size[1]]


def _image_size(model: CLIP) -> tuple[int, int]:
    size = model.visual.image_size
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@torch.no_grad()
def encode_image(model: CLIP, image: torch.Tensor) -> torch.Tensor:
    """Style token (B, 1, D) of images (B, 3, H, W) with RGB in [0, 1]: the projected embedding, not normalised.

    The result is in the tower's type, on its device.

    Raises:
        UserError: the image is not (B, 3, H, W), or the image tower was not loaded.
    """
    if model.visual is None:
        raise UserError(
            "There is no image tower, which a style image needs: name a file that has one, such as OpenCLIP ViT-H/14's "
            "CLIP vision file."
        )
    if image.dim() != 4 or image.shape[1] != 3:
        raise UserError(
            f"The style image has shape {tuple(image.shape)} where (B, 3, H, W) was expected; give RGB images."
        )
    weight = model.visual.conv1.weight
    pixels = preprocess(image.to(weight.device, torch.float32), _image_size(model)).to(weight.dtype)
    return model.visual(pixels)[:, None]
