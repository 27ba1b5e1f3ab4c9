"""Fréchet Video Distance by the package cd-fvd (arXiv 2404.12391), if it and its weights are available.

It is a distance between sets of videos, and too high for small sets: 2048 videos in each are customary. Nothing is
downloaded: without the package or the weights, the table says what to install.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from torch import Tensor

from vc_core.checkpoint.files import open_tensors
from vc_core.errors import UserError

CUSTOMARY = 2048
WEIGHTS = "i3d_pretrained_400.pt (github.com/songweige/TATS, folder tats/fvd)"

Distance = Callable[[Tensor, Tensor], float]
"""Function of two sets of videos (N, 3, F, H, W) uint8."""


def load_fvd(weights: Path | None) -> Distance | None:
    """Return the distance by I3D with weights from a file, on the CPU; None if `weights` is None.

    Raises:
        UserError: the package or the file is missing, or the file is not an I3D.
    """
    if weights is None:
        return None
    if not weights.is_file():  # the package would download a file to this path
        raise UserError(f"{weights} does not exist. Pass the I3D weights {WEIGHTS}.")
    try:
        from cdfvd import fvd
    except ImportError as error:
        raise UserError(
            f"FVD requires the package cd-fvd ({error}). Install it (pip install cd-fvd) or leave out --fvd."
        ) from error
    open_tensors(weights)  # checks that it is a file of weights, without running code from it
    try:
        with redirect_stdout(StringIO()):
            evaluator = fvd.cdfvd("i3d", n_fake="full", ckpt_path=str(weights), device="cpu")
    except RuntimeError as error:
        raise UserError(f"{weights} is not an I3D with 400 classes. Pass {WEIGHTS}.") from error

    def distance(*sets: Tensor) -> float:
        evaluator.empty_real_stats()
        evaluator.empty_fake_stats()
        return float(evaluator.compute_fvd(*(videos.permute(0, 2, 3, 4, 1).numpy() for videos in sets)))

    return distance


def described(distance: Distance | None, sources: Tensor, arms: dict[str, Tensor]) -> dict[str, object]:
    """Return the report's entry: the distance of each arm's videos from the sources, and a note."""

    def skipped(reason: str) -> dict[str, object]:
        return {"note": f"not measured: {reason}", "distances": {}}

    if distance is None:
        return skipped(f"pip install cd-fvd, and pass --fvd FILE with the I3D weights {WEIGHTS}.")
    if not arms:
        return skipped("--only excludes text.")
    if sources.shape[2] < 10:  # I3D pools time down to nothing
        return skipped(f"I3D requires 10 frames, but these videos have {sources.shape[2]}.")
    distances = {arm: distance(sources, videos) for arm, videos in arms.items()}
    if not all(map(math.isfinite, distances.values())):
        return skipped(f"{len(sources)} videos are too few for a distance.")
    count = min(len(sources), *(len(videos) for videos in arms.values()))
    few = (
        f"; too high, because it uses {count} videos instead of the customary {CUSTOMARY}" if count < CUSTOMARY else ""
    )
    return {"note": f"I3D by cd-fvd{few}", "distances": distances}
