"""Depth of a video's frames, as the network saw it: MiDaS's inverse depth / 20, clamped to 0..10, near large.

transformers holds the networks: the released MiDaS v3, DPT and Depth Anything. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...checkpoint.files import open_tensors
from ...checkpoint.tensors import StateDict
from ...errors import UserError, shorten, shown
from ...parsing import parse_json, read_text
from ...progress import Progress
from ..annotators import IMAGENET, Folders, Statistics, as_folders, locate, normalised, per_frame, what_to_get
from .maps import HIGHEST, by_percentiles
from .midas import is_midas, midas_config, midas_state

RELEASED_FILE = "midas_v3_dpt_large.pth"
MIDAS_UNIT = 20.0
"""MiDaS's inverse depth that is 1 here (released: depth_std)."""

_HALF: Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

# What networks give -> depth in the released range. MiDaS v3 has its own scale; that of other inverse depths is not
# known, and metres become inverse depths first.
_RANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "midas": lambda depth: (depth / MIDAS_UNIT).clamp(0, HIGHEST),
    "inverse": by_percentiles,
    "metres": lambda depth: by_percentiles(1 / depth.clamp(min=1e-3)),
}

_CLASSES = {"dpt": "DPT", "depth_anything": "DepthAnything"}
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")

# Parameters that files may lack, because their output is never used.
_UNUSED = ("dpt.layernorm.", "dpt.pooler.", "neck.fusion_stage.layers.0.residual_layer1.", ".mask_token")


@dataclass(frozen=True)
class DepthModel:
    """A depth network, ready to run on frames.

    Attributes:
        which: "midas", "dpt" or "depth_anything".
        values: what it gives: "midas", inverse depth in the released scale; "inverse", in another one; "metres".
        side: length of a frame's shorter side that it works at, in pixels.
        multiple: of which both sides are multiples there.
        square: it takes square pictures only.
        statistics: by which it takes its pictures.
    """

    which: str
    network: nn.Module
    values: str
    side: int
    multiple: int
    square: bool
    statistics: Statistics

    def __call__(self, frames: Tensor) -> Tensor:
        """RGB (N, 3, H, W) in [0, 1] to the network's own values (N, 1, H, W).

        Frames are resized to the size it works at, and its depth back. At the released 384 x 384, MiDaS takes them
        as they are.
        """
        size = frames.shape[-2:]
        pictures = _resized(frames.to(self.network.device), self.working_size(*size), "bicubic").clamp(0, 1)
        return _resized(self.predict(normalised(pictures, self.statistics)), size, "bilinear")

    def predict(self, pictures: Tensor) -> Tensor:
        """Normalised pictures (N, 3, h, w) of a size it works at to its values (N, 1, h, w)."""
        config = self.network.config
        if not _is_plain(config):
            return self.network(pictures).predicted_depth[:, None]
        # DPT's own forward takes the patches of a plain ViT for a square.
        h, w = (side // config.patch_size for side in pictures.shape[-2:])
        hidden = self.network.dpt(pictures, output_hidden_states=True).hidden_states
        stages = [hidden[index + 1] for index in config.backbone_out_indices]
        return self.network.head(self.network.neck(stages, h, w))[:, None]

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that frames of this size are resized to: the same shape, as far as it takes that."""
        if self.square:
            return self.side, self.side
        scale = self.side / min(height, width) / self.multiple
        return tuple(max(1, round(scale * length)) * self.multiple for length in (height, width))


def depth(video: Tensor, model: DepthModel, at_once: int = 4, progress: Progress | None = None) -> Tensor:
    """Depth of every frame of a video in the released range, by a network.

    MiDaS v3 (the released file, or a folder such as `Intel/dpt-large`) gives the released values: / 20, clamped to
    0..10. Depth Anything and the other DPTs give depth in scales of their own: `by_percentiles` over the whole clip
    brings it into that range.

    Args:
        video: (B, 3, F, H, W), RGB in [0, 1], of any size.
        at_once: frames at a time.
        progress: called as `progress("depth", done, total)`, in frames.

    Returns:
        (B, 1, F, H, W) in 0..10, near large, on the video's device.

    Raises:
        UserError: a video of another shape, or one in which the network sees no depth at all.
    """
    return _RANGES[model.values](per_frame(model, video, "depth", at_once, progress))


def load_depth_model(
    path: str | Path | None = None, device: str | torch.device = "cpu", models: Folders = None
) -> DepthModel:
    """A depth network from files of this machine; nothing is downloaded.

    Args:
        path: `midas_v3_dpt_large.pth`, a folder of transformers' DPT or Depth Anything, or the file of weights in such
            a folder. By default the released file, found in `models`.
        models: the folders in which it is looked for; by default those of `vc_core.published.model_folders`.

    Raises:
        UserError: it is missing, damaged or of another kind, or transformers is not installed.
    """
    if path is None and not (path := locate([RELEASED_FILE], models).get(RELEASED_FILE)):
        folders = ", ".join(map(str, as_folders(models)))
        raise UserError(
            f"Depth of a video needs a model (ready depth maps need none), and {RELEASED_FILE} is not in {folders}: "
            f"{_advice(models)}."
        )
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"There is no depth model at {path}: check the path, or {_advice(None)}.")
    folder = path if path.is_dir() else path.parent
    file = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None) if folder is path else path
    if file is None:
        raise UserError(
            f"{folder} holds no weights of a depth model: expected {' or '.join(_WEIGHTS)} beside config.json; "
            "download the whole folder, or name the file in it."
        )
    tensors = open_tensors(file)
    if file is path and is_midas(tensors):
        return midas_model(midas_config(tensors), midas_state(tensors), str(path), device)
    settings = _settings(folder / "config.json", path)
    statistics = _statistics(folder / "preprocessor_config.json", settings["model_type"])
    return _described(_build(settings, tensors.state(), str(path)).to(device), settings["model_type"], statistics)


def midas_model(
    config: Mapping[str, Any], state: StateDict, source: str, device: str | torch.device = "cpu"
) -> DepthModel:
    """The released MiDaS from its settings and parameters, see `midas.py`; `source` is for messages."""
    network = _build({**config, "model_type": "dpt"}, state, source).to(device)
    return _described(network, "midas", _HALF)


def _advice(models: Folders) -> str:
    return (
        f"{what_to_get([RELEASED_FILE], models)}, or name a folder of transformers' DPT or Depth Anything, such as "
        "Intel/dpt-large or depth-anything/Depth-Anything-V2-Small-hf from https://huggingface.co"
    )


def _settings(path: Path, model: Path) -> dict[str, Any]:
    """The config.json of a folder, of a kind that is known."""
    if not path.is_file():
        raise UserError(
            f"{model} cannot be told to be a depth model: it is no {RELEASED_FILE}, and the config.json of "
            f"transformers' DPT or Depth Anything is not in {path.parent}; put it there, or {_advice(None)}."
        )
    settings = _json(path)
    if settings.get("model_type") not in tuple(_CLASSES):
        raise UserError(
            f"{path} is of the kind {shown(settings.get('model_type'))}: expected a depth model of the kinds "
            f"{' or '.join(_CLASSES)}; name the folder of one."
        )
    if settings.get("backbone"):  # which transformers would download
        raise UserError(
            f"{path} names a backbone elsewhere ({shown(settings['backbone'])}): give a folder that holds the whole "
            "model."
        )
    return settings


def _json(path: Path) -> dict[str, Any]:
    try:
        settings = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): download it again.") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no settings: download it again.")
    return settings


def _statistics(path: Path, kind: str) -> Statistics:
    """Mean and deviation of the pictures, from the folder's preprocessor_config.json or as published."""
    mean, std = _HALF if kind == "dpt" else IMAGENET
    settings = _json(path) if path.is_file() else {}
    unit = 1.0 if settings.get("do_rescale", True) else 255.0  # some take RGB in [0, 255]
    mean, std = settings.get("image_mean", mean), settings.get("image_std", std)
    return tuple(value / unit for value in mean), tuple(value / unit for value in std)


def _build(settings: Mapping[str, Any], state: StateDict, source: str) -> nn.Module:
    """transformers' network of these settings, filled from a state under published names."""
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            "Depth needs the library transformers, which is not installed: pip install 'transformers>=4.40,<6', or "
            "give depth maps."
        ) from error
    config_class, network_class = (
        getattr(transformers, _CLASSES[settings["model_type"]] + kind) for kind in ("Config", "ForDepthEstimation")
    )
    try:
        with _quiet():
            # Not from the folder: given a state, transformers reads no file and asks no network, and still knows the
            # names of all its versions.
            network, report = network_class.from_pretrained(
                None,
                config=config_class.from_dict(dict(settings)),
                state_dict=state,
                ignore_mismatched_sizes=True,  # they are in the report
                output_loading_info=True,
                local_files_only=True,
            )
    except Exception as error:  # settings that do not go together; transformers has no one kind of error for them
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source} is no depth model that transformers can build ({reason}): get it again.") from error
    missing = sorted(name for name in report["missing_keys"] if not any(unused in name for unused in _UNUSED))
    wrong = sorted(name for name, *_ in report["mismatched_keys"])
    if missing or wrong:
        raise UserError(
            f"{source} does not fit its settings: {len(missing)} tensors are missing and {len(wrong)} have another "
            f"shape ({shorten([*missing, *wrong])}); the file is incomplete or of another model, get it again."
        )
    return network.float().eval().requires_grad_(False)


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without its bars and tables: what matters of them becomes an error here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _is_plain(config: Any) -> bool:
    """A DPT on its own ViT, as MiDaS v3; later ones stand on a backbone with a config of its own."""
    return config.model_type == "dpt" and not config.is_hybrid and config.backbone_config is None


def _described(network: nn.Module, which: str, statistics: Statistics) -> DepthModel:
    config, plain = network.config, _is_plain(network.config)
    # Whose pictures they are: a hybrid's convolutions come before its own ViT, other backbones replace it.
    viewer = config if plain or getattr(config, "is_hybrid", False) else config.backbone_config
    dino = viewer.model_type.startswith("dinov2")
    # Published DPTs on DINOv2 were trained on metres (NYU, KITTI), those on others with MiDaS's inverse depth.
    metres = (dino and config.model_type == "dpt") or getattr(config, "depth_estimation_type", "") == "metric"
    return DepthModel(
        which,
        network,
        values="midas" if plain else "metres" if metres else "inverse",
        side=_one(viewer.image_size),
        multiple=_one(viewer.patch_size) * (2 if plain else 1),  # the plain one's coarsest stage has half as many
        square=not (plain or dino),  # the others know positions in one size only
        statistics=statistics,
    )


def _one(size: Any) -> int:
    return size if isinstance(size, int) else size[0]


def _resized(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode=mode, align_corners=False, antialias=True)
