"""Write files that Pillow and PyAV alone cannot write: tiled HEIF images, 16-bit PNGs, floating-point TIFFs; and videos
with several streams or in HDR."""

import io
import re
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from tests import needs


def plane(value, height, width):
    return np.full((height, width), value, np.uint16)


# --- HEIF -----------------------------------------------------------------------------------------------------------


def box(kind, *parts):
    data = b"".join(parts)
    return struct.pack(">I4s", 8 + len(data), kind) + data


def full_box(kind, version, *parts):
    return box(kind, bytes([version, 0, 0, 0]), *parts)


def irot(quarters):
    return box(b"irot", bytes([quarters]))


def imir(axis):
    return box(b"imir", bytes([axis]))


def _coded(pixels):
    """(the box hvcC, the slices) of an image as HEVC."""
    needs.encoders("libx265")
    file, packets = io.BytesIO(), []
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx265", rate=1)
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], "yuv444p"
        stream.options = {"x265-params": "log-level=none:crf=2:keyint=1"}
        for frame in (av.VideoFrame.from_ndarray(pixels, format="rgb24"), None):
            for packet in stream.encode(frame):
                packets.append(bytes(packet))
                container.mux(packet)
    data, raw = file.getvalue(), b"".join(packets)
    at = data.find(b"hvcC") - 4
    headers = data[at : at + struct.unpack(">I", data[at : at + 4])[0]]
    starts = [match.start() for match in re.finditer(b"\0\0\1", raw)]
    units = [raw[a + 3 : b].rstrip(b"\0") for a, b in zip(starts, [*starts[1:], len(raw)], strict=True)]
    slices = [unit for unit in units if unit[0] >> 1 & 63 < 32]
    return headers, b"".join(struct.pack(">I", len(unit)) + unit for unit in slices)


def heic(pixels, tile, *turns, kind=b"grid"):
    """An image (H, W, 3) uint8 as phones store it: a grid of HEVC tiles of (height, width)."""
    (height, width), (rows, columns) = (
        tile,
        (-(-side // part) for side, part in zip(pixels.shape[:2], tile, strict=True)),
    )
    margins = [(0, rows * height - pixels.shape[0]), (0, columns * width - pixels.shape[1]), (0, 0)]
    padded = np.pad(pixels, margins, mode="edge")
    coded = [
        _coded(np.ascontiguousarray(padded[y * height : (y + 1) * height, x * width : (x + 1) * width]))
        for y in range(rows)
        for x in range(columns)
    ]
    slices, primary = [data for _, data in coded], len(coded) + 1
    sizes = [struct.pack(">II", *pair) for pair in ((width, height), pixels.shape[1::-1])]
    properties = box(b"ipco", coded[0][0], *(full_box(b"ispe", 0, size) for size in sizes), *turns)
    own = bytes([1 + len(turns), *range(3, 4 + len(turns))])
    of_items = (
        b"".join(struct.pack(">HBBB", n, 2, 0x81, 2) for n in range(1, primary)) + struct.pack(">H", primary) + own
    )
    infos = [full_box(b"infe", 2, struct.pack(">HH4sB", n, 0, b"hvc1", 0)) for n in range(1, primary)]
    infos.append(full_box(b"infe", 2, struct.pack(">HH4sB", primary, 0, kind, 0)))
    grid = bytes([0, 0, rows - 1, columns - 1]) + struct.pack(">HH", *pixels.shape[1::-1])

    def places(base):
        entries = b""
        for number, data in enumerate(slices, 1):
            entries += struct.pack(">HHHHII", number, 0, 0, 1, base, len(data))
            base += len(data)
        entries += struct.pack(">HHHHII", primary, 1, 0, 1, 0, len(grid))
        return full_box(b"iloc", 1, struct.pack(">BBH", 0x44, 0, primary), entries)

    references = struct.pack(f">{primary + 1}H", primary, primary - 1, *range(1, primary))

    def meta(base):
        return full_box(
            b"meta", 0,
            full_box(b"hdlr", 0, bytes(4), b"pict", bytes(13)),
            full_box(b"pitm", 0, struct.pack(">H", primary)),
            places(base),
            full_box(b"iinf", 0, struct.pack(">H", primary), *infos),
            full_box(b"iref", 0, box(b"dimg", references)),
            box(b"iprp", properties, full_box(b"ipma", 0, struct.pack(">I", primary), of_items)),
            box(b"idat", grid),
        )  # fmt: skip

    head = box(b"ftyp", b"heic", bytes(4), b"mif1heic")
    return head + meta(len(head) + len(meta(0)) + 8) + box(b"mdat", *slices)


# --- Images with many bits ------------------------------------------------------------------------------------------


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(path, head, *chunks):
    head = struct.pack(">IIBBBBB", *head, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join((_chunk(b"IHDR", head), *chunks, _chunk(b"IEND", b""))))
    return path


def deep_png(path, pixels, clear=None):
    """Write (H, W) or (H, W, 3) uint16 as a 16-bit PNG, optionally with a transparent colour."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    colour = b"" if clear is None else _chunk(b"tRNS", np.asarray(clear, ">u2").tobytes())
    return _png(path, (width, height, 16, 2 if pixels.ndim == 3 else 0), colour, _chunk(b"IDAT", zlib.compress(rows)))


def png_bomb(path, side=13000):
    """Write a black PNG of `side` x `side` pixels, row by row, so that writing does not fill the memory."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) + packer.flush()
    return _png(path, (side, side, 8, 0), _chunk(b"IDAT", rows))


def text_bomb(path, megabytes=90):
    """Write a small PNG with `megabytes` of texts, all zeros."""
    packed = zlib.compress(bytes(2**20 * 30), 1)
    texts = [_chunk(b"zTXt", b"Comment\0\0" + packed) for _ in range(megabytes // 30)]
    return _png(path, (4, 4, 8, 0), *texts, _chunk(b"IDAT", zlib.compress(b"\0\0\x50\xa0\xff" * 4)))


def png_film_bomb(path, side=13000):
    """Write a MOV with two frames of `png_bomb`."""
    data = png_bomb(path.with_suffix(".png"), side).read_bytes()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=8)
        stream.height = stream.width = side
        stream.pix_fmt = "gray"
        for number in range(2):
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 8), True
            packet.pts = packet.dts = number
            container.mux(packet)
    return path


def float_tiff(path, pixels):
    """Write (H, W, 3), or 4 with alpha, float16 or float32 as a TIFF, which Pillow neither writes nor reads."""
    height, width, samples = pixels.shape
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    first = 8 + 2 + 12 * 11 + 4
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, samples, first), (259, 3, 1, 1), (262, 3, 1, 2),
            (273, 4, 1, first + 4 * samples), (277, 3, 1, samples), (278, 3, 1, height), (279, 4, 1, len(data)),
            (338, 3, samples - 3, 2), (339, 3, samples, first + 2 * samples)]  # fmt: skip
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    forms = struct.pack(f"<{2 * samples}H", *[8 * pixels.itemsize] * samples, *[3] * samples)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + table + forms + data)


# --- Videos ---------------------------------------------------------------------------------------------------------

PIXELS = {"mjpeg": "yuvj420p", "png": "rgb24"}


def of_streams(path, *streams):
    """Write a video of streams, each (codec, frames, (height, width), colour), at 10 frames per second."""
    with av.open(str(path), "w") as container:
        opened = []
        for codec, count, (height, width), colour in streams:
            stream = container.add_stream(codec, rate=10)
            stream.height, stream.width, stream.pix_fmt = height, width, PIXELS.get(codec, "yuv420p")
            picture = np.full((height, width, 3), colour, np.uint8)
            opened.append((stream, count, picture))
        for number in range(max(count for _, count, _ in opened)):
            for stream, count, picture in opened:
                if number < count:
                    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=stream.pix_fmt)
                    frame.pts = number
                    container.mux(stream.encode(frame))
        for stream, _, _ in opened:
            container.mux(stream.encode(None))
    return path


def deep_frame(rgb, transfer=2, side=64):
    """A frame of one colour, R'G'B' in [0, 1], as 10-bit BT.2020."""
    red, green, blue = rgb
    luma = 0.2627 * red + 0.6780 * green + 0.0593 * blue
    frame = av.VideoFrame(side, side, "yuv420p10le")
    values = 64 + 876 * luma, 512 + 896 * (blue - luma) / 1.8814, 512 + 896 * (red - luma) / 1.4746
    for part, value in zip(frame.planes, values, strict=True):
        part.update(plane(round(value), part.height, part.line_size // 2).tobytes())
    tag(frame, transfer)
    return frame


def tag(target, transfer):
    """Tag a frame or an encoder as BT.2020 with a transfer function; an unspecified one (2) gives no tags."""
    target.color_trc = transfer
    target.color_primaries = target.colorspace = 2 if transfer == 2 else 9
    target.color_range = 1


def hdr_video(path, codec, rgb, transfer, frames=6, **options):
    needs.encoders(codec)
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, rate=10)
        stream.height = stream.width = 64
        stream.pix_fmt = "yuv420p10le"
        tag(stream.codec_context, transfer)
        if codec == "libx265":
            stream.options = {"x265-params": "log-level=none:crf=2"}
        for number in range(frames):
            frame = deep_frame(rgb, transfer)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def tagged_container(path, raw, transfer):
    """Copy the packets of a raw stream to a container with colour tags that its frames do not have."""
    with av.open(str(raw)) as source, av.open(str(path), "w") as container:
        template = source.streams.video[0]
        stream = container.add_stream_from_template(template)
        tag(stream.codec_context, transfer)
        for number, packet in enumerate(source.demux(template)):
            if packet.size:
                packet.stream, packet.time_base = stream, Fraction(1, 10)
                packet.pts = packet.dts = number
                container.mux(packet)
    return path


def animated(path, colours, size=(24, 32), milliseconds=125, **options):
    """Write an animation with Pillow, one colour per frame."""
    first, *others = (Image.new("RGB", size[::-1], colour) for colour in colours)
    first.save(path, save_all=True, append_images=others, duration=milliseconds, **options)
    return path
