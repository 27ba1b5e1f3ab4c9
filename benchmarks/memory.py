"""Memory of a composition: measured on the CPU, or calculated for a GPU.

    ./vc bench memory [--table] [--folder DIR]

Without options, writes files of zeros with the names and shapes of the released network, of Stable Diffusion's
autoencoder and of OpenCLIP's ViT-H/14 (sparse files, which need no space on most disks). It then composes 16 frames of
256x256 with text, style and depth in a fresh process, one step in fp32 on the CPU, and prints the peak memory: in
total, and without the pages of mapped files, which the system can free when it needs memory.

With `--table`, prints the calculated table of vc_core/README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch

from vc_core.checkpoint.formats import FORMATS, layout_of
from vc_core.checkpoint.loading import on_meta
from vc_core.checkpoint.origins import shapes_of
from vc_core.composer import choose_dtypes, storage
from vc_core.config import Config, UNetConfig
from vc_core.encoders.autoencoder import new_autoencoder
from vc_core.encoders.clip import new_towers
from vc_core.families import inferred_config
from vc_core.memory import Need, needed, network_bytes
from vc_core.model.unet import UNet3D

# Two values in bytes, for the process with all its libraries: the kernel's peak, and the maximum of samples.
MEASURE = """
import json, sys, threading, time
import torch
from vc_core import Condition, Sampling, Style, VideoComposer, compose

def status(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) * 1024

def watch():
    while True:
        now = status("RssAnon")
        peaks["anonymous"] = max(peaks["anonymous"], now)
        phases[where[-1]] = [max(a, b) for a, b in zip(phases.get(where[-1], [0, 0]), (status("VmRSS"), now))]
        time.sleep(0.02)

def progress(what, done, total):
    where.append(what)

torch.set_num_threads(1)
peaks, phases, where = {"anonymous": 0}, {}, ["start"]
threading.Thread(target=watch, daemon=True).start()
files, load, run = json.loads(sys.argv[1])
composer = VideoComposer.load(files[0], files[1:], **load, progress=progress)
config = composer.config
frames, (height, width) = run.pop("frames", config.frames), run.pop("size", (config.height, config.width))
for _ in range(run.pop("times", 1)):
    start = time.perf_counter()
    video = compose(
        composer,
        "a harbour at night",
        conditions=[Condition("depth", torch.rand(1, 1, frames, height * 3 // 2, width * 3 // 2))],
        style=Style(torch.rand(1, 3, height, width)),
        sampling=Sampling(steps=1, **run.pop("sampling", {})),
        frames=frames,
        size=(height, width),
        progress=progress,
        **run,
    )
    assert torch.isfinite(video).all()
    seconds = time.perf_counter() - start
print(json.dumps({"peak": status("VmHWM"), **peaks, "seconds": seconds, "phases": phases}))
"""


def write_zeros(path: Path, shapes: Mapping[str, Sequence[int]], dtype: str = "F32") -> None:
    """Write a `.safetensors` of zeros as a sparse file, which needs no disk space if the file system supports it."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape) * {"F32": 4, "F16": 2}[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + offset)


def write_files(folder: Path, config: Config, dtype: str = "F32") -> list[Path]:
    """Write the files that composing needs with this config: network, autoencoder, both towers."""
    towers = new_towers(config.towers, "meta")
    kinds = {
        "network": [("model", "released", on_meta(config))],
        "autoencoder": [("vae", "ldm", new_autoencoder("ldm", device="meta"))],
        "towers": [("image", "open_clip", towers.visual), ("text", "open_clip", towers)],
    }
    towers.visual = None
    paths = []
    for name, parts in kinds.items():
        shapes = {}
        for part, layout, module in parts:
            origins = layout_of(part, layout, module, shapes_of(module)).values()
            prefix = FORMATS[part, layout].prefix
            shapes |= {prefix + name: origin.shape for origin in origins for name in origin.names}
        paths.append(folder / f"{name}.safetensors")
        write_zeros(paths[-1], shapes, dtype)
    return paths


def measure(files: Sequence[Path], load: Mapping[str, object] | None = None, run: Mapping[str, object] | None = None):
    """Measure a composition in a fresh process: its `peak` memory in bytes, and, from samples, that without mapped
    files, `anonymous`.

    Args:
        load, run: arguments of `VideoComposer.load` and of `compose`.
    """
    arguments = json.dumps([[str(file) for file in files], {"device": "cpu", **(load or {})}, run or {}])
    done = subprocess.run([sys.executable, "-c", MEASURE, arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


# --- Calculated -----------------------------------------------------------------------------------------------------

RELEASED, VGEN = Config(), inferred_config(UNetConfig(attention_levels=(1, 2, 3), style_tokens=4))[0]
ROWS = (
    ("released", RELEASED, (256, 256), 16, 2),
    ("TF-T2V", VGEN, (256, 448), 16, 2),
    ("TF-T2V", VGEN, (256, 448), 32, 2),
    ("TF-T2V", VGEN, (512, 896), 16, 2),
    ("VideoLCM, without guidance", VGEN, (256, 448), 16, 1),
)
"""Name, config, (height, width), frames, predictions per step."""
COLUMNS = (("fp16", False), ("fp8", False), ("fp16", True), ("fp8", True))
"""Dtype of the network's stored weights, and whether they are offloaded."""


@cache
def networks(config: Config) -> tuple[UNet3D, list[int]]:
    """Return the network on meta, and the numbers of parameters of the autoencoder and of the two towers."""
    towers = new_towers(config.towers, "meta")
    modules = new_autoencoder("ldm", device="meta"), towers, towers.visual
    autoencoder, both, image = (sum(p.numel() for p in module.parameters()) for module in modules)
    return on_meta(config), [autoencoder, both - image, image]


def count(config: Config, dtype: str, offload: bool, size: tuple[int, int], frames: int, predictions: int) -> Need:
    """Calculate what a composition with text and style needs on a GPU, in bytes, from networks on meta."""
    stored, compute = choose_dtypes(torch.device("cuda"), dtype, "auto")
    unet, parameters = networks(config)
    dtype_of = storage(stored, compute)
    for parameter in unet.parameters():
        parameter.data = parameter.data.to(dtype_of("", tuple(parameter.shape)))
    autoencoder, *towers = (number * compute.itemsize for number in parameters)
    weights = network_bytes(unet, compute, offload) + autoencoder
    return needed(config, weights, max(towers), compute, size=size, frames=frames, predictions=predictions)


def table() -> list[str]:
    """Return the lines of a Markdown table of `ROWS` and `COLUMNS`, in GB."""
    columns = ("activations", "decoding", *(f"{dtype}{', offload' * offload}" for dtype, offload in COLUMNS))
    lines = [f"| network | video | {' | '.join(columns)} |", "| --- " * (2 + len(columns)) + "|"]
    for name, config, size, frames, predictions in ROWS:
        needs = [count(config, dtype, offload, size, frames, predictions) for dtype, offload in COLUMNS]
        figures = (needs[0].activations, needs[0].decoding, *(need.total for need in needs))
        cells = (name, f"{size[1]}x{size[0]}, {frames} frames", *(f"{figure / 1e9:.1f}" for figure in figures))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="folder for the files (default: a temporary folder)")
    parser.add_argument("--table", action="store_true", help="print the calculated table instead")
    arguments = parser.parse_args()
    if arguments.table:
        print("\n".join(table()))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        result = measure(write_files(Path(folder), Config()))
    print(f"peak memory {result['peak'] / 1e9:.2f} GB, {result['anonymous'] / 1e9:.2f} GB without mapped files")


if __name__ == "__main__":
    main()
