"""The node pack in a real ComfyUI, on its CPU: how long videos take and in how much memory, beside `compose()`.

    ./vc bench nodes [--rounds 3]

Needs a ComfyUI, found as by the tests (see tests/host/server.py). Times of the nodes and of `compose()`, the same video
by the same steps, are taken in turn in one run; the memory is the peak of the ComfyUI process beyond the idle one's,
in a process of its own for each line. Stock nodes that skip steps are timed in turn with the same video without them.
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
LONG = Case("16 frames, 64 x 64, 20 steps", 16, 64, 20)
CACHES = ("EasyCache", "LazyCache")
"""Stock nodes that skip steps, at their defaults."""


@contextmanager
def host():
    with tempfile.TemporaryDirectory() as folder:
        running = Host.start(Path(folder) / "host", "videocomposer")
        try:
            yield running
        finally:
            running.stop()


def graph_of(running: Host, case: Case, seed: int, cache: str | None = None) -> Graph:
    """A graph that samples the case by the bundled checkpoint and saves it, with the latent."""
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
    """Peak memory of the process so far, in GiB (Linux)."""
    lines = Path(f"/proc/{running.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20


def small(case: Case, rounds: int) -> str:
    """A line of the table, by the bundled checkpoint."""
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
            f"{case.what}: the first video {first:.1f} s, the next {statistics.median(nodes):.1f} s, "
            f"{ratio:.2f} of compose(); {peak(running) - idle:.2f} GiB"
        )


def cached(cache: str, case: Case, rounds: int) -> str:
    """A line of the table: what a node that skips steps saves and costs."""
    ratios, errors = [], []
    with host() as running:
        running.run(graph_of(running, case, 0))
        for seed in range(1, rounds + 1):
            plain, quick = (running.run(graph_of(running, case, seed, node)) for node in (None, cache))
            ratios.append(quick.seconds / plain.seconds)
            errors.append(error(latent_of(quick), latent_of(plain)))
        skipped = [int(count) for count in re.findall(rf"{cache} - skipped (\d+)/", running.log())]
    ratio, count, off = (statistics.median(values) for values in (ratios, skipped, errors))
    return f"{case.what} with {cache}: {ratio:.2f} of the time, {count:g} steps skipped, the latent {off:.0%} off"


def latent_of(result: Result) -> Tensor:
    (file,) = (file for file in result.files if file.suffix == ".latent")
    return load_file(file)["latent_tensor"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
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
