"""Text and image towers (open_clip): prompts to 77 tokens, a style image to one token.

As the released code uses them (its "FrozenOpenCLIPEmbedder" with the penultimate layer, and its visual embedder):
text is the last but one layer's output through the final norm, without projection; an image is its projected
embedding, not normalised. The same functions serve OpenCLIP's ViT-H/14 and the bundled small towers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from vc_core.config import TowersConfig
from vc_core.errors import UserError

if TYPE_CHECKING:
    from open_clip.model import CLIP

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


def build_clip(config: dict[str, Any]) -> CLIP:
    """A CLIP model with fresh weights from a config in open_clip's own form (`embed_dim`, `text_cfg`, `vision_cfg`).

    Raises:
        UserError: a part is missing, or names a setting that open_clip does not have.
    """
    from open_clip.model import CLIP

    try:
        return CLIP(**config)
    except (TypeError, KeyError) as error:
        raise UserError(
            f"The towers' config does not fit open_clip's CLIP ({error}); it needs embed_dim, text_cfg and vision_cfg "
            "as in open_clip's model configs."
        ) from error


def load_clip(config: dict[str, Any], state: dict[str, torch.Tensor]) -> CLIP:
    """Build the towers and fill them from a state dict with open_clip's names, in evaluation mode.

    Raises:
        UserError: the config is wrong, keys are missing or unexpected, or a shape differs.
    """
    model = build_clip(config)
    expected = {key: value.shape for key, value in model.state_dict().items()}
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    wrong = [key for key, shape in expected.items() if key in state and state[key].shape != shape]
    if missing or unexpected or wrong:
        raise UserError(
            f"The text and image towers do not fit their config: {len(missing)} keys are missing {missing[:3]}, "
            f"{len(unexpected)} are unexpected {unexpected[:3]} and {len(wrong)} have another shape {wrong[:3]}; "
            "give the file that belongs to this config."
        )
    model.load_state_dict(state, strict=True)
    return model.eval()


@lru_cache(maxsize=4)
def _tokenizer(context_length: int) -> Any:
    from open_clip import SimpleTokenizer  # its vocabulary comes with the package

    return SimpleTokenizer(context_length=context_length)


def tokenize(prompts: list[str], context_length: int = 77) -> torch.Tensor:
    """Token numbers (B, context_length) int64: start, words, end, then zeros; longer prompts are cut."""
    return _tokenizer(context_length)(list(prompts))


def text_layers(model: CLIP, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Outputs (B, L, D) of the last two text layers, each through the final norm, with gradients.

    `tokens` (B, L) may be shorter than the model's context: attention is causal, so what is cut off at the end
    changes nothing before it.
    """
    length = tokens.shape[1]
    dtype = model.transformer.get_cast_dtype()
    x = model.token_embedding(tokens).to(dtype) + model.positional_embedding[:length].to(dtype)
    mask = model.attn_mask[:length, :length].to(dtype)
    batch_first = getattr(model.transformer, "batch_first", False)  # older releases put the sequence first
    x = x if batch_first else x.transpose(0, 1)
    outputs = [x]
    for block in model.transformer.resblocks:
        outputs.append(block(outputs[-1], attn_mask=mask))
    return [model.ln_final(output if batch_first else output.transpose(0, 1)) for output in outputs[-2:]]


@torch.no_grad()
def encode_text(model: CLIP, prompts: list[str]) -> torch.Tensor:
    """Context tokens (B, 77, D) of prompts: the penultimate layer through the final norm, no projection."""
    tokens = tokenize(prompts, model.context_length).to(model.positional_embedding.device)
    return text_layers(model, tokens)[-2]


def preprocess(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Images (B, 3, H, W) in [0, 1] to the tower's input (B, 3, *size).

    The shorter side is resized to fit (bicubic, antialiased), the centre cropped, OpenAI's mean and deviation applied.
    """
    height, width = image.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    resized = (max(round(height * scale), size[0]), max(round(width * scale), size[1]))
    if resized != (height, width):
        image = F.interpolate(image.float(), resized, mode="bicubic", antialias=True, align_corners=False)
        image = image.clamp(0.0, 1.0)  # bicubic overshoots at edges
    top, left = (resized[0] - size[0]) // 2, (resized[1] - size[1]) // 2
    image = image[..., top : top + size[0], left : left + size[1]]
    mean = torch.tensor(IMAGE_MEAN, device=image.device, dtype=image.dtype).view(3, 1, 1)
    std = torch.tensor(IMAGE_STD, device=image.device, dtype=image.dtype).view(3, 1, 1)
    return (image - mean) / std


def _image_size(model: CLIP) -> tuple[int, int]:
    size = model.visual.image_size
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@torch.no_grad()
def encode_image(model: CLIP, image: torch.Tensor) -> torch.Tensor:
    """Style token (B, 1, D) of images (B, 3, H, W) with RGB in [0, 1]: the projected embedding, not normalised.

    Raises:
        UserError: the image is not (B, 3, H, W).
    """
    if image.dim() != 4 or image.shape[1] != 3:
        raise UserError(
            f"The style image has shape {tuple(image.shape)} where (B, 3, H, W) was expected; give RGB images."
        )
    weight = model.visual.conv1.weight
    pixels = preprocess(image.to(weight.device), _image_size(model)).to(weight.dtype)
    return model.visual(pixels)[:, None]
