"""The network compared with the official one, for every pair of files in the golden folder and all their entries."""

import json
import re
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vc_core.checkpoint.origins import fill
from vc_core.checkpoint.released import released_layout
from vc_core.checkpoint.tensors import Tensors
from vc_core.conditions import CONDITIONS
from vc_core.config import UNetConfig, unet_config_from_shapes
from vc_core.diffusion.guidance import Embedded, GuidedDenoiser
from vc_core.diffusion.samplers import Sampling, make_sampler, sample
from vc_core.diffusion.super_resolution import (
    GUIDANCE,
    RESCALE,
    denoise,
    denoising_schedule,
    inversion_schedule,
    invert,
)
from vc_core.families import inferred_config
from vc_core.model.unet import UNet3D

DDIM, LCM = re.compile(r"ddim(\d+)"), re.compile(r"lcm(\d+)")
OURS = {spec.guidance_key: name for name, spec in CONDITIONS.items()}


def value(name: str, shape) -> torch.Tensor:
    """The golden folder's rule: a fixed value for every name and shape."""
    n = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(tuple(shape), dtype=np.float32)
    if len(shape) == 1:
        n = (1 + np.float32(0.1) * n) if name.endswith("weight") else np.float32(0.1) * n
    else:
        n = n / np.float32(np.sqrt(np.prod(shape[1:])))
    return torch.from_numpy(n.astype(np.float32))


def relative(out: torch.Tensor, reference: torch.Tensor) -> float:
    return float((out - reference).norm() / reference.norm())


class Run:
    """One golden run: its network, inputs and reference outputs."""

    def __init__(self, path):
        self.spec = json.loads(path.read_text())
        self.reference = load_file(path.with_suffix(".safetensors"))
        shapes = self.spec["parameters"]
        config = unet_config_from_shapes(shapes, self.spec["net"].get("head_dim", 64))
        self.diffusion = inferred_config(config)[0].diffusion
        with torch.device("meta"):
            unet = UNet3D(config)
        tensors = Tensors.of({name: value(name, shape) for name, shape in shapes.items()}, path.name)
        fill(unet, released_layout(unet), tensors, "the golden network")
        self.unet = unet.eval().requires_grad_(False)
        b, f = self.spec["batch"], self.spec["frames"]
        # VGen's runs have a size, which is also that of their conditions. The released runs have 256 x 256.
        width, height = self.spec.get("resolution_width_height", (256, 256))
        self.size = height // 8, width // 8
        self.x = self.input("x", (b, 4, f, *self.size))
        self.text = self.input("y", (b, 77, 1024))
        self.zero = self.input("zero_y", (1, 77, 1024)).expand(b, -1, -1)
        self.style = self.input("image", (b, 1, 1024))
        self.conditions = {}
        for key, shape in self.spec["conditions"].items():
            channels, *size = (shape, height, width) if isinstance(shape, int) else (*shape, shape[1])
            tensor = self.input(key, (b, channels, f, *size))
            if key == "masked":
                tensor[:, -1] = (tensor[:, -1] > 0).float()
            self.conditions[key] = tensor

    def input(self, name, shape):
        return value(f"{self.spec['tag']}.{name}", shape)

    def forward(self, case) -> torch.Tensor:
        keys = self.spec["cases"][case]
        context = self.zero if keys is None else self.text
        if "image" in (keys or ()):
            context = torch.cat([context, self.unet.encode_style(self.style)], dim=1)
        keys = [k for k in keys or () if k != "image"]
        stc = [self.unet.encode_condition(OURS[k], self.conditions[k], self.size) for k in keys]
        return self.unet(self.x, torch.tensor(self.spec["timesteps"]), context, sum(stc[1:], stc[0]) if stc else None)


@pytest.fixture(scope="module")
def run(golden_dir, golden_pair):
    path = golden_dir / f"{golden_pair}.json"
    assert path.exists(), f"no unet_* and no vgen_* pair in {golden_dir}"
    return Run(path)


@torch.inference_mode()
def test_single_forwards_and_stc_outputs(run):
    for entry, reference in run.reference.items():
        kind, _, name = entry.partition(".")
        if kind == "eps":
            out = run.forward(name)
        elif kind == "stc":
            out = run.unet.encode_condition(OURS[name], run.conditions[name], run.size)
        else:
            if kind not in ("alphas_cumprod", "q_sample", "lcm") and not (DDIM.fullmatch(kind) or LCM.fullmatch(kind)):
                warnings.warn(f"no test checks the golden entry {entry}", stacklevel=1)
            continue
        assert relative(out, reference) <= 1e-4, entry


@pytest.mark.parametrize("length", [range(10), pytest.param(range(10, 1000), marks=pytest.mark.slow)])
@torch.inference_mode()
def test_complete_runs(run, length):
    """DDIM on the released grid, with text, style, motion, depth and guidance 9; and LCM."""
    stc = [Embedded(run.unet.encode_condition(k, run.conditions[k], run.size)) for k in ("motion", "depth")]
    style = Embedded(run.unet.encode_style(run.style))
    no_style = run.unet.encode_style(torch.zeros_like(run.style))
    denoiser = GuidedDenoiser(run.unet, run.text, run.zero, style, no_style, stc, guidance=9.0)
    for entry, reference in run.reference.items():
        if (match := DDIM.fullmatch(entry)) and int(match[1]) in length:
            sampler = make_sampler(Sampling("ddim_released", int(match[1])), run.diffusion)
            assert relative(sample(denoiser, sampler.start(run.x), sampler), reference) <= 1e-3, entry
        if (match := LCM.fullmatch(entry)) and int(match[1]) in length:  # like VideoLCM: text and depth, no guidance
            depth = [Embedded(run.unet.encode_condition("depth", run.conditions["depth"], run.size))]
            denoiser_of_text = GuidedDenoiser(run.unet, run.text, run.zero, None, None, depth, guidance=1.0)
            sampler = make_sampler(Sampling("lcm", int(match[1])), run.diffusion)
            assert sampler.timesteps.tolist() == run.reference[f"{entry}.timesteps"].tolist()
            generator = torch.Generator().manual_seed(0)
            latent = sample(denoiser_of_text, sampler.start(run.x), sampler, [generator])
            assert relative(latent, reference) <= 1e-3, entry


def test_schedule(run):
    ours = run.diffusion.alphas_cumprod
    if "alphas_cumprod" in run.reference:
        torch.testing.assert_close(ours, run.reference["alphas_cumprod"].to(ours.dtype), rtol=1e-6, atol=1e-7)
    if "lcm.alphas_cumprod" in run.reference:
        torch.testing.assert_close(ours, run.reference["lcm.alphas_cumprod"].to(ours.dtype), rtol=1e-5, atol=1e-7)
    if "q_sample" in run.reference:
        alpha = ours.float()[torch.tensor(run.spec["timesteps"])].view(-1, 1, 1, 1, 1)
        noised = alpha.sqrt() * run.x + (1 - alpha).sqrt() * run.input("noise", run.x.shape)
        assert relative(noised, run.reference["q_sample"]) <= 1e-5


# --- SR600 ----------------------------------------------------------------------------------------------------------


class SuperResolution:
    """VGen's network for super-resolution, its inputs and reference outputs."""

    def __init__(self, folder):
        spec = json.loads((folder / "sr600_s.json").read_text())
        self.reference = load_file(folder / "sr600_s.safetensors")
        shapes = spec["parameters"]
        config = replace(unet_config_from_shapes(shapes, spec["net"]["head_dim"]), super_resolution=True)
        with torch.device("meta"):
            unet = UNet3D(config)
        fill(unet, released_layout(unet), Tensors.of({n: value(n, s) for n, s in shapes.items()}, "sr600_s"), "SR600")
        self.unet = unet.eval().requires_grad_(False)
        self.x = value("s.x", (spec["batch"], 4, spec["frames"], *spec["latent_height_width"]))
        self.text, self.zero = (value(f"s.{name}", (1, 77, 1024)) for name in ("y", "zero_y"))

    def denoiser(self, text, **guidance):
        return GuidedDenoiser(self.unet, text, self.zero, style=None, no_style=None, stc=(), **guidance)


SR600 = {  # entry -> what computes it, and the largest relative error
    "v.text": (lambda run: run.unet(run.x, torch.tensor([501]), run.text), 1e-4),
    "sigmas.reverse": (lambda run: (1 - inversion_schedule()).sqrt(), 1e-6),
    "sigmas.forward": (lambda run: (1 - denoising_schedule()).sqrt(), 1e-6),
    "inverted": (lambda run: invert(run.denoiser(run.zero, guidance=1.0), 0.5 * run.x), 1e-4),
    "upscaled": (
        lambda run: denoise(run.denoiser(run.text, guidance=GUIDANCE, rescale=RESCALE), run.reference["inverted"]),
        1e-3,
    ),
    "upscaled.timesteps": (lambda run: timesteps_of(denoise, run.x), 0.0),
}


def timesteps_of(run, x):
    """The timesteps at which `run` calls its denoiser."""
    timesteps = []
    run(lambda x, t: timesteps.append(float(t)) or x, x)
    return torch.tensor(timesteps)


@pytest.fixture(scope="module")
def super_resolution(golden_dir):
    return SuperResolution(golden_dir)


@pytest.mark.parametrize("entry", SR600)
@torch.inference_mode()
def test_super_resolution(super_resolution, entry):
    compute, allowed = SR600[entry]
    reference = super_resolution.reference[entry]
    assert relative(compute(super_resolution).double(), reference.double()) <= allowed


def test_every_super_resolution_entry_is_checked(super_resolution):
    assert {*super_resolution.reference} == {*SR600}


@pytest.mark.parametrize(
    ("file", "config"),
    [
        ("sr600_parameters", replace(UNetConfig(), style_tokens=0, stc_channels=0, conditions=())),
        ("released_parameters", UNetConfig()),
        ("vgen_parameters", UNetConfig(attention_levels=(1, 2, 3), style_tokens=4)),
    ],
)
def test_names_and_shapes_of_the_full_networks(golden_dir, file, config):
    shapes = json.loads((golden_dir / f"{file}.json").read_text())
    with torch.device("meta"):
        layout = released_layout(UNet3D(config))
    assert {origin.names[0]: list(origin.shape) for origin in layout.values()} == shapes
    assert unet_config_from_shapes(shapes) == config
