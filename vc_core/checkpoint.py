"""Reading and writing checkpoints. The released names and shapes are the file format; the code's names are ours.

A file of this project is one `.safetensors`: the tensors of the network under `model.`, of the bundled autoencoder
under `vae.` (TAESD layout), of the towers under `text.` and `image.` (OpenCLIP names), and the config as JSON in the
metadata. A released `.pth`, or its tensors without a prefix, is read as it is.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from vc_core.conditions import CONDITIONS
from vc_core.config import Config, UNetConfig, unet_config_from_shapes
from vc_core.errors import UserError
from vc_core.model.blocks import Attend, attend
from vc_core.model.unet import UNet3D, decoder_stages, encoder_stages
from vc_core.writing import written_beside

StateDict = dict[str, Tensor]

PARTS = ("model", "vae", "text", "image")
# Tensors that some releases carry and the network does not use.
LEFTOVERS = ("canny_embedding", "fps_embedding", "zero_y", "black_image_feature")
BUNDLED = Path(__file__).parent / "assets" / "videocomposer_small.safetensors"

# Our name -> released name, inside one module.
_TEMPORAL_CONV = {
    **{f"norms.{i}": f"conv{i + 1}.0" for i in range(4)},
    **{f"convs.{i}": f"conv{i + 1}.{3 if i else 2}" for i in range(4)},  # all but the first come after a dropout
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
    **{f"temporal.{ours}": f"temopral_conv.{released}" for ours, released in _TEMPORAL_CONV.items()},
}
_ATTENTION = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
_TRANSFORMER = {
    "norm": "norm",
    "proj_in": "proj_in",
    "proj_out": "proj_out",
    **{f"block.norm{i}": f"transformer_blocks.0.norm{i}" for i in (1, 2, 3)},
    **{f"block.attn{i}.{k}": f"transformer_blocks.0.attn{i}.{v}" for i in (1, 2) for k, v in _ATTENTION.items()},
    "block.ff.proj_in": "transformer_blocks.0.ff.net.0.proj",
    "block.ff.proj_out": "transformer_blocks.0.ff.net.2",
}
# Convolutions over (f, 1, 1) there, over (f, h w) here; 1 x 1 convolutions there, linear layers here.
_OVER_TIME = re.compile(r"(\.temporal\.convs\.\d|^temporal_in\.proj_(in|out)|\.temporal\.proj_(in|out))\.weight$")
_STC_STEM = {"conv1": "0", "conv2": "3", "conv3": "5"}
_STC_TEMPORAL = {
    "norm": "layers.0.0.norm",
    "to_qkv": "layers.0.0.fn.to_qkv",
    "to_out": "layers.0.0.fn.to_out.0",
    "ff_in": "layers.0.1.net.0.0",
    "ff_out": "layers.0.1.net.2",
}
_TOP = {
    "time_in": "time_embed.0",
    "time_out": "time_embed.2",
    "style_in": "pre_image_condition.0",
    "style_out": "pre_image_condition.2",
    "conv_in": "input_blocks.0.0",
    "norm_out": "out.0",
    "conv_out": "out.2",
}


def key_table(config: UNetConfig) -> dict[str, str]:
    """Our module names -> released module names, for every module that holds parameters."""
    table = dict(_TOP)

    def add(ours: str, released: str, inner: Mapping[str, str]) -> None:
        table.update({f"{ours}.{k}": f"{released}.{v}" for k, v in inner.items()})

    for name in config.conditions:
        stem, temporal = CONDITIONS[name].released
        add(f"stc.{name}", stem, _STC_STEM)
        add(f"stc.{name}.temporal", temporal, _STC_TEMPORAL)
    add("temporal_in", "input_blocks.0.1", _TRANSFORMER)
    for i, stage in enumerate(encoder_stages(config)):
        ours, released = f"encoder.{i}", f"input_blocks.{i + 1}"
        add(f"{ours}.resnet", f"{released}.0", _RESNET)
        add(f"{ours}.spatial", f"{released}.1", _TRANSFORMER)
        add(f"{ours}.temporal", f"{released}.2", _TRANSFORMER)
        if stage.resample:
            table[f"{ours}.downsample.conv"] = f"{released}.op"
    for part, inner, position in (("resnet", _RESNET, 0), ("spatial", _TRANSFORMER, 1), ("temporal", _TRANSFORMER, 2)):
        add(f"middle.{part}", f"middle_block.{position}", inner)
    add("middle_out", "middle_block.3", _RESNET)
    for i, stage in enumerate(decoder_stages(config)):
        ours, released = f"decoder.{i}", f"output_blocks.{i}"
        add(f"{ours}.resnet", f"{released}.0", _RESNET)
        add(f"{ours}.spatial", f"{released}.1", _TRANSFORMER)
        add(f"{ours}.temporal", f"{released}.2", _TRANSFORMER)
        table[f"{ours}.upsample.conv"] = f"{released}.{3 if stage.attention else 1}.conv"
    return table


def released_layout(unet: nn.Module) -> dict[str, tuple[str, tuple[int, ...]]]:
    """For every parameter of a `UNet3D`: our name -> (released name, released shape)."""
    table = key_table(unet.config)
    layout = {}
    for name, parameter in unet.named_parameters():
        module, _, leaf = name.rpartition(".")
        shape = tuple(parameter.shape)
        layout[name] = (f"{table[module]}.{leaf}", (*shape, 1) if _OVER_TIME.search(name) else shape)
    return layout


def to_released(unet: nn.Module) -> StateDict:
    """The network's parameters under their released names and shapes (views, no copies)."""
    parameters = dict(unet.named_parameters())
    return {
        released: parameters[ours].detach().reshape(shape) for ours, (released, shape) in released_layout(unet).items()
    }


def from_released(tensors: Mapping[str, Tensor], unet: nn.Module, source: str) -> StateDict:
    """The parameters of `unet` (which may be on meta) from tensors under released names.

    Raises:
        UserError: tensors that are missing or of another shape; the message lists them.
    """
    layout = released_layout(unet)
    ours_shape = {name: tuple(p.shape) for name, p in unet.named_parameters()}
    missing = [released for released, _ in layout.values() if released not in tensors]
    if missing:
        raise UserError(
            f"{source} lacks {len(missing)} tensors of its network ({_shorten(missing)}): the file is incomplete or of "
            "another model; download or save it again."
        )
    wrong = [
        f"{released} is {tuple(tensors[released].shape)}, expected {shape}"
        for released, shape in layout.values()
        if tuple(tensors[released].shape) != shape
    ]
    if wrong:
        raise UserError(
            f"{source} has {len(wrong)} tensors of another shape ({_shorten(wrong)}): the file is of another model."
        )
    return {ours: tensors[released].reshape(ours_shape[ours]) for ours, (released, _) in layout.items()}


@dataclass
class Checkpoint:
    """A checkpoint file's content, not yet in a network.

    Attributes:
        config: from the metadata, else read off the shapes.
        assumed: one sentence for each thing that neither said.
        parts: tensors by part (`model`, `vae`, `text`, `image`), without the prefix; memory-mapped where possible.
        extra: names of tensors that nothing uses.
    """

    path: Path
    config: Config
    parts: dict[str, StateDict]
    assumed: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)

    def part(self, name: str) -> StateDict:
        """The tensors of one part. Raises `UserError` where the file has none."""
        if not self.parts.get(name):
            raise UserError(f"{self.path} holds no '{name}' part: name a file that has one, as {BUNDLED.name} has.")
        return self.parts[name]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a `.safetensors` of this project or a released `.pth`; detection is by names and shapes.

    Raises:
        UserError: no such file, a truncated or foreign file, or a config that this version does not know.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    parts: dict[str, StateDict] = {name: {} for name in PARTS}
    if any(key.startswith("model.") for key in tensors):
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            parts.setdefault(part, {})[name] = tensor
    else:
        parts["model"] = {key.removeprefix("module."): tensor for key, tensor in tensors.items()}
    assumed = []
    try:
        if "config" in metadata:
            config = Config.from_json(metadata["config"])
        else:
            config = Config(unet=unet_config_from_shapes({k: t.shape for k, t in parts["model"].items()}))
            assumed = ["no config in the metadata: head width 64 and all else that shapes cannot tell is as released"]
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"{path} does not describe a VideoComposer network ({type(error).__name__}: {error}): it is incomplete or "
            "damaged; download or save it again."
        ) from error
    extra = [key for part in parts if part not in PARTS for key in parts[part]]
    extra += _drop_unused(parts["model"], config.unet)
    return Checkpoint(path, config, {k: v for k, v in parts.items() if k in PARTS and v}, assumed, extra)


def load_unet(
    checkpoint: Checkpoint,
    operations: Any = nn,
    attend: Attend = attend,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> UNet3D:
    """The network of a checkpoint, in eval mode. Built on meta, so nothing is initialised for nothing.

    Raises:
        UserError: tensors that are missing or of another shape; the message lists them.
    """
    with torch.device("meta"):
        unet = UNet3D(checkpoint.config.unet, operations, attend)
    state = from_released(checkpoint.part("model"), unet, str(checkpoint.path))
    state = {name: tensor.to(device, dtype) for name, tensor in state.items()}
    unet.load_state_dict(state, strict=True, assign=True)
    return unet.eval().requires_grad_(False)


def save_checkpoint(
    path: str | Path,
    config: Config,
    parts: Mapping[str, Mapping[str, Tensor]],
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a `.safetensors` with the config in its metadata; the file appears whole or not at all.

    Args:
        parts: tensors by part; the `model` part as `to_released` gives it.
        dtype: of the floating-point tensors in the file; None leaves them as they are.
    """
    tensors = {}
    for part, state in parts.items():
        for name, tensor in state.items():
            keep = dtype is None or not tensor.is_floating_point()
            tensors[f"{part}.{name}"] = (tensor if keep else tensor.to(dtype)).detach().cpu().contiguous()
    meta = {**(metadata or {}), "config": config.to_json(), "format": "pt"}
    with written_beside(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, meta)
        temporary.chmod(0o644)  # safetensors makes files that only their owner can read


def read_tensors(path: str | Path) -> tuple[StateDict, dict[str, str]]:
    """All tensors of a `.safetensors` or `.pth`, memory-mapped, and its metadata. Raises `UserError`."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no checkpoint at {path}: check the path.")
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a damaged file makes of the readers; some say nothing, some write pages
        reason = " ".join([type(error).__name__, *str(error).splitlines()[:1]])[:200]
        raise UserError(
            f"{path} cannot be read as a checkpoint ({reason}): it is truncated or not a .safetensors or .pth of "
            "tensors; download or save it again."
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise UserError(f"{path} does not hold named tensors: expected a state dict of the released network.")
    return state, {}


def _drop_unused(tensors: StateDict, config: UNetConfig) -> list[str]:
    """Removes what the network has no place for, in place; returns the names that are not known leftovers."""
    with torch.device("meta"):
        known = {released for released, _ in released_layout(UNet3D(config)).values()}
    unused = [key for key in tensors if key not in known]
    for key in unused:
        del tensors[key]
    return [key for key in unused if not key.startswith(LEFTOVERS)]


def _shorten(items: list[str], most: int = 5) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
