"""Disks that are full, read-only or without permission: one error, exit status 2, and no partly written files."""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

from tests.disks import ADVICE, everything_in, files_up_to, full_disk
from vc_core import cli, terminal
from vc_core.checkpoint.files import open_tensors, save_pickled, save_tensors
from vc_core.checkpoint.reading import BUNDLED
from vc_core.demo import draw_clip
from vc_core.disk import (
    WriteError,
    append,
    check_folder,
    check_place,
    make_folder,
    write_error,
    writing,
    written_beside,
)
from vc_core.errors import UserError
from vc_core.terminal import run_program
from vc_core.video import write_contact_sheet, write_video

STATE = {"a": torch.arange(20_000.0), "b": torch.zeros(3)}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", draw_clip(size=64, frames=6), rate=8)


def noise(frames=4):
    return torch.rand(1, 3, frames, 64, 64, generator=torch.Generator().manual_seed(0))


# --- Messages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Free space"),
        (errno.EDQUOT, "Free space"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permissions"),
        (errno.EFBIG, "files of that size"),
        (errno.EIO, "health"),
    ],
)
def test_every_error_of_a_disk_says_what_to_do(number, advice):
    error = write_error(OSError(number, os.strerror(number)), "out.png")
    assert str(error).startswith(f"out.png cannot be written ({os.strerror(number)}). ") and advice in str(error)
    assert error.number == number and isinstance(error, UserError) and "\n" not in str(error)


def test_errors_of_another_kind_are_not_converted():
    for error in (ValueError("no"), RuntimeError("expected 2 channels"), KeyError("out")):
        assert write_error(error, "out.png") is None
        with pytest.raises(type(error)), writing("out.png"):
            raise error
    with pytest.raises(UserError, match=r"^a sentence$"), writing("out.png"):
        raise UserError("a sentence")


def test_a_program_reports_errors_without_a_message(capsys, monkeypatch):
    def work():
        raise PermissionError(errno.EACCES, "Permission denied", "/some/file")

    assert run_program(work) == 2
    assert capsys.readouterr().err == (
        "vc: /some/file cannot be read or written (Permission denied). Change its permissions or choose another "
        "place.\n"
    )
    with pytest.raises(OSError):  # not an error of the disk but a bug
        run_program(lambda: (_ for _ in ()).throw(OSError("cannot identify image file")))
    monkeypatch.setattr(terminal, "debugging", True)
    with pytest.raises(OSError):
        run_program(work)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_an_output_that_cannot_be_written_or_is_not_read(repository):
    command = [sys.executable, "-m", "vc_core", "info"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, cwd=repository, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 2
    assert ended.stderr == (
        "vc: A file or the output cannot be written (No space left on device). Free space on its disk, then try "
        "again.\n"
    )
    for words in (["info"], ["compose", "--help"]):
        reader, writer = os.pipe()
        os.close(reader)
        ended = subprocess.run([*command[:3], *words], cwd=repository, stdout=writer, stderr=subprocess.PIPE, text=True)
        os.close(writer)
        assert (ended.returncode, ended.stderr) == (141, "")


# --- No partly written files ----------------------------------------------------------------------------------------

WRITERS = {
    "a.safetensors": lambda path: save_tensors(path, STATE),
    "a.pth": lambda path: save_tensors(path, STATE),
    "sheet.png": lambda path: write_contact_sheet(path, [("noise", noise())]),
    "a.json": lambda path: _write_text(path, "x" * 5000),
    **{name: lambda path: write_video(path, noise(), 8, scale=4) for name in ("a.mp4", "a.gif", "a.webp", "a")},
}


def _write_text(path, text):
    with written_beside(path) as part:
        part.write_text(text)


@pytest.mark.parametrize("name", WRITERS)
def test_all_writers_report_a_full_disk_and_keep_older_files(tmp_path, name):
    write, path = WRITERS[name], tmp_path / name
    with files_up_to(4096), pytest.raises(WriteError, match=f"{name} {ADVICE}") as caught:
        write(path)
    assert caught.value.number == errno.EFBIG and not everything_in(tmp_path)
    write(path)
    before = {file: os.stat(tmp_path / file).st_mtime_ns for file in everything_in(tmp_path)}
    with files_up_to(4096), pytest.raises(WriteError):
        write(path)
    assert {file: os.stat(tmp_path / file).st_mtime_ns for file in everything_in(tmp_path)} == before


def test_a_pickled_file_is_complete_and_does_not_depend_on_its_name(tmp_path):
    save_pickled(STATE, tmp_path / "first.pth")
    save_pickled(STATE, tmp_path / "second.pth")
    assert torch.equal(open_tensors(tmp_path / "first.pth").get()("a"), STATE["a"])
    assert (tmp_path / "first.pth").read_bytes() == (tmp_path / "second.pth").read_bytes()


def test_a_line_is_appended_completely_or_not_at_all(tmp_path):
    path = tmp_path / "log.jsonl"
    append(path, "first\n")
    with files_up_to(9), pytest.raises(WriteError, match=ADVICE):
        append(path, "a second one\n")
    assert path.read_text() == "first\n"
    append(path, "ä second one\n")
    assert path.read_text(encoding="utf-8") == "first\nä second one\n"


def test_folders_that_cannot_be_created(tmp_path):
    assert make_folder(tmp_path / "a" / "b").is_dir() and make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(WriteError, match=f"^The folder {path} cannot be created "):
            make_folder(path)


def test_a_folder_without_write_permission_is_reported_before_the_work(tmp_path, monkeypatch):
    """Root may write everywhere, so the missing permission is simulated."""
    monkeypatch.setattr("vc_core.disk.os.access", lambda path, mode: path != tmp_path)
    for check in (check_place, check_folder):
        with pytest.raises(
            WriteError, match=rf"out cannot be written because its folder {tmp_path} allows no new files"
        ):
            check(tmp_path / "out")


# --- Commands -------------------------------------------------------------------------------------------------------


def commands(clip, tiny_checkpoint, out):
    """Commands that each write a file that is too large for the disk."""
    compose = ["compose", "--checkpoint", tiny_checkpoint, "--text", "x", "--steps", 1, "--frames", 3]
    yield ["convert", tiny_checkpoint, out / "c.safetensors"], "c.safetensors"
    yield ["convert", BUNDLED, out / "c.pth", "--parts", "vae", "--layout", "taesd"], "c.pth"
    yield ["extract", "motion", clip, "--frames", 6, "-o", out / "m.safetensors"], "m.safetensors"
    yield [*compose, "-o", out / "v.webp", "--scale", 8], "v.webp"


def test_every_command_prints_one_error_and_returns_2(clip, tiny_checkpoint, tmp_path, capsys):
    for command, name in commands(clip, tiny_checkpoint, tmp_path):
        with files_up_to(4096):
            assert cli.main([str(word) for word in command]) == 2, command
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vc: ")]
        assert len(errors) == 1 and errors[0].startswith(f"vc: {tmp_path / name} cannot be written (File too large)")
        assert not everything_in(tmp_path)


def test_a_sheet_on_a_full_disk_is_reported(tiny_checkpoint, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    save = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", lambda *a, **k: full() if k["format"] == "PNG" else save(*a, **k))
    words = ["--steps", 1, "--frames", 3, "--text", "x", "-o", tmp_path / "v.webp", "--sheet", tmp_path / "s.png"]
    assert cli.main(["compose", "--checkpoint", str(tiny_checkpoint), *map(str, words)]) == 2
    assert "s.png cannot be written (No space left on device)" in capsys.readouterr().err
    assert everything_in(tmp_path) == ["v.webp"]


def test_a_disk_that_is_really_full(tiny_checkpoint, tmp_path, capsys):
    with full_disk(tmp_path / "disk", "64k") as disk:
        for name in ("c.safetensors", "c.pth"):
            parts = ["--parts", "model", "--layout", "released"] if name.endswith("pth") else []
            assert cli.main(["convert", str(tiny_checkpoint), str(disk / name), *parts]) == 2
            message = capsys.readouterr().err
            if "cannot store" not in message:
                assert f"{name} cannot be written (No space left on device). Free space" in message
            assert not everything_in(disk)
        for name in ("v.mp4", "v.webm", "v.gif", "v.webp", "v"):
            with pytest.raises(WriteError, match="No space left on device"):
                write_video(disk / name, noise(), 8, scale=8)
            assert not everything_in(disk)
        (disk / "small.json").write_text(json.dumps({}))
        append(disk / "log", "x" * 30_000)
        with pytest.raises(WriteError, match="No space left"):
            append(disk / "log", "y" * 60_000)
        assert (disk / "log").read_text() == "x" * 30_000
