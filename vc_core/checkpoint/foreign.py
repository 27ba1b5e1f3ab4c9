"""Files of other families, told by their tensors' names: what each is, and what to do instead."""

import re
from collections.abc import Collection

_VIDEO = (
    "a network of another kind than VideoComposer's: load it with nodes that are made for it, and name a VideoComposer "
    "network here, such as non_ema_228000.pth"
)

# A pattern that only names of this family match -> what is said after "The file is".
_FAMILIES = {
    # VGen's own, which have the names of a VideoComposer network and more.
    r"(^|\.)local_image_concat\.": f"VGen's I2VGen-XL, {_VIDEO}",
    r"(^|\.)image_latents_(proj_in|temporal_encoder)\.": f"I2VGen-XL in diffusers' layout, {_VIDEO}",
    r"(^|\.)[am]sim_embedding\.": f"VGen's HiGen, {_VIDEO}",
    r"\.(attn|cross_attn|ff)_adapter\.": f"VGen's DreamVideo, {_VIDEO}",
    r"\.to_(q|k|v|out)_lora\.(down|up)_linear\.": f"VGen's InstructVideo, {_VIDEO}",
    # Others with some of Stable Diffusion's parts.
    r"(^|\.)init_attn\.\d": f"VideoCrafter or DynamiCrafter, {_VIDEO}",
    r"\.(time_stack|time_mixer|temporal_transformer_blocks)\.": f"Stable Video Diffusion, {_VIDEO}",
    r"(^|\.)motion_modules\.\d": "a motion module of AnimateDiff, which goes into Stable Diffusion's 2D UNet: load it "
    "with AnimateDiff's nodes, and name a VideoComposer network here, such as non_ema_228000.pth",
    r"^conditioner\.embedders\.": "an SDXL checkpoint, whose latents have another scale and whose text towers are "
    "others: name a Stable Diffusion 1.x or 2.x file for the autoencoder, and a 2.x or OpenCLIP ViT-H/14 file for the "
    "towers",
    # Transformers.
    r"(^|\.)blocks\.\d+\.self_attn\.[qkvo]\.weight$|(^|\.)condition_embedder\.time_embedder\.": f"Wan, {_VIDEO}",
    r"(^|\.)patchify_proj\.weight$": f"LTX-Video, {_VIDEO}",
    r"\.individual_token_refiner\.|(^|\.)context_embedder\.token_refiner\.": f"HunyuanVideo, {_VIDEO}",
    r"(^|\.)patch_embed\.text_proj\.": f"CogVideoX, {_VIDEO}",
    r"\.(lora_(down|up|mid|A|B)\b|hada_w\d|lokr_w\d)|[._]lora(_linear_layer)?\.(down|up)\.": "a LoRA, which changes a "
    "network and is none: name it with --lora beside the checkpoint, in ComfyUI load it with 'Load LoRA (Model)'",
}
_PICTURES = re.compile(r"(^|\.)(time_embed\.0|time_embedding\.linear_1)\.weight$")
_OVER_TIME = re.compile(r"temopral_conv|temp_convs|transformer_in\.")


def foreign_family(names: Collection[str]) -> str | None:
    """What a file of another family is and what to do, for after "The file is"; None for what may be one of ours."""
    found = (said for pattern, said in _FAMILIES.items() if any(map(re.compile(pattern).search, names)))
    return next(found, None)


def only_pictures(names: Collection[str]) -> str | None:
    """What is said of the UNet of pictures among names in which no network of videos is, after "The file"; None where
    that is not there either."""
    if not any(map(_PICTURES.search, names)) or any(map(_OVER_TIME.search, names)):
        return None
    return (
        "has a UNet that makes pictures, such as Stable Diffusion's, without layers over time: name a VideoComposer "
        "network such as non_ema_228000.pth, or train one from this by a recipe with start.kind stable_diffusion"
    )
