"""Everything worth knowing about one GPU, in at most four minutes.

    ./vc bench gpu                                    # prints a table, writes gpu.json
    ./vc bench gpu --peer ~/videocomposer             # also the official network, see peer.py
    ./vc bench gpu --device cpu --width 64 --size 64  # a rehearsal

The network has random weights in the released size. Every section runs in its own process with a time limit, so
that a failure does not affect the others. Requires only torch, einops, safetensors, numpy and tqdm; a section that
requires more says so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vc_core.config import UNetConfig
from vc_core.model.operations import CastWeights
from vc_core.model.unet import UNet3D

SECONDS = 240
"""Time limit of all sections together."""


class Bench:
    """The machine, and the network's size and inputs."""

    def __init__(self, options: argparse.Namespace):
        self.device, self.peer, self.repeats = torch.device(options.device), options.peer, options.repeats
        self.cuda = self.device.type == "cuda"
        self.half = torch.float16 if self.cuda else torch.bfloat16
        self.config = UNetConfig(width=options.width)
        self.frames, self.side = options.frames, options.size // 8

    def unet(self, dtype: torch.dtype, operations: Any = nn) -> UNet3D:
        """A network whose random weights keep the size of activations."""
        torch.manual_seed(0)
        with torch.device(self.device):
            unet = UNet3D(self.config, operations).eval().requires_grad_(False)
        for name, parameter in unet.named_parameters():
            parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1)
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.add_(1.0)
        return unet.to(dtype)

    def inputs(self, dtype: torch.dtype, frames: int | None = None, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """Latent, timestep and text tokens."""
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(batch, 4, frames or self.frames, self.side, self.side, generator=generator)
        text = torch.randn(batch, 77, self.config.context_dim, generator=generator)
        return x.to(self.device, dtype), torch.full((batch,), 500, device=self.device), text.to(self.device, dtype)

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object], repeats: int | None = None) -> float:
        """The median of several runs, after one that is not counted."""
        times = []
        for _ in range(1 + (repeats or self.repeats)):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])

    def gigabytes(self, run: Callable[[], object]) -> float | None:
        """The peak of allocated memory during a run; None on a CPU."""
        if not self.cuda:
            run()
            return None
        torch.cuda.reset_peak_memory_stats()
        run()
        self.wait()
        return torch.cuda.max_memory_allocated() / 1e9

    @cached_property
    def gigaflops(self) -> float:
        """Arithmetic of one forward: the products of matrices, convolutions and attention."""
        from torch.utils.flop_counter import FlopCounterMode

        with torch.device("meta"):
            unet, x = UNet3D(self.config), torch.empty(1, 4, self.frames, self.side, self.side)
            text = torch.empty(1, 77, self.config.context_dim)
            with FlopCounterMode(display=False) as counter:
                unet(x, torch.empty(1), text)
        return counter.get_total_flops() / 1e9


# --- The sections: each returns what it measured --------------------------------------------------------------------


def precision(bench: Bench) -> dict[str, Any]:
    """A forward in each dtype: milliseconds, and the difference from fp32, relative."""
    results: dict[str, Any] = {}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    unet = bench.unet(torch.float32)
    reference = unet(*bench.inputs(torch.float32))
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        unet, inputs = unet.to(dtype) if dtype == torch.float32 else bench.unet(dtype), bench.inputs(dtype)
        difference = (unet(*inputs).float() - reference).norm() / reference.norm()
        results[f"{name} ms"] = round(1e3 * bench.seconds(partial(unet, *inputs)), 1)
        results[f"{name} difference"] = float(f"{difference:.2g}")
    return results


def attention(bench: Bench) -> dict[str, Any]:
    """Torch's attention kernels on the network's largest shapes, in microseconds."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    positions, heads = bench.side**2, bench.config.width // bench.config.head_dim or 1
    shapes = {
        "spatial": (bench.frames, positions, positions),
        "text": (1, bench.frames * positions, 77),
        "temporal": (positions, bench.frames, bench.frames),
    }
    kernels = ["FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"]
    results: dict[str, Any] = {}
    for name, (batch, queries, keys) in shapes.items():
        q, k = (
            torch.randn(batch, heads, n, bench.config.head_dim, device=bench.device, dtype=bench.half)
            for n in (queries, keys)
        )
        for kernel in kernels:
            try:
                with sdpa_kernel(getattr(SDPBackend, kernel)):
                    took = bench.seconds(partial(F.scaled_dot_product_attention, q, k, k))
                results[f"{name} {kernel.split('_')[0].lower()} us"] = round(1e6 * took)
            except RuntimeError:
                results[f"{name} {kernel.split('_')[0].lower()} us"] = "not available"
    return results


def speed(bench: Bench) -> dict[str, Any]:
    """A forward in half precision: eager, as a CUDA graph and compiled, beside the time of its arithmetic alone."""
    unet, inputs = bench.unet(bench.half), bench.inputs(bench.half)
    a = torch.randn(8192 if bench.cuda else 1024, 8192 if bench.cuda else 1024, device=bench.device, dtype=bench.half)
    rate = 2 * len(a) ** 3 / bench.seconds(lambda: a @ a, 10) / 1e9
    results = {
        "GFLOP of a forward": round(bench.gigaflops),
        "TFLOP/s of a large product": round(rate / 1e3, 1),
        "arithmetic alone ms": round(1e3 * bench.gigaflops / rate, 1),
        "eager ms": round(1e3 * bench.seconds(partial(unet, *inputs)), 1),
    }
    if bench.cuda:
        results["CUDA graph ms"] = round(1e3 * bench.seconds(_graph(unet, inputs).replay), 1)
    return results


def _graph(unet: UNet3D, inputs: tuple[Tensor, ...]) -> Any:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        unet(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        unet(*inputs)
    return graph


def compiled(bench: Bench) -> dict[str, Any]:
    """A forward through torch.compile, and the seconds until the first result."""
    unet, inputs = bench.unet(bench.half), bench.inputs(bench.half)
    unet.compile()
    start = time.perf_counter()
    unet(*inputs)
    bench.wait()
    first = time.perf_counter() - start
    return {"first forward s": round(first, 1), "ms": round(1e3 * bench.seconds(partial(unet, *inputs)), 1)}


def memory(bench: Bench) -> dict[str, Any]:
    """The peak of a forward in half precision, with weights, for videos of several lengths without windows."""
    unet = bench.unet(bench.half)
    results: dict[str, Any] = {}
    for frames in (16, 32, 64):
        run = partial(unet, *bench.inputs(bench.half, frames))
        results[f"{frames} frames ms"] = round(1e3 * bench.seconds(run, 1), 1)
        results[f"{frames} frames GB"] = _rounded(bench.gigabytes(run))
    return results


def fp8(bench: Bench) -> dict[str, Any]:
    """Weights stored in fp8 and computed in half precision."""
    unet = bench.unet(bench.half, CastWeights)
    for parameter in unet.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.to(torch.float8_e4m3fn)
    run = partial(unet, *bench.inputs(bench.half))
    return {"ms": round(1e3 * bench.seconds(run), 1), "GB": _rounded(bench.gigabytes(run))}


def offload(bench: Bench) -> dict[str, Any]:
    """Weights in main memory, copied to the device block by block. Requires accelerate."""
    from accelerate import cpu_offload

    unet = bench.unet(bench.half).to("cpu")
    cpu_offload(unet, bench.device, preload_module_classes=["EncoderBlock", "DecoderBlock", "ResBlock"])
    run = partial(unet, *bench.inputs(bench.half))
    return {"ms": round(1e3 * bench.seconds(run, 2), 1), "GB": _rounded(bench.gigabytes(run))}


def decoding(bench: Bench) -> dict[str, Any]:
    """Stable Diffusion's autoencoder on a video, 16 and 4 frames at a time. Requires diffusers."""
    from vc_core.encoders.autoencoder import Tiling, decode, new_autoencoder

    autoencoder = new_autoencoder("ldm", device=bench.device).to(bench.half).eval()
    latent, _, _ = bench.inputs(torch.float32)
    results: dict[str, Any] = {}
    for chunk in (16, 4):
        run = partial(decode, autoencoder, latent, Tiling(chunk=chunk))
        results[f"{chunk} at a time ms"] = round(1e3 * bench.seconds(run, 1), 1)
        results[f"{chunk} at a time GB"] = _rounded(bench.gigabytes(run))
    return results


@torch.inference_mode(False)
def training(bench: Bench, shard: Callable[[UNet3D], None] | None = None) -> dict[str, Any]:
    """A training step of all weights in bfloat16 with AdamW, recomputing each block in the backward pass."""
    with torch.no_grad():
        unet = bench.unet(torch.bfloat16).train().requires_grad_()
    unet.recompute = True
    if shard is not None:
        shard(unet)
    optimizer = torch.optim.AdamW(unet.parameters(), fused=bench.cuda)
    x, t, text = bench.inputs(torch.bfloat16)

    def step() -> None:
        F.mse_loss(unet(x, t, text), x).backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"ms": round(1e3 * bench.seconds(step, 2), 1), "GB": _rounded(bench.gigabytes(step))}


def fsdp(bench: Bench) -> dict[str, Any]:
    """The same training step with FSDP2, on one rank."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    def shard(unet: UNet3D) -> None:
        for block in unet.blocks():
            fully_shard(block)
        fully_shard(unet)

    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder) / "store"), 1)
        dist.init_process_group("nccl" if bench.cuda else "gloo", store=store, rank=0, world_size=1)
        results = training(bench, shard)
        dist.destroy_process_group()
    return results


def official(bench: Bench) -> dict[str, Any]:
    """This network and the official one with the same weights, in turn."""
    from peer import compared

    if bench.peer is None:
        raise LookupError("pass --peer with a checkout of the official code")
    return compared(bench.peer, bench.config.width, bench.frames, bench.repeats, bench.device)


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 2)


# Section -> the function, and its time limit in seconds.
SECTIONS: dict[str, tuple[Callable[[Bench], dict[str, Any]], float]] = {
    "precision": (precision, 40),
    "speed": (speed, 30),
    "attention": (attention, 20),
    "memory": (memory, 30),
    "training": (training, 40),
    "fsdp": (fsdp, 40),
    "fp8": (fp8, 25),
    "decoding": (decoding, 30),
    "offload": (offload, 30),
    "official": (official, 40),
    "compiled": (compiled, 120),
}


# --- The program ----------------------------------------------------------------------------------------------------


def run_section(name: str, arguments: list[str], limit: float) -> dict[str, Any]:
    """Run a section in its own process. Returns its results, or an `error`."""
    command = [sys.executable, __file__, "--section", name, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"error": f"not finished after {limit:.0f} s"}
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["ended without a message"]
    return json.loads(lines[-1]) if done.returncode == 0 else {"error": lines[-1][:300]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--width", type=int, default=320, help="width of the first level (default: 320, as released)")
    parser.add_argument("--size", type=int, default=256, help="height and width of the video (default: 256)")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the median is printed (default: 5)")
    parser.add_argument("--peer", type=Path, help="checkout of the official code")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"time limit (default: {SECONDS})")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="JSON file (default: gpu.json)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="run only these sections")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.section:
        with torch.inference_mode():
            print(json.dumps(SECTIONS[options.section][0](Bench(options))))
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "vc bench gpu: this PyTorch finds no CUDA device. For a rehearsal add --device cpu --width 64 --size 64."
        )
    names = options.only or list(SECTIONS)
    arguments = [f"--{name}={getattr(options, name)}" for name in ("device", "width", "size", "frames", "repeats")]
    arguments += [f"--peer={options.peer}"] if options.peer else []
    card = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    results: dict[str, Any] = {"device": card, "torch": torch.__version__, "width": options.width}
    deadline = time.monotonic() + options.seconds
    for name in names:
        remaining = deadline - time.monotonic()
        limit = min(SECTIONS[name][1], remaining)
        results[name] = run_section(name, arguments, limit) if remaining > 5 else {"error": "no time left"}
        for key, value in results[name].items():
            print(f"{name:<10} {key:<28} {value}", flush=True)
        temporary = options.out.with_suffix(".partial")
        temporary.write_text(json.dumps(results, indent=2))  # after every section: an interruption loses nothing
        os.replace(temporary, options.out)
    print(f"{options.out}: {card}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
