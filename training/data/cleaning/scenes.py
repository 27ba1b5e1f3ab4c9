"""Split a video at its cuts, and measure each clip, in one pass that keeps only small figures of the frames."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from training.data.sample import BadSample
from training.data.sample_fields import reading
from vc_core.errors import UserError
from vc_core.video import VideoInfo, every_frame, probe

SIDE = 256  # pixels of the longer side of the frames that are compared
RATE = 4  # frames per second that are measured, as many as the released network is trained on
HASHES = 5  # frames of a clip that are compared with those of other clips
MOST_DARK = 98  # percent of the pixels of a black frame, or of a row of a black bar, that must be dark
DELAY = 3  # frames after which the detectors no longer report a cut at a frame
PACKAGE = "scenedetect-headless>=0.7,<0.8"


@dataclass(frozen=True)
class SceneOptions:
    """How videos are split."""

    detector: str = "adaptive"  # or "content"
    cut: float | None = None  # the detector's threshold; None for its default
    shortest: float = 1.0  # seconds
    longest: float = 30.0  # seconds
    dark: float = 0.1  # luma below which a pixel is black, in [0, 1]


@dataclass(frozen=True)
class Clip:
    """A part of a scene, from `start` until before `end` in seconds, and its figures."""

    start: float
    end: float
    frames: int
    scene: int  # its number in the video: a long scene has several clips
    black: bool  # all of its frames
    change: float | None  # mean difference of luma between frames a quarter of a second apart, in levels of 0 to 255
    bars: float  # height or width of the black bars at two opposite sides, as a fraction of the frame's, each
    hashes: tuple[int, ...] = field(repr=False)  # perceptual hashes of `HASHES` frames, evenly spaced

    @property
    def seconds(self) -> float:
        return self.end - self.start


class _Sample(NamedTuple):
    """The figures of a measured frame."""

    change: float  # compared with the previous measured frame of the scene
    rows: np.ndarray  # (2, H): for each row the luma that `MOST_DARK` percent of its pixels do not exceed; the median
    columns: np.ndarray  # (2, W)
    hash: int


class _Waiting(NamedTuple):
    """A frame at which a cut may still be found."""

    number: int
    time: float
    pixels: np.ndarray
    luma: np.ndarray
    black: bool


class _Frame(NamedTuple):
    """A frame of the current scene."""

    time: float
    black: bool
    sample: _Sample | None


def check_installed() -> None:
    """Raise `UserError` if the detectors are not installed."""
    try:
        import scenedetect  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"./vc clean requires the package scenedetect-headless ({error}). Run: pip install '{PACKAGE}'."
        ) from error


def read_clips(
    source: Path, name: str, options: SceneOptions, span: tuple[float, float] | None = None
) -> tuple[list[Clip], float, str]:
    """Split a video. Returns its clips, the seconds that could be read up to, and why not all could be read or "".

    Args:
        name: of the video, for messages.
        span: the part of the video to split, in seconds.
    """
    clips: list[Clip] = []
    start, end = span or (0.0, math.inf)
    splitter = _Splitter(options, start)
    problem = ""
    try:
        for time, until, pixels in _small_frames(source, name, start, end):
            clips += splitter.clips_with(time, until, pixels)
    except BadSample as error:
        problem = str(error)
    clips += splitter.rest()
    return clips, splitter.time, problem


def _small_frames(source: Path, name: str, start: float, end: float) -> Iterator[tuple[float, float, np.ndarray]]:
    """Yield (seconds where a frame starts, where it ends, its pixels (H, W, 3) uint8 in BGR, at most `SIDE` long).

    Raises:
        BadSample: the video, or the next frame, cannot be read.
    """
    with reading(name, Exception):  # damaged bytes can make decoders raise anything
        info = probe(source)
        for time, frame in every_frame(source, *shrinking(info, SIDE), ("format", "bgr24"), start=start, end=end):
            until = time + float(1 / info.rate)
            yield time, min(until, end, info.duration if info.duration > time else until), frame.to_ndarray()


def shrinking(info: VideoInfo, side: int) -> list[tuple[str, str]]:
    """The ffmpeg filter that makes a video's frames at most `side` pixels long."""
    scale = side / max(info.width, info.height)
    width, height = (max(1, round(length * scale)) for length in (info.width, info.height))
    return [("scale", f"{width}:{height}:flags=area")] if scale < 1 else []


class _Splitter:
    """Collects the frames of a scene until its end is known."""

    def __init__(self, options: SceneOptions, start: float) -> None:
        self.options, self.detector = options, _detector(options)
        self.time = start  # where the last frame ends, in seconds
        self.number, self.scene = 0, 0
        self.cuts: set[int] = set()  # numbers of frames that start a scene
        self.waiting: deque[_Waiting] = deque()
        self.frames: list[_Frame] = []  # of the current scene, without the clips that are complete
        self.begin = start  # where the current scene starts, in seconds
        self.luma: np.ndarray | None = None  # of the last measured frame of the scene
        self.measured = 0  # number of its measured frames

    def clips_with(self, time: float, until: float, pixels: np.ndarray) -> Iterator[Clip]:
        """Add a frame, see `_small_frames`. Yields the clips that are complete."""
        from scenedetect import FrameTimecode

        wide = pixels.astype(np.uint16)
        luma = ((29 * wide[..., 0] + 150 * wide[..., 1] + 77 * wide[..., 2]) >> 8).astype(np.uint8)
        black = np.count_nonzero(luma < 255 * self.options.dark) * 100 >= MOST_DARK * luma.size
        if self.waiting and black != self.waiting[-1].black:
            self.cuts.add(self.number)
        # The detector only counts frames, so any rate will do.
        self.cuts |= {cut.frame_num for cut in self.detector.process_frame(FrameTimecode(self.number, 25.0), pixels)}
        self.waiting.append(_Waiting(self.number, time, pixels, luma, black))
        self.number, self.time = self.number + 1, until
        if len(self.waiting) > DELAY:
            yield from self._settle()

    def rest(self) -> Iterator[Clip]:
        """Yield the last clips."""
        while self.waiting:
            yield from self._settle()
        yield from self._scene(self.time)

    def _settle(self) -> Iterator[Clip]:
        """Add the first waiting frame to a scene."""
        frame = self.waiting.popleft()
        if frame.number in self.cuts:
            self.cuts.remove(frame.number)
            yield from self._scene(frame.time)
        if not self.frames:
            self.begin, self.luma, self.measured = frame.time, None, 0
        longest = self.options.longest
        # At least the shortest clip remains, so that no end of a scene is lost.
        if len(self.frames) > 1 and frame.time - self.frames[0].time >= longest + self.options.shortest:
            first, self.frames = _split(self.frames, self.frames[0].time + longest)
            yield self._clip(first, self.frames[0].time)
        self.frames.append(_Frame(frame.time, frame.black, self._sample(frame)))

    def _scene(self, end: float) -> Iterator[Clip]:
        """End the current scene."""
        frames, self.frames = self.frames, []
        if not frames:
            return
        if len(frames) > 1 and end - frames[0].time > self.options.longest:
            first, frames = _split(frames, (frames[0].time + end) / 2)
            yield self._clip(first, frames[0].time)
        yield self._clip(frames, end)
        self.scene += 1

    def _sample(self, frame: _Waiting) -> _Sample | None:
        """The figures of `RATE` frames per second, counted from the start of the scene, so that a copy of the scene in
        another video has the same ones."""
        if (frame.time - self.begin) * RATE < self.measured - 1e-3:
            return None
        luma, previous = frame.luma, frame.luma if self.luma is None else self.luma
        self.luma, self.measured = luma, math.floor((frame.time - self.begin) * RATE + 1e-3) + 1
        change = float(np.abs(luma.astype(np.int16) - previous).mean())
        rows, columns = (np.percentile(luma, [MOST_DARK, 50], axis=axis) for axis in (1, 0))
        return _Sample(change, rows, columns, _hash(frame.pixels))

    def _clip(self, frames: list[_Frame], end: float) -> Clip:
        samples = [frame.sample for frame in frames if frame.sample]
        changes = [sample.change for sample in samples[1:]]  # the first one is compared with no frame of this clip
        places = [round(i * (len(samples) - 1) / (HASHES - 1)) for i in range(HASHES)] if samples else []
        return Clip(
            start=round(frames[0].time, 6),
            end=round(end, 6),
            frames=len(frames),
            scene=self.scene,
            black=all(frame.black for frame in frames),
            change=sum(changes) / len(changes) if changes else None,
            bars=_bars(samples, 255 * self.options.dark),
            hashes=tuple(samples[place].hash for place in places),
        )


def _split(frames: list[_Frame], time: float) -> tuple[list[_Frame], list[_Frame]]:
    """The frames before a time and the others, at least one each."""
    count = sum(frame.time < time - 1e-6 for frame in frames)
    count = min(max(count, 1), len(frames) - 1)
    return frames[:count], frames[count:]


def _detector(options: SceneOptions) -> Any:
    """PySceneDetect's detector. It reports every cut: too short scenes are dropped later, and counted."""
    from scenedetect.detectors import AdaptiveDetector, ContentDetector

    kind, name = {"adaptive": (AdaptiveDetector, "adaptive_threshold"), "content": (ContentDetector, "threshold")}[
        options.detector
    ]
    return kind(min_scene_len=0, **({} if options.cut is None else {name: options.cut}))


def _hash(pixels: np.ndarray) -> int:
    """The perceptual hash of a frame: the signs of its 64 lowest frequencies."""
    from scenedetect.detectors import HashDetector

    return int.from_bytes(np.packbits(HashDetector.hash_frame(pixels, 8, 4)).tobytes(), "big")


def _bars(samples: list[_Sample], dark: float) -> float:
    """The fraction of the height or width that black bars cover at each of two opposite sides, the smaller of both."""
    if not samples:
        return 0.0
    sides = []
    for profiles in zip(*((sample.rows, sample.columns) for sample in samples), strict=True):
        profile = np.max(profiles, axis=0)  # (2, length), over the time
        sides.append(min(_bar(profile, dark), _bar(profile[:, ::-1], dark)) / profile.shape[1])
    return max(sides)


def _bar(profile: np.ndarray, dark: float) -> int:
    """The width of a bar at the beginning of a profile, see `_Sample`. A picture must begin behind it in most of its
    width: otherwise, the background of a small object is black."""
    most, median = profile
    width = int(np.argmax(most >= dark)) if (most >= dark).any() else 0
    return width if (median[width : width + 3] >= dark).any() else 0
