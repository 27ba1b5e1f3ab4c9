"""Fréchet Video Distance, by the package cd-fvd (arXiv 2404.12391) where it and its weights are at hand.

It is a distance between sets and biased upwards where they are small: customary are 2048 videos of each. Nothing is
downloaded: without the package or the weights the table says what to get.
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
"""Between two sets of videos (N, 3, F, H, W) uint8."""


def load_fvd(weights: Path | None) -> Distance | None:
    """The distance by I3D with weights from a file, on the CPU.

    Raises:
        UserError: weights were named, and the package or the file is missing or the file is no I3D's.
    """
    if weights is None:
        return None
    if not weights.is_file():  # the package would download it to there
        raise UserError(f"{weights}: there is no such file: expected I3D's weights, {WEIGHTS}.")
    try:
        from cdfvd import fvd
    except ImportError as error:
        raise UserError(f"FVD needs the package cd-fvd ({error}): pip install cd-fvd, or leave out --fvd.") from error
    open_tensors(weights)  # reads it without running what it may hold, and says so where it is no file of weights
    try:
        with redirect_stdout(StringIO()):
            evaluator = fvd.cdfvd("i3d", n_fake="full", ckpt_path=str(weights), device="cpu")
    except RuntimeError as error:
        raise UserError(f"{weights}: is no I3D of 400 classes: expected {WEIGHTS}.") from error

    def distance(*sets: Tensor) -> float:
        evaluator.empty_real_stats()
        evaluator.empty_fake_stats()
        return float(evaluator.compute_fvd(*(videos.permute(0, 2, 3, 4, 1).numpy() for videos in sets)))

    return distance


def described(distance: Distance | None, sources: Tensor, made: dict[str, Tensor]) -> dict[str, object]:
    """For the report: the distance of each arm's videos from the sources, of how many, and a note."""

    def none(why: str) -> dict[str, object]:
        return {"note": f"not measured: {why}", "distances": {}}

    if distance is None:
        return none(f"give --fvd FILE, I3D's weights {WEIGHTS}, and pip install cd-fvd.")
    if not made:
        return none("--only left out text.")
    if sources.shape[2] < 10:  # I3D pools time down to nothing
        return none(f"I3D needs 10 frames, and these videos have {sources.shape[2]}.")
    distances = {arm: distance(sources, videos) for arm, videos in made.items()}
    if not all(map(math.isfinite, distances.values())):
        return none(f"{len(sources)} videos are too few for any distance.")
    count = min(len(sources), *(len(videos) for videos in made.values()))
    few = f"; of {count} videos, where {CUSTOMARY} are customary: too high" if count < CUSTOMARY else ""
    return {"note": f"I3D by cd-fvd{few}", "distances": distances}
