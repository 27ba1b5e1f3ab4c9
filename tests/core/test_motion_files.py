"""Motion from any file: all sources, odd files, damaged files, and only the frames that are needed."""

import io
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
import torch

from tests.core.moving_clips import (
    CODECS,
    INTERLACED,
    MATRICES,
    OWN,
    PLAN,
    RATE,
    assert_moves,
    encode,
    extract_motion,
    moving,
    stored,
    woven,
)
from vc_core.errors import UserError
from vc_core.extract.motion.from_video import block_vectors, read_motion
from vc_core.extract.motion.stream import obstacle
from vc_core.video import FramePlan, plan_frames, probe, read_frames
from vc_core.video.coded import references, sequence_headers
from vc_core.video.decoding import segments
from vc_core.video.frames import chosen_times, planned_index
from vc_core.video.sequences import media
from vc_core.video.timeline import index

# --- sources --------------------------------------------------------------------------------------------------


class Pipe(io.RawIOBase):
    """Bytes that can be read once, from beginning to end."""

    def __init__(self, data):
        self.data = io.BytesIO(data)

    def readable(self):
        return True

    def read(self, size=-1):
        return self.data.read(size)

    def readinto(self, buffer):
        return self.data.readinto(buffer)


@pytest.mark.parametrize("mode", ["released", "stream"])
def test_every_kind_of_source_gives_the_same_motion(tmp_path, mode):
    path = encode(tmp_path / "ein Clip mit ä, ほ & blanks.mp4", moving(3, -2), **OWN)
    data = path.read_bytes()
    expected = extract_motion(path, PLAN, "dense", (48, 64), mode=mode)
    stream = io.BytesIO(data)
    stream.read(100)  # a stream that seeks is read from its beginning
    with open(path, "rb") as file:
        for source in (str(path), data, bytearray(data), stream, file, Pipe(data)):
            assert torch.equal(extract_motion(source, PLAN, "dense", (48, 64), mode=mode), expected), source
    with media(Pipe(data)) as once:  # what reads once is opened once
        plan = plan_frames(probe(once), frames=4, rate=4)
        assert torch.equal(extract_motion(once, plan, "dense", (48, 64), mode=mode), expected)


def test_a_tensor_is_a_source():
    pictures = np.stack(moving(3, -2, 6))
    frames = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    plan = FramePlan(0.0, Fraction(RATE), 6)
    motion = read_motion(frames, plan, (96, 128), "dense")
    assert_moves(motion.field, 3, -2)
    assert torch.equal(read_motion(frames.transpose(0, 1)[None], plan, (96, 128), "dense").field, motion.field)
    stream = read_motion(frames, plan, (96, 128), "dense", mode="stream")
    assert_moves(stream.field, 3, -2)
    assert stream.reencoded == "libx264" and stream.why
    assert block_vectors(frames, plan).frames == 6
    for wrong in (frames[:5], frames[:, :1], frames * float("nan"), (frames * 255).byte()):
        with pytest.raises(UserError, match="tensor of frames"):
            read_motion(wrong, plan)


@pytest.mark.parametrize("wrong", [{"layout": "sparse"}, {"mode": "fast"}, {"nominal_height": 2}])
def test_unknown_options_are_reported(wrong):
    with pytest.raises(UserError, match=str(next(iter(wrong.values())))):
        read_motion(b"", PLAN, **wrong)


@pytest.mark.parametrize("size", [(64, 2_560_000), (0, 64), (20_000, 16)])
def test_absurd_sizes_are_reported(tmp_path, size):
    data = encode(None, moving(1, 0, 4))
    with pytest.raises(UserError, match=f"{size[1]} by {size[0]} pixels"):
        read_motion(data, PLAN, size)
    with pytest.raises(UserError, match=f"{size[1]} by {size[0]} pixels"):
        read_frames(data, PLAN, size)


def test_no_source_and_text_are_reported(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with open(tmp_path / "a.txt") as text, pytest.raises(UserError, match="binary mode"):
        read_motion(text, PLAN)
    with pytest.raises(UserError, match="Expected a video source, got int"):
        read_motion(3, PLAN)


# --- odd files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("mode", ["released", "stream"])
def test_motion_of_a_rotated_or_mirrored_file_is_that_of_the_shown_video(matrix, mode):
    data = encode(None, [stored(picture, matrix) for picture in moving(3, -2)], matrix=matrix, **OWN)
    motion = read_motion(data, PLAN, (96, 128), "dense", mode=mode)
    assert motion.field.shape[-2:] == (96, 128)
    assert_moves(motion.field, 9, -6)
    assert (motion.reencoded is None) == (mode == "stream")


@pytest.mark.parametrize("mode", ["released", "stream"])
def test_odd_sizes(mode):
    data = encode(None, moving(3, -2, 13, 97, 131), "mpeg4", b="3000000")
    for layout in ("dense", "points"):
        field = extract_motion(data, FramePlan(0.0, Fraction(RATE), 5), layout, (97, 131), mode=mode)
        assert field.shape == (1, 2, 5, 97, 131) and field.isfinite().all()
        if layout == "dense":
            assert_moves(field, 3, -2)


def test_a_variable_rate_follows_the_clock():
    times = [0, 83, 167, 250, 1000, 1083, 1167, 1250, 1333, 1417, 1500, 1583, 1667]  # stands still for 0.75 s
    data = encode(None, moving(3, -2), times=times, **OWN)
    motion = read_motion(data, FramePlan(0.0, Fraction(4), 6), (96, 128), "dense", mode="stream")
    with media(data) as video:
        plan = FramePlan(0.0, Fraction(4), 6)
        table = planned_index(video, plan)
        shown = [table.times.index(time) for time in chosen_times(video, table, plan)]
    assert motion.repeated == sum(a == b for a, b in pairwise(shown)) > 0
    assert f"{motion.repeated} frames repeat" in motion.note
    assert shown[2] == shown[3]  # the same frame is shown twice, and nothing moves
    for frame, steps in enumerate(np.diff(shown), start=1):
        assert_moves(motion.field[:, :, [0, frame]], 3 * steps, -2 * steps)


@pytest.mark.parametrize("codec", INTERLACED)
def test_interlaced_streams_are_encoded_again(codec):
    """As progressive pictures. In interlaced pictures, a block would mix two pictures of different times."""
    form, options = INTERLACED[codec]
    data = encode(None, woven(moving(2, -1, 26)), codec, form, **options)
    motion = read_motion(data, PLAN, (96, 128), "dense", mode="stream")
    assert motion.reencoded and motion.why == "it is interlaced"
    assert_moves(motion.field, 12, -6)
    assert_moves(extract_motion(data, FramePlan(0.0, Fraction(RATE), 4), "dense", (96, 128)), 4, -2, fraction=0.9)


@pytest.mark.parametrize("mode", ["released", "stream"])
def test_motion_is_that_of_square_pixels(mode):
    """Each pixel is shown twice as wide: what moves by 3 of them moves by 6, but turned by 90 degrees, up and down."""
    for matrix, size, expected in (((1, 0, 0, 1), (96, 256), (6, -2)), ((0, 1, -1, 0), (256, 96), (2, 6))):
        data = encode(None, moving(3, -2), aspect=2, matrix=matrix, **OWN)
        plan = FramePlan(0.0, Fraction(RATE), 5)
        motion = read_motion(data, plan, size, "dense", mode=mode)
        assert (motion.reencoded is None) == (mode == "stream")
        assert_moves(motion.field, *expected)
        points = extract_motion(data, plan, "points", size, mode=mode)
        centres = points[0, :, 1:, 8::16, 8::16]  # the blocks are 16 x 16 pixels of what is shown
        assert centres.flatten(1).median(dim=1).values.tolist() == pytest.approx(expected, abs=1)
        assert points[0, :, 1:].count_nonzero() == centres.count_nonzero() > 0


def test_points_of_a_nominal_height_are_those_of_the_scaled_clip():
    """Their values, and where they stand: on the blocks of 16 x 16 pixels of the scaled clip."""
    data = encode(None, moving(6, -4, 8, 192, 256, start=60), **OWN)
    plan = FramePlan(0.0, Fraction(RATE), 5)
    contents = {
        mode: extract_motion(data, plan, "points", (96, 128), mode=mode, nominal_height=96)[0, :, 1:]
        for mode in ("stream", "released")
    }
    middle = {mode: field[:, :, 8::16, 8::16].flatten(1).median(dim=1).values for mode, field in contents.items()}
    for mode, field in contents.items():
        assert (middle[mode] - torch.tensor([3.0, -2.0])).abs().max() <= 0.5, mode
        assert field[:, :, torch.arange(96) % 16 != 8].abs().max() == 0
    plain = extract_motion(data, plan, "points", (192, 256), mode="stream")[0, :, 1:, 8::16, 8::16]
    assert plain.flatten(1).median(dim=1).values.tolist() == pytest.approx([6, -4], abs=0.5)


def test_a_stream_that_begins_between_keyframes():
    """Its first frames cannot be decoded: refused at the beginning, right from the keyframe on."""
    complete, cut = encode(None, moving(3, -2, 26), form="mpegts", **{**OWN, "g": "8"}), io.BytesIO()
    with av.open(io.BytesIO(complete)) as source, av.open(cut, "w", format="mpegts") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if number > 2 and packet.size:
                packet.stream = stream
                target.mux(packet)
    for mode in ("released", "stream"):
        with pytest.raises(UserError, match=r"can be decoded from 0\.\d+ s on"):
            read_motion(cut.getvalue(), PLAN, mode=mode)
        assert_moves(
            extract_motion(cut.getvalue(), FramePlan(0.5, Fraction(4), 3), "dense", (96, 128), mode=mode), 9, -6
        )


def test_tags_that_are_not_utf8():
    data = encode(None, moving(3, -2), form="avi", codec="mpeg4", b="2000000")
    assert b"Lavf" in data
    broken = data.replace(b"Lavf", b"\xe9\xff\xfe\x80")
    assert_moves(extract_motion(broken, PLAN, "dense", (96, 128), mode="stream"), 9, -6)


def test_a_bare_stream_without_times():
    data = encode(None, moving(3, -2), form="h264", **OWN)
    fields = [
        extract_motion(data, FramePlan(0.0, Fraction(RATE), 8), "dense", (96, 128), mode=m)
        for m in ("stream", "released")
    ]
    for field in fields:
        assert_moves(field, 3, -2)


def test_what_a_stream_refers_to_is_read_from_its_headers():
    for options, expected in (
        ({"refs": "1"}, (1, True)),
        ({"refs": "3"}, (3, True)),
        ({"refs": "1", "profile": "baseline"}, (1, True)),
    ):
        with media(encode(None, moving(1, 1), bf="0", **options)) as video:
            table = index(video)
        assert [references(header) for header in sequence_headers(table.extradata)] == [expected]
        assert (obstacle(table) is None) == (expected[0] == 1)
    for header in sequence_headers(table.extradata):
        for length in range(len(header)):
            try:
                references(header[:length])
            except ValueError as error:
                assert "truncated" in str(error)


# --- only what is needed --------------------------------------------------------------------------------------


def test_only_the_segments_that_are_needed_are_decoded():
    data = encode(None, moving(1, 0, 60), **{**OWN, "g": "6"})
    with media(data) as video:
        table = index(video, 2.5, 1.0)
        assert 12 <= len(table.packets) <= 24 and table.packets[0].time <= table.start  # from the keyframe before
        everything = index(video)
        parts = segments(everything, [everything.times[0], everything.times[33]])
        assert [(part.first, part.last) for part in parts] == [(0, 6), (30, 36)]
    late = read_frames(data, FramePlan(2.5, Fraction(4), 4), (24, 32))
    assert torch.equal(late, read_frames(data, FramePlan(0.0, Fraction(4), 14), (24, 32))[:, :, 10:])


# --- damaged files --------------------------------------------------------------------------------------------


def test_a_wrong_time_of_decoding_loses_no_frames():
    """It says of one packet that it is decoded long after it is shown: reading once ended there."""

    def stamp(ticks: int) -> bytes:  # the time of decoding in a transport stream
        parts = 0x11 | ticks >> 29 & 14, ticks >> 22, 1 | ticks >> 14 & 254, ticks >> 7, 1 | ticks << 1
        return bytes(part & 255 for part in parts)

    data = encode(None, moving(3, -2), "mpeg2video", "mpegts", b="2000000")
    with av.open(io.BytesIO(data)) as container:
        third = [packet.dts for packet in container.demux(video=0)][2]
    assert data.count(stamp(third)) == 1
    motion = read_motion(data.replace(stamp(third), stamp(third + 2**21)), PLAN, (96, 128), "dense")
    assert motion.repeated == 0
    assert_moves(motion.field, 9, -6)


def without_picture(data: bytes, number: int, length: int | None = None) -> bytes:
    """An MPEG-4 file of 12 frames per second. Packet `number`, cut to a length, says that it contains no picture."""
    contents = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(contents, "w", format="mp4") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for n, packet in enumerate(each for each in source.demux(video=0) if each.size):
            coded = bytearray(packet)
            if n == number:
                assert coded[:4] == b"\0\0\1\xb6" and coded[5] & 0x40
                coded[5] &= ~0x40  # vop_coded, after the type, the second, 4 bits of ticks and a marker
                coded = coded[:length]
            fresh = av.Packet(bytes(coded))
            fresh.pts, fresh.dts, fresh.time_base, fresh.stream = packet.pts, packet.dts, packet.time_base, stream
            fresh.is_keyframe = packet.is_keyframe
            target.mux(fresh)
    return contents.getvalue()


@pytest.mark.parametrize("mode", ["released", "stream"])
def test_a_lost_picture_is_reported(mode):
    """A packet of a usual size that gives no picture is damaged; a few bytes may say that the last one is shown on."""
    data = encode(None, moving(3, -2), "mpeg4", b="2000000", g="30")
    plan = FramePlan(0.0, Fraction(RATE), 8)
    for at, plan_to in ((5, plan), (12, FramePlan(0.0, Fraction(RATE), 13))):  # in the middle, at the end
        with pytest.raises(UserError, match=rf"frame at {at / 12:.2f} s is damaged"):
            read_motion(without_picture(data, at), plan_to, (96, 128), "dense", mode=mode)
    still = without_picture(data, 5, length=8)
    field = extract_motion(still, plan, "dense", (96, 128), mode=mode)
    assert_moves(field[:, :, :5], 3, -2)
    assert field[0, :, 5].abs().median() == 0


def damaged(data: bytes, seed: int) -> bytes:
    """Cut off, or with some bytes changed or left out."""
    rng = np.random.default_rng(seed)
    if seed % 3 == 0:
        return data[: rng.integers(len(data))]
    spoilt = bytearray(data)
    for _ in range(rng.integers(1, 30)):
        at = int(rng.integers(len(spoilt)))
        if seed % 3 == 1:
            spoilt[at] = int(rng.integers(256))
        else:
            del spoilt[at : at + int(rng.integers(1, 40))]
    return bytes(spoilt)


@pytest.mark.parametrize("name", ["h264", "h264 transport stream", "h264 b-frames", "mpeg4", "mpeg2", "flv1", "vp9"])
def test_damaged_files_give_an_error_or_a_result(name):
    codec, form, pix_fmt, options, _ = CODECS[name]
    data = encode(None, moving(3, -2, 13, 48, 64), codec, form, pix_fmt, **options)
    outcomes = []
    for seed in range(18):
        broken = damaged(data, seed)
        for mode in ("released", "stream"):
            try:
                motion = read_motion(broken, PLAN, (48, 64), "dense", mode=mode)
            except UserError as error:
                assert "expected" in str(error).lower() or "can be decoded" in str(error), error
                outcomes.append("refused")
            else:
                assert motion.field.shape == (1, 2, 4, 48, 64) and motion.field.isfinite().all()
                # No silent zeros: everything in this clip moves, except at lost frames, which the note mentions.
                assert motion.field.abs().max() > 0 or "nothing moves" in motion.note
                outcomes.append("read")
    assert "refused" in outcomes
