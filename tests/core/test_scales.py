"""8-bit weights with scales: they equal the saved weights within the rounding of 8 bits, or are refused."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.scaled import FP8, columns, quantised, row, rows, spans, tensorwise, tiles
from vc_core import cli
from vc_core.checkpoint.conversion import convert
from vc_core.checkpoint.files import open_tensors
from vc_core.checkpoint.inspection import inspect
from vc_core.checkpoint.loading import load_unet
from vc_core.checkpoint.reading import read_checkpoint
from vc_core.checkpoint.scales import blocks, scaled
from vc_core.composer import VideoComposer
from vc_core.errors import UserError

ROUNDING = 2.0**-4
"""Relative error of a mantissa of three bits."""


SPELLINGS = [
    ("scale_weight", tensorwise, "old"),
    ("scale_weight", tensorwise, ""),
    ("scale_weight", spans, "old"),
    ("weight_scale", tensorwise, "tensors"),
    ("weight_scale", tensorwise, "metadata"),
    ("weight_scale", rows, ""),
    ("weight_scale", row, ""),
    ("weight_scale", columns, ""),
    ("weight_scale_inv", tiles, ""),
]


@pytest.mark.parametrize(("spelling", "kind", "marks"), SPELLINGS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_every_spelling_gives_the_saved_weights(tiny_checkpoint, tmp_path, spelling, kind, marks, suffix):
    out, metadata, state = quantised(tiny_checkpoint, spelling, kind, marks)
    path = tmp_path / f"scaled{suffix}"
    if suffix == ".pth":
        torch.save(out, path)
    else:
        save_file(out, path, metadata)
    read = open_tensors(path)
    assert {*read.shapes} == {*state}
    get, changed = read.get(), 0
    for name, tensor in state.items():
        loaded = get(name)
        assert loaded.dtype == read.dtypes[name] and tuple(loaded.shape) == read.shapes[name]
        if name not in read.packed:
            assert torch.equal(loaded, tensor)
            continue
        changed += 1
        assert loaded.dtype == torch.float32 and read.nbytes(name) == tensor.numel()
        smallest = float(kind(tensor).max()) / 448 * 2**-9  # the step between subnormal numbers
        torch.testing.assert_close(loaded, tensor, rtol=ROUNDING, atol=smallest)
    assert changed == sum(name.endswith(spelling) for name in out)


def test_info_convert_and_load_read_a_scaled_file_like_any_other(tiny_checkpoint, tmp_path, capsys):
    out, metadata, state = quantised(tiny_checkpoint, "scale_weight", tensorwise, "old")
    path = tmp_path / "scaled.safetensors"
    save_file(out, path, metadata)
    assert cli.main(["info", str(path)]) == 0
    report = capsys.readouterr().out
    assert "float8_e4m3fn with scales" in report and "not used" not in report
    info = inspect(path)
    assert info.complete and not info.extra
    # The reported bytes are those in the file, and the progress never exceeds their total.
    model = next(part for part in info.parts if part.name == "model")
    assert model.nbytes == sum(t.nbytes for n, t in out.items() if n.startswith("model.") and n in state)
    original, reports = load_unet(read_checkpoint(tiny_checkpoint)), []
    unet = load_unet(read_checkpoint(path), progress=lambda what, done, total: reports.append((done, total)))
    assert all(done <= total for done, total in reports)
    for name, parameter in original.state_dict().items():
        torch.testing.assert_close(
            unet.state_dict()[name], parameter, rtol=ROUNDING, atol=float(parameter.abs().max()) / 448 * 2**-9
        )
    convert(path, tmp_path / "plain.safetensors")
    plain = open_tensors(tmp_path / "plain.safetensors")
    assert {*plain.shapes} == {*state} and not plain.packed
    read = open_tensors(path).state()
    assert all(torch.equal(tensor, read[name]) for name, tensor in plain.state().items())
    assert not any("quant" in key for key in plain.metadata)
    assert VideoComposer.load(path).unet.training is False


def layer(weight=(8, 8), scale=(), dtype=torch.float32, kind=FP8, spelling="weight_scale", **more):
    return {"l.weight": torch.ones(weight).to(kind), f"l.{spelling}": torch.ones(scale).to(dtype), **more}


def mark(content):
    return torch.tensor([*json.dumps(content).encode()], dtype=torch.uint8)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (layer(scale=(3,)), r"The scale l\.weight_scale has shape \(3,\), which does not fit its weight \(8, 8\)"),
        (layer(scale=(3, 8), spelling="scale_weight"), r"The scale l\.scale_weight has shape \(3, 8\), .* not fit"),
        (layer(scale=(8, 4, 2)), "does not fit"),
        (layer(scale=(8, 1), dtype=torch.uint8), r"The scale l\.weight_scale has dtype uint8"),
        (layer(scale=(8, 1), dtype=torch.float8_e5m2), "has dtype float8_e5m2"),
        (layer(**{"l.comfy_quant": mark({"format": "nvfp4"})}), r"1 layer quantised as nvfp4 \(l\)"),
        (layer(**{"l.comfy_quant": mark({"format": "mxfp8"})}), "mxfp8"),
        (layer(**{"l.comfy_quant": mark([1])}), r"quantised as \?"),
        (layer(**{"l.comfy_quant": mark({"format": "int8_tensorwise"})}, kind=torch.int8), "int8_tensorwise"),
        (
            layer(spelling="other", **{"l.comfy_quant": mark({"format": "float8_e4m3fn"})}),
            "the scales of 1 layer are m",
        ),
        (
            {**layer(), "k.weight": torch.ones(8, 8).to(FP8), "scaled_fp8": torch.zeros(2).to(FP8)},
            r"the scales of 1 layer are missing \(k\)",
        ),
        (layer(spelling="scale_input"), r"incomplete: the scales of 1 layer are missing \(l\)"),
        ({**layer(), "l.weight_scale": torch.tensor(float("nan"))}, r"The scale l\.weight_scale contains NaN or infin"),
    ],
)
def test_scales_that_cannot_be_used_are_refused_in_one_line(tmp_path, state, message):
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=message) as raised:
        open_tensors(tmp_path / "x.safetensors")
    assert str(raised.value).startswith(str(tmp_path / "x.safetensors")) and "\n" not in str(raised.value)


def test_layers_without_a_mark_are_plain_fp8(tmp_path):
    """A file may contain plain fp8 in addition to scaled layers: a layer that the mark does not cover, and vectors."""
    more = {"vae.k.weight": torch.ones(8, 8).to(FP8), "model.norm.weight": torch.ones(8).to(FP8)}
    state = {f"model.{name}": tensor for name, tensor in layer().items()}
    save_file({**state, **more, "model.scaled_fp8": torch.zeros(2).to(FP8)}, tmp_path / "x.safetensors")
    assert {*open_tensors(tmp_path / "x.safetensors").shapes} == {"model.l.weight", *more}


def test_marks_of_other_programs_do_not_crash(tmp_path):
    for text in ("[" * 100_000, "[]", "{", json.dumps({"layers": []}), json.dumps({"layers": {"l": None}})):
        save_file(layer(), tmp_path / "x.safetensors", {"_quantization_metadata": text})
        try:
            open_tensors(tmp_path / "x.safetensors")
        except UserError as error:
            assert "quantised as ?" in str(error)


@pytest.mark.parametrize(
    ("weight", "scale", "expected"),
    [
        ((8, 4), (), (8, 4)),
        ((8, 4), (1,), (8, 4)),
        ((8, 4), (8,), (1, 4)),
        ((8, 4), (4,), None),  # could be per column, but the shape does not say so
        ((8, 4), (1, 4), (8, 1)),
        ((8, 4), (8, 1), (1, 4)),
        ((8, 4), (2, 2), (4, 2)),
        ((8, 4), (8, 2, 1), (1, 2)),
        ((200, 300), (2, 3), (128, 128)),  # blocks of 128, not of 100
        ((200, 320), (2, 2), (128, 160)),
        ((64, 192), (1, 3), (64, 64)),
        ((8, 4, 3, 3), (8, 1, 1, 1), (1, 4, 3, 3)),
        ((8, 4), (3, 1), None),
        ((8, 4), (0, 1), None),
    ],
)
def test_the_blocks_of_scales(weight, scale, expected):
    assert blocks(weight, scale) == expected
    if expected is not None:
        assert scaled(torch.ones(weight), torch.ones(scale)).shape == weight


def test_a_smaller_last_block():
    weight, scale = torch.ones(200, 320), torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    result = scaled(weight, scale)
    assert result[0, [0, 127, 128, 255, 256, 319]].tolist() == [1, 1, 2, 2, 3, 3]
    assert result[[0, 127, 128, 199], 0].tolist() == [1, 1, 4, 4]
