"""A checkpoint made ready to compose: on which device, in which types, with which further files."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .checkpoint.loading import load_unet
from .checkpoint.origins import unused_note
from .checkpoint.reading import BUNDLED, PARTS, Checkpoint, Part, read_checkpoint
from .checkpoint.tensors import DTYPES
from .config import Config
from .encoders.autoencoder import Tiling
from .encoders.clip import NO_IMAGE_TOWER
from .errors import UserError
from .memory import Need, needed, network_bytes, smaller_weights, told_of_memory, weight_bytes
from .model.operations import CastWeights
from .model.unet import UNet3D
from .progress import Progress

_LAYOUTS = {"kl": ("ldm", "diffusers"), "taesd": ("taesd",)}
"""An autoencoder in the config -> layouts of files that bring it."""

_WHERE = {
    "vae": "Stable Diffusion's autoencoder (any SD 1.x or 2.x checkpoint, or a VAE file of theirs)",
    "text": "OpenCLIP's ViT-H/14 text tower (the SD 2.1 text encoder, an SD 2.x checkpoint, or open_clip's own file)",
}


KEPT = 2**30
"""Bytes of the towers that stay loaded where nobody says whether they should."""


@dataclass
class VideoComposer:
    """A checkpoint, ready to compose: the network, the autoencoder and the towers.

    Attributes:
        kept: the towers where they stay loaded; None where each comes when it is used and goes after it.
        checkpoint: the file, with the parts that others brought.
        device: where the computation runs.
        dtype: the type it runs in; weights may be stored in another one, and on the CPU.
        offload: the network's weights are on the CPU, and each block's on the device while it runs.
    """

    config: Config
    unet: UNet3D = field(repr=False)
    autoencoder: Any = field(repr=False)
    kept: Any = field(repr=False)
    checkpoint: Checkpoint = field(repr=False)
    device: torch.device
    dtype: torch.dtype
    offload: bool = False

    @property
    def towers(self) -> Any:
        """The text tower, and the image tower where a file brought one; loaded now where they are not kept."""
        return self.load_towers("text", "image")

    def load_towers(self, *names: str, progress: Progress | None = None) -> Any:
        """`towers`, or some of them. They stay in memory for as long as the caller holds them, or are `kept`."""
        from .checkpoint.loading import load_towers

        if self.kept is not None:
            return self.kept
        text, image = (self.checkpoint.parts.get(name) if name in names else None for name in ("text", "image"))
        return load_towers(self.config.towers, text, image, self.dtype, self.device, progress=progress)

    def check_style(self) -> None:
        """Raises `UserError` where a style image cannot be used: the network takes none, or no file brought a tower."""
        self.config.unet.check_takes("style")
        if "image" not in self.checkpoint.parts:
            raise UserError(NO_IMAGE_TOWER)

    @property
    def stored(self) -> torch.dtype:
        """The type that the network's matrices are stored in."""
        return self.unet.conv_in.weight.dtype

    def needs(self, style: bool, **run: Any) -> Need:
        """What a run of `compose` needs, with a style or without; `run` are the keyword arguments of `needed`."""
        on_cpu, network = self.device.type == "cpu", self.checkpoint.part("model").tensors
        weights = network_bytes(self.unet, self.dtype, self.offload and not on_cpu)
        towers = max(map(self.tower_bytes, ("text", "image") if style else ("text",)))
        if self.kept is not None:
            weights, towers = weights + weight_bytes(self.kept), 0
        elif on_cpu and network.mapped and {*network.dtypes.values()} == {p.dtype for p in self.unet.parameters()}:
            towers = max(0, towers - weights)  # pages of the file, which are not there until the network runs
        return needed(self.config, weights + weight_bytes(self.autoencoder), towers, self.dtype, **run)

    def advice(self, batch: int = 1, tiling: Tiling | None = None) -> list[str]:
        """What to lower where a run does not fit the memory."""
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
        """Bytes of a tower in memory; 0 where no file brought it."""
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
        """Loads a checkpoint, by default the bundled small one.

        Args:
            path: a `.safetensors` of this project, a released `.pth`, or a folder as diffusers writes it.
            parts: a file, or several, that bring what the checkpoint lacks, the autoencoder and the towers; what each
                holds is found out from its tensors. Without an image tower, only style cannot be used.
            loras: files of LoRAs for the network, and the strength of each, any number; kohya's, peft's, diffusers' and
                our own are read.
            device: `auto` (CUDA, else MPS, else the CPU) or a torch device.
            dtype: type that the network's weights are stored in: `fp32`, `fp16`, `bf16`, `fp8` (matrices only), or
                `auto`: fp16 on CUDA, else fp32.
            compute: type to compute in; `auto`: fp32 on the CPU, else as stored (bf16 for fp8).
            offload: keep the network's weights on the CPU and bring them to the device block by block.
            compile: run the network through `torch.compile`; the first step then takes minutes.
            keep: the towers stay in memory between uses, else each is read again when it is used, which its file's
                being mapped makes quick; None: where both take less than a GiB, as the bundled checkpoint's.
            overrides: what the network is, in place of what its file says, see `vc_core.families.overridden`.
            progress: called as `progress("loading", done, total)`, in MiB of the network.

        Raises:
            UserError: no such file, a truncated or foreign one, a part that no file brings, or a device or type that
                is not there.
        """
        from .checkpoint.loading import load_autoencoder, load_towers

        device = choose_device(device)
        stored, computed = choose_dtypes(device, dtype, compute)
        checkpoint = read_checkpoint(path, **(overrides or {}))
        checkpoint.part("model")
        if checkpoint.extra:
            warnings.warn(f"{path}: {unused_note(checkpoint.extra)}", stacklevel=2)
        files = [parts] if isinstance(parts, (str, Path)) else parts
        found = _gather(checkpoint, [read_checkpoint(file) for file in files])
        config = checkpoint.config
        load_towers(config.towers, found["text"], found.get("image"), device="meta")  # refused now, not when used
        with told_of_memory(device, smaller_weights(device, stored, offload)):
            autoencoder = load_autoencoder(found["vae"], computed, device, progress=progress)
            unet = load_unet(
                checkpoint,
                operations=nn if stored == computed else CastWeights,
                dtype=storage(stored, computed),
                device="cpu" if offload else device,
                progress=progress,
                loras=loras,
            )
        if offload:  # each block's weights come to the device while it runs
            try:
                from accelerate import cpu_offload
            except ImportError as error:
                raise UserError("Offloading needs the package accelerate: pip install 'accelerate>=1,<2'.") from error
            cpu_offload(unet, device, preload_module_classes=["EncoderBlock", "DecoderBlock", "ResBlock", "STCEncoder"])
        if compile:
            unet.compile()
        checkpoint = replace(checkpoint, parts=found)
        composer = VideoComposer(config, unet, autoencoder, None, checkpoint, device, computed, offload)
        if keep or (keep is None and composer.tower_bytes("text") + composer.tower_bytes("image") < KEPT):
            composer.kept = composer.load_towers("text", "image", progress=progress)
        return composer


def storage(stored: torch.dtype, compute: torch.dtype) -> Callable[[str, tuple[int, ...]], torch.dtype]:
    """The type that a parameter of a name and shape is stored in, of a network in these types.

    Of fp8 what is large: norms and biases are small, and eight bits would spoil them.
    """
    return lambda _, shape: compute if stored == DTYPES["fp8"] and len(shape) == 1 else stored


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """The device of a name; `auto` is CUDA, else MPS, else the CPU. Raises `UserError` where it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(kind for kind in there if there[kind]))
    try:
        device = torch.device(device)
    except RuntimeError:
        raise UserError(f"The device '{device}' is unknown: expected auto, cpu, cuda, cuda:1 or mps.") from None
    if not there.get(device.type, False) or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise UserError(
            f"The device '{device}' is not there: expected one of "
            f"{', '.join(['auto', *(kind for kind in there if there[kind])])}."
        )
    return device


def choose_dtypes(device: torch.device, dtype: str, compute: str) -> tuple[torch.dtype, torch.dtype]:
    """The types to store the network's weights in and to compute in, see `VideoComposer.load`."""
    computable = [name for name in DTYPES if name != "fp8"]
    for option, name, known in (("dtype", dtype, DTYPES), ("compute type", compute, computable)):
        if name not in ("auto", *known):
            raise UserError(f"The {option} '{name}' is not possible: expected auto, {', '.join(known)}.")
    if dtype == "auto":
        dtype = "fp16" if device.type == "cuda" else "fp32"
    if compute == "auto":
        compute = {"cpu": "fp32"}.get(device.type, "bf16" if dtype == "fp8" else dtype)
    return DTYPES[dtype], DTYPES[compute]


def _gather(checkpoint: Checkpoint, files: Sequence[Checkpoint]) -> dict[str, Part]:
    """Each part from the first file that brings one that fits, the checkpoint's own first.

    Where no tower fits, it is the first one there is: loading it then says what does not fit.
    """
    parts = [part for file in (checkpoint, *files) for part in file.parts.values()]
    fitting = [part for part in parts if _fits(part, checkpoint.config)]
    found: dict[str, Part] = {}
    for part in (*fitting, *(part for part in parts if part.name in _WIDTHS)):
        found.setdefault(part.name, part)
    for name in ("vae", "text"):
        if name not in found:
            raise UserError(
                f"{checkpoint.path} comes without {PARTS[name]}: give, among the parts, a file of {_WHERE[name]}."
            )
    return found


# A tower -> the end of a name whose tensor is as wide as the tower, and the config's entry for that width.
_WIDTHS = {"text": ("token_embedding.weight", "text_width"), "image": ("class_embedding", "image_width")}


def _fits(part: Part, config: Config) -> bool:
    if part.name == "vae":
        return part.layout in _LAYOUTS[config.autoencoder.layout]
    if part.name not in _WIDTHS:
        return True
    end, entry = _WIDTHS[part.name]
    widths = (shape[-1] for name, shape in part.tensors.shapes.items() if name.endswith(end))
    return next(widths, None) == getattr(config.towers, entry)
