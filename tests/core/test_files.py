"""Files of tensors: lazy reading, refusals, and memory use."""

import argparse
import collections
import json
import os
import pathlib
import re
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vc_core.checkpoint.files import open_tensors, save_tensors, sha256
from vc_core.checkpoint.origins import Origin, check, fill, part
from vc_core.checkpoint.tensors import Tensors
from vc_core.errors import UserError

STATE = {"a": torch.arange(12.0).reshape(3, 4), "b.c": torch.ones(5, dtype=torch.float16), "n": torch.tensor(2.0)}


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x.ckpt", "x.bin"])
def test_written_and_read(tmp_path, name):
    save_tensors(tmp_path / name, STATE)
    tensors = open_tensors(tmp_path / name)
    assert tensors.shapes == {"a": (3, 4), "b.c": (5,), "n": ()}
    assert tensors.dtypes["b.c"] == torch.float16
    assert tensors.nbytes("b.c") == 10
    state = tensors.state()
    assert all(torch.equal(state[key], STATE[key]) and state[key].dtype == STATE[key].dtype for key in STATE)
    assert tensors.below("b.").state()["c"].tolist() == [1.0] * 5


def test_files_can_be_read_by_others(tmp_path):
    save_tensors(tmp_path / "x.safetensors", STATE)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o044 == 0o044


def test_other_entries_of_a_training_program_are_ignored(tmp_path):
    """As in Stable Diffusion's own .ckpt files: tensors under `state_dict`, next to counts and callbacks."""
    torch.save({"state_dict": STATE, "global_step": 875000, "callbacks": {"x": {"best": 1.0}}}, tmp_path / "sd.ckpt")
    assert set(open_tensors(tmp_path / "sd.ckpt").shapes) == set(STATE)


def test_the_format_before_zip(tmp_path):
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(open_tensors(tmp_path / "old.pth").state()["a"], STATE["a"])


def test_a_lightning_callback_is_not_imported(tmp_path):
    """A pickle that names Lightning's ModelCheckpoint, as v1 checkpoints do, is read without running Lightning."""
    import sys
    import types

    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")

    class ModelCheckpoint:
        pass

    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = module.__name__, "ModelCheckpoint"
    module.ModelCheckpoint = ModelCheckpoint
    names = ["pytorch_lightning", "pytorch_lightning.callbacks", module.__name__]
    sys.modules.update({name: module for name in names})
    try:
        torch.save({"state_dict": STATE, "callbacks": {ModelCheckpoint: {"step": 1}}}, tmp_path / "v1.ckpt")
    finally:
        for name in names:
            del sys.modules[name]
    assert set(open_tensors(tmp_path / "v1.ckpt").shapes) == set(STATE)


def test_the_sum(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256(tmp_path / "x").startswith("ba7816bf8f01cfea")


# --- Hostile files --------------------------------------------------------------------------------------------------


def test_a_safetensors_cut_anywhere(tmp_path):
    """After the length, in the header, at its end, and before, at and after every tensor's end."""
    save_tensors(tmp_path / "complete.safetensors", STATE)
    data = (tmp_path / "complete.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    ends = [8 + length + v["data_offsets"][1] for k, v in json.loads(data[8 : 8 + length]).items() if k in STATE]
    cuts = {0, 1, 7, 8, 9, 8 + length // 2, 7 + length, 8 + length, *(e + d for e in ends for d in (-1, 0, 1))}
    cut = tmp_path / "cut.safetensors"
    for at in sorted(at for at in cuts if at < len(data)):
        cut.write_bytes(data[:at])
        with pytest.raises(UserError, match=rf"cut\.safetensors is {'cut off or damaged' if at else 'empty'}.*again"):
            open_tensors(cut)


def test_a_pth_cut_anywhere(tmp_path):
    save_tensors(tmp_path / "complete.pth", STATE)
    data = (tmp_path / "complete.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "complete.pth") as archive:
        offsets = [entry.header_offset for entry in archive.infolist()]
        ends = [*offsets[1:], archive.start_dir]
    cut = tmp_path / "cut.pth"
    for at in sorted({0, 1, 2, *(e + d for e in (*offsets, *ends) for d in (-1, 0, 1)), len(data) - 1} - {-1}):
        cut.write_bytes(data[:at])
        wrong = "cut off or damaged" if at > 2 else "not a checkpoint, or it is damaged" if at else "empty"
        with pytest.raises(UserError, match=rf"cut\.pth is {wrong}.*again"):
            open_tensors(cut)


def header(content: object, length: int | None = None) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


@pytest.mark.parametrize(
    "data",
    [
        header({}, 2**62),
        header({}, 2**31),
        header({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}) + bytes(8),
        header({"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}) + bytes(8),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**40]}}) + bytes(8),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}) + bytes(8),
        header({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}) + bytes(8),
        header(["a"]),
        b"PK\x03\x04" + bytes(100),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_headers_that_lie(tmp_path, data, suffix):
    (tmp_path / f"x.{suffix}").write_bytes(data)
    with pytest.raises(UserError, match=r"is (cut off or damaged|not a checkpoint, or it is damaged) \("):
        open_tensors(tmp_path / f"x.{suffix}")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["safetensors", "pth", "ckpt"]))
def test_noise_is_refused_in_one_sentence(tmp_path_factory, data, suffix):
    path = tmp_path_factory.mktemp("noise") / f"x.{suffix}"
    path.write_bytes(data)
    with pytest.raises(UserError) as raised:
        open_tensors(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["value", "state_dict", "callback"])
def test_pickles_with_code_are_refused_and_not_run(tmp_path, zipped, place):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    content = {
        "value": {**STATE, "evil": Evil()},
        "state_dict": {"state_dict": {**STATE, "evil": Evil()}},
        "callback": {"state_dict": STATE, "callbacks": Evil()},
    }[place]
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"evil\.pth contains objects that are not tensors \("):
        open_tensors(tmp_path / "evil.pth")
    assert not (tmp_path / "written").exists()


def test_files_without_a_state_dict(tmp_path):
    for content in ([torch.ones(1)], {"steps": 3}, {1: torch.ones(1)}, torch.ones(3)):
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(UserError, match="contains no named tensors"):
            open_tensors(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GGUF\x03\0\0\0" + bytes(80), "is a GGUF file"),
        (b'{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}', "is the index of a sharded"),
        (b'\n{"_class_name": "UNet"}', "is a JSON file"),
        (b"<!DOCTYPE html><html>Access denied</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git LFS pointer"),
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is an image or a video"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "is an image or a video"),
        (b"\0\0\0 ftypisom\0\0\2\0", "is an image or a video"),
        (b"\x1a\x45\xdf\xa3\1\0\0\0", "is an image or a video"),
        ("steps: 20\ntext: ein grüner Kreis\n".encode(), "is a text file"),
    ],
)
@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x.gguf", "x.index.json"])
def test_files_that_users_confuse_with_checkpoints_are_recognized(tmp_path, data, message, name):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"{re.escape(name)} {message}") as raised:
        open_tensors(tmp_path / name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_a_safetensors_of_any_length_is_not_confused_with_these(tmp_path, name):
    """The file begins with the length of its header, which may contain any byte that starts a text or a pickle."""
    for length in range(8, 264, 8):  # so that the last byte takes every possible value
        text = "x" * length
        save_tensors(tmp_path / "x.safetensors", STATE, {"text": text})
        (tmp_path / "x.safetensors").rename(tmp_path / name)
        read = open_tensors(tmp_path / name)
        assert set(read.shapes) == set(STATE) and read.metadata["text"] == text


@pytest.mark.parametrize(
    "value",
    [np.float64(0.5), np.zeros(2), argparse.Namespace(lr=1), collections.defaultdict(list), pathlib.PurePath("a")],
)
def test_objects_that_are_not_tensors_are_named(tmp_path, value):
    torch.save({"state_dict": STATE, "more": value}, tmp_path / "x.ckpt")
    message = rf"x\.ckpt contains objects that are not tensors \({type(value).__module__[:5]}"
    with pytest.raises(UserError, match=message) as raised:
        open_tensors(tmp_path / "x.ckpt")
    assert "weights_only" not in str(raised.value) and "\x1b" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"model": STATE, "optimizer": {"lr": torch.ones(1)}}, STATE),
        ({"module": STATE, "step": torch.ones(1)}, STATE),
        ({"model": {"state_dict": STATE}, "epoch": 3}, STATE),
        ({"model": {"a": torch.zeros(1)}, "ema": STATE}, STATE),
        ({"model": {"lr": 3}, "a": torch.ones(2)}, {"a": torch.ones(2)}),
        ({"model.a": torch.ones(2), "model": torch.ones(3)}, {"model.a": torch.ones(2), "model": torch.ones(3)}),
    ],
)
def test_a_state_dict_is_found_under_the_keys_of_other_programs(tmp_path, content, expected):
    torch.save(content, tmp_path / "x.pt")
    read = open_tensors(tmp_path / "x.pt").state()
    assert read.keys() == expected.keys() and all(torch.equal(read[name], expected[name]) for name in read)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="everybody may read everything here")
def test_a_file_that_may_not_be_read(tmp_path):
    save_tensors(tmp_path / "x.safetensors", STATE)
    (tmp_path / "x.safetensors").chmod(0)
    with pytest.raises(UserError, match=r"x\.safetensors cannot be read \(Permission denied\)\. Check its permissions"):
        open_tensors(tmp_path / "x.safetensors")


def test_folders_and_missing_files(tmp_path):
    with pytest.raises(UserError, match=r"Expected a checkpoint, but .* is a folder"):
        open_tensors(tmp_path)
    with pytest.raises(UserError, match="There is no checkpoint at"):
        open_tensors(tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"Expected a name that ends in \.safetensors or \.pth"):
        save_tensors(tmp_path / "x.txt", STATE)


# --- Layouts --------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.joined, self.turned = nn.Parameter(torch.empty(6, 4)), nn.Parameter(torch.empty(2, 3))
        self.shaped = nn.Parameter(torch.empty(5, 2))


LAYOUT = {
    "joined": Origin(("q", "k", "v"), (2, 4)),
    "turned": Origin(("t",), (3, 2), transposed=True),
    "shaped": Origin(("s",), (5, 2, 1, 1)),
}


def net() -> Net:
    torch.manual_seed(0)
    module = Net()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def test_a_layout_works_in_both_directions():
    module = net()
    state = part(module.state_dict(), LAYOUT)
    assert {name: tuple(t.shape) for name, t in state.items()} == {
        "q": (2, 4), "k": (2, 4), "v": (2, 4), "t": (3, 2), "s": (5, 2, 1, 1),
    }  # fmt: skip
    assert torch.equal(state["t"], module.turned.t())
    with torch.device("meta"):
        again = Net()
    fill(again, LAYOUT, Tensors.of(state), "a network")
    assert all(torch.equal(p, module.get_parameter(name)) for name, p in again.named_parameters())


def test_a_mapped_file_is_not_copied_unnecessarily(tmp_path):
    torch.manual_seed(0)
    save_tensors(tmp_path / "x.safetensors", part(net().state_dict(), LAYOUT))
    tensors = open_tensors(tmp_path / "x.safetensors")
    shared = []

    def get():
        inner = tensors.get()

        def get_tensor(name):
            shared.append(inner(name))
            return shared[-1]

        return get_tensor

    module = Net()
    fill(module, LAYOUT, Tensors(tensors.source, tensors.shapes, tensors.dtypes, get), "a network")
    assert module.shaped.data_ptr() in {t.data_ptr() for t in shared}


def test_tensors_that_do_not_fit_are_listed():
    state = part(net().state_dict(), LAYOUT)
    tensors = Tensors.of({k: t for k, t in state.items() if k not in "qs"} | {"q": torch.ones(3, 4)}, "f.pth")
    with pytest.raises(UserError, match=r"f\.pth lacks 1 tensor of a network \(s\)"):
        check(LAYOUT, tensors, "a network")
    tensors = Tensors.of(state | {"q": torch.ones(3, 4)}, "f.pth")
    with pytest.raises(UserError, match=r"1 tensor of another shape .*q is \(3, 4\), expected \(2, 4\)"):
        check(LAYOUT, tensors, "a network")
    tensors = Tensors.of(state | {"t": torch.ones(3, 2, dtype=torch.int8)}, "f.pth")
    with pytest.raises(UserError, match=r"1 tensor of a network not in floating point \(t is torch\.int8\)"):
        check(LAYOUT, tensors, "a network")
