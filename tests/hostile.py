"""Files with misleading names that refer to other files or the network; and normal videos of all kinds."""

import io
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from tests import needs


def encoded(path, muxer, codec, pixels, size=(96, 64)):
    """Write a video of 6 frames at 25 per second; skip the test if the encoder is not installed."""
    needs.encoders(codec)
    with av.open(str(path), "w", format=muxer) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        if codec == "dnxhd":
            stream.codec_context.bit_rate = 60_000_000
        if codec == "libx265":
            stream.codec_context.options = {"x265-params": "log-level=none"}
        for number in range(6):
            picture = np.full((size[1], size[0], 3), 40 + 20 * number, np.uint8)
            picture[:, : 8 + 8 * number] = 220
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


SDP = (
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 18766 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
)
"""A text that makes libavformat listen on two ports."""


def _box(kind, *parts):
    data = b"".join(parts)
    return (8 + len(data)).to_bytes(4, "big") + kind + data


def _referring(mp4, target):
    """An MP4 with references to another file for its frames, by a URL and by a path as an alias (dref)."""
    own = _box(b"dref", bytes(7), b"\1", _box(b"url ", bytes(3), b"\1"))
    start = mp4.index(own[4:]) - 4
    other = _box(b"dref", bytes(7), b"\1", _box(b"url ", bytes(4), b"file://", target, b"\0"))
    grown, data = len(other) - len(own), bytearray(mp4[:start] + other + mp4[start + len(own) :])
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        place = data.index(kind) - 4
        data[place : place + 4] = (int.from_bytes(data[place : place + 4], "big") + grown).to_bytes(4, "big")
    return bytes(data)


def _subtitled(text):
    """An AVI with a subtitle stream that contains a complete file (GAB2), for which a demuxer is searched."""

    def chunk(kind, data):
        return kind + len(data).to_bytes(4, "little") + data + b"\0" * (len(data) % 2)

    def header(kind, frames):
        return chunk(b"strh", kind + bytes(16) + (1).to_bytes(4, "little") + (25).to_bytes(4, "little") + bytes(4)
                     + frames.to_bytes(4, "little") + bytes(16))  # fmt: skip

    picture = io.BytesIO()
    Image.new("RGB", (16, 16)).save(picture, "JPEG")
    bitmap = (40).to_bytes(4, "little") + (16).to_bytes(4, "little") * 2 + b"\1\0\x18\0MJPG" + bytes(20)
    gab2 = b"GAB2\0\2\0" + (2).to_bytes(4, "little") + b"x\0" + b"\4\0" + len(text).to_bytes(4, "little") + text
    avih = chunk(b"avih", (40000).to_bytes(4, "little") + bytes(12) + (1).to_bytes(4, "little") + bytes(4)
                 + (2).to_bytes(4, "little") + bytes(4) + (16).to_bytes(4, "little") * 2 + bytes(16))  # fmt: skip
    lists = [b"strl" + header(b"vidsMJPG", 1) + chunk(b"strf", bitmap), b"strl" + header(b"txts\0\0\0\0", 1)]
    hdrl = b"hdrl" + avih + b"".join(chunk(b"LIST", entry) for entry in lists)
    movi = b"movi" + chunk(b"01tx", gab2) + chunk(b"00dc", picture.getvalue())
    return chunk(b"RIFF", b"AVI " + chunk(b"LIST", hdrl) + chunk(b"LIST", movi))


def hostile(folder):
    """Write files that refer to `secret.mp4` or to a port of this machine; return name -> path."""
    secret = encoded(folder / "secret.mp4", "mp4", "libx264", "yuv420p")
    secret.with_name("secret001.png").write_bytes(b"")
    name = str(secret).encode()
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n%s\n#EXT-X-ENDLIST\n"
    files = {
        "sdp.mp4": SDP,
        "sdp.mkv": SDP,
        "concat.mp4": b"ffconcat version 1.0\nfile '%s'\n" % name,
        "relative.mp4": b"ffconcat version 1.0\nfile secret.mp4\n",
        "unsafe.avi": b"ffconcat version 1.0\nfile file:%s\noption safe 0\n" % name,
        "hls.mp4": playlist % name,
        "hls.ts": playlist % b"http://127.0.0.1:18768/x.ts",
        "hls.mov": playlist % b"concat:secret.mp4",
        "dash.mp4": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet>'
        b'<Representation id="1"><BaseURL>secret.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>',
        "smooth.mp4": b'<?xml version="1.0"?><smil><body><video src="secret.mp4"/></body></smil>',
        "redirect.mov": _box(
            b"moov", _box(b"rmra", _box(b"rmda", _box(b"rdrf", bytes(4), b"url \0\0\0\x0asecret.mp4")))
        ),
        "asx.wmv": b'<asx version="3.0"><entry><ref href="http://127.0.0.1:18768/x"/></entry></asx>',
        "reference.asf": b"[Reference]\nRef1=http://127.0.0.1:18768/x?MSWMExt=.asf\n",
        "rtsp.rm": b"rtsp://127.0.0.1:18768/x\n",
        "rtsptext.mov": b"rtsptextrtsp://127.0.0.1:18768/x\r\n",
        "sap.mp4": b"\x20\0\0\0\x7f\0\0\1application/sdp\0" + SDP,
        "meta.mp4": b";FFMETADATA1\ntitle=x\n",
        "vobsub.mp4": b"# VobSub index file, v7\nid: en, index: 0\ntimestamp: 00:00:01:000, filepos: 0\n",
        "mlv.mp4": b"MLVI" + (52).to_bytes(4, "little") + b"v2.0\0\0\0\0" + bytes(36),
        "cue.wav": b'FILE "secret.mp4" WAVE\n  TRACK 01 AUDIO\n    INDEX 01 00:00:00\n',
        "text.mp4": b"\x1b[2Jsecret.mp4\n" * 50,
        "svg.mp4": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="secret.mp4"/></svg>',
        "srt.mp4": b"1\n00:00:00,000 --> 00:00:01,000\nsecret.mp4\n",
        "webvtt.mp4": b"WEBVTT\n\n00:00.000 --> 00:01.000\nx\n",
        "pattern%03d.mp4": b"secret.mp4",
        "secret%03d.png": b"not an image",
        "dref.mp4": _referring(secret.read_bytes(), name),
        "gab2sdp.avi": _subtitled(SDP),
        "gab2concat.avi": _subtitled(b"ffconcat version 1.0\nfile '%s'\n" % name),
    }
    for key, data in files.items():
        (folder / key).write_bytes(data)
    return {key: folder / key for key in files}


OWN_PICTURES = {"dref.mp4", "gab2sdp.avi", "gab2concat.avi"}
"""The hostile files with frames of their own. These frames may be read, but not the files that they refer to."""
