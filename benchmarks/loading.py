"""Load a checkpoint of the released size, and compare memory and time with the original code's method.

    ./vc bench loading [--width 320] [--folder DIR]

Writes a `.pth` of noise in the released size (5.7 GB; with `--width 128` a sixth of it), loads it in fresh processes
and prints ratios: peak memory / file size, and time / time of `torch.load` into an initialized network. Every process
reads all weights once, as the first sampling step does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from vc_core.checkpoint.files import save_tensors
from vc_core.checkpoint.origins import WINDOW
from vc_core.checkpoint.released import released_layout
from vc_core.config import UNetConfig
from vc_core.model.unet import UNet3D

# Peak memory in bytes, without that of the libraries. Resident pages of the mapped file are included.
MEASURE = """
import json, sys, time
import torch
from torch import nn
from vc_core.checkpoint import origins
from vc_core.checkpoint.loading import load_unet
from vc_core.checkpoint.reading import read_checkpoint
from vc_core.checkpoint.released import released_layout
from vc_core.model.operations import CastWeights
from vc_core.model.unet import UNet3D

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

path, how, origins.WINDOW = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
before, start = peak(), time.perf_counter()
if how == "plain":
    unet = UNet3D(read_checkpoint(path).config.unet)
    state = torch.load(path, map_location="cpu", weights_only=True)
    shapes = {name: p.shape for name, p in unet.named_parameters()}
    layout = released_layout(unet)
    unet.load_state_dict({name: state[layout[name].names[0]].reshape(shapes[name]) for name in shapes})
else:
    dtype = getattr(torch, how)
    unet = load_unet(read_checkpoint(path), nn if dtype == torch.float32 else CastWeights, dtype=dtype)
loaded = time.perf_counter() - start
total = sum(p.view(torch.uint8).sum().item() for p in unet.parameters())
print(json.dumps({"seconds": loaded, "touched": time.perf_counter() - start, "peak": peak() - before}))
"""


def write_noise(path: Path, config: UNetConfig) -> None:
    """Write a file with a network's names and shapes, and fp32 noise in every tensor."""
    with torch.device("meta"):
        layout = released_layout(UNet3D(config))
    generator = torch.Generator().manual_seed(0)
    save_tensors(path, {o.names[0]: torch.randn(o.shape, generator=generator) * 0.02 for o in layout.values()})


def measure(path: Path, how: str, window: int = WINDOW) -> dict[str, float]:
    """Measure seconds and peak bytes of loading in a fresh process; `how` is `plain` or the name of a torch dtype."""
    command = [sys.executable, "-c", MEASURE, str(path), how, str(window)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=320, help="width of the network (default: 320, as released)")
    parser.add_argument("--folder", type=Path, help="folder for the file (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for suffix in (".pth", ".safetensors"):
            path = Path(folder) / f"noise{suffix}"
            write_noise(path, dataclasses.replace(UNetConfig(), width=arguments.width))
            size = path.stat().st_size
            measure(path, "float32")  # puts the file into the system's cache
            results = {how: measure(path, how) for how in ("float32", "float16", "bfloat16", "float8_e4m3fn")}
            if suffix == ".pth":
                plain = measure(path, "plain")
                results = {"plain": plain, **results}
            print(f"{path.name}, {size / 1e9:.2f} GB")
            for how, result in results.items():
                peak, loaded, touched = (result[k] / v for k, v in (("peak", size), *list(plain.items())[:2]))
                print(
                    f"  {how}: peak memory / file size {peak:.2f}; time / plain time {loaded:.2f}, with the first read "
                    f"of all weights {touched:.2f}"
                )
            path.unlink()


if __name__ == "__main__":
    main()
