"""Inspect a LoRA without applying it: `./vc info`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import Config
from ..errors import UserError, counted
from ..families import overridden
from ..progress import Progress
from .files import open_tensors, sha256
from .inspection import parsed_training
from .loading import on_meta
from .lora import LoRA, is_distilled, read_lora
from .reading import BUNDLED, TRAINING, read_checkpoint


@dataclass(frozen=True)
class LoRAInfo:
    """The report of `./vc info` on a LoRA.

    Attributes:
        networks: names of the networks that it fits.
        layers, unused: numbers of layers that it changes, and of layers that the network does not have.
        ranks: all ranks, ascending.
        few_steps: whether it was distilled for few steps.
    """

    path: Path
    nbytes: int
    sha256: str
    networks: tuple[str, ...]
    layers: int
    unused: int
    ranks: tuple[int, ...]
    few_steps: bool
    training: Any = None


def inspect_lora(path: str | Path, progress: Progress | None = None) -> LoRAInfo:
    """Return everything that is known about a LoRA. Raises `UserError` if it fits neither the released nor the bundled
    network, or see `read_lora`."""
    fitting: dict[str, LoRA] = {}
    problems: list[UserError] = []
    for config in (Config(), read_checkpoint(BUNDLED).config):
        try:
            fitting[config.name] = read_lora(path, on_meta(config))
        except UserError as error:
            problems.append(error)
    if not fitting:
        raise problems[0]
    lora = next(iter(fitting.values()))
    return LoRAInfo(
        Path(path),
        Path(path).stat().st_size,
        sha256(path, progress),
        tuple(fitting),
        len(lora.changes),
        len(lora.unmatched),
        tuple(sorted({change.rank for change in lora.changes.values()})),
        is_distilled(path),
        parsed_training(open_tensors(path).metadata.get(TRAINING)),
    )


def as_text(info: LoRAInfo) -> str:
    """Return the report as text."""
    lines = [
        f"{info.path}: LoRA of {'rank' if len(info.ranks) == 1 else 'ranks'} {', '.join(map(str, info.ranks))} for "
        f"{counted(info.layers, 'layer')}, {info.nbytes / 1e6:.1f} MB",
        f"  SHA-256 {info.sha256}",
        f"  fits: {', '.join(info.networks)}",
    ]
    if info.unused:
        lines.append(f"  not used: {counted(info.unused, 'layer')} that the network does not have")
    if info.few_steps:
        config = overridden(Config(), few_steps=True)
        lines.append(
            f"  distilled for few steps: {config.steps} steps of {config.sampler}, guidance scale {config.guidance:g}"
        )
    if info.training is not None:
        lines.append("  Trained by this project. Add --json to see the settings of the training.")
    return "\n".join(lines)
