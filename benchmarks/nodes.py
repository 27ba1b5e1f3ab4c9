"""The node pack in a real ComfyUI, on its CPU: how long videos take and in how much memory, beside `compose()`.

    ./vc bench nodes [--released] [--rounds 3]

Needs a ComfyUI, found as by the tests (see tests/host/server.py). Times of the nodes and of `compose()`, the same video
by the same steps, are taken in turn in one run; the memory is the peak of the ComfyUI process beyond the idle one's,
in a process of its own for each line. `--released` adds a network of the released size, of noise: one step of 16
frames at 256 x 256, on two sides of the guidance. It wants 16 GiB of memory, 3 GB of disk and ten minutes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.host.graph import Graph
from tests.host.scene import BUNDLED, TEXT
from tests.host.server import Host, NoHost
from vc_core.checkpoint import save_checkpoint
from vc_core.composer import VideoComposer
from vc_core.config import Config, TowersConfig
from vc_core.encoders.clip import build_clip, open_clip_config
from vc_core.encoders.layouts import layout_of
from vc_core.files import save_tensors
from vc_core.layouts import part
from vc_core.model.layout import to_released
from vc_core.model.unet import UNet3D
from vc_core.pipeline import compose


@dataclass(frozen=True)
class Case:
    """A video to make: text alone, as conditions cost little beside the network."""

    what: str
    frames: int
    size: int
    steps: int


SMALL = (
    Case("16 frames, 64 x 64, 12 steps", 16, 64, 12),
    Case("32 frames, 64 x 64, 12 steps, in windows", 32, 64, 12),
    Case("16 frames, 128 x 128, 12 steps", 16, 128, 12),
)


@contextmanager
def host():
    with tempfile.TemporaryDirectory() as folder:
        running = Host.start(Path(folder) / "host", "videocomposer")
        try:
            yield running
        finally:
            running.stop()


def graph_of(running: Host, case: Case, seed: int, clip: dict[str, Any] | None = None, **loader: Any) -> Graph:
    """A graph that samples the case and saves it: as a latent where `clip` has the inputs of a CLIPLoader."""
    graph = running.graph()
    loaded = graph.add("VCCheckpointLoader", **loader)
    tower = loaded[1] if clip is None else graph.add("CLIPLoader", **clip)
    positive, negative = (graph.add("CLIPTextEncode", text=words, clip=tower) for words in (TEXT, ""))
    stc = graph.add("STCEncode", model=loaded, positive=positive, negative=negative, width=case.size, height=case.size,
                    frames=case.frames)  # fmt: skip
    sampled = graph.add("VC3DUNetSampler", model=loaded, positive=stc[0], negative=stc[1], latent=stc[2], seed=seed,
                        steps=case.steps, cfg=4.0)  # fmt: skip
    if clip is None:
        images = graph.add("VAEDecode", samples=sampled, vae=loaded[3])
        graph.add("SaveAnimatedWEBP", images=images, filename_prefix="bench", fps=8.0, lossless=False, quality=80,
                  method="fastest")  # fmt: skip
    else:
        graph.add("SaveLatent", samples=sampled)
    return graph


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak(running: Host) -> float:
    """Peak memory of the process so far, in GiB (Linux)."""
    lines = Path(f"/proc/{running.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20


def small(case: Case, rounds: int) -> str:
    """A line of the table, by the bundled checkpoint."""
    composer = VideoComposer.load(device="cpu")
    settings = {"frames": case.frames, "steps": case.steps, "guidance": 4.0, "size": (case.size,) * 2}
    with host() as running:
        idle = peak(running)
        first = seconds(lambda: running.run(graph_of(running, case, 0, ckpt_name=BUNDLED)))
        nodes, core = [], []
        for seed in range(1, rounds + 1):
            nodes.append(running.run(graph_of(running, case, seed, ckpt_name=BUNDLED)).seconds)
            core.append(seconds(lambda seed=seed: compose(composer, TEXT, seed=seed, **settings)))
        ratio = statistics.median(a / b for a, b in zip(nodes, core, strict=True))
        return (f"{case.what}: the first video {first:.1f} s, the next {statistics.median(nodes):.1f} s, "
                f"{ratio:.2f} of compose(); {peak(running) - idle:.2f} GiB")  # fmt: skip


def write_noise(folder: Path) -> tuple[Path, Path]:
    """Files of the released network's and of Stable Diffusion 2.1's text tower's shapes, in half precision."""
    torch.manual_seed(0)
    network, tower = folder / "noise.safetensors", folder / "text.safetensors"
    unet = UNet3D(Config().unet).half()
    for parameter in unet.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.01)
    save_checkpoint(network, Config(), {"model": to_released(unet)})
    towers = build_clip(open_clip_config(TowersConfig())).half()
    towers.visual = None
    state = part(towers.state_dict(), layout_of("text", "transformers", towers, {}))
    save_tensors(tower, {name: tensor.contiguous() for name, tensor in state.items()}, {})
    return network, tower


def released() -> Iterator[str]:
    """Lines for a network of the released size, of noise."""
    case = Case("", 16, 256, 1)
    with tempfile.TemporaryDirectory() as folder:
        network, tower = write_noise(Path(folder))
        for dtype in ("fp32", "fp16", "bf16"):
            with host() as running:
                idle = peak(running)
                (running.checkpoints / network.name).symlink_to(network)
                (place := running.folder / "models" / "text_encoders").mkdir()
                (place / tower.name).symlink_to(tower)
                clip = {"clip_name": tower.name, "type": "stable_diffusion"}
                first, again = (
                    running.run(graph_of(running, case, seed, clip, ckpt_name=network.name, weight_dtype=dtype)).seconds
                    for seed in (0, 1)
                )
                yield (f"released size, 16 frames, 256 x 256, {dtype} weights: {again:.0f} s a step of two sides, "
                       f"{first:.0f} s with loading; {peak(running) - idle:.1f} GiB with the text tower")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--released", action="store_true", help="measure a network of the released size too")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    try:
        for case in SMALL:
            print(small(case, arguments.rounds), flush=True)
        for line in released() if arguments.released else ():
            print(line, flush=True)
    except NoHost as error:
        sys.exit(f"vc: {error}.")


if __name__ == "__main__":
    main()
