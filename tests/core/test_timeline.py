"""Videos with wrong times, keyframes, numbers or rates in their containers. Bar codes in the frames show which ones are
read."""

import io
import math
import struct
from collections.abc import Callable
from fractions import Fraction
from functools import cache

import av
import numpy as np
import pytest
import torch

from tests import needs
from tests.core.moving_clips import scene
from vc_core.errors import UserError
from vc_core.extract.motion.from_video import read_motion
from vc_core.video import FramePlan, plan_frames, probe, read_frames, timeline
from vc_core.video.coded import packet_parser
from vc_core.video.packets import Reader, number_of
from vc_core.video.sequences import media

RATE, COUNT = 30, 90
HEIGHT, WIDTH = 96, 128
QUICK = {"preset": "veryfast", "crf": "12"}
X264 = {**QUICK, "bf": "3", "b-adapt": "0", "g": "24"}
X265 = {"preset": "ultrafast", "x265-params": "log-level=none:keyint=24:bframes=3:crf=12:open-gop=0"}
OPEN = {**X265, "x265-params": X265["x265-params"].replace("open-gop=0", "open-gop=1")}
PART2 = {"b": "4000000", "bf": "2", "g": "24"}


def picture(number: int) -> np.ndarray:
    """A frame with its number as an eight-bit bar code, above a texture that moves right by 2 pixels per frame."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for bit in range(8):
        pixels[:32, bit * 16 : bit * 16 + 16] = 255 * (number >> bit & 1)
    pixels[32:] = scene()[100:164, 190 - 2 * number % 190 :][:, :WIDTH]
    return pixels


def number(image: torch.Tensor) -> int:
    """The bar code of a frame (3, H, W)."""
    return sum(int(image[:, 16, bit * 16 + 8].mean() > 0.5) << bit for bit in range(8))


def numbers(data: bytes, start: float, rate: Fraction, count: int) -> list[int]:
    return [number(image) for image in read_frames(data, FramePlan(start, rate, count))[0].transpose(0, 1)]


def expected(start: float, rate: Fraction, count: int, own: Fraction = Fraction(RATE)) -> list[int]:
    """The frames that the `fps` filter selects at a fixed rate: the last one assigned to a tick or an earlier one."""
    ticks = [
        math.floor((n / own - Fraction(start).limit_denominator(1000)) * rate + Fraction(1, 2)) for n in range(COUNT)
    ]
    return [max(n for n, tick in enumerate(ticks) if tick <= k) for k in range(count)]


@cache
def clip(
    codec: str, form: str, rate: Fraction = Fraction(RATE), times: tuple = tuple(range(COUNT)), **options
) -> bytes:
    needs.encoders(codec)
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt, stream.options = HEIGHT, WIDTH, "yuv420p", options
        for n in range(COUNT):
            frame = av.VideoFrame.from_ndarray(picture(n), format="rgb24")
            frame.pts, frame.time_base = times[n], 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def muxed(data: bytes, form: str, change: Callable[[list], list] = list, options: dict | None = None) -> bytes:
    """Copy the packets of a video to another container, optionally changed."""
    file = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(file, "w", format=form, options=options or {}) as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in change([packet for packet in source.demux(video=0) if packet.size]):
            packet.stream = stream
            container.mux(packet)
    return file.getvalue()


def decode_times(packets: list) -> list:
    """Set display times to decoding times, as in OpenCV's and VirtualDub's files."""
    for packet in packets:
        packet.pts = packet.dts
    return packets


def packed(packets: list) -> list:
    """Pack B-frames like XviD and DivX: the first B-frame into the packet before it, the others one packet later, and
    finally a packet of a few bytes without a picture."""
    code = b"\0\0\1\xb6"
    contents = [bytes(packet).replace(code, b"\0\0\1\xb2DivX503b1393p" + code) for packet in packets]
    later = [data[data.find(code) + 4] >> 6 == 2 for data in contents]
    n = 0
    while n < len(contents) - 1:
        n += 1
        if later[n] and not later[n - 1]:
            last = next((m for m in range(n, len(contents)) if not later[m]), len(contents)) - 1
            first, *others = contents[n - 1 : last + 1]
            contents[n - 1 : last + 1] = [first + others[0], *others[1:], not_coded(first)]
    return [replaced(packet, data) for packet, data in zip(packets, contents, strict=True)]


def not_coded(data: bytes) -> bytes:
    """A packet with a "not coded" picture, at the time of another picture (ISO/IEC 14496-2, 6.2.5)."""
    code = b"\0\0\1\xb6"
    header = bin(int.from_bytes(b"\1" + data[data.find(code) + 4 :][:8], "big"))[3:]
    ticks = header[header.index("0", 2) + 2 :][:5]  # after the seconds and a marker
    return code + int(f"0101{ticks}1001111", 2).to_bytes(2, "big")


def replaced(packet, data: bytes):
    copy = av.Packet(data)
    copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
    copy.duration, copy.is_keyframe = packet.duration, packet.is_keyframe
    return copy


def all_keys(packets: list) -> list:
    return [marked(packet, True) for packet in packets]


def no_keys(packets: list) -> list:
    return [marked(packet, False) for packet in packets]


def marked(packet, key: bool):
    packet.is_keyframe = key
    return packet


def assert_right(data: bytes, own: Fraction = Fraction(RATE), shift: int = 0) -> None:
    """Check the frames read from several starts, and the number of frames, the rate and the duration."""
    info = probe(data)
    assert info.frames == COUNT and info.rate == pytest.approx(own, rel=0.02)
    assert info.duration == pytest.approx(COUNT / own, abs=0.1)
    late = 2.2 if own <= 30 else 1.5
    for start, rate, count in ((0.0, own, 16), (0.53, Fraction(10), 9), (0.92, own, 24), (late, own, 8)):
        frames = [frame - shift for frame in numbers(data, start, rate, count)]
        assert frames == expected(start, rate, count, own), (start, rate)


# --- times ----------------------------------------------------------------------------------------------------

ORDERED = {
    # name: (codec, container, options)
    **{f"h264 {form}": ("libx264", form, X264) for form in ("mp4", "avi", "asf", "mxf", "matroska", "mpegts", "flv")},
    "h264 bare": ("libx264", "h264", X264),
    "h264 no B-frames, avi": ("libx264", "avi", {**X264, "bf": "0"}),
    "h264 B-frames as references, avi": ("libx264", "avi", {**X264, "b-pyramid": "normal", "bf": "8"}),
    "h264 open groups, avi": ("libx264", "avi", {**X264, "x264-params": "open-gop=1"}),
    "h264 intra refresh, bare": ("libx264", "h264", {**X264, "x264-params": "intra-refresh=1"}),
    "h264 of two fields, avi": ("libx264", "avi", {**X264, "x264-params": "interlaced=1"}),
    **{f"hevc {form}": ("libx265", form, X265) for form in ("mp4", "matroska", "mpegts", "flv")},
    "hevc bare": ("libx265", "hevc", X265),
    "hevc open groups, bare": ("libx265", "hevc", OPEN),
    **{f"mpeg4 {form}": ("mpeg4", form, PART2) for form in ("mp4", "avi", "asf", "matroska", "mpegts", "m4v")},
    **{f"mpeg2 {form}": ("mpeg2video", form, PART2) for form in ("mp4", "avi", "mxf", "matroska", "mpegts", "mpeg")},
    "mpeg2 bare": ("mpeg2video", "mpeg2video", PART2),
}


@pytest.mark.parametrize("name", ORDERED)
def test_b_frames_are_shown_in_their_order(name):
    """AVI, ASF, MXF and bare streams store no display times."""
    codec, form, options = ORDERED[name]
    assert_right(clip(codec, form, **options))


@pytest.mark.parametrize("form", ["mp4", "matroska", "mpegts", "flv"])
@pytest.mark.parametrize("codec, options", [("libx264", X264), ("libx265", X265)])
def test_decoding_times_that_are_stored_as_display_times(codec, options, form):
    """The edit list of an MP4 file then cuts what is decoded before the first display time, including that picture."""
    assert_right(muxed(clip(codec, "mp4", **options), form, decode_times))


@pytest.mark.parametrize("codec, options", [("libx264", X264), ("mpeg4", PART2), ("mpeg2video", PART2)])
def test_a_file_without_its_table_of_times(codec, options):
    assert_right(clip(codec, "mp4", **options).replace(b"ctts", b"free"))


@pytest.mark.parametrize("form", ["avi", "asf", "matroska", "mp4"])
def test_at_varying_rates_a_picture_is_shown_when_a_later_one_is_decoded(form):
    """A decoding time is the display time of an earlier picture, by as many pictures as the decoder delays."""
    times = [time for time in range(COUNT + 30) if time % 4]
    stores = form in ("matroska", "mp4")  # formats that can store display times
    data = clip("libx264", "mp4" if stores else form, times=tuple(times[:COUNT]), **X264)
    data = muxed(data, form, decode_times) if stores else data
    shown = [max(n for n, time in enumerate(times) if time <= 1 + tick) for tick in range(80)]
    assert numbers(data, 0.0, Fraction(RATE), 40) == shown[:40]
    assert numbers(data, 1.0, Fraction(RATE), 40) == shown[30:70]


def test_a_stream_that_begins_without_times_is_counted():
    """Matroska's demuxer does not report times before zero."""

    def early(packets: list) -> list:
        for packet in packets:
            packet.pts, packet.dts = packet.pts - 30 * 512, packet.dts - 30 * 512
        return packets

    data = muxed(clip("libx264", "mp4", **{**X264, "bf": "0"}), "matroska", early, {"avoid_negative_ts": "disabled"})
    with av.open(io.BytesIO(data)) as container:
        assert next(container.demux()).dts is None
    assert_right(data)


def test_mxf_without_its_index_is_read_from_the_beginning():
    """Without an index, times after seeking are guesses."""
    data = clip("mpeg2video", "mxf", **PART2)
    data = data[: len(data) * 4 // 5]
    assert numbers(data, 0.3, Fraction(10), 16) == expected(0.3, Fraction(10), 16)
    assert numbers(data, 1.5, Fraction(30), 20) == expected(1.5, Fraction(30), 20)


@pytest.mark.parametrize(
    "codec, form, options", [("libsvtav1", "obu", {"preset": "12"}), ("libx264", "h264", X264), ("mpeg4", "avi", PART2)]
)
def test_a_truncated_stream_ends_there(codec, form, options):
    data = clip(codec, form, **options)
    data = data[: len(data) * 4 // 5]
    count = probe(data).frames
    assert COUNT // 2 < count < COUNT
    assert numbers(data, 0.0, probe(data).rate, count - 4) == list(range(count - 4))


@pytest.mark.parametrize("form", ["avi", "matroska", "mp4"])
@pytest.mark.parametrize("between", ["1", "2"])
def test_packed_b_frames_are_not_damaged(between, form):
    assert_right(muxed(clip("mpeg4", "avi", **{**PART2, "bf": between}), form, packed))


@pytest.mark.parametrize("mode", ["released", "stream"])
@pytest.mark.parametrize("name", ["h264 avi", "h264 asf", "h264 mxf", "h264 bare", "packed", "pts = dts", "mp4"])
def test_motion_is_the_same_at_every_tick(name, mode):
    if name == "packed":
        data = muxed(clip("mpeg4", "avi", **PART2), "avi", packed)
    elif name == "pts = dts":
        data = muxed(clip("libx264", "mp4", **X264), "mp4", decode_times)
    else:
        codec, form, options = ORDERED.get(name, ("libx264", "mp4", X264))
        data = clip(codec, form, **options)
    field = read_motion(data, FramePlan(0.3, Fraction(10), 12), (HEIGHT, WIDTH), "dense", mode=mode).field
    across = field[0, 0, 1:, 48:, 32:112].flatten(1).median(dim=1).values
    assert across.tolist() == pytest.approx([6] * 11, abs=0.3)


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(25), Fraction(50)])
@pytest.mark.parametrize(
    "codec, form, options", [("libx264", "h264", X264), ("libx265", "hevc", X265), ("mpeg2video", "mpeg2video", PART2)]
)
def test_a_bare_stream_has_the_rate_of_its_own_headers(codec, form, options, rate):
    assert_right(clip(codec, form, rate, **options), rate)


def test_of_pictures_at_the_same_time_the_last_is_shown():
    def doubled(packets: list) -> list:
        packets[5].pts, packets[5].dts = packets[4].pts, packets[4].dts
        return packets

    data = muxed(clip("libx264", "matroska", **{**X264, "bf": "0"}), "matroska", doubled)
    assert numbers(data, 0.0, Fraction(RATE), 8) == [0, 1, 2, 3, 5, 5, 6, 7]


def test_an_edit_list_cuts_the_beginning_and_the_end():
    data = bytearray(clip("libx264", "mp4", **X264))
    at = data.find(b"elst") + 12  # one edit: its duration in milliseconds, and its start in the media
    data[at : at + 8] = struct.pack(">II", 1000, struct.unpack(">I", data[at + 4 : at + 8])[0] + 10 * 512)
    info = probe(bytes(data))
    assert (info.frames, info.duration) == (30, pytest.approx(1, abs=0.04))
    assert numbers(bytes(data), 0.0, Fraction(RATE), 30) == list(range(10, 40))
    with pytest.raises(UserError, match="Only 30 of the 40 frames"):
        numbers(bytes(data), 0.0, Fraction(RATE), 40)


def test_a_bare_stream_begins_with_the_first_picture_that_can_be_decoded():
    """The stream is cut at a keyframe followed by pictures that are shown before it and refer to removed pictures."""

    def cut(packets: list) -> list:
        return packets[[n for n, packet in enumerate(packets) if packet.is_keyframe][1] :]

    data = muxed(clip("libx265", "hevc", **OPEN), "hevc", cut)
    (first,) = numbers(data, 0.0, Fraction(RATE), 1)
    assert first >= 20
    assert numbers(data, 1.0, Fraction(RATE), 20) == list(range(first + 30, first + 50))


def test_simultaneous_decoders_keep_their_packets_numbers():
    with media(clip("libx264", "mp4", **X264)) as video:
        table = timeline.index(video)
        with Reader(video, table) as first, Reader(video, table) as second:
            packets = [next(reader.packets(24, 25))[1] for reader in (first, second)]
            del packets[0]
            assert number_of(packets[0]) == 24


def test_correct_times_are_read_without_decoding(monkeypatch):
    monkeypatch.setattr(timeline, "_display_order", None)
    for name in ("h264 mp4", "h264 matroska", "h264 mpegts", "hevc mp4", "mpeg4 avi", "mpeg2 mpegts"):
        codec, form, options = ORDERED[name]
        with media(clip(codec, form, **options)) as video:
            assert len(timeline.index(video, 0.5, 1.0).times) >= 30


# --- keyframes ------------------------------------------------------------------------------------------------

KEYS = {
    "h264": ("libx264", X264),
    "h264 open groups": ("libx264", {**X264, "x264-params": "open-gop=1"}),
    "hevc": ("libx265", X265),
    "mpeg4": ("mpeg4", PART2),
    "mpeg2": ("mpeg2video", PART2),
    "msmpeg4": ("msmpeg4", {"b": "4000000", "g": "24"}),
    "vp8": ("libvpx", {"b": "2000000", "deadline": "realtime", "cpu-used": "8", "g": "24"}),
    "vp9": ("libvpx-vp9", {"b": "2000000", "deadline": "realtime", "cpu-used": "8", "g": "24"}),
}


@pytest.mark.parametrize("change", [all_keys, no_keys])
@pytest.mark.parametrize("name", KEYS)
def test_keyframes_do_not_depend_on_the_containers_flags(name, change):
    codec, options = KEYS[name]
    assert_right(muxed(clip(codec, "matroska", **options), "matroska", change))


@pytest.mark.parametrize("name", ["h264", "hevc", "mpeg4", "mpeg2"])
def test_a_file_without_its_table_of_keyframes(name):
    codec, options = KEYS[name]
    assert_right(clip(codec, "mp4", **options).replace(b"stss", b"free"))


@pytest.mark.parametrize(
    "codec, form, options",
    [
        ("libx264", "mp4", X264),
        ("libx264", "mpegts", {**X264, "g": "7"}),
        ("libx265", "mp4", X265),
        ("libx265", "hevc", X265),
        ("mpeg4", "avi", PART2),
        ("mpeg2video", "mpegts", PART2),
        ("flv", "flv", {"b": "4000000", "g": "24"}),
        ("libvpx", "webm", KEYS["vp8"][1]),
        ("libvpx-vp9", "webm", KEYS["vp9"][1]),
        ("libsvtav1", "mp4", {"preset": "12", "svtav1-params": "keyint=24"}),
    ],
)
def test_headers_agree_with_the_decoder(codec, form, options):
    with av.open(io.BytesIO(clip(codec, form, **options))) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        context.flags |= av.codec.context.Flags.copy_opaque
        parse, headers, shown = packet_parser(context.name, bytes(context.extradata or b"")), [], {}
        for packet in container.demux(stream):
            if packet.size:
                packet.opaque = len(headers)
                headers.append(parse(packet))
            shown |= {frame.opaque: (frame.key_frame, frame.pict_type) for frame in context.decode(packet)}
    assert {n for n, coded in enumerate(headers) if coded.key} == {n for n, (key, _) in shown.items() if key}
    assert sum(coded.key for coded in headers) >= 4
    if codec != "libx265":  # HEVC's first bits do not say it
        assert {n for n, coded in enumerate(headers) if coded.later} == {
            n for n, (_, kind) in shown.items() if kind == 3
        }


# --- numbers, rates and durations -----------------------------------------------------------------------------


def patched(data: bytes, box: bytes, offset: int, value: bytes) -> bytes:
    at = data.find(box) + len(box) + offset
    return data[:at] + value + data[at + len(value) :]


HEADERS = {
    # name: (container, bytes to find, offset after them, bytes to write there)
    "a short track": ("mp4", b"mdhd", 16, struct.pack(">I", 1536)),
    "no duration": ("mp4", b"mdhd", 16, bytes(4)),
    "a long film": ("mp4", b"mvhd", 16, struct.pack(">I", 90000)),
    "a short stream": ("avi", b"strh", 36, struct.pack("<I", 3)),
    "an empty stream": ("avi", b"strh", 36, bytes(4)),
    "a long stream": ("avi", b"strh", 36, struct.pack("<I", 9000)),
    "60000 per second": ("avi", b"strh", 24, struct.pack("<II", 1, 60000)),
    "no index": ("avi", b"idx1", -4, b"JUNK"),
    "60000 per second, stored": ("matroska", b"\x23\xe3\x83", 1, struct.pack(">I", 16666)),
    "one per second, stored": ("matroska", b"\x23\xe3\x83", 1, struct.pack(">I", 10**9)),
    "a short script": ("flv", b"duration", 1, struct.pack(">d", 0.1)),
    "a fast script": ("flv", b"framerate", 1, struct.pack(">d", 60000.0)),
}


@pytest.mark.parametrize("name", HEADERS)
def test_packets_are_counted_if_the_header_is_wrong(name):
    form, box, offset, value = HEADERS[name]
    data = clip("libx264", form, **X264)
    assert box in data
    data = patched(data, box, offset, value)
    assert_right(data)
    assert plan_frames(probe(data)).rate == plan_frames(probe(clip("libx264", "mp4", **X264))).rate
