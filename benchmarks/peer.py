"""This network against the official one, with the same weights and inputs, run in turn.

    ./vc bench peer --peer ~/videocomposer                 # a checkout of github.com/ali-vilab/videocomposer
    ./vc bench peer --peer ~/videocomposer --width 320     # the released size, about 13 GB of memory on a CPU

Prints the time of a forward and, on CUDA, the peak memory as ratios of ours by theirs; the difference of the results;
and the number of kernels and copies of each. Libraries that their network imports and a forward does not require are
replaced by stubs (fairscale, flash-attn, rotary_embedding_torch), and xformers by torch's own attention.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from network import seconds
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vc_core.checkpoint.origins import fill
from vc_core.checkpoint.released import released_layout
from vc_core.checkpoint.tensors import Tensors
from vc_core.conditions import CONDITIONS
from vc_core.config import UNetConfig
from vc_core.model.unet import UNet3D

LATENT = 32
"""Height and width of the latent. Their STC-encoders always pool to this size."""
COPIES = {"copy_", "clone", "_to_copy", "cat"}


def official_class(peer: Path) -> type[nn.Module]:
    """The official network's class, from a checkout."""
    stubs = {name: types.ModuleType(name) for name in (
        "rotary_embedding_torch", "fairscale", "fairscale.nn", "fairscale.nn.checkpoint", "xformers", "xformers.ops",
        "flash_attn", "flash_attn.flash_attention",
    )}  # fmt: skip
    stubs["rotary_embedding_torch"].RotaryEmbedding = lambda dim: None
    stubs["fairscale.nn.checkpoint"].checkpoint_wrapper = lambda module, **_: module
    stubs["flash_attn.flash_attention"].FlashAttention = nn.Identity
    stubs["xformers"].ops = stubs["xformers.ops"]
    stubs["xformers.ops"].memory_efficient_attention = lambda q, k, v, **_: F.scaled_dot_product_attention(q, k, v)
    package = types.ModuleType("official")  # their __init__ files import all of their program
    package.__path__ = [str(peer / "tools" / "videocomposer")]
    sys.modules.update(stubs | {"official": package})
    from official.unet_sd import UNetSD_temporal

    return UNetSD_temporal


def networks(peer: Path, width: int) -> tuple[nn.Module, UNet3D]:
    """Both networks, with the released levels and blocks."""
    config = UNetConfig(width=width)
    names = ["text", "mask", "depthmap", "sketch", "motion", "image", "local_image", "single_sketch"]
    settings = {
        "in_dim": 4, "out_dim": 4, "dim": config.width, "y_dim": config.context_dim, "context_dim": config.context_dim,
        "dim_mult": list(config.multipliers), "num_heads": config.temporal_in_heads, "head_dim": config.head_dim,
        "num_res_blocks": config.res_blocks, "attn_scales": [0.5**level for level in config.attention_levels],
        "training": False, "video_compositions": names,
    }  # fmt: skip
    cfg = types.SimpleNamespace(resume=True, adapter_transformer_layers=1)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = official_class(peer)(cfg, **settings)
    return theirs.eval().requires_grad_(False), UNet3D(config).eval().requires_grad_(False)


def with_same_weights(theirs: nn.Module, ours: UNet3D) -> None:
    """Give both the same random weights, which keep the size of activations."""
    torch.manual_seed(0)
    for name, parameter in theirs.named_parameters():
        parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1)
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.add_(1.0)
    fill(ours, released_layout(ours), Tensors.of(dict(theirs.state_dict()), "the official network"), "the network")


def runs(
    theirs: nn.Module, ours: UNet3D, frames: int, device: torch.device
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """A forward of each network with text, motion and depth, for the same inputs."""
    size, dim = (LATENT, LATENT), ours.config.context_dim
    with torch.device(device):
        x, t, text = torch.randn(1, 4, frames, *size), torch.tensor([500]), torch.randn(1, 77, dim)
        conditions = {
            name: torch.randn(1, CONDITIONS[name].channels, frames, 12 * LATENT, 12 * LATENT)
            for name in ("depth", "motion")
        }

    def our_run() -> Tensor:
        return ours(x, t, text, sum(ours.encode_condition(name, each, size) for name, each in conditions.items()))

    return lambda: theirs(x, t, text, **conditions), our_run


class Counter(TorchDispatchMode):
    """Counts operators that compute, about one kernel each on a GPU, and of these the copies. Views compute nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and "empty" not in func.__name__:
            self.kernels += 1
            self.copies += func.overloadpacket.__name__ in COPIES
        return func(*args, **(kwargs or {}))


def count(run: Callable[[], object]) -> dict[str, int]:
    with Counter() as counter:
        run()
    return {"kernels": counter.kernels, "copies": counter.copies}


@torch.no_grad()  # in inference mode operators are dispatched before they are decomposed
def compared(peer: Path, width: int, frames: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Measure both networks in turn."""
    pair = networks(peer, width)
    with_same_weights(*pair)
    their_run, our_run = runs(*(network.to(device) for network in pair), frames, device)
    reference, result = their_run(), our_run()
    wait = torch.cuda.synchronize if device.type == "cuda" else None

    def waited(run: Callable[[], Tensor]) -> float:
        return seconds(run if wait is None else lambda: (run(), wait()))

    ratios = [waited(our_run) / waited(their_run) for _ in range(rounds)]
    return {
        "width": width,
        "threads": torch.get_num_threads(),
        "difference": float((result - reference).norm() / reference.norm()),
        "seconds, ours by theirs": round(statistics.median(ratios), 3),
        "peak memory, ours by theirs": _memory_ratio(our_run, their_run, device),
        "theirs": count(their_run),
        "ours": count(our_run),
    }


def _memory_ratio(our_run: Callable[[], Tensor], their_run: Callable[[], Tensor], device: torch.device) -> float | None:
    """The ratio of the peaks of activations; None on a CPU, where torch does not count."""
    if device.type != "cuda":
        return None
    peaks = []
    for run in (our_run, their_run):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    return round(peaks[0] / peaks[1], 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="checkout of the official code")
    parser.add_argument("--width", type=int, default=64, help="width of the first level (default: 64; released: 320)")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    print(json.dumps(compared(options.peer, options.width, options.frames, options.rounds, device), indent=2))


if __name__ == "__main__":
    main()
