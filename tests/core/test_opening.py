"""All kinds of users' files can be opened, but no file that opens other files or the network."""

import errno
import importlib
import io
import re
import sys
import types
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import vc_core
from tests.core.pictures import plan
from tests.hostile import OWN_PICTURES, encoded, hostile
from tests.traced import needs_strace, traced
from vc_core.errors import UserError
from vc_core.extract.depth.maps import read_depth_maps
from vc_core.folders import named_below
from vc_core.video import opening, plan_frames, probe, read_frames, read_image
from vc_core.video.metadata import read_metadata
from vc_core.video.opening import DEMUXERS

# Ending -> muxer, encoder, pixel format and, if the encoder supports only some sizes, the size.
KINDS = {
    "mp4": ("mp4", "libx264", "yuv420p"),
    "m4v": ("ipod", "libx264", "yuv420p"),
    "mov": ("mov", "prores", "yuv422p10le"),
    "3gp": ("3gp", "h263", "yuv420p", (176, 144)),
    "3g2": ("3g2", "mpeg4", "yuv420p"),
    "f4v": ("f4v", "libx264", "yuv420p"),
    "fragments.mp4": ("ismv", "libx264", "yuv420p"),
    "mkv": ("matroska", "ffv1", "yuv420p"),
    "webm": ("webm", "libvpx-vp9", "yuv420p"),
    "avi": ("avi", "mpeg4", "yuv420p"),
    "mjpeg.avi": ("avi", "mjpeg", "yuvj420p"),
    "huffyuv.avi": ("avi", "huffyuv", "yuv422p"),
    "wmv": ("asf", "wmv2", "yuv420p"),
    "asf": ("asf", "msmpeg4v2", "yuv420p"),
    "flv": ("flv", "flv", "yuv420p"),
    "ts": ("mpegts", "libx264", "yuv420p"),
    "m2ts": ("mpegts", "libx265", "yuv420p"),
    "mpg": ("mpeg", "mpeg1video", "yuv420p"),
    "vob": ("vob", "mpeg2video", "yuv420p"),
    "ogv": ("ogg", "libvpx", "yuv420p"),
    "mxf": ("mxf", "mpeg2video", "yuv420p"),
    "dnxhd.mxf": ("mxf", "dnxhd", "yuv422p", (1280, 720)),
    "gxf": ("gxf", "mpeg2video", "yuv420p", (720, 576)),
    "wtv": ("wtv", "mpeg2video", "yuv420p"),
    "nut": ("nut", "ffv1", "yuv420p"),
    "rm": ("rm", "rv20", "yuv420p", (176, 144)),
    "dv": ("dv", "dvvideo", "yuv420p", (720, 576)),
    "swf": ("swf", "mjpeg", "yuvj420p"),
    "gif": ("gif", "gif", "rgb8"),
    "apng": ("apng", "apng", "rgb24"),
    "avif": ("avif", "libsvtav1", "yuv420p"),
    "y4m": ("yuv4mpegpipe", "wrapped_avframe", "yuv420p"),
    "h264": ("h264", "libx264", "yuv420p"),
    "hevc": ("hevc", "libx265", "yuv420p"),
    "mpeg4": ("m4v", "mpeg4", "yuv420p"),
    "m2v": ("mpeg2video", "mpeg2video", "yuv420p"),
    "m1v": ("mpeg1video", "mpeg1video", "yuv420p"),
    "mjpeg": ("mjpeg", "mjpeg", "yuvj420p"),
    "obu": ("obu", "libsvtav1", "yuv420p"),
    "ivf": ("ivf", "libvpx", "yuv420p"),
    "h263": ("h263", "h263", "yuv420p", (176, 144)),
    "dnxhd": ("dnxhd", "dnxhd", "yuv422p", (1280, 720)),
}


@pytest.mark.parametrize("ending", KINDS)
def test_users_files_are_opened(tmp_path, ending):
    path = encoded(tmp_path / f"clip.{ending}", *KINDS[ending])
    for source in (path, path.read_bytes()):
        plan = plan_frames(probe(source), 1, 1)
        frames = read_frames(source, plan)
        assert frames.shape[-2] == (KINDS[ending][3][1] if KINDS[ending][3:] else 64)
        assert frames[..., 3].mean() > frames[..., -4].mean() + 0.2  # the bar, and the area next to it


@pytest.mark.parametrize("ending", ["wav", "flac", "mp3", "m4a"])
def test_sound_files_are_reported(tmp_path, ending):
    path = tmp_path / f"sound.{ending}"
    codec = {"wav": "pcm_s16le", "flac": "flac", "mp3": "libmp3lame", "m4a": "aac"}[ending]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=44100, layout="mono")
        format = stream.codec_context.format.name
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.int16), format="s16", layout="mono")
        samples.rate = 44100
        for frame in [*av.AudioResampler(format=format, layout="mono", rate=44100).resample(samples), None]:
            container.mux(stream.encode(frame))
    with pytest.raises(UserError, match="contains no video stream"):
        probe(path)


IMAGES = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF", "avif": "AVIF"}


@pytest.mark.parametrize("name", ["map", "map%03d", "map*", "map?", "map{1}", "50% [x]", "a:b", "%%", "map001"])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_names_of_images_are_not_patterns(tmp_path, name, ending):
    for number, level in ((0, 10), (1, 20), (2, 30)):  # files that a pattern would match
        Image.fromarray(np.full((8, 8), level, np.uint8)).save(tmp_path / f"map{number:03d}.{ending}")
    path = tmp_path / f"{name}.{ending}"
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(path)
    assert (read_depth_maps(path, plan(1)) * 255).round().unique().tolist() == [200]
    with pytest.raises(UserError, match="is an image"):
        probe(path)


@pytest.mark.parametrize("name", ["clip%03d.mp4", "clip*.mp4", "50%/clip?.mp4", "concat:a.mp4", "subfile,,:.mp4"])
def test_names_of_videos_are_not_patterns(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    encoded(tmp_path / "plain.mp4", *KINDS["mp4"]).rename(path)
    assert probe(path).frames == 6


@pytest.mark.parametrize("ending", IMAGES)
def test_images_are_opened(tmp_path, ending):
    path = tmp_path / f"image.{ending}"
    Image.fromarray(np.full((16, 16, 3), 200, np.uint8)).save(path, IMAGES[ending])
    assert read_image(path).mean() == pytest.approx(200 / 255, abs=0.02)
    assert read_depth_maps(path, plan(1)).mean() == pytest.approx(200 / 255, abs=0.02)


def test_scripts_are_not_read_as_images(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "image.png", "EPS")  # Pillow would start Ghostscript
    with pytest.raises(UserError, match=r"image\.png cannot be read as an image"):
        read_image(tmp_path / "image.png")


def test_everything_is_opened_in_one_place():
    root = Path(vc_core.__file__).parents[1]
    opening = {
        path.relative_to(root).as_posix(): re.findall(r"\bav\.open\(|avformat|Image\.open\((?!.*formats=)", text)
        for folder in ("vc_core", "nodes", "training")
        for path in (root / folder).rglob("*.py")
        if re.search(r"\bav\.open\(|Image\.open\(", text := path.read_text(encoding="utf-8"))
    }
    assert {path for path, calls in opening.items() if calls} == {
        f"vc_core/video/{n}.py" for n in ("opening", "formats")
    }
    writing = (Path(vc_core.__file__).parent / "video/formats.py").read_text(encoding="utf-8")
    assert all(', "w"' in line for line in writing.splitlines() if "av.open(" in line)


def test_the_demuxers_are_known_and_open_nothing_else():
    others = "concat hls dash imf sdp rtp rtsp sap image2 image2pipe lavfi tty vobsub webm_dash_manifest mlv srt data"
    assert set(others.split()).isdisjoint(DEMUXERS)
    unknown = []
    for name in DEMUXERS:
        try:
            av.ContainerFormat(name, "r")
        except ValueError:
            unknown.append(name)
    assert len(unknown) < 12  # some formats are missing in older or smaller builds; more would be misspelled names


# --- Files that refer to others -------------------------------------------------------------------------------------


def read_all(path):
    """Read a file with every reader; return the successful results."""
    results = []
    for read in (
        lambda: plan_frames(probe(path), 1),
        lambda: read_frames(path, plan_frames(probe(path), 1)),
        lambda: read_frames(path.read_bytes(), plan_frames(probe(path.read_bytes()), 1)),
        lambda: read_depth_maps(path.with_name(f"{path.stem}.png") if path.suffix == ".png" else path, plan(1)),
        lambda: read_image(path),
        lambda: read_metadata(path),
    ):
        try:
            results.append(read())
        except UserError as error:
            assert path.name in str(error) or "in memory" in str(error), error
    return results


def test_files_that_refer_to_others_are_refused(tmp_path):
    for name, path in hostile(tmp_path).items():
        assert name in OWN_PICTURES or not read_all(path), name


@needs_strace
def test_no_other_file_is_opened(tmp_path):
    paths = list(hostile(tmp_path).values())
    assert traced("tests.core.test_opening", "read_all", paths) == []


@needs_strace
@pytest.mark.parametrize("name", ["sdp.mp4", "concat.mp4"])
def test_the_trace_shows_files_opened_without_the_allowlist(tmp_path, name):
    hostile(tmp_path)
    lines = traced("tests.core.test_opening", "read_openly", [tmp_path / name])
    assert any("18766" in line if name == "sdp.mp4" else "secret.mp4" in line for line in lines), lines


def read_openly(path):
    """Read like `opened`, but without its list of allowed formats."""
    with av.open(io.BytesIO(path.read_bytes()), options={"safe": "0"}) as container:
        next(container.decode(video=0))


# --- Models of a workflow -------------------------------------------------------------------------------------------


def test_a_name_of_a_workflow_stays_below_the_model_folders(tmp_path):
    top, other = tmp_path / "models", tmp_path / "elsewhere"
    for file in (top / "sub" / "a.pth", top / "b.pth", other / "c.pth", tmp_path / "out.pth", top / "..d.pth"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    (top / "linked").symlink_to(other)  # some users keep models on another disk
    (top / "gone.pth").symlink_to(tmp_path / "none")
    for name in ("sub/a.pth", "b.pth", "sub", "linked/c.pth", "./b.pth", "..d.pth"):
        assert named_below([tmp_path / "none", top], name) == [top / name], name
    for name in (
        str(tmp_path / "out.pth"), "../out.pth", "sub/../../out.pth", "sub/../b.pth", "..", ".", "", "/",
        "//", "~/b.pth", "file:b.pth", "C:/b.pth", "\\\\?\\C:\\b.pth",
        "..\\out.pth", "sub\\..\\..\\out.pth", "C:\\b.pth", "C:b.pth", "\\\\server\\share\\b.pth", "\\b.pth",
        ".. /out.pth", "... /out.pth", "gone.pth", "b.pth/x", "a" * 5000, "b.pth\0", "\ud800",
    ):  # fmt: skip
        assert named_below([top], name) == [], name


@pytest.fixture
def node_folders(monkeypatch, tmp_path):
    """`nodes.host.folders`, with a ComfyUI whose only model folder is `models`."""
    root = Path(vc_core.__file__).parents[1]
    comfyui = types.ModuleType("folder_paths")
    comfyui.get_folder_paths = lambda name: [str(tmp_path / "models")]
    monkeypatch.setitem(sys.modules, "folder_paths", comfyui)
    for name, folder in (("pack", root), ("pack.nodes", root / "nodes"), ("pack.nodes.host", root / "nodes" / "host")):
        package = types.ModuleType(name)  # not the real package, which requires ComfyUI
        package.__path__ = [str(folder)]
        monkeypatch.setitem(sys.modules, name, package)
    yield importlib.import_module("pack.nodes.host.folders")
    for name in [name for name in sys.modules if name.startswith("pack.")]:
        monkeypatch.delitem(sys.modules, name)


def test_the_nodes_find_models_only_in_model_folders(node_folders, tmp_path):
    models, outside = tmp_path / "models", tmp_path / "outside.pth"
    (models / "net").mkdir(parents=True)
    for file in (models / "a.pth", models / "net" / "config.json", outside):
        file.write_bytes(b"x")
    assert node_folders.model_path("net") == models / "net"
    assert node_folders.model_path("a.pth") == node_folders.checkpoint_path("a.pth") == models / "a.pth"
    assert node_folders.checkpoint_path(node_folders.BUNDLED_NAME).suffix == ".safetensors"
    assert len(node_folders.fingerprint("a.pth")) == 1
    for name in ("../outside.pth", str(outside), "..", "net/../../outside.pth", "..\\outside.pth", "", "a" * 9999):
        assert node_folders.fingerprint(name) == []
        for find in (node_folders.model_path, node_folders.checkpoint_path):
            with pytest.raises(Exception, match=r"^The (checkpoint|model) '.* is missing") as raised:
                find(name)
            assert type(raised.value).__name__ == "UserError" and len(str(raised.value)) < 1000


def test_a_video_without_read_permission_is_not_reported_as_damaged(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied")  # root never gets this error

    (tmp_path / "x.mp4").touch()
    monkeypatch.setattr(opening, "open", refused, raising=False)
    with pytest.raises(UserError, match=r"x\.mp4 cannot be read \(Permission denied\)\. Check its permissions"):
        probe(tmp_path / "x.mp4")
