"""Sketches, and depth by MiDaS: the released networks against reference values."""

import copy
import dataclasses
import json
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tests.core.pictures import clip, depth, sketch
from vc_core.checkpoint.tensors import Tensors
from vc_core.errors import UserError
from vc_core.extract.depth.midas import is_midas, midas_config, midas_state
from vc_core.extract.depth.networks import MIDAS_UNIT, midas_model
from vc_core.extract.sketch.methods import edges, released_sketch
from vc_core.extract.sketch.pidinet import (
    PiDiNet,
    fold_angular,
    fold_central,
    fold_radial,
    load_pidinet,
    released_layout,
)
from vc_core.extract.sketch.simplify import CHANNELS, Simplifier, load_simplifier
from vc_core.published import MODELS

PIDINET, SIMPLIFIER = "table5_pidinet.pth", "sketch_simplification_gan.pth"


def value(name: str, shape) -> torch.Tensor:
    """The golden folder's rule: a value for every name and shape."""
    n = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(tuple(shape), dtype=np.float32)
    if len(shape) == 1:
        n = (1 + np.float32(0.1) * n) if name.endswith("weight") else np.float32(0.1) * n
    else:
        n = n / np.float32(np.sqrt(np.prod(shape[1:])))
    return torch.from_numpy(n.astype(np.float32))


def values(shapes) -> dict[str, torch.Tensor]:
    return {name: value(name, shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def golden(golden_dir):
    path = golden_dir / "annotators.json"
    return json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))


# --- files ----------------------------------------------------------------------------------------------------


def released_pidinet_state() -> dict[str, torch.Tensor]:
    """A narrow PiDiNet under its authors' names, as pixel differences."""
    with torch.device("meta"):
        layout = released_layout(PiDiNet(8, 4))
    return values({origin.names[0]: origin.shape for origin in layout.values()})


def small_simplifier_state() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        network = Simplifier([*(max(8, channels // 32) for channels in CHANNELS[:-1]), 1])
    state = values({name: parameter.shape for name, parameter in network.state_dict().items()})
    # Larger than the rule's, so that what goes in is still seen after 23 layers with ReLU.
    return {name: 1.4 * tensor if tensor.dim() > 1 else tensor for name, tensor in state.items()}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with both files of the released sketch, small, one of them in a subfolder."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "annotators").mkdir()
    state = {f"module.{name}": tensor for name, tensor in released_pidinet_state().items()}
    torch.save({"epoch": 19, "state_dict": state}, folder / "annotators" / PIDINET)
    torch.save(small_simplifier_state(), folder / SIMPLIFIER)
    return folder


# --- PiDiNet and the simplifier ---------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [True, False], ids=["as released", "a bare state"])
def test_pidinet_equals_the_released_network(golden, tmp_path, wrapped):
    spec, reference = golden
    state = values(spec["pidinet"]["parameters"])
    if wrapped:
        state = {"epoch": 19, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
    torch.save(state, tmp_path / PIDINET)
    out = load_pidinet(tmp_path / PIDINET)(value(*spec["pidinet"]["input"]))
    for kind in ("pixel_difference", "plain"):
        torch.testing.assert_close(out, reference[f"pidinet.{kind}"], rtol=0, atol=1e-6)


def test_the_simplifier_equals_the_released_network(golden):
    spec, reference = golden
    network = Simplifier()
    network.load_state_dict(values(spec["simplification"]["parameters"]), assign=True)
    with torch.no_grad():
        out = network(value("s.x", (1, 1, 64, 96)).sigmoid())
    torch.testing.assert_close(out, reference["simplification"], rtol=0, atol=1e-6)


def test_the_simplifier_continues_the_border_to_a_multiple_of_eight(models):
    network, x = load_simplifier(models / SIMPLIFIER), clip()[:, :1, 0, :13, :10]
    torch.testing.assert_close(network(x), network(F.pad(x, (0, 6, 0, 3), mode="replicate"))[..., :13, :10])


def pixel_differences(kind: str, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What the paper defines, of one channel (H, W) by nine weights, at every pixel that has a 5x5 surrounding."""
    out = torch.zeros(x.shape[0] - 4, x.shape[1] - 4, dtype=x.dtype)
    clockwise = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
    places = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    h, w = out.shape

    def at(down: int, right: int) -> torch.Tensor:
        return x[2 + down : 2 + down + h, 2 + right : 2 + right + w]

    for number, (down, right) in enumerate(places):
        if kind == "central":
            out += weight[number] * (at(down, right) - at(0, 0))
        elif kind == "angular" and (down, right) != (0, 0):
            following = clockwise[(clockwise.index((down, right)) + 1) % 8]
            out += weight[number] * (at(down, right) - at(*following))
    if kind == "radial":
        for number, (down, right) in enumerate((place for place in places if place != (0, 0)), 1):
            out += weight[number] * (at(2 * down, 2 * right) - at(down, right))
    return out


@pytest.mark.parametrize("kind, fold", [("central", fold_central), ("angular", fold_angular), ("radial", fold_radial)])
def test_a_folded_convolution_weighs_pixel_differences(kind, fold):
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(shape, generator=generator, dtype=torch.double) for shape in ((9, 12), (9,)))
    plain = fold(weight.view(1, 1, 3, 3))
    margin = 2 - plain.shape[-1] // 2
    out = F.conv2d(x[None, None], plain)[0, 0]
    out = out[margin : out.shape[0] - margin, margin : out.shape[1] - margin]
    torch.testing.assert_close(out, pixel_differences(kind, x, weight))


def test_a_file_of_another_network_is_refused(tmp_path):
    state = released_pidinet_state()
    state["block1_1.conv1.weight"] = torch.zeros(8, 1, 5, 5)
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(UserError, match=r"block1_1.conv1.weight is \(8, 1, 5, 5\), expected \(8, 1, 3, 3\)"):
        load_pidinet(tmp_path / "wrong.pth")
    del state["block1_1.conv1.weight"], state["init_block.weight"]
    torch.save(state, tmp_path / "incomplete.pth")
    with pytest.raises(UserError, match=r"init_block\.weight"):
        load_pidinet(tmp_path / "incomplete.pth")
    with pytest.raises(UserError, match=r"lacks \d+ tensors of the sketch-simplification network"):
        load_simplifier(tmp_path / "incomplete.pth")


# --- sketch -----------------------------------------------------------------------------------------------------


def test_the_released_sketch_is_the_detector_then_the_simplifier_with_dark_lines(models):
    """tools/videocomposer/inference_single.py: 1 - cleaner(1 - pidinet((rgb - mean) / std))."""
    video = clip(height=32, width=48)
    detector, simplifier = load_pidinet(models / "annotators" / PIDINET), load_simplifier(models / SIMPLIFIER)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    frames = (video[0].permute(1, 2, 3, 0) - mean) / std  # (F, H, W, 3)
    expected = 1 - simplifier(1 - detector(frames.permute(0, 3, 1, 2)))
    out, which = sketch(video, "pidinet", models)
    assert which == "pidinet" and out.shape == (1, 1, 3, 32, 48)
    torch.testing.assert_close(out[0, 0], expected[:, 0])
    torch.testing.assert_close(released_sketch(detector, simplifier)(video[0].transpose(0, 1)), expected)


@pytest.mark.parametrize("size", [(37, 50), (8, 8), (64, 24)], ids=str)
def test_a_sketch_has_the_videos_size_and_batch(models, size):
    out, _ = sketch(clip(*size, frames=2, batch=2), "pidinet", models)
    assert out.shape == (2, 1, 2, *size)
    assert out.min() >= 0 and out.max() <= 1 and out.std() > 1e-4


def test_a_sketch_does_not_depend_on_the_chunk_and_reports_its_progress(models):
    video, calls = clip(frames=5), []
    at_once, _ = sketch(video, "pidinet", models, at_once=5)
    pieces, _ = sketch(video, "pidinet", models, at_once=2, progress=lambda *done: calls.append(done))
    torch.testing.assert_close(pieces, at_once)
    assert calls == [("sketch", 2, 5), ("sketch", 4, 5), ("sketch", 5, 5)]


@pytest.mark.parametrize("size", [(40, 56), (96, 96), (200, 130)])
def test_edges_equal_those_of_kornia(size):
    """Blur and gradients in plain torch give what kornia's filters give."""
    from kornia.filters import gaussian_blur2d, spatial_gradient

    from vc_core.extract.sketch.methods import REFERENCE, _sobel, blurred

    planes = torch.rand(3, *size)
    scale = max(1.0, min(size) / REFERENCE)
    radius = round(2 * scale)
    padded = F.pad(planes[:, None], (radius,) * 4, mode="replicate")
    expected = gaussian_blur2d(padded, 2 * radius + 1, (0.8 * scale,) * 2)[:, 0, radius:-radius, radius:-radius]
    torch.testing.assert_close(blurred(planes, 0.8 * scale, radius), expected, atol=1e-6, rtol=0)
    gradient = spatial_gradient(expected[:, None], normalized=True)[:, 0]
    torch.testing.assert_close(torch.stack(_sobel(expected), dim=1), gradient, atol=1e-6, rtol=0)


def test_auto_uses_pidinet_if_its_files_exist_and_edges_otherwise(models, tmp_path, monkeypatch):
    video = clip()
    assert sketch(video, "auto", models)[1] == "pidinet"
    assert sketch(video, models=[tmp_path, models])[1] == "pidinet"
    drawn, which = sketch(video, "auto", tmp_path)
    assert which == "edges" and torch.equal(drawn, edges(video))
    assert sketch(video, "edges", models)[1] == "edges"
    monkeypatch.setenv("VC_MODELS", str(models))
    assert sketch(video)[1] == "pidinet"


def test_auto_names_the_missing_one_of_two_files(tmp_path):
    torch.save(released_pidinet_state(), tmp_path / PIDINET)
    with pytest.warns(UserWarning, match=rf"require {SIMPLIFIER} in addition to {PIDINET}"):
        assert sketch(clip(), "auto", tmp_path)[1] == "edges"


def test_missing_files_are_described(tmp_path):
    with pytest.raises(UserError) as caught:
        sketch(clip(), "pidinet", tmp_path)
    message = str(caught.value)
    for model in MODELS:
        if model.name in (PIDINET, SIMPLIFIER):
            assert {model.name, model.sha256, model.source} <= {word.strip("(),:") for word in message.split()}
    assert "2.9 MB" in message and f"put them into {tmp_path}" in message and "'edges'" in message


def test_a_damaged_file_is_reported_and_edges_are_not_used_instead(models, tmp_path):
    for name, path in ((PIDINET, models / "annotators" / PIDINET), (SIMPLIFIER, models / SIMPLIFIER)):
        (tmp_path / name).write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="pth is cut off or damaged"):
        sketch(clip(), "auto", tmp_path)


def test_what_cannot_be_sketched_is_refused(models):
    with pytest.raises(UserError, match=r"'canny'. Expected one of auto, pidinet, edges"):
        sketch(clip(), "canny")
    with pytest.raises(UserError, match=r"\(batch, 3, frames, height, width\)"):
        sketch(clip()[:, :1], "edges")


# --- MiDaS ------------------------------------------------------------------------------------------------------


def small_midas(spec) -> tuple[Tensors, int]:
    """The golden network's parameters, and the width of its attention's heads."""
    config = spec["midas"]["config"]
    return Tensors.of(values(spec["midas"]["parameters"]), "midas.pth"), config["dim"] // config["num_heads"]


@pytest.fixture(scope="module")
def midas(golden):
    tensors, head_width = small_midas(golden[0])
    return midas_model(midas_config(tensors, head_width), midas_state(tensors), "midas.pth")


def test_midas_equals_the_released_network(golden, midas):
    spec, reference = golden
    with torch.no_grad():
        out = midas.predict(value(*spec["midas"]["input"]))
    assert float((out - reference["midas"]).norm() / reference["midas"].norm()) < 1e-5
    torch.testing.assert_close(out / MIDAS_UNIT, reference["midas"] / MIDAS_UNIT, rtol=0, atol=1e-5)


def test_midas_depth_is_a_twentieth_of_the_output_and_at_most_10(midas):
    """tools/videocomposer/inference_single.py: (midas((rgb - 0.5) / 0.5) / 20).clamp(0, 10)."""
    video = clip(64, 96)
    with torch.no_grad():
        expected = midas.predict((video[0].transpose(0, 1) - 0.5) / 0.5) / 20
    out, which = depth(video, midas)
    assert which == "midas" and out.shape == (1, 1, 3, 64, 96)
    torch.testing.assert_close(out[0].transpose(0, 1), expected.clamp(0, 10))
    near = dataclasses.replace(midas, network=copy.deepcopy(midas.network))
    near.network.head.head[4].bias += 1000
    assert (depth(video, near)[0] == 10).all()


@pytest.mark.parametrize("size", [(50, 70), (200, 130), (16, 16)], ids=str)
def test_depth_has_the_videos_size(midas, size):
    out, _ = depth(clip(*size, frames=2, batch=2), midas, at_once=3)
    assert out.shape == (2, 1, 2, *size) and torch.isfinite(out).all()


def test_the_released_midas_is_recognized_by_its_shapes():
    """Settings as in the config.json of Intel/dpt-large."""
    shapes = {"cls_embedding": (1, 1, 1024), "pos_embedding": (1, 577, 1024)}
    shapes["patch_embedding.weight"] = (1024, 3, 16, 16)
    shapes |= {f"blocks.{layer}.attn.to_qkv.weight": (3072, 1024) for layer in range(24)}
    shapes |= {f"conv{stage}.0.weight": (size, 1024, 1, 1) for stage, size in enumerate((256, 512, 1024, 1024), 1)}
    shapes["conv1.2.weight"] = (256, 256, 3, 3)
    tensors = Tensors("midas.pth", shapes, dict.fromkeys(shapes, torch.float32), dict)
    expected = {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "image_size": 384,
        "patch_size": 16,
        "backbone_out_indices": [5, 11, 17, 23],
        "neck_hidden_sizes": [256, 512, 1024, 1024],
        "fusion_hidden_size": 256,
    }
    assert is_midas(tensors) and midas_config(tensors).items() >= expected.items()
    with pytest.raises(UserError, match=r"lacks \d+ tensors of MiDaS v3 \(patch_embedding.bias"):
        midas_state(tensors)


def test_the_released_file_is_found_and_read(golden, tmp_path):
    tensors, _ = small_midas(golden[0])
    torch.save(tensors.state(), tmp_path / "midas_v3_dpt_large.pth")
    output, which = depth(clip(), models=tmp_path)
    named, _ = depth(clip(), tmp_path / "midas_v3_dpt_large.pth")
    assert which == "midas" and torch.equal(output, named)
    state = tensors.state()
    state["fc2.0.weight"] = state["fc2.0.weight"][:, :100].clone()
    torch.save(state, tmp_path / "midas_v3_dpt_large.pth")
    with pytest.raises(UserError, match=r"1 have another shape \(neck.reassemble_stage.readout_projects.1.0.weight"):
        depth(clip(), models=tmp_path)
