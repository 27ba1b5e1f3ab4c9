"""Cost of sampling in addition to the network: samplers, predictions for guidance, windows and batches.

    ./vc bench sampling

Prints ratios of times in alternating runs, ratios of peak memory, and the number of network calls. The network is small
and has random weights, so all other work is a larger part here than with the released network.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.network import ratio
from vc_core.config import DiffusionConfig, UNetConfig
from vc_core.diffusion.guidance import Denoiser, Embedded, GuidedDenoiser
from vc_core.diffusion.samplers import SAMPLERS, Sampling, make_sampler, sample
from vc_core.diffusion.windows import WindowedDenoiser, Windows
from vc_core.model.unet import UNet3D

FRAMES, LATENT, STEPS = 8, 8, 5
CONFIG = UNetConfig(
    width=64, multipliers=(1, 2), res_blocks=1, attention_levels=(0,), head_dim=32, temporal_in_heads=2, context_dim=64
)


# One run of a sampler in a fresh process. The latent is so large that the sampler's own memory becomes visible.
MEMORY = """
import sys
import diffusers, torch
from vc_core.config import DiffusionConfig
from vc_core.diffusion.samplers import Sampling, make_sampler, sample

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

sampler = make_sampler(Sampling(sys.argv[1], 5), DiffusionConfig())
torch.set_num_threads(1)
noise = torch.randn(1, 4, 64, 256, 256)
before = peak()
with torch.no_grad():
    sample(lambda x, t: x * 0.5, sampler.start(noise), sampler, [torch.Generator()])
print((peak() - before) / noise.nbytes)
"""


def memory(name: str) -> float:
    """Measure the peak memory of a run without the network and the noise, in sizes of the latent (Linux)."""
    done = subprocess.run([sys.executable, "-c", MEMORY, name], capture_output=True, text=True, check=True)
    return float(done.stdout)


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    unet = UNet3D(CONFIG).eval()
    text, negative = torch.randn(1, 77, CONFIG.context_dim), torch.randn(1, 77, CONFIG.context_dim)
    calls = []
    unet.register_forward_hook(lambda module, inputs, out: calls.append(len(out)))

    def denoiser(frames: int = FRAMES, guidance: float = 9.0, condition_guidance: float = 1.0) -> Denoiser:
        stc = [Embedded(torch.randn(1, CONFIG.stc_channels, frames, LATENT, LATENT))]
        return GuidedDenoiser(
            unet, text, negative, None, negative[:, :1], stc, guidance, condition_guidance=condition_guidance
        )

    def run(denoise: Denoiser, name: str = "ddim_released", batch: int = 1, frames: int = FRAMES) -> Tensor:
        generators = [torch.Generator().manual_seed(i) for i in range(batch)]
        sampler = make_sampler(Sampling(name, STEPS), DiffusionConfig())
        noise = torch.randn(batch, CONFIG.channels, frames, LATENT, LATENT)
        return sample(denoise, sampler.start(noise), sampler, generators)

    def counted(call: Callable[[], object]) -> int:
        calls.clear()
        call()
        return len(calls)

    guided = denoiser()

    def released() -> Tensor:
        return run(guided)

    least = memory("ddim_released")
    for name in SAMPLERS:
        this = partial(run, guided, name)
        print(
            f"{STEPS} steps, {name} / ddim_released: time {ratio(this, released):.2f} ({counted(this)} calls), "
            f"memory without the network {memory(name) / least:.2f}",
            flush=True,
        )

    single, triple = denoiser(guidance=1.0), denoiser(condition_guidance=3.0)
    for predictions, other in ((1, single), (3, triple)):
        print(f"predictions per step for guidance, {predictions} / 2: {ratio(partial(run, other), released):.2f}")

    frames, windows = 2 * FRAMES, Windows(FRAMES)
    spans = windows.spans(frames)
    long = WindowedDenoiser([denoiser() for _ in spans], windows, frames)
    times = ratio(lambda: run(long, frames=frames), released) * FRAMES / frames
    print(f"time per frame, {len(spans)} windows over {frames} frames / {FRAMES} frames without windows: {times:.2f}")

    def twice() -> None:
        released(), released()

    print(f"one batch of 2 / two runs: {ratio(lambda: run(guided, batch=2), twice):.2f}")


if __name__ == "__main__":
    main()
