"""Listing files in folders: links, loops, and files that systems create."""

import os
import warnings

import pytest

from vc_core.folders import files_below, is_system_file


def make(top, *names):
    for name in names:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()


def below(top, **options):
    return [path.relative_to(top).as_posix() for path in files_below(top, **options)]


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def test_links_to_folders_and_files_are_followed(data, tmp_path, recwarn):
    make(data, "a.mp4", "sub/b.mp4")
    make(tmp_path, "elsewhere/c.mp4", "elsewhere/deep/d.mp4", "third/e.mp4")
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "on").symlink_to(tmp_path / "third")
    (data / "f.mp4").symlink_to(tmp_path / "third" / "e.mp4")
    assert below(data) == ["a.mp4", "f.mp4", "linked/c.mp4", "linked/deep/d.mp4", "linked/on/e.mp4", "sub/b.mp4"]
    assert not recwarn.list
    (tmp_path / "itself").symlink_to(data)
    assert below(tmp_path / "itself") == below(data)


def test_loops_are_reported_once_and_not_followed(data, tmp_path):
    make(data, "a.mp4", "sub/b.mp4")
    make(tmp_path, "other/c.mp4", "not_ours.mp4")
    (data / "sub" / "up").symlink_to(data)
    (data / "above").symlink_to(tmp_path)  # a parent folder
    (data / "other").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(data / "sub")
    with pytest.warns(UserWarning) as caught:
        assert below(data) == ["a.mp4", "other/c.mp4", "sub/b.mp4"]
    (warning,) = caught
    assert str(warning.message).startswith(f"{data}: Skipped 3 linked folders (already listed: a loop")
    assert all(name in str(warning.message) for name in ("sub/up", "above", "other/back"))


def test_a_folder_is_listed_once_at_its_real_path(data, tmp_path):
    make(data, "z/a.mp4")
    make(tmp_path, "other/b.mp4")
    (data / "a").symlink_to(data / "z")
    for name in ("m", "n"):
        (data / name).symlink_to(tmp_path / "other")
    with pytest.warns(UserWarning, match="2 linked folders"):
        assert below(data) == ["m/b.mp4", "z/a.mp4"]


def test_broken_links_and_pipes_are_reported(data):
    make(data, "a.mp4")
    (data / "gone.mp4").symlink_to(data / "nowhere.mp4")
    (data / "loop.mp4").symlink_to(data / "loop.mp4")
    if hasattr(os, "mkfifo"):
        os.mkfifo(data / "pipe.mp4")
    with pytest.warns(UserWarning, match=r"paths \(a broken link, or a device\): gone\.mp4, loop\.mp4"):
        assert below(data) == ["a.mp4"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root lists every folder")
def test_a_folder_that_cannot_be_listed_is_reported(data):
    make(data, "a.mp4", "closed/b.mp4")
    (data / "closed").chmod(0)
    try:
        with pytest.warns(UserWarning, match="closed"):
            assert below(data) == ["a.mp4"]
    finally:
        (data / "closed").chmod(0o755)


def test_system_files_are_not_listed(data):
    names = ["Thumbs.db", "desktop.ini", ".DS_Store", "._a.mp4", "__MACOSX/._a.mp4", "__MACOSX/x.mp4",
             "@eaDir/a.mp4/SYNO", "sub/THUMBS.DB"]  # fmt: skip
    make(data, "a.mp4", ".hidden.mp4", ".cache/b.mp4", *names)
    assert below(data) == ["a.mp4"]
    assert below(data, hidden=True) == [".cache/b.mp4", ".hidden.mp4", "a.mp4"]
    assert not is_system_file("thumbs.mp4")


def test_folders_are_skipped_by_their_real_path(data, tmp_path):
    make(data, "a.mp4", "out/b.tar")
    (tmp_path / "results").symlink_to(data / "out")
    for out in (data / "out", data / "sub" / ".." / "out", tmp_path / "results"):
        assert below(data, without=[out]) == ["a.mp4"]
    assert below(data, without=[data]) == ["a.mp4", "out/b.tar"]
    assert files_below(data / "nowhere") == []


def test_without_warn_there_is_no_warning(data):
    (data / "back").symlink_to(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert files_below(data, warn=False) == []
