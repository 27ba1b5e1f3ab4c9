"""A text that changes over a long video: a schedule of prompts by frame, which each window reads at one frame."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..errors import UserError, counted


def tokens_of_window(texts: Mapping[int, Tensor], window: slice, total: int) -> Tensor:
    """Return the tokens of a window of a video of `total` frames, interpolated linearly at its `frame_read`.

    Before the first prompt's frame the first prompt applies, and after the last prompt's frame the last one.

    Args:
        texts: frame -> tokens of its prompt, `(B or 1, tokens, D)`, with ascending frames.
    """
    frames = list(texts)
    if len(frames) == 1:
        return texts[frames[0]]
    position = frame_read(window, total)
    after = sum(frame <= position for frame in frames)
    if after in (0, len(frames)):
        return texts[frames[max(0, after - 1)]]
    start, end = frames[after - 1 : after + 1]
    return torch.lerp(texts[start], texts[end], (position - start) / (end - start))


def frame_read(window: slice, total: int) -> float:
    """Return the frame at which a window reads the schedule of a video of `total` frames.

    It divides the video in the ratio of the frames before the window to those after it: the first window reads at the
    first frame of the video, the last window at the last one, and a window in the middle at its own middle.

    Raises:
        UserError: the window is the entire video.
    """
    before, after = window.start, total - window.stop
    if before + after == 0:
        raise UserError(
            f"A text that changes requires several windows, but the {counted(total, 'frame')} of this video fit into "
            "one. Use more frames, shorter windows, or one text."
        )
    return (total - 1) * before / (before + after)


def check_frames(frames: Iterable[int], total: int) -> None:
    """Raise `UserError` if a video of `total` frames does not have one of these frames."""
    for frame in frames:
        if not 0 <= frame < total:
            raise UserError(f"There is a text for frame {frame}. Expected a frame from 0 to {total - 1} of this video.")
