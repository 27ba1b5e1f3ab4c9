"""Speed and memory of motion extraction, compared with plain decoding and with the original code's tools.

    ./vc bench motion [--rounds 5] [--seconds 10] [--reference PYTHON]

Prints ratios of alternating runs (medians). The clips are generated, with a keyframe every two seconds:

- block vectors of an entire file / plain multi-threaded decoding of it (in frames per second; more is better),
- speed of the released path / speed of the ffmpeg program with the package motion-vector-extractor, from file to map,
- peak memory of processes that read a minute of video.

The original tools are not dependencies of this project: PYTHON must have motion-vector-extractor, and imageio-ffmpeg or
ffmpeg on PATH. Otherwise the line of this comparison says what is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from benchmarks.network import seconds
from vc_core.extract.motion.from_video import read_motion
from vc_core.extract.motion.vectors import exported
from vc_core.video import FramePlan
from vc_core.video.decoding import decode
from vc_core.video.sequences import media
from vc_core.video.timeline import index

RATE = 25
SIZES = {"256 x 256": (256, 256), "720p": (720, 1280), "1080p": (1080, 1920)}

# The original pipeline: ffmpeg writes a file, all its vectors are read, one source-sized map per frame, resized.
REFERENCE = """
import json, os, shutil, subprocess, sys, tempfile, time
try:
    import cv2, numpy as np
    from mvextractor.videocap import VideoCap
    try:
        import imageio_ffmpeg
        ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    except ImportError:
        ffmpeg = shutil.which("ffmpeg")
    if not ffmpeg:
        raise ImportError("no ffmpeg program on PATH")
except ImportError as error:
    print(json.dumps({"missing": str(error)}))
    sys.exit()
start = time.perf_counter()
with tempfile.TemporaryDirectory() as folder:
    out = os.path.join(folder, "out.mp4")
    command = [ffmpeg, "-v", "error", "-y", "-i", sys.argv[1], "-filter:v", "fps=4", "-c:v", "mpeg4", out]
    subprocess.run(command, check=True)
    video = VideoCap()
    assert video.open(out)
    maps = []
    while True:
        good, frame, vectors, *_ = video.read()
        if not good:
            break
        height, width = frame.shape[:2]
        canvas = np.zeros((height, width, 2), np.float32)
        for row in vectors:
            x, y = min(int(row[5]), width - 1), min(int(row[6]), height - 1)
            canvas[y, x] = row[0] * row[7] / row[9], row[0] * row[8] / row[9]
        scale = 256 / min(height, width)
        maps.append(cv2.resize(canvas, (round(width * scale), round(height * scale))))
print(json.dumps({"seconds": time.perf_counter() - start, "frames": len(maps)}))
"""

MEMORY = """
import json, sys
from benchmarks.motion import released, vectors
{"vectors": vectors, "released": lambda path: released(path, 16), "stream": lambda path: released(path, 16, "stream")}[
    sys.argv[1]](sys.argv[2])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps(int(peak.split()[1]) / 1024))
"""


def make(path: Path, height: int, width: int, frames: int, b_frames: int) -> Path:
    """Write a clip of a textured background that pans, and a square that moves in front of it."""
    rng = np.random.default_rng(0)

    def texture(rows: int, columns: int) -> np.ndarray:
        fine = rng.integers(0, 256, (rows // 8 + 1, columns // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)
        return (fine[:rows, :columns] * 0.7 + rng.integers(0, 76, (rows, columns, 3))).astype(np.uint8)

    ground, square = texture(height + 256, width + 256), texture(height // 4, height // 4)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"preset": "veryfast", "bf": str(b_frames), "g": str(2 * RATE), "crf": "26"}
        for n in range(frames):
            # Back and forth, without a jump.
            y, x = (abs((speed * n) % 512 - 256) for speed in (1, 3))
            frame = ground[y : y + height, x : x + width].copy()
            left = abs((5 * n) % (2 * (width - height // 4)) - (width - height // 4))
            frame[height // 3 : height // 3 + height // 4, left : left + height // 4] = square
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def plain(path: str | Path) -> int:
    """Decode a file as fast as PyAV can; return its number of frames."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        return sum(1 for _ in container.decode(video=0))


def vectors(path: str | Path, use: Callable[[np.ndarray], object] = len) -> None:
    """Read all block vectors of a file and call `use` with those of each frame."""

    with media(path) as video:
        table = index(video)
        for _, frame in decode(video, table, table.times, vectors=True):
            use(exported(frame))


def digest(path: str | Path) -> str:
    """Return the SHA-256 of all block vectors of a file."""
    sha256 = hashlib.sha256()
    vectors(path, sha256.update)
    return sha256.hexdigest()


def released(path: str | Path, frames: int, mode: str = "released") -> None:
    """Read the motion maps of the first `frames` frames of a file, at 4 per second."""
    read_motion(path, FramePlan(0.0, Fraction(4), frames), mode=mode)


def process(python: str, program: str, *arguments: object) -> object:
    command = [python, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each measurement (default: 5)")
    parser.add_argument("--seconds", type=int, default=10, help="length of the clips in seconds (default: 10)")
    parser.add_argument(
        "--reference",
        default=sys.executable,
        metavar="PYTHON",
        help="Python with the original tools (default: this one)",
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("block vectors of an entire file / plain multi-threaded decoding, in frames per second")
        for size, (height, width) in SIZES.items():
            for b_frames in (0, 3):
                frames = arguments.seconds * RATE * (6 if height < 300 else 1)
                path = make(folder / f"{height}-{b_frames}.mp4", height, width, frames, b_frames)
                plain(path), vectors(path)
                digests, ratios = set(), []
                for _ in range(arguments.rounds):
                    slow = seconds(lambda path=path: plain(path))
                    ratios.append(slow / seconds(lambda path=path: vectors(path)))
                    digests.add(digest(path))
                exact = "the same vectors in all runs" if len(digests) == 1 else f"{len(digests)} DIFFERENT RESULTS"
                print(f"  {size}, {b_frames} B-frames: {statistics.median(ratios):.2f}, {exact}", flush=True)

        path = folder / "720-0.mp4"
        for frames, what in (
            (16, "the plan's 16 frames"),
            (4 * arguments.seconds, "all frames, as the original tools read"),
        ):
            ratios = []
            for _ in range(arguments.rounds):
                result = process(arguments.reference, REFERENCE, path)
                if "missing" in result:
                    print(f"released path / ffmpeg and motion-vector-extractor: not measured ({result['missing']})")
                    break
                ratios.append(result["seconds"] / seconds(lambda frames=frames: released(path, frames)))
            if not ratios:
                break
            length = f"{arguments.seconds} s of 720p"
            print(f"released path, {length}, {what}: {statistics.median(ratios):.2f} times as fast", flush=True)

        minute = make(folder / "minute.mp4", 720, 1280, 60 * RATE, 2)
        for what in ("vectors", "released", "stream"):
            print(f"peak memory of {what}, 60 s of 720p: {process(sys.executable, MEMORY, what, minute):.0f} MiB")


if __name__ == "__main__":
    main()
