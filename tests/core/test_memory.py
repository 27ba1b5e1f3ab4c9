"""How much memory loading takes: measured in processes of their own, on files of noise."""

import dataclasses
import importlib.util

import pytest
import torch

from vc_core.config import UNetConfig
from vc_core.files import open_tensors


@pytest.fixture(scope="module")
def loading(repository):
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
    from vc_core.conversion import convert

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
