"""Memory of loading and composing: measured in separate processes, counted in advance, and the error if it is not
enough."""

import dataclasses
import importlib.util
import weakref
from itertools import product
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vc_core.checkpoint.loading
from vc_core import Condition, Sampling, Style, UserError, VideoComposer, compose
from vc_core.checkpoint.files import open_tensors
from vc_core.checkpoint.reading import BUNDLED, read_checkpoint
from vc_core.conditions import condition_size
from vc_core.config import AutoencoderConfig, Config, UNetConfig
from vc_core.encoders.autoencoder import Tiling, decode, encode, new_autoencoder
from vc_core.encoders.clip import preprocess
from vc_core.memory import (
    PROGRAM,
    Need,
    activation_elements,
    as_text,
    available,
    needed,
    report_out_of_memory,
    weight_bytes,
)
from vc_core.model.unet import UNet3D
from vc_core.terminal import run_program

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def loading(repository):
    needs_proc()
    return benchmark(repository, "loading")


def needs_proc():
    if not Path("/proc/self/status").exists():
        pytest.skip("this system has no /proc, which reports the peak memory of a process")


def benchmark(repository, name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", repository / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_conversion_while_loading_does_not_keep_the_file_in_memory(loading, tmp_path, suffix):
    path = tmp_path / f"noise.{suffix}"
    loading.write_noise(path, dataclasses.replace(UNetConfig(), width=128, multipliers=(1, 2, 2)))
    size = path.stat().st_size
    # Half the size in fp16, plus 16 MB and one mapped tensor. It would be 1.5 if the entire file stayed mapped.
    assert loading.measure(path, "float16", 2**24)["peak"] < 0.8 * size


@pytest.mark.slow
def test_a_file_of_the_released_size(loading, tmp_path):
    """5.65 GB, converted in both directions, with a peak memory of at most 1.15 times the size."""
    from vc_core.checkpoint.conversion import convert

    path = tmp_path / "non_ema.pth"
    loading.write_noise(path, UNetConfig())
    size = path.stat().st_size
    assert size > 5.6e9
    for dtype in ("float32", "float16", "float8_e4m3fn"):
        assert loading.measure(path, dtype)["peak"] <= 1.15 * size
    convert(path, tmp_path / "ours.safetensors")
    assert loading.measure(tmp_path / "ours.safetensors", "float32")["peak"] <= 1.15 * size
    path.rename(tmp_path / "first.pth")
    first = open_tensors(tmp_path / "first.pth")
    convert(tmp_path / "ours.safetensors", path)
    (tmp_path / "ours.safetensors").unlink()
    again = open_tensors(path)
    assert again.shapes == first.shapes
    before, after = first.get(), again.get()
    assert all(torch.equal(before(name), after(name)) for name in first.shapes)


class Live(TorchDispatchMode):
    """Count the bytes of the tensors in memory, including those on meta, without `weights`."""

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
    """The estimate is enough, and less than twice as much, for the UNet and for an STC-encoder."""
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


# --- A complete composition -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def memory(repository):
    return benchmark(repository, "memory")


def inputs(composer, style=True):
    """Arguments of `compose` that use every part."""
    frames, seeded = composer.config.frames, torch.Generator().manual_seed(0)
    depth = Condition("depth", torch.rand(1, 1, frames, 48, 60, generator=seeded))
    return {
        "conditions": [depth],
        "style": Style(torch.rand(1, 3, 20, 20, generator=seeded)) if style else None,
        "sampling": Sampling(steps=1),
    }


def test_each_tower_is_in_memory_only_while_it_is_used(tiny_checkpoint, tiny_composer, monkeypatch):
    """The video is the same to the bit."""
    towers, in_memory = [], {}
    load = vc_core.checkpoint.loading.load_towers

    def spied(*args, **kwargs):
        towers.append(weakref.ref(model := load(*args, **kwargs)))
        return model

    monkeypatch.setattr("vc_core.checkpoint.loading.load_towers", spied)
    composer = VideoComposer.load(tiny_checkpoint, keep=False)
    assert composer.loaded_towers is None

    def look(where):
        in_memory[where] = [i for i, tower in enumerate(towers) if tower() is not None]

    monkeypatch.setattr("vc_core.encoders.clip.preprocess", lambda *args: (look("style"), preprocess(*args))[1])
    for name in ("unet", "autoencoder"):
        module = getattr(composer, name)
        (module if name == "unet" else module.decoder.layers[0]).register_forward_pre_hook(lambda *_, n=name: look(n))
    videos = [compose(each, "a circle", **inputs(each)) for each in (tiny_composer, composer)]
    assert torch.equal(*videos)
    # The first tower was loaded to check the files, the second for the text, the third for the image.
    assert len(towers) == 3 and in_memory == {"style": [2], "unet": [], "autoencoder": []}
    compose(composer, "a circle", **inputs(composer, style=False))
    assert len(towers) == 4
    assert composer.towers.visual is not None and composer.towers.transformer is not None


def test_small_towers_stay_loaded(tiny_composer):
    assert tiny_composer.loaded_towers is tiny_composer.towers is tiny_composer.towers


@pytest.mark.parametrize("layout", ["kl", "taesd"])
@pytest.mark.parametrize(("size", "tiling"), [((64, 128), None), ((512, 896), None), ((256, 256), Tiling(2, 64))])
def test_decoding_is_estimated(layout, size, tiling):
    config = Config(autoencoder=AutoencoderConfig(layout))
    need = needed(config, 0, 0, torch.float32, size=size, frames=16, tiling=tiling)
    with torch.device("meta"), torch.inference_mode():
        autoencoder = new_autoencoder("ldm" if layout == "kl" else layout, device="meta")
        latent, video = torch.empty(1, 4, 16, size[0] // 8, size[1] // 8), torch.empty(1, 3, 16, *size)
        with Live(autoencoder.parameters()) as decoding:
            decode(autoencoder, latent, tiling)
        with Live(autoencoder.parameters()) as encoding:
            encode(autoencoder, video, tiling)
    most = max(decoding.most, encoding.most)
    assert most < need.decoding < 1.2 * most


def test_all_frames_of_a_long_video_are_counted():
    run = {"size": (64, 64), "frames": 16, "tiling": Tiling(8)}
    short, long = (needed(Config(), 0, 0, torch.float32, length=length, **run) for length in (None, 100))
    assert long.activations == short.activations  # of a window
    assert long.decoding - short.decoding == (100 - 16) * 3 * 64 * 64 * 4


def test_the_memory_limit_of_a_container(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr("vc_core.memory._CONTAINER", (tmp_path / "missing", limit))
    for content, expected in (("max\n", 2**20), ("12345678\n", 12345678)):
        limit.write_text(content)
        assert (available(CPU) == expected) == (content != "max\n") and available(CPU) >= expected


def test_a_complete_composition_is_estimated(tiny_composer):
    """Without the weights, which are already in memory."""
    modules = tiny_composer.unet, tiny_composer.autoencoder, tiny_composer.loaded_towers
    with Live(p for module in modules for p in module.parameters()) as run:
        compose(tiny_composer, "a circle", **inputs(tiny_composer), size=(64, 96))
    need = tiny_composer.needs(True, size=(64, 96), frames=3)
    most = max(need.towers, need.activations, need.decoding)
    assert run.most < 1.1 * most and most < 4 * run.most
    assert need.weights == sum(map(weight_bytes, modules)) and need.towers == 0


def test_the_video_is_in_memory_once(tiny_composer, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        "vc_core.encoders.autoencoder.decode", lambda *args: decoded.append(decode(*args)) or decoded[0]
    )
    video = compose(tiny_composer, sampling=Sampling(steps=1))
    assert video.data_ptr() == decoded[0].data_ptr()
    video.mul_(0.5)  # it can be changed like any tensor


def test_the_error_if_memory_runs_out(tiny_checkpoint, monkeypatch):
    composer = VideoComposer.load(tiny_checkpoint, dtype="fp16")
    errors = [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), MemoryError(),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"),
    ]  # fmt: skip
    with pytest.raises(RuntimeError) as torch_error:
        torch.empty(2**55)
    for error in (*errors, torch_error.value):
        monkeypatch.setattr(composer.unet, "forward", mock.Mock(side_effect=error))
        with pytest.raises(UserError) as raised:
            compose(composer, ["a", "b"], tiling=Tiling(1, 64))
        assert str(raised.value) == (
            "The computer does not have enough memory. Try dtype fp8, or fewer videos at a time, or a smaller size, or "
            "fewer frames or a smaller window."
        )
    with pytest.raises(UserError, match="Try closing other programs"), report_out_of_memory(CPU, []):
        raise MemoryError
    composer.device, composer.offload = torch.device("cuda"), True
    assert composer.advice()[:2] == ["dtype fp8", "the device cpu"]
    composer.offload = False
    assert composer.advice() == [
        "dtype fp8", "offload", "a smaller size", "fewer frames or a smaller window", "chunk 1", "tile 256",
    ]  # fmt: skip
    composer.device = CPU
    monkeypatch.setattr(composer.unet, "forward", mock.Mock(side_effect=RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        compose(composer)


def test_any_command_reports_that_memory_ran_out(capsys):
    def work():
        raise MemoryError

    assert run_program(work) == 2
    assert capsys.readouterr().err.startswith("vc: There is not enough memory. Choose a smaller size")


def test_the_text_on_what_a_run_needs():
    need = Need(6_000_000_000, 2_000_000_000, 1_500_000_000, 0)
    assert need.total == 8_600_000_000
    text = (
        "This run needs about 8.6 GB of memory: 6.0 for weights (fp16, offloaded), 0.6 for the program, and the "
        "largest of these: 2.0 for towers, 1.5 for activations. 8.6 GB are free"
    )
    assert as_text(need, torch.float16, True, 8_600_000_000, ["a", "b"]) == f"{text}."
    text = text.replace("8.6 GB are", "8.5 GB are")
    assert as_text(need, torch.float16, True, 8_500_000_000, ["a", "b"]) == f"{text}, which is not enough. Try a, or b."
    assert 0 < available(CPU) < 2**50


def test_offloaded_runs_fit_a_card_of_8_gb_by_count(memory, repository):
    for (name, config, *run), dtype in product(memory.ROWS, ("fp16", "fp8")):
        assert memory.count(config, dtype, True, *run).total < 8e9, (name, run, dtype)
    page = (repository / "vc_core" / "README.md").read_text()
    assert "\n".join(memory.table()) in page


@pytest.mark.slow
def test_a_composition_of_the_released_size(memory, tmp_path):
    """16 frames of 256x256 with text, style and depth in fp32: one step, in a separate process."""
    needs_proc()
    measured = memory.measure(memory.write_files(tmp_path, memory.RELEASED))
    assert measured["peak"] <= 8.5e9
    need = needed(memory.RELEASED, 0, 0, torch.float32, size=(256, 256), frames=16)
    assert measured["anonymous"] < PROGRAM + max(need.activations, need.decoding) < 1.5 * measured["anonymous"]
