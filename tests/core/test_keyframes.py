"""Keyframes, the extension of a video, and the sound of the source, in `./vc compose` and in their modules."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vc_core import UserError, cli, pipeline
from vc_core.commands.checks import check_settings
from vc_core.commands.record import read_record
from vc_core.commands.settings import Settings
from vc_core.extract.keyframes import keyframes, positions
from vc_core.video import plan_frames, probe, read_frames, write_video
from vc_core.video.opening import Media
from vc_core.video.sound import RATE, Sound, sound_of
from vc_core.video.writing import write_videos

FPS = 8
TONE = (1.0, 1.5)
"""When the sound of `clip` is not silent, in seconds."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video of 2.5 s, whose frames become brighter, with a short tone in mono."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    with av.open(str(path), "w") as container:
        video, sound = container.add_stream("libx264", rate=FPS), container.add_stream("aac", rate=44100)
        video.width, video.height, video.pix_fmt, sound.codec_context.layout = 64, 48, "yuv420p", "mono"
        for i in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * i, np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        t = np.arange(int(44100 * 2.5)) / 44100
        tone = 0.5 * np.sin(2 * np.pi * 440 * t) * ((t >= TONE[0]) & (t < TONE[1]))
        frame = av.AudioFrame.from_ndarray(tone.astype(np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 44100, 0, Fraction(1, 44100)
        for packet in [*sound.encode(frame), *video.encode(None), *sound.encode(None)]:
            container.mux(packet)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, color in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
        Image.new("RGB", (80, 64), color).save(folder / f"{name}.png")
    return folder / "red.png", folder / "blue.png"


@pytest.fixture
def compose(tiny_checkpoint):
    def run(*arguments):
        common = ("compose", "--checkpoint", tiny_checkpoint, "--steps", 2, "--scale", 1)
        return cli.main([str(argument) for argument in (*common, *arguments)])

    return run


def media(path):
    return Media(str(path), Path(path))


def heard(path, start=0.0, seconds=100.0):
    """Return the length of a part of a file's sound, and when its tone begins and ends, in seconds."""
    samples = np.concatenate([*Sound(media(path), start, seconds).samples()], axis=1)
    assert samples.shape[0] == 2
    loud = np.flatnonzero(np.abs(samples[0]) > 0.1)
    return [number / RATE for number in (samples.shape[1], loud[0], loud[-1])]


# --- Keyframes ------------------------------------------------------------------------------------------------------


def test_images_are_placed_and_the_rest_is_free():
    red, blue = (torch.zeros(1, 3, 64, 80) for _ in range(2))
    red[:, 0], blue[:, 2] = 0.8, 0.8
    draft = keyframes({0: red, -1: blue, 2: red}, 5, (32, 40))
    assert draft.init.shape == (1, 3, 5, 32, 40) and draft.mask.shape == (1, 1, 5, 32, 40)
    assert draft.mask.amax((0, 1, 3, 4)).tolist() == draft.mask.amin((0, 1, 3, 4)).tolist() == [0, 1, 0, 1, 0]
    assert torch.equal(draft.init[0, :, [0, 2, 4]].mean((2, 3)).round(decimals=2).argmax(0), torch.tensor([0, 0, 2]))


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([5], "keyframe 5 is outside a video of 5 frames. Use an index from -5 to 4"),
        ([-6], "keyframe -6 is outside"),
        ([1, 1], "keyframe 1 twice: both are frame 1 of 5"),
        ([4, -1], "keyframe 4 and -1: both are frame 4 of 5"),
        ([0, 1, 2, 3, -1], "All 5 frames are set"),
    ],
)
def test_wrong_indices_are_refused(indices, message):
    with pytest.raises(UserError, match=message):
        positions(indices, 5)


def test_keyframes_are_shown_and_recorded(compose, images, tmp_path, tiny_composer):
    red, blue = images
    path = tmp_path / "out.webp"
    assert (
        compose(
            "--keyframe", f"{red}=0", "--keyframe", f"{blue}=-1", "--keyframe", f"{red}=1", "--frames", 4, "-o", path
        )
        == 0
    )
    assert read_record(path).settings.keyframe == {red: (0, 1), blue: (-1,)}
    again = tmp_path / "again.webp"
    assert compose("--from", path, "-o", again) == 0
    frames = read_frames(path, plan_frames(probe(path), 4, FPS))
    assert torch.equal(frames, read_frames(again, plan_frames(probe(again), 4, FPS)))
    from vc_core.encoders.autoencoder import decode
    from vc_core.pipeline import encode_video
    from vc_core.video import read_image

    for image, shown in ((red, (0, 1)), (blue, (3,))):
        still = read_image(image)[:, :, None]
        expected = decode(tiny_composer.autoencoder, encode_video(tiny_composer, still, (32, 40)))
        for number in shown:
            torch.testing.assert_close(frames[:, :, [number]], expected, atol=1 / 255, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keyframe": {"a.png": 0}, "init": "b.mp4", "denoise": 0.5}, "init.*keyframe.* exclude each other"),
        ({"keyframe": {"a.png": 0}, "video": "b.mp4", "use": "mask", "mask_draw": "any"}, "sets the condition 'mask'"),
        ({"extend": "a.mp4", "video": "b.mp4", "use": "motion"}, "extend.*video.* exclude each other"),
        ({"keep": 3}, "keep.* requires .*extend"),
        ({"drag": True, "image": "a.png"}, "drag.* requires a motion"),
        ({"drag": True, "pan": [0.1, 0]}, "drag.* requires .*image"),
        ({"drag_inside": 0.3}, "drag-inside requires --drag"),
    ],
)
def test_contradictions_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        check_settings(Settings.from_mapping(settings))


@pytest.mark.parametrize("text", ["last.png", "last.png=end", "=3"])
def test_a_keyframe_needs_an_index(text):
    with pytest.raises(UserError, match=r"keyframe.*Expected FILE=INDEX, e\.g\. last\.png=-1"):
        Settings().with_options({"keyframe": [text]})


# --- Extension and sound --------------------------------------------------------------------------------------------


def test_the_extension_begins_with_the_source_and_keeps_its_sound(compose, clip, tmp_path, capsys):
    path = tmp_path / "longer.mp4"
    assert compose("--extend", clip, "--rate", FPS, "--frames", 5, "--keep", 2, "-o", path) == 0
    assert "The first 20 frames are those of clip.mp4" in capsys.readouterr().out
    source = read_frames(clip, plan_frames(probe(clip), 20, FPS), (32, 40))
    result = read_frames(path, plan_frames(probe(path), 23, FPS))
    assert probe(path).frames == 23 and probe(path).rate == FPS
    assert (result[:, :, :20] - source).abs().mean() < 0.02
    length, begin, end = heard(path)
    assert 2.45 < length < 2.6 and abs(begin - TONE[0]) < 0.01 and abs(end - TONE[1]) < 0.01


def test_an_extension_without_a_new_frame_is_refused(compose, clip, tmp_path, capsys):
    assert compose("--extend", clip, "--frames", 3, "--keep", 3, "-o", tmp_path / "out.mp4") == 2
    assert "leaves no new frame after the 3 of --keep" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("ending", "codec"), [("mp4", "aac"), ("webm", "opus")])
def test_init_keeps_the_sources_sound_from_the_start_on(compose, clip, tmp_path, ending, codec):
    path = tmp_path / f"out.{ending}"
    arguments = ("--init", clip, "--denoise", 0.5, "--start", 0.75, "--rate", 4, "--frames", 4)
    assert compose(*arguments, "-o", path) == 0
    with av.open(str(path)) as container:
        assert container.streams.audio[0].codec_context.name == codec
    length, begin, end = heard(path)
    assert 1.0 <= length < 1.05 and abs(begin - 0.25) < 0.01 and abs(end - 0.75) < 0.01


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(("-o", "out.gif"), "only .mp4 and .webm have sound"), (("-o", "out.mp4", "--fps", 16), "set --fps 4")],
)
def test_a_note_says_why_there_is_no_sound(compose, clip, tmp_path, monkeypatch, capsys, arguments, reason):
    monkeypatch.chdir(tmp_path)
    assert compose("--init", clip, "--denoise", 0.5, "--rate", 4, "--frames", 4, *arguments) == 0
    assert reason in capsys.readouterr().out
    if arguments[1] == "out.mp4":
        assert sound_of(media(tmp_path / "out.mp4"), 0, 1) is None


def test_a_source_without_sound_needs_no_note(compose, tmp_path, capsys):
    silent = write_video(tmp_path / "silent.mp4", torch.rand(3, 6, 32, 40), FPS)
    assert sound_of(media(silent), 0, 1) is None
    assert compose("--init", silent, "--denoise", 0.5, "--frames", 4, "-o", tmp_path / "out.mp4") == 0
    assert "The sound" not in capsys.readouterr().out


def test_parts_of_a_sound_are_exact(clip):
    length, begin, end = heard(clip, 0.5, 1.2)
    assert length == 1.2 and abs(begin - 0.5) < 0.001 and abs(end - 1.0) < 0.001
    length, begin, end = heard(clip, 1.25, 0.5)  # in the middle of the tone, after a seek
    assert length == 0.5 and begin < 0.001 and abs(end - 0.25) < 0.001


def test_the_same_sound_gives_the_same_bytes(clip, tmp_path):
    video = torch.rand(2, 3, 12, 32, 32, generator=torch.Generator().manual_seed(0))[:1].repeat(2, 1, 1, 1, 1)
    first, second = write_videos(tmp_path / "out.mp4", video, FPS, sound=Sound(media(clip), 0.0, 1.5))
    assert first.read_bytes() == second.read_bytes()


def test_what_shows_the_kept_frames_to_the_network(compose, clip, images, tmp_path, monkeypatch):
    """What fitted best on the bundled checkpoint, see ./vc bench hold."""
    red, blue = images
    shown = {}

    def watched(composer, *args, conditions, **settings):
        shown[len(shown)] = sorted(condition.name for condition in conditions)
        return composing(composer, *args, conditions=conditions, **settings)

    composing = pipeline.compose
    monkeypatch.setattr(pipeline, "compose", watched)
    out = ("--frames", 4, "-o", tmp_path / "out.webp")
    for arguments in (
        ("--keyframe", f"{red}=0", "--keyframe", f"{blue}=-1"),
        ("--keyframe", f"{blue}=-1"),
        ("--keyframe", f"{red}=0", "--image", blue),
        ("--extend", clip, "--keep", 2),
    ):
        assert compose(*arguments, *out) == 0
    assert shown == {0: ["mask", "single_image"], 1: ["mask"], 2: ["mask", "single_image"], 3: ["single_image"]}
