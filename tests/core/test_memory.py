"""How much memory loading takes, measured in processes of their own on files of noise; and what predicting takes."""

import dataclasses
import importlib.util
import weakref
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vc_core.checkpoint.files import open_tensors
from vc_core.checkpoint.reading import BUNDLED, read_checkpoint
from vc_core.conditions import condition_size
from vc_core.config import UNetConfig
from vc_core.model.memory import activation_elements
from vc_core.model.unet import UNet3D


@pytest.fixture(scope="module")
def loading(repository):
    if not Path("/proc/self/status").exists():
        pytest.skip("this system has no /proc, which tells the most memory that a process had")
    spec = importlib.util.spec_from_file_location("benchmark_loading", repository / "benchmarks" / "loading.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_conversion_while_loading_does_not_hold_the_file(loading, tmp_path, suffix):
    path = tmp_path / f"noise.{suffix}"
    loading.write_noise(path, dataclasses.replace(UNetConfig(), width=128, multipliers=(1, 2, 2)))
    size = path.stat().st_size
    # Half of it in fp16, and 16 MB and a tensor of it mapped meanwhile; 0.5 + 1 where the mapping is kept.
    assert loading.measure(path, "float16", 2**24)["peak"] < 0.8 * size


@pytest.mark.slow
def test_a_file_of_the_released_size(loading, tmp_path):
    """5.65 GB there and back, and never more than 1.15 times that in memory."""
    from vc_core.checkpoint.conversion import convert

    path = tmp_path / "non_ema.pth"
    loading.write_noise(path, UNetConfig())
    size = path.stat().st_size
    assert size > 5.6e9
    for how in ("float32", "float16", "float8_e4m3fn"):
        assert loading.measure(path, how)["peak"] <= 1.15 * size
    convert(path, tmp_path / "ours.safetensors")
    assert loading.measure(tmp_path / "ours.safetensors", "float32")["peak"] <= 1.15 * size
    path.rename(tmp_path / "first.pth")
    first = open_tensors(tmp_path / "first.pth")
    convert(tmp_path / "ours.safetensors", path)
    (tmp_path / "ours.safetensors").unlink()
    again = open_tensors(path)
    assert again.shapes == first.shapes
    get, got = first.get(), again.get()
    assert all(torch.equal(get(name), got(name)) for name in first.shapes)


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, also of those on meta; `weights` are left out."""

    def __init__(self, weights):
        super().__init__()
        self.seen, self.now, self.most = {w.untyped_storage()._cdata for w in weights}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return result

    def count(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.forget, key, size)

    def forget(self, key, size):
        self.seen.discard(key)
        self.now -= size


@pytest.mark.parametrize(
    ("shape", "scale"),
    [
        ((1, 16, 32, 32), None), ((2, 16, 32, 32), None), ((1, 8, 40, 64), None), ((1, 24, 32, 32), None),
        ((1, 16, 32, 32), 4), ((1, 8, 40, 64), 8),
    ],
)  # fmt: skip
@pytest.mark.parametrize("config", [UNetConfig(), read_checkpoint(BUNDLED).config.unet], ids=["released", "bundled"])
def test_activations_are_estimated(config, shape, scale):
    """The estimate is enough and not twice too much, both for the UNet and for an STC-encoder."""
    batch, frames, height, width = shape
    with torch.device("meta"), torch.inference_mode():
        unet = UNet3D(config, attend=lambda q, k, v, heads: torch.empty_like(q))
        x, text = torch.empty(batch, 4, frames, height, width), torch.empty(batch, 77, config.context_dim)
        depth = torch.empty(1, 1, frames, *condition_size("depth", (8 * height, 8 * width), scale))
        t = torch.empty(batch)
        with Live(unet.parameters()) as predicting:
            unet(x, t, text)
        with Live(unet.parameters()) as encoding:
            unet.encode_condition("depth", depth, (height, width))
    most = max(predicting.most, encoding.most) // 4
    assert most < activation_elements(config, *shape, scale) < 2 * most
