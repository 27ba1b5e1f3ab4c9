"""Training at the released size: memory and time of the recipes, with random files of the right names.

    ./vc bench real_size                              # all rows
    ./vc bench real_size lora stc --steps 2           # some of them
    ./vc bench real_size lora --folder DIR            # keep the files (17 GB) and the runs there

Writes the released checkpoint, Stable Diffusion 2.1 and OpenCLIP's image encoder with random weights, and short videos
with captions. Then it runs recipes in fresh processes, with one clip of 16 frames of 256x256 per step, and prints a
table: peak memory of the process, and seconds of its steps. The calculated memory is 20 bytes per parameter that trains
(weight, gradient, AdamW's two averages, the running average) and 4 per frozen one, or half of both in bf16, without
activations and encoders. With an offloaded optimizer, the device has weights and gradients only, and another 20 bytes
are in the computer's memory; here both are the same. The complete network in bf16 is trained without a running average.
A run that does not fit is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from training.recipe import RECIPES
from vc_core.checkpoint.files import save_tensors
from vc_core.checkpoint.formats import FORMATS, layout_of
from vc_core.checkpoint.loading import on_meta
from vc_core.checkpoint.origins import shapes_of
from vc_core.checkpoint.released import ldm_names
from vc_core.config import Config
from vc_core.demo import draw_clip
from vc_core.disk import make_folder
from vc_core.encoders.autoencoder import new_autoencoder
from vc_core.encoders.clip import new_towers
from vc_core.memory import available
from vc_core.model.unet import UNet3D, kind_of
from vc_core.video import write_video

NETWORK = "non_ema_228000.pth"
STABLE_DIFFUSION = "v2-1_512-ema-pruned.ckpt"
IMAGE_ENCODER = "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors"
WITHOUT = ["depth", "sketch", "single_sketch"]
"""Conditions whose networks are other files."""
VELOCITIES = {"right": (0.02, 0.0), "left": (-0.02, 0.0), "down": (0.0, 0.02), "up": (0.0, -0.02)}
"""Captions of the videos -> movement per frame, in widths."""


COMPLETE = ("stage1", "stage2", "finetune")
IN_BF16 = {"engine": {"weights": "bf16"}}
COMPLETE_IN_BF16 = {**IN_BF16, "optimizer": {"ema": 0.0}}
OFFLOADED = {"engine": {"weights": "bf16", "offload": True}}
RUNS = {
    "lora": ("lora", "lora", {}),
    "lora-bf16": ("lora", "lora", IN_BF16),
    "stc": ("finetune", "stc", {}),
    "temporal": ("finetune", "temporal", {}),
    "temporal-bf16": ("finetune", "temporal", IN_BF16),
    "temporal-offload": ("finetune", "temporal", OFFLOADED),
    **{name: (name, "all", {}) for name in COMPLETE},
    **{f"{name}-bf16": (name, "all", COMPLETE_IN_BF16) for name in COMPLETE},
    **{f"{name}-offload": (name, "all", OFFLOADED) for name in COMPLETE},
}
"""Row of the table -> recipe, what it trains (see `training.recipe.Train`), and its changes."""


def random_weights(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return random weights that keep the size of activations: matrices are small, norms are one, biases zero."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            weights[name] = torch.randn(shape, generator=generator, dtype=dtype).mul_(shape[0] ** -0.5 / 4)
        else:
            weights[name] = torch.full(shape, float(name.endswith("weight")), dtype=dtype)
    return weights


def shapes_in_file(part: str, layout: str, module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a part's tensors in a file of this layout."""
    origins = layout_of(part, layout, module, shapes_of(module)).values()
    return {FORMATS[part, layout].prefix + name: origin.shape for origin in origins for name in origin.names}


def write_models(folder: Path) -> None:
    """Write the three files that the recipes name, unless they exist."""
    unet, towers = on_meta(Config()), new_towers(Config().towers, "meta")
    visual, towers.visual = towers.visual, None
    parameters = dict(unet.named_parameters())
    names = {f"{module}.{kind}": f"model.diffusion_model.{theirs}.{kind}"
             for module, theirs in ldm_names(unet.config).items() for kind in ("weight", "bias")}  # fmt: skip
    two_dimensional = {names[name]: tuple(p.shape) for name, p in parameters.items() if name in names}
    first = names["conv_in.weight"]
    two_dimensional[first] = (two_dimensional[first][0], 4, 3, 3)
    files = {
        NETWORK: [shapes_in_file("model", "released", unet)],
        STABLE_DIFFUSION: [
            two_dimensional,
            shapes_in_file("vae", "ldm", new_autoencoder("ldm", device="meta")),
            {f"cond_stage_model.model.{name}": shape
             for name, shape in shapes_in_file("text", "open_clip", towers).items()},
        ],
        IMAGE_ENCODER: [shapes_in_file("image", "open_clip", visual)],
    }  # fmt: skip
    for name, shapes in files.items():
        if not (folder / name).exists():
            weights = random_weights({key: shape for part in shapes for key, shape in part.items()})
            if name.endswith(".ckpt"):
                torch.save({"state_dict": weights}, folder / name)
            else:
                save_tensors(folder / name, weights)


def write_videos(folder: Path) -> None:
    """Write short videos with captions."""
    for direction, velocity in VELOCITIES.items():
        path = folder / f"{direction}.mp4"
        if not path.exists():
            write_video(path, draw_clip(velocity, 256, 16), 4.0)
        path.with_suffix(".txt").write_text(f"a disc that moves {direction}\n", encoding="utf-8")


def write_recipe(row: str, folder: Path, steps: int) -> Path:
    """Write the recipe of a row for one process, with one clip per step, and return its path."""
    name, what, changes = RUNS[row]
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    recipe |= {
        "out": str(folder / "runs" / row),
        "steps": steps,
        "ranks": 1,
        "data": [
            {"kind": "folder", "path": str(folder / "data" / "videos"), "frames": 16, "batch": 1, "without": WITHOUT}
        ],
        "train": {**recipe.get("train", {}), "what": what},
        "optimizer": {**recipe["optimizer"], "accumulate": 1, **changes.get("optimizer", {})},
        "engine": {
            **recipe["engine"],
            "precision": "auto",
            "workers": 0,
            "save_every": steps,
            **changes.get("engine", {}),
        },
        "watch": {"log_every": 1},
    }
    start = recipe["start"]
    if name == "stage2":  # stage 1's export would contain all parts
        start = {"kind": "videocomposer", "checkpoint": NETWORK, "parts": [STABLE_DIFFUSION, IMAGE_ENCODER]}
    files = [start["checkpoint"], *start.get("parts", [])]
    start["checkpoint"], *start["parts"] = (str(folder / "models" / Path(file).name) for file in files)
    path = folder / f"{row}.yaml"
    path.write_text(yaml.safe_dump(recipe | {"start": start}), encoding="utf-8")
    return path


def measure(row: str, folder: Path, steps: int) -> dict[str, float]:
    """Train for some steps in a fresh process. Returns its peak memory in bytes, and seconds of steps."""
    command = [sys.executable, "-m", "training", str(write_recipe(row, folder, steps))]
    shutil.rmtree(folder / "runs" / row, ignore_errors=True)
    environment = {**os.environ, "PYTHONPATH": str(RECIPES.parents[1])}
    with open(folder / f"{row}.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)  # the peak of this process, not of all
    if status:
        raise SystemExit(f"{row} failed, see {log.name}: {Path(log.name).read_text(encoding='utf-8')[-1000:]}")
    lines = (folder / "runs" / row / "log.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    return {"peak": usage.ru_maxrss * 1024, "first": seconds[0], "later": seconds[-1] - seconds[-2]}


def needed(row: str, unet: UNet3D) -> tuple[int, int]:
    """Return the bytes of the weights, gradients and averages of a run, without activations and the encoders: on the
    device, and in the computer's memory for an offloaded optimizer."""
    _, what, changes = RUNS[row]
    engine, averaged = changes.get("engine", {}), "optimizer" not in changes
    numbers = {name: parameter.numel() for name, parameter in unet.named_parameters()}
    trained = sum(number for name, number in numbers.items() if what in ("all", kind_of(name)))
    size, offload = 2 if "weights" in engine else 4, "offload" in engine
    copies = 1 if offload else 3 + averaged  # the gradient, AdamW's averages, the running average
    return size * (sum(numbers.values()) + copies * trained), 20 * trained if offload else 0


def rows(names: list[str], folder: Path, steps: int) -> Iterator[str]:
    """Yield the lines of the table."""
    unet = on_meta(Config())
    yield "| run | calculated | offloaded | peak memory | first step | a later step |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for row in names:
        need, free = needed(row, unet), available(torch.device("cpu"))
        if sum(need) > free:
            figures = f"does not fit into {free / 1e9:.0f} GB | | |"
        else:
            result = measure(row, folder, steps)
            figures = f"{result['peak'] / 1e9:.1f} GB | {result['first']:.0f} s | {result['later']:.0f} s |"
        yield f"| `{row}` | {need[0] / 1e9:.1f} GB | {need[1] / 1e9:.1f} GB | {figures}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", choices=[*RUNS, []], help="rows of the table (default: all)")
    parser.add_argument("--steps", type=int, default=2, help="steps of each run, 2 or more (default: 2)")
    parser.add_argument("--folder", type=Path, help="folder for the files, kept (default: a temporary folder)")
    options = parser.parse_args()
    if options.steps < 2:
        parser.error(f"--steps is {options.steps}. Expected 2 or more.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        make_folder(folder / "models")
        make_folder(folder / "data" / "videos")
        write_models(folder / "models")
        write_videos(folder / "data" / "videos")
        for line in rows(options.runs or [*RUNS], folder.resolve(), options.steps):
            print(line, flush=True)


if __name__ == "__main__":
    main()
