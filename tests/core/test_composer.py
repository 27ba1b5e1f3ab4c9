"""Loading a checkpoint: dtypes of weights and computation, devices, offloading, compiling, parts from other files."""

import warnings

import pytest
import safetensors.torch
import torch

from tests.composing import composed
from vc_core import Condition, Style, UserError, VideoComposer
from vc_core.checkpoint.files import open_tensors, save_tensors
from vc_core.checkpoint.loading import load_unet
from vc_core.checkpoint.reading import read_checkpoint, save_checkpoint
from vc_core.composer import choose_device, choose_dtypes
from vc_core.memory import network_bytes, weight_bytes
from vc_core.model.blocks import SpatialTransformer

CPU = torch.device("cpu")


def arguments(unet):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 2, 6, 6, generator=generator)
    stc = torch.randn(1, 8, 2, 6, 6, generator=generator)
    return x, torch.tensor([300]), torch.randn(1, 5, unet.config.context_dim, generator=generator), stc


def relative(a, b):
    return float((a - b).norm() / b.norm())


def run_all(composer):
    """A composition that uses every part."""
    frames = composer.config.frames
    return composed(
        composer,
        "a circle",
        conditions=[Condition("depth", torch.rand(1, 1, frames, 48, 60, generator=torch.Generator().manual_seed(1)))],
        style=Style(torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(2))),
        steps=2,
    )


# --- Types ----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp16", 2e-3), ("bf16", 2e-2), ("fp8", 0.4)])
def test_weights_in_another_dtype_than_the_computation(tiny_checkpoint, tiny_unet, dtype, tolerance):
    composer = VideoComposer.load(tiny_checkpoint, device="cpu", dtype=dtype)
    stored = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}[dtype]
    assert composer.dtype == torch.float32
    assert {p.dtype for p in composer.unet.parameters() if p.ndim > 1} == {stored}
    small = {p.dtype for p in composer.unet.parameters() if p.ndim == 1}
    assert small == {torch.float32 if dtype == "fp8" else stored}
    out = composer.unet(*arguments(tiny_unet))
    assert out.dtype == torch.float32
    assert 0 < relative(out, tiny_unet(*arguments(tiny_unet))) < tolerance
    assert torch.isfinite(run_all(composer)).all()


@pytest.mark.parametrize(("compute", "tolerance"), [("fp16", 0.02), ("bf16", 0.15)])
def test_computing_in_half_precision(tiny_checkpoint, tiny_composer, compute, tolerance):
    composer = VideoComposer.load(tiny_checkpoint, device="cpu", dtype=compute, compute=compute)
    assert {p.dtype for p in composer.unet.parameters()} == {composer.dtype}
    assert relative(run_all(composer), run_all(tiny_composer)) < tolerance


@torch.inference_mode()
def test_fp8_in_the_file(tiny_checkpoint, tiny_unet, tiny_config, tmp_path):
    state = open_tensors(tiny_checkpoint).below("model.").state()
    eight = {name: tensor.to(torch.float8_e4m3fn) if tensor.ndim > 1 else tensor for name, tensor in state.items()}
    save_checkpoint(tmp_path / "eight.safetensors", tiny_config, {"model": eight})
    unet = load_unet(read_checkpoint(tmp_path / "eight.safetensors"))
    assert {p.dtype for p in unet.parameters()} == {torch.float32}
    assert 0 < relative(unet(*arguments(unet)), tiny_unet(*arguments(unet))) < 0.4


def test_chosen_dtypes():
    fp32, fp16, bf16, fp8 = torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn
    cuda = torch.device("cuda")
    assert choose_dtypes(CPU, "auto", "auto") == (fp32, fp32)
    assert choose_dtypes(cuda, "auto", "auto") == (fp16, fp16)
    assert choose_dtypes(cuda, "fp8", "auto") == (fp8, bf16)
    assert choose_dtypes(CPU, "fp8", "bf16") == (fp8, bf16)
    for wrong in (("int8", "auto"), ("auto", "fp8")):
        with pytest.raises(UserError, match=r"is not supported. Expected auto, fp32, fp16, bf16"):
            choose_dtypes(CPU, *wrong)


def test_devices():
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(UserError, match=r"Unknown device 'gpu'. Expected auto, cpu, cuda"):
        choose_device("gpu")
    with pytest.raises(UserError, match=r"Device 'cuda:99' is not available. Use one of these: auto"):
        choose_device("cuda:99")


# --- Ways of running ------------------------------------------------------------------------------------------------


def test_offloading_changes_no_bit_and_loads_one_block_at_a_time(tiny_checkpoint, tiny_composer):
    composer = VideoComposer.load(tiny_checkpoint, device="cpu", offload=True)
    unet = composer.unet
    sizes = []

    def count(*_):
        sizes.append(sum(p.numel() for p in unet.parameters() if not p.is_meta))

    for module in unet.modules():
        if isinstance(module, SpatialTransformer):
            module.register_forward_hook(count)
    assert torch.equal(run_all(composer), run_all(tiny_composer))
    assert all(p.is_meta for p in unet.parameters())
    assert sizes and max(sizes) <= network_bytes(unet, torch.float32, by_blocks=True) // 4 < weight_bytes(unet) // 4


@pytest.mark.slow
@torch.inference_mode()
def test_the_network_compiles_as_one_graph(tiny_unet):
    compiled = torch.compile(tiny_unet, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*arguments(tiny_unet)), tiny_unet(*arguments(tiny_unet)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("settings", [{}, {"offload": True}, {"dtype": "fp8"}, {"dtype": "bf16"}, {"dtype": "fp32"}])
def test_on_cuda(tiny_checkpoint, tiny_composer, settings):
    composer = VideoComposer.load(tiny_checkpoint, device="cuda", **settings)
    assert relative(run_all(composer), run_all(tiny_composer)) < (0.3 if settings.get("dtype") == "fp8" else 0.05)


# --- Parts from other files -----------------------------------------------------------------------------------------


@pytest.fixture
def in_pieces(tiny_checkpoint, tiny_config, tmp_path):
    """The tiny checkpoint as separate files: the network, and each other part under its own names."""
    tensors = open_tensors(tiny_checkpoint)
    save_checkpoint(tmp_path / "model.safetensors", tiny_config, {"model": tensors.below("model.").state()})
    save_tensors(tmp_path / "vae.safetensors", tensors.below("vae.").state())
    save_tensors(tmp_path / "text.pth", tensors.below("text.").state())
    image = {f"visual.{name}": tensor for name, tensor in tensors.below("image.").state().items()}
    save_tensors(tmp_path / "image.safetensors", image)
    return tmp_path


def test_parts_are_found_by_their_tensors(in_pieces, tiny_composer):
    files = [in_pieces / name for name in ("image.safetensors", "text.pth", "vae.safetensors")]
    composer = VideoComposer.load(in_pieces / "model.safetensors", files, device="cpu")
    # Not to the bit: mapped tensors have another alignment, so some kernels add in another order.
    torch.testing.assert_close(run_all(composer), run_all(tiny_composer), rtol=0, atol=1e-5)


def test_a_tower_of_another_width_is_skipped(in_pieces, tiny_composer):
    """For example, the tower in a Stable Diffusion 1.x file that is used for its autoencoder."""
    clip_l = {f"text_model.{name}": torch.zeros(shape) for name, shape in (
        ("embeddings.token_embedding.weight", (9, 768)), ("encoder.layers.0.self_attn.q_proj.weight", (768, 768)),
    )}  # fmt: skip
    state = {f"first_stage_model.{n}": t for n, t in open_tensors(in_pieces / "vae.safetensors").state().items()}
    save_tensors(in_pieces / "sd15.safetensors", state | {f"cond_stage_model.{n}": t for n, t in clip_l.items()})
    files = [in_pieces / name for name in ("sd15.safetensors", "text.pth")]
    composer = VideoComposer.load(in_pieces / "model.safetensors", files, device="cpu")
    assert torch.isfinite(composed(composer, "a circle", steps=1)).all()
    with pytest.raises(UserError, match=r"sd15\.safetensors .*text tower has width 768, expected 16"):
        VideoComposer.load(in_pieces / "model.safetensors", files[:1])


def test_only_style_requires_the_image_tower(in_pieces, tiny_composer):
    files = [in_pieces / "text.pth", in_pieces / "vae.safetensors"]
    composer = VideoComposer.load(in_pieces / "model.safetensors", files, device="cpu")
    without = [composed(c, "a circle", steps=1) for c in (composer, tiny_composer)]
    torch.testing.assert_close(*without, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="image tower"):
        composed(composer, "a circle", style=Style(torch.rand(1, 3, 8, 8)), steps=1, progress=pytest.fail)


def test_a_part_that_no_file_contains_is_named(in_pieces):
    with pytest.raises(UserError, match=r"model\.safetensors does not contain the autoencoder\. Add .*Stable Diff"):
        VideoComposer.load(in_pieces / "model.safetensors", [in_pieces / "text.pth"])
    with pytest.raises(UserError, match=r"does not contain the text tower\. Add a file .*OpenCLIP"):
        VideoComposer.load(in_pieces / "model.safetensors", [in_pieces / "vae.safetensors"])
    with pytest.raises(
        UserError, match=r"vae\.safetensors contains no 'model' part \(the network\)\. It contains vae\."
    ):
        VideoComposer.load(in_pieces / "vae.safetensors")


def test_unused_tensors_are_a_warning(tiny_checkpoint, tmp_path):
    with safetensors.torch.safe_open(tiny_checkpoint, framework="pt") as file:
        metadata = file.metadata()
    state = open_tensors(tiny_checkpoint).state() | {
        "model.odd": torch.zeros(1),
        "model.fps_embedding.a": torch.zeros(1),
    }
    save_tensors(tmp_path / "x.safetensors", state, metadata)
    with pytest.warns(UserWarning, match=r"x\.safetensors: 1 tensor is not used: odd"):
        VideoComposer.load(tmp_path / "x.safetensors", device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        VideoComposer.load(tiny_checkpoint, device="cpu")
