"""Load a checkpoint to compose with: the device, the dtypes, and the parts from other files."""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .checkpoint.loading import load_unet
from .checkpoint.lora import is_distilled
from .checkpoint.origins import unused_note
from .checkpoint.reading import BUNDLED, PARTS, Checkpoint, Part, read_checkpoint
from .checkpoint.tensors import DTYPES
from .config import Config
from .encoders.autoencoder import Tiling
from .encoders.clip import NO_IMAGE_TOWER
from .errors import UserError, check_type
from .families import overridden
from .memory import Need, needed, network_bytes, report_out_of_memory, smaller_weights, weight_bytes
from .model.operations import CastWeights
from .model.unet import UNet3D
from .progress import Progress

_LAYOUTS = {"kl": ("ldm", "diffusers"), "taesd": ("taesd",)}
"""Autoencoder in the config -> file layouts that contain it."""

_SOURCES = {
    "vae": "any Stable Diffusion 1.x or 2.x checkpoint, or a VAE file for one",
    "text": "Stable Diffusion 2.1's text encoder, an SD 2.x checkpoint, or open_clip's file of OpenCLIP ViT-H/14",
}


SMALL_TOWERS = 2**30
"""Bytes below which both towers stay loaded by default."""


@dataclass
class VideoComposer:
    """A loaded checkpoint: the network, the autoencoder and the towers.

    Attributes:
        loaded_towers: the towers, if they stay in memory; None if each is loaded when it is used, then dropped.
        checkpoint: the file, with the parts from other files.
        device: the device that computes.
        dtype: the dtype of the computation. Weights may have another dtype, and may be on the CPU.
        offload: whether the network's weights are on the CPU, and each block's on the device only while it runs.
    """

    config: Config
    unet: UNet3D = field(repr=False)
    autoencoder: Any = field(repr=False)
    loaded_towers: Any = field(repr=False)
    checkpoint: Checkpoint = field(repr=False)
    device: torch.device
    dtype: torch.dtype
    offload: bool = False

    @property
    def towers(self) -> Any:
        """The text tower, and the image tower if a file contains one. Loads them if they do not stay in memory."""
        return self.load_towers("text", "image")

    def load_towers(self, *names: str, progress: Progress | None = None) -> Any:
        """Return the towers with these names, `text` and `image`. Unless they are in `loaded_towers`, they leave memory
        when the caller drops them."""
        from .checkpoint.loading import load_towers

        if self.loaded_towers is not None:
            return self.loaded_towers
        text, image = (self.checkpoint.parts.get(name) if name in names else None for name in ("text", "image"))
        return load_towers(self.config.towers, text, image, self.dtype, self.device, progress=progress)

    def check_style(self) -> None:
        """Raise `UserError` if style cannot be used: the network does not support it, or no file has an image tower."""
        self.config.unet.check_supports("style")
        if "image" not in self.checkpoint.parts:
            raise UserError(NO_IMAGE_TOWER)

    @property
    def stored(self) -> torch.dtype:
        """The dtype of the network's weight matrices."""
        return self.unet.conv_in.weight.dtype

    def needs(self, style: bool, **run: Any) -> Need:
        """The memory that a run of `compose` needs, with or without style. `run`: keyword arguments of `needed`."""
        on_cpu, network = self.device.type == "cpu", self.checkpoint.part("model").tensors
        weights = network_bytes(self.unet, self.dtype, self.offload and not on_cpu)
        towers = max(map(self.tower_bytes, ("text", "image") if style else ("text",)))
        if self.loaded_towers is not None:
            weights, towers = weights + weight_bytes(self.loaded_towers), 0
        elif on_cpu and network.mapped and {*network.dtypes.values()} == {p.dtype for p in self.unet.parameters()}:
            towers = max(0, towers - weights)  # mapped pages, which take no memory until the network runs
        return needed(self.config, weights + weight_bytes(self.autoencoder), towers, self.dtype, **run)

    def advice(self, batch: int = 1, tiling: Tiling | None = None) -> list[str]:
        """Settings to lower if a run does not fit into memory."""
        tiling = tiling or Tiling()
        return [
            *smaller_weights(self.device, self.stored, self.offload),
            *(["fewer videos at a time"] if batch > 1 else []),
            "a smaller size",
            "fewer frames or a smaller window",
            *([] if tiling.chunk == 1 else ["chunk 1"]),
            *([] if tiling.tile else ["tile 256"]),
        ]

    def tower_bytes(self, name: str) -> int:
        """Bytes of a tower in memory; 0 if no file contains it."""
        part = self.checkpoint.parts.get(name)
        return sum(map(part.tensors.numel, part.tensors.shapes)) * self.dtype.itemsize if part else 0

    @staticmethod
    def load(
        path: str | Path = BUNDLED,
        parts: str | Path | Sequence[str | Path] = (),
        *,
        loras: Mapping[str | Path, float] | None = None,
        device: str | torch.device = "auto",
        dtype: str = "auto",
        compute: str = "auto",
        offload: bool = False,
        compile: bool = False,
        keep: bool | None = None,
        overrides: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> "VideoComposer":
        """Load a checkpoint, by default the bundled small one.

        Args:
            path: a `.safetensors` of this project, a released `.pth`, or a folder in diffusers' format.
            parts: one or several files with the parts that are missing in the checkpoint: the autoencoder and the
                towers. The tensors show what a file contains. Without an image tower, only style is unavailable.
            loras: LoRA file -> its strength, any number. Formats: kohya's, peft's, diffusers' and our own. With a LoRA
                that `./vc train` distilled, the checkpoint's defaults are those for few steps.
            device: `auto` (CUDA, else MPS, else the CPU) or a torch device.
            dtype: dtype of the network's weights: `fp32`, `fp16`, `bf16`, `fp8` (matrices only), or `auto` (fp16 on
                CUDA, else fp32).
            compute: dtype of the computation; `auto`: fp32 on the CPU, else the same as `dtype` (bf16 for fp8).
            offload: keep the network's weights on the CPU and copy them to the device block by block.
            compile: run the network through `torch.compile`. The first step then takes minutes.
            keep: True: the towers stay in memory. False: each is read again for each use; this is quick, because its
                file is mapped. None: True if both take less than a GiB, as in the bundled checkpoint.
            overrides: properties of the network that replace those in its file, see `vc_core.families.overridden`.
            progress: called as `progress("loading", done, total)`, in MiB of the network.

        Raises:
            UserError: a file is missing, truncated or unknown, no file contains a required part, or the device or a
                dtype is not available.
        """
        from .checkpoint.loading import load_autoencoder, load_towers

        files = parts if isinstance(parts, Collection) and not isinstance(parts, str) else [parts]
        for name, file in (("path", path), *(("An item of parts", file) for file in files)):
            check_type(name, file, str | PathLike, "the path of a file")
        check_type("loras", loras, Mapping | None, "a dict of files and strengths, such as {'my.safetensors': 0.8}")
        for file, strength in (loras or {}).items():
            check_type(f"The strength of the LoRA {file}", strength, Real, "a number")
        device = choose_device(device)
        stored, computed = choose_dtypes(device, dtype, compute)
        checkpoint = read_checkpoint(path, **(overrides or {}))
        checkpoint.part("model")
        if checkpoint.extra:
            warnings.warn(f"{path}: {unused_note(checkpoint.extra)}", stacklevel=2)
        gathered = _gather(checkpoint, [read_checkpoint(file) for file in files])
        used = [file for file, strength in (loras or {}).items() if strength]
        if (overrides or {}).get("few_steps") is None and any(map(is_distilled, used)):
            checkpoint = replace(checkpoint, config=overridden(checkpoint.config, few_steps=True))
        config = checkpoint.config
        load_towers(config.towers, gathered["text"], gathered.get("image"), device="meta")  # report errors now
        with report_out_of_memory(device, smaller_weights(device, stored, offload)):
            autoencoder = load_autoencoder(gathered["vae"], computed, device, progress=progress)
            unet = load_unet(
                checkpoint,
                operations=nn if stored == computed else CastWeights,
                dtype=storage(stored, computed),
                device="cpu" if offload else device,
                progress=progress,
                loras=loras,
            )
        if offload:  # copy each block's weights to the device while it runs
            try:
                from accelerate import cpu_offload
            except ImportError as error:
                raise UserError(
                    "Offloading requires the package accelerate. Run: pip install 'accelerate>=1,<2'."
                ) from error
            cpu_offload(unet, device, preload_module_classes=["EncoderBlock", "DecoderBlock", "ResBlock", "STCEncoder"])
        if compile:
            unet.compile()
        checkpoint = replace(checkpoint, parts=gathered)
        composer = VideoComposer(config, unet, autoencoder, None, checkpoint, device, computed, offload)
        if keep or (keep is None and composer.tower_bytes("text") + composer.tower_bytes("image") < SMALL_TOWERS):
            composer.loaded_towers = composer.load_towers("text", "image", progress=progress)
        return composer


def storage(stored: torch.dtype, compute: torch.dtype) -> Callable[[str, tuple[int, ...]], torch.dtype]:
    """Return a function of a parameter's name and shape that returns the dtype to store it in.

    Only matrices are stored in fp8: norms and biases are small, and eight bits are not precise enough for them.
    """
    return lambda _, shape: compute if stored == DTYPES["fp8"] and len(shape) == 1 else stored


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """The device with a name; `auto`: CUDA, else MPS, else the CPU. Raises `UserError` if it is not available."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(kind for kind in available if available[kind]))
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError):
        raise UserError(f"Unknown device '{device}'. Expected auto, cpu, cuda, cuda:1 or mps.") from None
    if not available.get(device.type, False) or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise UserError(
            f"Device '{device}' is not available. Use one of these: "
            f"{', '.join(['auto', *(kind for kind in available if available[kind])])}."
        )
    return device


def choose_dtypes(device: torch.device, dtype: str, compute: str) -> tuple[torch.dtype, torch.dtype]:
    """The dtypes of the network's weights and of the computation, see `VideoComposer.load`."""
    computable = [name for name in DTYPES if name != "fp8"]
    for option, name, supported in (("dtype", dtype, DTYPES), ("compute type", compute, computable)):
        if name not in ("auto", *supported):
            raise UserError(f"The {option} '{name}' is not supported. Expected auto, {', '.join(supported)}.")
    if dtype == "auto":
        dtype = "fp16" if device.type == "cuda" else "fp32"
    if compute == "auto":
        compute = {"cpu": "fp32"}.get(device.type, "bf16" if dtype == "fp8" else dtype)
    return DTYPES[dtype], DTYPES[compute]


def _gather(checkpoint: Checkpoint, files: Sequence[Checkpoint]) -> dict[str, Part]:
    """Choose each part: the first one that fits, from the checkpoint itself, then from the files.

    If no tower fits, choose the first one: the error that loading it raises says what does not fit.
    """
    parts = [part for file in (checkpoint, *files) for part in file.parts.values()]
    fitting = [part for part in parts if _fits(part, checkpoint.config)]
    chosen: dict[str, Part] = {}
    for part in (*fitting, *(part for part in parts if part.name in _WIDTHS)):
        chosen.setdefault(part.name, part)
    for name in ("vae", "text"):
        if name not in chosen:
            raise UserError(
                f"{checkpoint.path} does not contain {PARTS[name]}. Add a file with it to the parts: {_SOURCES[name]}."
            )
    return chosen


# Tower -> the last part of the name of a tensor that is as wide as the tower, and the config key of that width.
_WIDTHS = {"text": ("token_embedding.weight", "text_width"), "image": ("class_embedding", "image_width")}


def _fits(part: Part, config: Config) -> bool:
    if part.name == "vae":
        return part.layout in _LAYOUTS[config.autoencoder.layout]
    if part.name not in _WIDTHS:
        return True
    end, entry = _WIDTHS[part.name]
    widths = (shape[-1] for name, shape in part.tensors.shapes.items() if name.endswith(end))
    return next(widths, None) == getattr(config.towers, entry)
