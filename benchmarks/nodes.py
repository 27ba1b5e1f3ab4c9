"""Time and memory of the node pack in a real ComfyUI on the CPU, compared with `compose()`.

    ./vc bench nodes [--rounds 3]

Requires a ComfyUI, which it finds as the tests do (see tests/host/server.py). The nodes and `compose()` compose the
same video with the same steps, alternating. The memory is the peak of the ComfyUI process minus that of the idle
process, in a fresh process for each line. Stock nodes that skip steps alternate with the same graph without them.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from benchmarks.network import seconds
from tests.host.finding import NoHost
from tests.host.graph import Graph
from tests.host.scene import BUNDLED, TEXT, error
from tests.host.server import Host, Result
from vc_core.composer import VideoComposer
from vc_core.diffusion.samplers import Sampling
from vc_core.pipeline import compose


@dataclass(frozen=True)
class Case:
    """A video to compose from text alone: conditions cost little compared with the network."""

    what: str
    frames: int
    size: int
    steps: int


SMALL = (
    Case("16 frames, 64 x 64, 12 steps", 16, 64, 12),
    Case("32 frames, 64 x 64, 12 steps, in windows", 32, 64, 12),
    Case("16 frames, 128 x 128, 12 steps", 16, 128, 12),
)
LONG = Case("16 frames, 64 x 64, 20 steps", 16, 64, 20)
CACHES = ("EasyCache", "LazyCache")
"""Stock nodes that skip steps, with their default settings."""


@contextmanager
def host():
    with tempfile.TemporaryDirectory() as folder:
        running = Host.start(Path(folder) / "host", "videocomposer")
        try:
            yield running
        finally:
            running.stop()


def graph_of(running: Host, case: Case, seed: int, cache: str | None = None) -> Graph:
    """Build a graph that samples the case with the bundled checkpoint, and saves the video and the latent."""
    graph = running.graph()
    loaded = graph.add("VCCheckpointLoader", ckpt_name=BUNDLED)
    positive, negative = (graph.add("CLIPTextEncode", text=words, clip=loaded[1]) for words in (TEXT, ""))
    stc = graph.add(
        "STCEncode",
        model=loaded,
        positive=positive,
        negative=negative,
        width=case.size,
        height=case.size,
        frames=case.frames,
    )
    model = graph.add(cache, model=loaded) if cache else loaded
    sampled = graph.add(
        "VC3DUNetSampler",
        model=model,
        positive=stc[0],
        negative=stc[1],
        latent=stc[2],
        seed=seed,
        steps=case.steps,
        cfg=4.0,
    )
    images = graph.add("VAEDecode", samples=sampled, vae=loaded[3])
    graph.add(
        "SaveAnimatedWEBP",
        images=images,
        filename_prefix="bench",
        fps=8.0,
        lossless=False,
        quality=80,
        method="fastest",
    )
    graph.add("SaveLatent", samples=sampled)
    return graph


def peak(running: Host) -> float:
    """Return the peak memory of the process until now, in GiB (Linux)."""
    lines = Path(f"/proc/{running.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20


def small(case: Case, rounds: int) -> str:
    """Measure one case with the bundled checkpoint; return its line."""
    composer = VideoComposer.load(device="cpu")
    sampling = Sampling(steps=case.steps, guidance=4.0)
    settings = {"frames": case.frames, "sampling": sampling, "size": (case.size,) * 2}
    with host() as running:
        idle = peak(running)
        first = seconds(lambda: running.run(graph_of(running, case, 0)))
        nodes, core = [], []
        for seed in range(1, rounds + 1):
            nodes.append(running.run(graph_of(running, case, seed)).seconds)
            core.append(seconds(lambda seed=seed: compose(composer, TEXT, seed=seed, **settings)))
        ratio = statistics.median(a / b for a, b in zip(nodes, core, strict=True))
        return (
            f"{case.what}: first video {first:.1f} s, next videos {statistics.median(nodes):.1f} s, time / compose() "
            f"{ratio:.2f}; {peak(running) - idle:.2f} GiB"
        )


def cached(cache: str, case: Case, rounds: int) -> str:
    """Measure how much time a node that skips steps saves, and its error; return the line."""
    ratios, errors = [], []
    with host() as running:
        running.run(graph_of(running, case, 0))
        for seed in range(1, rounds + 1):
            plain, quick = (running.run(graph_of(running, case, seed, node)) for node in (None, cache))
            ratios.append(quick.seconds / plain.seconds)
            errors.append(error(latent_of(quick), latent_of(plain)))
        skipped = [int(count) for count in re.findall(rf"{cache} - skipped (\d+)/", running.log())]
    ratio, count, deviation = (statistics.median(values) for values in (ratios, skipped, errors))
    return f"{case.what} with {cache}: time {ratio:.2f}, {count:g} steps skipped, error of the latent {deviation:.0%}"


def latent_of(result: Result) -> Tensor:
    (file,) = (file for file in result.files if file.suffix == ".latent")
    return load_file(file)["latent_tensor"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each measurement (default: 3)")
    arguments = parser.parse_args()
    try:
        for case in SMALL:
            print(small(case, arguments.rounds), flush=True)
        for cache in CACHES:
            print(cached(cache, LONG, arguments.rounds), flush=True)
    except NoHost as error:
        sys.exit(f"vc: {error}.")


if __name__ == "__main__":
    main()
