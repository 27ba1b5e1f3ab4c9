"""Files of other families, recognized by the names of their tensors: what each file is, and what to do instead."""

import re
from collections.abc import Collection

_VIDEO = (
    "not a VideoComposer network. Load it with nodes for that model, and use a VideoComposer network here, such as "
    "non_ema_228000.pth"
)

# A pattern that matches only names of this family -> the text after "The file is".
_FAMILIES = {
    # VGen's other networks, which have the names of a VideoComposer network and more.
    r"(^|\.)local_image_concat\.": f"VGen's I2VGen-XL, {_VIDEO}",
    r"(^|\.)image_latents_(proj_in|temporal_encoder)\.": f"I2VGen-XL in diffusers' layout, {_VIDEO}",
    r"(^|\.)[am]sim_embedding\.": f"VGen's HiGen, {_VIDEO}",
    r"\.(attn|cross_attn|ff)_adapter\.": f"VGen's DreamVideo, {_VIDEO}",
    r"\.to_(q|k|v|out)_lora\.(down|up)_linear\.": f"VGen's InstructVideo, {_VIDEO}",
    # Other networks that contain parts of Stable Diffusion.
    r"(^|\.)init_attn\.\d": f"VideoCrafter or DynamiCrafter, {_VIDEO}",
    r"\.(time_stack|time_mixer|temporal_transformer_blocks)\.": f"Stable Video Diffusion, {_VIDEO}",
    r"(^|\.)motion_modules\.\d": "a motion module of AnimateDiff for Stable Diffusion's 2D UNet. Load it with "
    "AnimateDiff's nodes, and use a VideoComposer network here, such as non_ema_228000.pth",
    r"^conditioner\.embedders\.": "an SDXL checkpoint, with another latent scale and other text towers. Use a Stable "
    "Diffusion 1.x or 2.x file for the autoencoder, and a 2.x or OpenCLIP ViT-H/14 file for the towers",
    # Transformers.
    r"(^|\.)blocks\.\d+\.self_attn\.[qkvo]\.weight$|(^|\.)condition_embedder\.time_embedder\.": f"Wan, {_VIDEO}",
    r"(^|\.)patchify_proj\.weight$": f"LTX-Video, {_VIDEO}",
    r"\.individual_token_refiner\.|(^|\.)context_embedder\.token_refiner\.": f"HunyuanVideo, {_VIDEO}",
    r"(^|\.)patch_embed\.text_proj\.": f"CogVideoX, {_VIDEO}",
    r"\.(lora_(down|up|mid|A|B)\b|hada_w\d|lokr_w\d)|[._]lora(_linear_layer)?\.(down|up)\.": "a LoRA, not a complete "
    "network. Pass it with --lora in addition to the checkpoint; in ComfyUI load it with 'Load LoRA (Model)'",
}
_IMAGES = re.compile(r"(^|\.)(time_embed\.0|time_embedding\.linear_1)\.weight$")
_OVER_TIME = re.compile(r"temopral_conv|temp_convs|transformer_in\.")


def foreign_family(names: Collection[str]) -> str | None:
    """Return which file of another family this is and what to do, to follow "The file is"; None if it may be a file
    that this project reads."""
    matches = (text for pattern, text in _FAMILIES.items() if any(map(re.compile(pattern).search, names)))
    return next(matches, None)


def only_images(names: Collection[str]) -> str | None:
    """Return a message, to follow "The file", if the names contain a UNet for images and no video network; else
    None."""
    if not any(map(_IMAGES.search, names)) or any(map(_OVER_TIME.search, names)):
        return None
    return (
        "contains a UNet for images without temporal layers, such as Stable Diffusion's. Use a VideoComposer network "
        "such as non_ema_228000.pth, or train one from this file with a recipe that has start.kind stable_diffusion"
    )
