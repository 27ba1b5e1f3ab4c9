"""Predict the depth of a video's frames: MiDaS's inverse depth / 20, clamped to 0..10, near large, as in training.

The networks are transformers': the released MiDaS v3, DPT and Depth Anything. Nothing is downloaded.
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
from ...errors import UserError, amount, shorten, shown
from ...parsing import parse_json, read_text
from ...progress import Progress
from ...published import MODELS
from ..annotators import IMAGENET, Folders, Statistics, as_folders, locate, normalised, per_frame, what_to_get
from .maps import HIGHEST, by_percentiles
from .midas import is_midas, midas_config, midas_state

RELEASED_FILE = "midas_v3_dpt_large.pth"
MIDAS_UNIT = 20.0
"""Divisor of MiDaS's inverse depth (released: depth_std)."""

_HALF: Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

# Kind of a network's output -> conversion to the released range. MiDaS v3 has the released scale; the scale of other
# inverse depths is unknown, and metres are inverted first.
_RANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "midas": lambda depth: (depth / MIDAS_UNIT).clamp(0, HIGHEST),
    "inverse": by_percentiles,
    "metres": lambda depth: by_percentiles(1 / depth.clamp(min=1e-3)),
}

_CLASSES = {"dpt": "DPT", "depth_anything": "DepthAnything"}
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")

# Parameters that may be missing in files, because their output is never used.
_UNUSED = ("dpt.layernorm.", "dpt.pooler.", "neck.fusion_stage.layers.0.residual_layer1.", ".mask_token")


@dataclass(frozen=True)
class DepthModel:
    """A depth network, ready to run on frames.

    Attributes:
        which: "midas", "dpt" or "depth_anything".
        values: its output: "midas", inverse depth in the released scale; "inverse", inverse depth in another scale;
            "metres".
        side: shorter side of its input, in pixels.
        multiple: both sides of its input are multiples of this.
        square: its input must be square.
        statistics: normalization of its input.
    """

    which: str
    network: nn.Module
    values: str
    side: int
    multiple: int
    square: bool
    statistics: Statistics

    def __call__(self, frames: Tensor) -> Tensor:
        """Predict the network's values (N, 1, H, W) for RGB (N, 3, H, W) in [0, 1].

        Frames are resized to the network's input size, and its depth back. At the released 384 x 384, MiDaS needs no
        resizing.
        """
        size = frames.shape[-2:]
        images = _resized(frames.to(self.network.device), self.working_size(*size), "bicubic").clamp(0, 1)
        return _resized(self.predict(normalised(images, self.statistics)), size, "bilinear")

    def predict(self, images: Tensor) -> Tensor:
        """Predict values (N, 1, h, w) for normalized images (N, 3, h, w) of `working_size`."""
        config = self.network.config
        if not _is_plain(config):
            return self.network(images).predicted_depth[:, None]
        # DPT's own forward assumes that the patches of a plain ViT form a square.
        h, w = (side // config.patch_size for side in images.shape[-2:])
        hidden = self.network.dpt(images, output_hidden_states=True).hidden_states
        stages = [hidden[index + 1] for index in config.backbone_out_indices]
        return self.network.head(self.network.neck(stages, h, w))[:, None]

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) to which such frames are resized: the same aspect ratio, if the network allows it."""
        if self.square:
            return self.side, self.side
        scale = self.side / min(height, width) / self.multiple
        return tuple(max(1, round(scale * length)) * self.multiple for length in (height, width))


def depth(video: Tensor, model: DepthModel, at_once: int = 4, progress: Progress | None = None) -> Tensor:
    """Predict the depth of every frame of a video, in the released range.

    MiDaS v3 (the released file, or a folder such as `Intel/dpt-large`) gives the released values: / 20, clamped to
    0..10. Depth Anything and other DPTs have other scales: `by_percentiles` over the entire clip converts them.

    Args:
        video: (B, 3, F, H, W), RGB in [0, 1], of any size.
        at_once: frames per forward.
        progress: called as `progress("depth", done, total)`, in frames.

    Returns:
        (B, 1, F, H, W) in 0..10, near large, on the video's device.

    Raises:
        UserError: a video of another shape, or a constant depth.
    """
    return _RANGES[model.values](per_frame(model, video, "depth", at_once, progress))


def load_depth_model(
    path: str | Path | None = None, device: str | torch.device = "cpu", models: Folders = None
) -> DepthModel:
    """Load a depth network from local files; nothing is downloaded.

    Args:
        path: `midas_v3_dpt_large.pth`, a folder of transformers' DPT or Depth Anything, or the weights file in such a
            folder. By default the released file, searched in `models`.
        models: folders to search; by default `vc_core.published.model_folders`.

    Raises:
        UserError: the file is missing, damaged or of another kind, or transformers is not installed.
    """
    if path is None and not (path := locate([RELEASED_FILE], models).get(RELEASED_FILE)):
        folders = as_folders(models)
        size = amount(next(model.size for model in MODELS if model.name == RELEASED_FILE))
        raise UserError(
            f"Extracting depth requires depth maps or a depth model, and {RELEASED_FILE} was not found in "
            f"{', '.join(map(str, folders))}. Pass depth maps of the clip (--depth-maps), or run ./vc get "
            f"{RELEASED_FILE} --to {folders[0]} to download the model ({size})."
        )
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"There is no depth model at {path}. Check the path, or use another model. {_advice()}.")
    folder = path if path.is_dir() else path.parent
    file = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None) if folder is path else path
    if file is None:
        raise UserError(
            f"{folder} contains no weights of a depth model. Expected {' or '.join(_WEIGHTS)} next to config.json. "
            "Download the complete folder, or pass the path of its weights file."
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
    """Build the released MiDaS from its settings and parameters, see `midas.py`; `source` is for messages."""
    network = _build({**config, "model_type": "dpt"}, state, source).to(device)
    return _described(network, "midas", _HALF)


def _advice() -> str:
    return (
        f"{what_to_get([RELEASED_FILE])}, or use a folder of transformers' DPT or Depth Anything, such as "
        "Intel/dpt-large or depth-anything/Depth-Anything-V2-Small-hf from https://huggingface.co"
    )


def _settings(path: Path, model: Path) -> dict[str, Any]:
    """Read the config.json of a folder, and check that its kind is supported."""
    if not path.is_file():
        raise UserError(
            f"{model} is not recognized as a depth model: it is not {RELEASED_FILE}, and {path.parent} contains no "
            f"config.json of transformers' DPT or Depth Anything. Put it there, or use another model. {_advice()}."
        )
    settings = _json(path)
    if settings.get("model_type") not in tuple(_CLASSES):
        raise UserError(
            f"{path} has model_type {shown(settings.get('model_type'))}. Expected {' or '.join(_CLASSES)}. Pass the "
            "folder of such a model."
        )
    if settings.get("backbone"):  # transformers would download it
        raise UserError(
            f"{path} names a backbone that is not in the folder ({shown(settings['backbone'])}). Use a folder with the "
            "complete model."
        )
    return settings


def _json(path: Path) -> dict[str, Any]:
    try:
        settings = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}). Download it again.") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} contains no settings. Download it again.")
    return settings


def _statistics(path: Path, kind: str) -> Statistics:
    """Mean and standard deviation of the input, from the folder's preprocessor_config.json, or as published."""
    mean, std = _HALF if kind == "dpt" else IMAGENET
    settings = _json(path) if path.is_file() else {}
    unit = 1.0 if settings.get("do_rescale", True) else 255.0  # some networks use RGB in [0, 255]
    mean, std = settings.get("image_mean", mean), settings.get("image_std", std)
    return tuple(value / unit for value in mean), tuple(value / unit for value in std)


def _build(settings: Mapping[str, Any], state: StateDict, source: str) -> nn.Module:
    """Build transformers' network with these settings and a state dict with published names."""
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            "Extracting depth requires the package transformers, which is not installed. Run pip install "
            "'transformers>=4.40,<6', or pass depth maps."
        ) from error
    config_class, network_class = (
        getattr(transformers, _CLASSES[settings["model_type"]] + kind) for kind in ("Config", "ForDepthEstimation")
    )
    try:
        with _quiet():
            # Not from the folder: with a state dict, transformers reads no file, uses no network connection, and still
            # translates the names of all its versions.
            network, report = network_class.from_pretrained(
                None,
                config=config_class.from_dict(dict(settings)),
                state_dict=state,
                ignore_mismatched_sizes=True,  # they are listed in the report
                output_loading_info=True,
                local_files_only=True,
            )
    except Exception as error:  # settings that do not match; transformers has no single error type for them
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{source} is not a depth model that transformers can build ({reason}). Download it again."
        ) from error
    missing = sorted(name for name in report["missing_keys"] if not any(unused in name for unused in _UNUSED))
    wrong = sorted(name for name, *_ in report["mismatched_keys"])
    if missing or wrong:
        raise UserError(
            f"{source} does not match its settings: {len(missing)} tensors are missing and {len(wrong)} have another "
            f"shape ({shorten([*missing, *wrong])}). It is incomplete or belongs to another model. Download it again."
        )
    return network.float().eval().requires_grad_(False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' progress bars and tables; missing and mismatched tensors become errors here."""
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
    """Whether it is a DPT on its own ViT, like MiDaS v3; later ones use a backbone with its own config."""
    return config.model_type == "dpt" and not config.is_hybrid and config.backbone_config is None


def _described(network: nn.Module, which: str, statistics: Statistics) -> DepthModel:
    config, plain = network.config, _is_plain(network.config)
    # The config of the input: a hybrid's convolutions come before its own ViT, other backbones replace it.
    viewer = config if plain or getattr(config, "is_hybrid", False) else config.backbone_config
    dino = viewer.model_type.startswith("dinov2")
    # Published DPTs on DINOv2 were trained on metres (NYU, KITTI), others with MiDaS's inverse depth.
    metres = (dino and config.model_type == "dpt") or getattr(config, "depth_estimation_type", "") == "metric"
    return DepthModel(
        which,
        network,
        values="midas" if plain else "metres" if metres else "inverse",
        side=_scalar(viewer.image_size),
        # The plain one's coarsest stage has half as many patches.
        multiple=_scalar(viewer.patch_size) * (2 if plain else 1),
        square=not (plain or dino),  # the others have position embeddings for one size only
        statistics=statistics,
    )


def _scalar(size: Any) -> int:
    return size if isinstance(size, int) else size[0]


def _resized(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode=mode, align_corners=False, antialias=True)
