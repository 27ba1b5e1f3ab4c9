"""Pictures that the page fetches from ComfyUI."""

from __future__ import annotations

import hashlib
import os

import folder_paths
from PIL import Image
from torch import Tensor

from ...vc_core.atomic import written_beside
from ...vc_core.disk import make_folder


def temporary(image: Tensor) -> dict[str, str]:
    """An image (H, W, 3 or 4) in [0, 1] as a file of the folder for temporary ones, as the page asks for files.

    It is named by its content: what is shown again is no other file, and no change of the workflow that names it.
    """
    pixels = (image.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy()
    name = f"videocomposer_{hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:24]}.png"
    folder = folder_paths.get_temp_directory()
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        make_folder(folder)
        with written_beside(path) as part:  # a half of one would be shown for ever, as it is there
            Image.fromarray(pixels).save(part, "PNG", compress_level=1)
    return {"filename": name, "subfolder": "", "type": "temp"}
