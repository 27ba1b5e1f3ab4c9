"""The checkpoint's text and image towers as CLIP and CLIP_VISION, in ComfyUI's own model classes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import comfy.clip_vision
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.utils
import folder_paths
from torch import Tensor

from ...vc_core.checkpoint.reading import Part
from ...vc_core.config import TowersConfig
from ...vc_core.disk import make_folder, writing
from ...vc_core.errors import UserError, counted

_SPECIAL_TOKENS = {"start": 49406, "end": 49407, "pad": 0}
_NAME = "h"  # ComfyUI's name of Stable Diffusion 2.x's text encoder, by which its LoRAs and embeddings are found


def load_clip(part: Part, towers: TowersConfig) -> comfy.sd.CLIP:
    """Load the text tower as a CLIP: the penultimate layer through the final norm, as in Stable Diffusion 2.x.

    Raises:
        UserError: tensors are missing; the message lists them.
    """
    config = {
        **_transformer(towers, towers.text_width, towers.text_heads, towers.text_layers),
        "max_position_embeddings": 77,
        "eos_token_id": _SPECIAL_TOKENS["end"],
        "vocab_size": 49408,
    }
    encoder = partial(
        comfy.sd1_clip.SDClipModel,
        layer="hidden",
        layer_idx=-2,
        textmodel_json_config=config,
        special_tokens=_SPECIAL_TOKENS,
        return_projected_pooled=True,
    )
    tokenizer = partial(
        comfy.sd1_clip.SDTokenizer,
        pad_with_end=False,
        embedding_size=towers.text_width,
        embedding_key=f"clip_{_NAME}",
    )
    target = comfy.supported_models_base.ClipTarget(
        partial(comfy.sd1_clip.SD1Tokenizer, clip_name=_NAME, tokenizer=tokenizer),
        partial(comfy.sd1_clip.SD1ClipModel, clip_name=_NAME, clip_model=encoder),
    )
    state = part.tensors.state()
    if part.layout != "transformers":
        state = comfy.utils.clip_text_transformers_convert(state, "", "")
    parameters = comfy.utils.calculate_parameters(state)
    embeddings = folder_paths.get_folder_paths("embeddings")
    clip = comfy.sd.CLIP(target, embedding_directory=embeddings, parameters=parameters)
    _check(part, clip.load_sd(state), ("logit_scale", "position_ids", "text_projection"))
    return clip


def load_clip_vision(part: Part, towers: TowersConfig) -> comfy.clip_vision.ClipVisionModel:
    """Load the image tower as a CLIP_VISION.

    Raises:
        UserError: tensors are missing; the message lists them.
    """
    width = towers.image_width
    config = {
        **_transformer(towers, width, width // towers.image_head_width, towers.image_layers),
        "model_type": "clip_vision_model",
        "image_size": towers.image_size,
        "num_channels": 3,
        "patch_size": towers.patch_size,
    }
    temporary = folder_paths.get_temp_directory()
    make_folder(temporary)
    with (
        writing(temporary),
        TemporaryDirectory(prefix="clip-vision-", dir=temporary) as folder,
    ):  # the class reads a file
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config))
        vision = comfy.clip_vision.ClipVisionModel(str(path))
    state = part.tensors.state()
    if part.layout != "transformers":
        state = comfy.clip_vision.convert_to_transformers(state, "")
    _check(part, vision.load_sd(state), ("position_ids",))
    return vision


def _transformer(towers: TowersConfig, width: int, heads: int, layers: int) -> dict[str, Any]:
    return {
        "hidden_act": "gelu",
        "hidden_size": width,
        "intermediate_size": width * 4,
        "layer_norm_eps": 1e-5,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "projection_dim": towers.embed_dim,
    }


def _check(part: Part, result: Any, optional: tuple[str, ...]) -> None:
    """Raise `UserError` for tensors that `load_state_dict` did not find, except the optional ones."""
    missing = [name for name in result[0] if not any(item in name for item in optional)]
    if missing:
        raise UserError(
            f"{part.tensors.source} is incomplete. Its {part.name} encoder lacks {counted(len(missing), 'tensor')} "
            f"({', '.join(missing[:5])}). Download or save the file again."
        )


class MissingPart(UserError, AttributeError):
    """The checkpoint does not contain a part. It is an AttributeError because newer ComfyUIs call `hasattr` on it."""

    __module__ = "vc_core"  # users see a UserError under this name


class Missing:
    """A placeholder for a part that the checkpoint does not contain: it raises `MissingPart` when it is used."""

    def __init__(self, sentence: str):
        self._sentence = sentence

    def __str__(self) -> str:
        return self._sentence

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("__"):
            raise AttributeError(name)
        raise MissingPart(self._sentence)
