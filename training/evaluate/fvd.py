"""Fréchet Video Distance by the I3D of the package cd-fvd (arXiv 2404.12391), if it and its weights are available.

It is a distance between sets of videos, and too high for small sets: 2048 videos in each are customary. It also depends
on the frames, rate and size of the videos and on the I3D, so the report states all of these. Nothing is downloaded:
without the package or the weights, the table says what to install.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
from torch import Tensor

from vc_core.checkpoint.files import open_tensors, sha256
from vc_core.errors import UserError

CUSTOMARY = 2048
SIDE = 224
"""Height and width in pixels that cd-fvd stretches videos to, bilinearly."""
WEIGHTS = "i3d_pretrained_400.pt (github.com/songweige/TATS, folder tats/fvd)"
RESAMPLES = 200
NORMAL = 1.96
"""Half of a 95 % interval, in standard deviations."""


@dataclass(frozen=True)
class I3D:
    """The network, and its weights."""

    weights: Path
    embed: Callable[[Tensor], np.ndarray]  # videos (N, 3, F, H, W) uint8 -> logits (N, 400)


def load_fvd(weights: Path | None) -> I3D | None:
    """Load an I3D from a file, on the CPU; None if `weights` is None.

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

    def embed(videos: Tensor) -> np.ndarray:
        evaluator.real_stats = type(evaluator.real_stats)(capture_all=True)
        evaluator.add_real_stats(videos.permute(0, 2, 3, 4, 1).numpy())
        return evaluator.real_stats.get_all()

    return I3D(weights, embed)


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the squared Fréchet distance between normal distributions with the mean and covariance (divided by N, as
    in cd-fvd) of two sets of features (N, D) and (M, D)."""
    sides = [features.astype(np.float64) for features in (first, second)]
    means = [features.mean(0) for features in sides]
    # The covariance of each set is the square of its root, so the trace of the root of their product is the sum of the
    # singular values of the product of the roots. It needs no root of a matrix, which is inexact for small sets.
    roots = [(features - mean) / np.sqrt(len(features)) for features, mean in zip(sides, means, strict=True)]
    roots = [np.linalg.qr(root, mode="r") if len(root) > root.shape[1] else root for root in roots]
    product = np.linalg.norm(roots[0] @ roots[1].T, "nuc")
    return float(np.square(means[0] - means[1]).sum() + sum(np.square(root).sum() for root in roots) - 2 * product)


def interval(sources: np.ndarray, videos: np.ndarray) -> tuple[float, float]:
    """Return a 95 % interval of the distance between features of clips (N, D) and of their videos (N, seeds, D): the
    distance plus and minus 1.96 standard deviations of a bootstrap over the clips.

    Quantiles of the bootstrap would be too high, because a resample has fewer different clips.
    """
    random = np.random.default_rng(0)
    figures = []
    for _ in range(RESAMPLES):
        rows = random.integers(len(sources), size=len(sources))
        figures.append(frechet_distance(sources[rows], videos[rows].reshape(-1, videos.shape[-1])))
    figure = frechet_distance(sources, videos.reshape(-1, videos.shape[-1]))
    half = NORMAL * float(np.std(figures, ddof=1))
    return max(0.0, figure - half), figure + half


def described(i3d: I3D | None, sources: Tensor, arms: dict[str, Tensor], rates: Sequence[float]) -> dict[str, object]:
    """Return the report's entry: the distance of each arm's videos from the sources with its interval, what it depends
    on, and all of this as a note.

    Args:
        sources: (N, 3, F, H, W) uint8; `arms` have several videos of each, see `training.evaluate.trials.pairs`.
        rates: frames per second of the clips.
    """

    def skipped(reason: str) -> dict[str, object]:
        return {"note": f"not measured: {reason}", "distances": {}}

    if i3d is None:
        return skipped(f"pip install cd-fvd, and pass --fvd FILE with the I3D weights {WEIGHTS}.")
    if not arms:
        return skipped("--only excludes text.")
    clips, _, frames, height, width = sources.shape
    if frames < 10:  # I3D pools time down to nothing
        return skipped(f"I3D requires 10 frames, but these videos have {frames}.")
    own = i3d.embed(sources)
    features = {arm: i3d.embed(videos).reshape(clips, -1, own.shape[-1]) for arm, videos in arms.items()}
    distances = {arm: frechet_distance(own, each.reshape(-1, own.shape[-1])) for arm, each in features.items()}
    rate = " to ".join(f"{rate:g}" for rate in sorted({min(rates), max(rates)}))
    details = {
        "weights": i3d.weights.name,
        "sha256": sha256(i3d.weights),
        "clips": clips,
        "videos": len(next(iter(arms.values()))),
        "frames": frames,
        "rate": rate,
        "width": width,
        "height": height,
        "stretched to": f"{SIDE}x{SIDE}",
    }
    few = (
        f"; too high, because {clips} clips are used instead of the customary {CUSTOMARY}" if clips < CUSTOMARY else ""
    )
    note = (
        f"I3D by cd-fvd, {details['weights']}, SHA-256 {details['sha256'][:16]}; {clips} clips and {details['videos']} "
        f"videos of {frames} frames at {rate} per second, {width}x{height} stretched to {SIDE}x{SIDE}{few}. Compare it "
        "only with distances with the same of all these"
    )
    intervals = {arm: interval(own, each) for arm, each in features.items()}
    return {"note": note, "distances": distances, "intervals": intervals, "details": details}
