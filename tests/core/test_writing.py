"""Writing videos: each format is read back with other libraries, the texts inside, and no partly written files."""

import itertools
import json
import os
import re
import time
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image, features

from vc_core.errors import UserError
from vc_core.video.formats import FORMATS
from vc_core.video.metadata import read_metadata
from vc_core.video.writing import check_format, numbered, write_contact_sheet, write_video, write_videos

NAMES = ["out.mp4", "out.webm", "out.gif", "out.webp", "out"]
SETTINGS = {
    "videocomposer": json.dumps({"text": "ä \"quoted\" 'single' \\ = ; # 漢字 😀"}, ensure_ascii=False)
    + "\n\t{x}\r\n ",
    "workflow": '{"nodes": [' + ", ".join(map(str, range(20000))) + "]}",  # more than 100 KB
    "empty": "",
}


def painting(frames=5, height=32, width=40):
    """Two soft gradients, the second one moving; no two frames are equal."""
    sides = torch.linspace(0, 1, height), torch.linspace(0, 1, width), torch.arange(frames) / frames
    y, x, t = torch.meshgrid(*sides, indexing="ij")
    video = torch.stack([x * 0.8, y, (x + y) / 4 + t / 2])
    return video.permute(0, 3, 1, 2)[None]


def as_bytes(video):
    """(1, C, F, H, W) -> (F, H, W, 3) as integers from 0 to 255."""
    return (video[0].expand(3, -1, -1, -1) * 255).round().permute(1, 2, 3, 0).int().numpy()


def read_back(path):
    """Frames (F, H, W, 3) as integers, and the seconds of each frame."""
    if path.is_dir():
        description = json.loads((path / "video.json").read_text())
        files = sorted(path.glob("*.png"))
        assert len(files) == description["frames"]
        frames, seconds = (
            [np.asarray(Image.open(file)) for file in files],
            [1 / Fraction(description["rate"])] * len(files),
        )
    elif path.suffix in (".gif", ".webp"):
        frames, seconds = [], []
        with Image.open(path) as image:
            assert image.info.get("loop") == 0 or image.n_frames == 1
            for i in range(image.n_frames):
                image.seek(i)
                image.load()
                frames.append(np.asarray(image.convert("RGB")))
                seconds.append(Fraction(image.info.get("duration", 0), 1000))
    else:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            decoded = list(container.decode(stream))
            frames = [frame.to_ndarray(format="rgb24") for frame in decoded]
            seconds = [1 / stream.average_rate] * len(frames)
            times = [frame.time for frame in decoded]
            assert np.allclose(np.diff(times), 1 / float(stream.average_rate), atol=2e-3)
    return np.stack(frames).astype(int), seconds


def listing(folder):
    """All files below a folder with their contents."""
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in sorted(folder.rglob("*"))}


# --- Written files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, mean, even",
    [("out.mp4", 3, True), ("out.webm", 3, True), ("out.gif", 8, False), ("out.webp", 0, False), ("out", 0, False)],
)
def test_a_video_reads_back(tmp_path, name, mean, even):
    video = painting(height=33, width=47)
    path = write_video(tmp_path / name, video, 8)
    assert path == tmp_path / name and [p.name for p in tmp_path.iterdir()] == [name]
    frames, seconds = read_back(path)
    assert frames.shape == ((5, 34, 48, 3) if even else (5, 33, 47, 3))
    assert (
        sum(seconds) == Fraction(5, 8) if name != "out.gif" else sum(seconds) in (Fraction(62, 100), Fraction(63, 100))
    )
    error = np.abs(frames[:, :33, :47] - as_bytes(video))
    assert error.mean() <= mean
    assert error.mean(axis=(1, 2, 3)).max() <= mean + 1  # no frame is swapped


@pytest.mark.parametrize("name", NAMES)
def test_one_frame_of_a_mask(tmp_path, name):
    mask = torch.zeros(1, 1, 1, 20, 24)
    mask[..., 10:, :] = 1
    frames, seconds = read_back(write_video(tmp_path / name, mask, 4))
    assert np.abs(frames - as_bytes(mask)).max() <= 6
    assert seconds == [Fraction(1, 4)] or name == "out.webp"  # an image there, which has no duration


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_enlarged(tmp_path, name):
    video = torch.zeros(3, 2, 8, 8)
    video[:, 0, 2, 3] = video[:, 1, 6, 1] = 1
    frames, _ = read_back(write_video(tmp_path / name, video, 4, scale=4))
    expected = as_bytes(video[None]).repeat(4, axis=1).repeat(4, axis=2)
    assert frames.shape == (2, 32, 32, 3) and np.abs(frames - expected).mean() < 3


@pytest.mark.parametrize("name", ["out.mp4", "out.webm"])
@pytest.mark.parametrize("height, space", [(96, 6), (720, 1)])
def test_colours_are_right_and_the_file_has_colour_tags(tmp_path, name, height, space):
    colours = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.2, 0.2, 0.9]]).T.view(1, 3, 3, 1, 1)
    path = write_video(tmp_path / name, colours.expand(-1, -1, -1, height, 64), 4)
    assert np.abs(read_back(path)[0] - as_bytes(colours)).max() <= 4
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.pix_fmt, context.colorspace, context.color_range) == ("yuv420p", space, 1)


@pytest.mark.parametrize("rate", [12, Fraction(30000, 1001), 0.5, 50])
def test_times_do_not_drift(tmp_path, rate):
    video = painting(frames=13, height=16, width=16)
    for name in NAMES:
        _, seconds = read_back(write_video(tmp_path / name, video, rate))
        assert abs(sum(seconds) - 13 / Fraction(rate)) <= Fraction(1, 100), name
        assert max(seconds) - min(seconds) <= Fraction(1, 100), name


def test_a_gif_has_one_palette_and_keeps_few_colours(tmp_path):
    frames, _ = read_back(write_video(tmp_path / "many.gif", painting(), 10))
    assert len(np.unique(frames.reshape(-1, 3), axis=0)) <= 256
    still = painting().clone()
    still[:, :, :, :24] = still[:, :, :1, :24]  # the upper half does not move
    frames, _ = read_back(write_video(tmp_path / "still.gif", still, 10))
    assert (frames[:, :24] == frames[:1, :24]).all()
    indices = torch.randint(0, 216, (4, 32, 32), generator=torch.Generator().manual_seed(0))
    few = torch.cartesian_prod(*[torch.arange(6)] * 3)[indices].permute(3, 0, 1, 2)[None] / 5
    frames, _ = read_back(write_video(tmp_path / "few.gif", few, 10))
    assert (frames == as_bytes(few)).all()


@pytest.mark.parametrize("name", ["out.gif", "out.webp"])
def test_equal_frames_are_merged(tmp_path, name):
    video = painting(frames=2)[:, :, [0, 0, 0, 1]]
    frames, seconds = read_back(write_video(tmp_path / name, video, 10))
    assert len(frames) == 2 and seconds == [Fraction(3, 10), Fraction(1, 10)]


def test_a_batch_goes_to_numbered_files(tmp_path):
    videos, calls = torch.cat([painting(), painting().flip(-1)]), []
    for name in NAMES:
        calls.clear()
        paths = write_videos(tmp_path / name, videos, 8, metadata={"a": "b"}, progress=lambda *call: calls.append(call))
        stem, _, ending = name.partition(".")
        assert [path.name for path in paths] == [f"{stem}_{i}{'.' if ending else ''}{ending}" for i in range(2)]
        assert calls == [("writing", i, 10) for i in range(1, 11)]
        for path, video in zip(paths, videos, strict=True):
            assert np.abs(read_back(path)[0] - as_bytes(video[None])).mean() < 8
            assert read_metadata(path) == {"a": "b"}
    assert len(list(tmp_path.iterdir())) == 2 * len(NAMES)
    assert (
        write_videos(tmp_path / "single.gif", videos[:1], 8)
        == [tmp_path / "single.gif"]
        == numbered(tmp_path / "single.gif", 1)
    )


def test_the_same_video_gives_the_same_bytes(tmp_path):
    def write(folder):
        folder.mkdir()
        for name in NAMES:
            write_video(folder / name, video, 8, metadata=SETTINGS)
        return listing(folder)

    video = painting(height=320, width=48)  # high enough for x264 to use several threads
    first = write(tmp_path / "first")
    begun = int(time.time())
    while int(time.time()) == begun:  # some files contain the second of their creation
        time.sleep(0.01)
    assert write(tmp_path / "second") == first
    if len(getattr(os, "sched_getaffinity", lambda _: [0])(0)) > 1:
        cores = os.sched_getaffinity(0)
        try:  # simulate a machine with another number of cores
            os.sched_setaffinity(0, {min(cores)})
            assert write(tmp_path / "third") == first
        finally:
            os.sched_setaffinity(0, cores)


# --- The texts inside -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_metadata_survives_exactly(tmp_path, name):
    path = write_video(tmp_path / name, painting(frames=2), 8, metadata=SETTINGS)
    assert read_metadata(path) == SETTINGS
    frames, _ = read_back(path)
    assert len(frames) == 2


def test_all_images_of_a_folder_and_a_sheet_contain_the_texts(tmp_path):
    folder = write_video(tmp_path / "out", painting(), 8, metadata=SETTINGS)
    assert all(read_metadata(folder / f"0000{i}.png") == SETTINGS for i in range(5))
    assert (
        read_metadata(write_contact_sheet(tmp_path / "sheet.png", [("a", painting())], metadata=SETTINGS)) == SETTINGS
    )


def test_metadata_is_stored_for_other_programs(tmp_path):
    for name in ("out.mp4", "out.webm"):
        with av.open(str(write_video(tmp_path / name, painting(), 8, metadata={"prompt": "{}"}))) as container:
            assert {key.lower(): text for key, text in container.metadata.items()}["prompt"] == "{}"
    assert b"mdta\x00\x00\x00" in (tmp_path / "out.mp4").read_bytes()  # where ComfyUI's page reads mp4
    exif = Image.open(write_video(tmp_path / "out.webp", painting(), 8, metadata={"prompt": "{}"})).getexif()
    assert exif.get_ifd(0x8769)[0x9286] == b'ASCII\0\0\0{"prompt": "{}"}'


def test_comments_of_other_programs_are_read(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "other.gif", comment="made by hand")
    Image.new("RGB", (8, 8)).save(tmp_path / "list.gif", comment="[1, 2]")
    assert read_metadata(tmp_path / "other.gif") == {"comment": "made by hand"}
    assert read_metadata(tmp_path / "list.gif") == {"comment": "[1, 2]"}


@pytest.mark.parametrize("name", [*NAMES, "sheet.png"])
def test_a_file_without_metadata_says_so(tmp_path, name):
    if name == "sheet.png":
        path = write_contact_sheet(tmp_path / name, [("a", painting())])
    else:
        path = write_video(tmp_path / name, painting(frames=2), 8)
    with pytest.raises(UserError, match="contains no settings"):
        read_metadata(path)


@pytest.mark.parametrize("name", ["absent.mp4", "empty", "text.mp4", "text.gif", "text.webp", "text.png", "zero.webm"])
def test_files_that_are_not_videos_are_reported(tmp_path, name):
    (tmp_path / "empty").mkdir()
    for path in tmp_path, tmp_path / "empty":
        assert path.is_dir()
    for ending in ("mp4", "gif", "webp", "png"):
        (tmp_path / f"text.{ending}").write_text("not a video " * 50)
    (tmp_path / "zero.webm").write_bytes(b"")
    with pytest.raises(UserError, match=r"Check the path|complete file") as caught:
        read_metadata(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Tag data larger than file")
@pytest.mark.parametrize("name", [*NAMES[:-1], "out/00000.png"])
def test_damaged_files_give_an_error_or_the_texts(tmp_path, name):
    write_video(
        tmp_path / name.partition("/")[0], painting(frames=2, height=16, width=16), 8, metadata={"key": "text " * 99}
    )
    path, damage = tmp_path / name, np.random.default_rng(0)
    original = path.read_bytes()
    cuts = [original[:size] for size in damage.integers(0, len(original), 20)]
    flips = [bytearray(original) for _ in range(20)]
    for data in flips:
        for at in damage.integers(0, len(original), 8):
            data[at] = damage.integers(256)
    for data in cuts + flips:
        path.write_bytes(data)
        try:
            assert all(isinstance(text, str) for pair in read_metadata(path).items() for text in pair)
        except UserError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("key, text", [
    ("Prompt", ""), ("a key", ""), ("", ""), ("encoder", ""), ("k" * 80, ""),
    ("key", "a\0b"), ("key", "\ud800"), ("key", "x" * (2**20 + 1)),
])  # fmt: skip
def test_metadata_that_would_not_survive_is_refused(tmp_path, key, text):
    for write in (
        lambda: write_video(tmp_path / "out.mp4", painting(), 8, metadata={key: text}),
        lambda: write_contact_sheet(tmp_path / "sheet.png", [("a", painting())], metadata={key: text}),
    ):
        with pytest.raises(UserError, match=repr(key)):
            write()
    assert not list(tmp_path.iterdir())


# --- No partly written files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("the disk is full")])
@pytest.mark.parametrize("after", [2, 8])
def test_a_failure_in_the_middle_leaves_nothing(tmp_path, name, error, after):
    """Fail in the first or in the second of two videos with 5 frames; older files with these names stay."""

    def stop(what, done, total):
        if done == after:
            raise error

    videos = torch.cat([painting(), painting().flip(-1)])
    expected = KeyboardInterrupt if error is KeyboardInterrupt else UserError
    with pytest.raises(expected):
        write_videos(tmp_path / name, videos, 8, progress=stop)
    assert not list(tmp_path.iterdir())
    write_videos(tmp_path / name, painting(frames=3).expand(2, -1, -1, -1, -1), 8)
    before = listing(tmp_path)
    with pytest.raises(expected):
        write_videos(tmp_path / name, videos, 8, progress=stop)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("name", NAMES)
def test_an_encoder_that_fails_leaves_nothing(tmp_path, name, monkeypatch):
    def broken(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", broken)
    monkeypatch.setattr("av.VideoFrame.from_ndarray", broken)
    with pytest.raises(UserError, match="No space left on device"):
        write_video(tmp_path / name, painting(), 8)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_replaced_completely(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    write_video(folder, painting(frames=5), 8)  # an empty folder is accepted
    (folder / ".DS_Store").write_text("")
    write_video(folder, painting(frames=2), Fraction(30000, 1001))
    assert sorted(path.name for path in folder.iterdir()) == ["00000.png", "00001.png", "video.json"]
    assert json.loads((folder / "video.json").read_text()) == {"frames": 2, "rate": "30000/1001"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "link").symlink_to(folder)
    write_video(tmp_path / "link", painting(frames=3), 8)
    assert (tmp_path / "link").is_symlink() and len(list(folder.glob("*.png"))) == 3


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failed_rename_restores_the_older_folder(tmp_path, monkeypatch, failing):
    write_video(tmp_path / "out", painting(frames=5), 8)
    before, rename, calls = listing(tmp_path), os.rename, itertools.count(1)

    def broken(source, target):
        if next(calls) == failing:
            raise PermissionError(13, "Permission denied")
        rename(source, target)

    monkeypatch.setattr("os.rename", broken)
    with pytest.raises(UserError, match="Permission denied"):
        write_video(tmp_path / "out", painting(frames=2), 8)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("change", [
    lambda folder: (folder / "notes.txt").write_text("mine"),
    lambda folder: (folder / "video.json").unlink(),
    lambda folder: (folder / "video.json").write_text("[1]"),
    lambda folder: (folder / "video.json").write_text("{}"),
    lambda folder: (folder / "00007.png").mkdir(),
])  # fmt: skip
def test_a_folder_with_other_files_is_refused(tmp_path, change):
    folder = write_video(tmp_path / "out", painting(), 8)
    change(folder)
    before = listing(tmp_path)
    with pytest.raises(UserError, match="would be lost"):
        write_video(folder, painting(frames=2), 8)
    assert listing(tmp_path) == before


@pytest.mark.skipif(os.name == "nt", reason="pipes are not files on Windows")
@pytest.mark.parametrize("name", ["out", "out.mp4", "out.gif"])
def test_a_pipe_or_a_device_is_refused_and_stays(tmp_path, name):
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"Expected a (file|folder) to write, but .* is a device or a pipe"):
        write_video(path, painting(), 8)
    assert path.is_fifo() and list(tmp_path.iterdir()) == [path]


def test_the_current_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="current folder"):
        write_video(".", painting(), 8)
    assert tmp_path.is_dir() and not list(tmp_path.iterdir())


# --- Refused input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.avi", "out.png", "no/such/out.mp4", "no/such/out", "file", "folder.mp4"])
def test_an_unwritable_path_is_reported(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.mp4").mkdir()
    before = listing(tmp_path)
    with pytest.raises(UserError, match=r"Use a name|Create the folder|Choose another name|Pass a file name") as caught:
        write_video(tmp_path / name, painting(), 8)
    assert str(tmp_path / name) in str(caught.value)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), 0.001, 1001])
def test_an_impossible_rate_is_reported(tmp_path, name, rate):
    with pytest.raises(UserError, match=r"cannot be written at .* frames per second"):
        write_video(tmp_path / name, painting(), rate)


def test_a_format_that_does_not_support_the_video_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"60 frames per second\. Use 0\.01 to 50 frames per second for \.gif"):
        check_format("out.gif", 60)
    with pytest.raises(UserError, match="at most 16383"):
        write_video(tmp_path / "out.webp", torch.zeros(3, 1, 2, 1639), 8, scale=10)
    with pytest.raises(UserError, match="not numbers"):
        write_video(tmp_path / "out.mp4", painting() * float("nan"), 8)
    assert not list(tmp_path.iterdir())


def test_a_missing_encoder_is_named(tmp_path, monkeypatch):
    def missing(name, mode):
        raise av.codec.codec.UnknownCodecError(name)

    for name in NAMES:
        assert check_format(tmp_path / name) is FORMATS[(tmp_path / name).suffix]
    monkeypatch.setattr("av.Codec", missing)
    monkeypatch.setattr(features, "check", lambda name: False)
    for name, encoder in {"out.mp4": "libx264", "out.webm": "libvpx-vp9", "out.webp": "Pillow with WebP"}.items():
        with pytest.raises(UserError, match=encoder):
            write_video(tmp_path / name, painting(), 8)


@pytest.mark.parametrize("shape", [(2, 3, 4, 8, 8), (1, 2, 4, 8, 8), (3, 8, 8), (1, 3, 0, 8, 8)])
def test_another_shape_is_refused(tmp_path, shape):
    with pytest.raises(UserError, match=rf"out\.mp4 has the shape {re.escape(str(shape))}\. Expected"):
        write_video(tmp_path / "out.mp4", torch.zeros(shape), 8)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"video": np.zeros((3, 4, 8, 8))}, "The video is of the type ndarray. Expected a torch tensor"),
        ({"rate": "8"}, "rate is '8'. Expected a number"),
        ({"scale": 1.5}, "scale is 1.5. Expected an integer"),
        ({"scale": 0}, "scale is 0. Expected an integer of at least 1"),
        ({"path": None}, "path is None. Expected the path of a file"),
    ],
)
def test_wrong_types_are_refused(tmp_path, values, message):
    right = {"path": tmp_path / "out.mp4", "video": torch.zeros(3, 4, 8, 8), "rate": 8}
    with pytest.raises(UserError, match=re.escape(message)):
        write_video(**{**right, **values})


# --- Contact sheets ----------------------------------------------------------------------------------------------


def test_contact_sheet(tmp_path):
    rows = [
        ("source", torch.ones(3, 16, 64, 64)),
        ("a longer label", torch.zeros(1, 16, 96, 96)),
        ("image", torch.full((3, 1, 384, 384), 0.5)),
    ]
    sheet = np.asarray(Image.open(write_contact_sheet(tmp_path / "sheet.png", rows, columns=4, title="title")))
    assert (sheet[0, 0] == 255).all()
    black = (sheet == 0).all(axis=-1)
    assert black.sum() > 4 * 128 * 128 * 0.99  # the black row: four cells of 128
    assert (np.abs(sheet.astype(int) - 128) <= 1).all(axis=-1).sum() >= 128 * 128
