"""Videos next to each other in one, with labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .frames import resize_crop

_GAP, _TEXT = 8, 16
"""Pixels between cells, and the height of a line of text."""


def labelled_grid(rows: Sequence[Sequence[tuple[str, Tensor]]], cell: int = 128) -> Tensor:
    """Return one video `(1, 3, F, H, W)` on white that shows videos in rows, each below its label.

    Args:
        rows: label and `(1, 3 or 1, F, h, w)` in [0, 1]; a video of one frame is repeated for all F.
        cell: height and width of each cell in pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    frames = max(video.shape[2] for row in rows for _, video in row)
    step, tall = cell + _GAP, cell + _TEXT + _GAP
    size = (max(map(len, rows)) * step + _GAP, len(rows) * tall + _GAP)
    page = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(_TEXT - 3)
    places = [(_GAP + c * step, _GAP + r * tall, *item) for r, row in enumerate(rows) for c, item in enumerate(row)]
    for x, y, label, _ in places:
        draw.text((x, y), label, fill="black", font=font)
        draw.rectangle((x - 1, y + _TEXT - 1, x + cell, y + _TEXT + cell), outline="lightgray")
    grid = torch.from_numpy(np.array(page)).permute(2, 0, 1).float().div(255)[:, None].repeat(1, frames, 1, 1)
    for x, y, _, video in places:
        grid[:, :, y + _TEXT : y + _TEXT + cell, x : x + cell] = resize_crop(video.float(), (cell, cell))[0]
    return grid[None]
