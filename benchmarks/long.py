"""Seams, drift of colour and consistency of videos of many windows, by kind of noise: ./vc bench long [CHECKPOINT]

Composes videos of ten windows, which overlap by half, from a text alone and from a text with its first frame. For
comparison, "one window" denoises all frames at once. Medians over the seeds.

- seams: change between neighbouring frames where a window begins or ends, as a multiple of the change elsewhere.
- change: mean difference of neighbouring frames, in levels of 255.
- drift: largest difference of a window's mean colour from the first window's, in levels of 255.
- apart: mean difference of frames that are one window apart, in levels of 255.
- similarity: cosine of the image tower's embeddings of frames that are one window apart.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from vc_core.checkpoint.reading import BUNDLED
from vc_core.composer import VideoComposer
from vc_core.conditions import Condition
from vc_core.demo import TEXT, draw_clip
from vc_core.diffusion.noise import NOISES
from vc_core.diffusion.samplers import Sampling
from vc_core.diffusion.windows import Windows
from vc_core.encoders.clip import encode_image
from vc_core.pipeline import compose
from vc_core.video import write_contact_sheet

WINDOWS = 10
ONE_WINDOW = "one window"
HEADER = ("scene", "noise", "seams", "change", "drift", "apart", "similarity")


def measure(video: Tensor, windows: Windows, composer: VideoComposer) -> tuple[float, ...]:
    """Return the figures of `HEADER` for a video `(1, 3, F, H, W)`."""
    spans = windows.spans(video.shape[2])
    change = 255 * (video[:, :, 1:] - video[:, :, :-1]).abs().mean((0, 1, 3, 4))  # between frames i and i + 1
    edges = {span.start - 1 for span in spans[1:]} | {span.stop - 1 for span in spans[:-1]}
    at_edges = torch.tensor([i in edges for i in range(len(change))])
    colors = torch.stack([255 * video[:, :, span].mean((0, 2, 3, 4)) for span in spans])
    apart = 255 * (video[:, :, windows.length :] - video[:, :, : -windows.length]).abs().mean()
    embeddings = encode_image(composer.load_towers("image"), video[0].movedim(1, 0))[:, 0]
    similarity = torch.cosine_similarity(embeddings[windows.length :], embeddings[: -windows.length]).mean()
    return (
        (change[at_edges].mean() / change[~at_edges].mean()).item(),
        change.mean().item(),
        (colors - colors[0]).abs().mean(1).max().item(),
        apart.item(),
        similarity.item(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=BUNDLED, help="default: the bundled one")
    parser.add_argument("--seeds", type=int, default=4, help="number of seeds (default: 4)")
    parser.add_argument("--steps", type=int, default=12, help="number of sampling steps (default: 12)")
    parser.add_argument("--sheet", type=Path, help="also write a contact sheet of the first seed to this .png file")
    arguments = parser.parse_args()
    composer = VideoComposer.load(arguments.checkpoint)
    config = composer.config
    windows = Windows(config.frames)
    frames = windows.length + (WINDOWS - 1) * (windows.length - windows.overlap)
    scenes = {
        "text": [],
        "text, first frame": [Condition("single_image", draw_clip(size=config.width, frames=1))],
    }
    kinds = {name: {"noise": name, "windows": windows} for name in NOISES if name != "warped"}
    kinds[ONE_WINDOW] = {"windows": Windows(frames)}
    print(f"{frames} frames, {WINDOWS} windows of {windows.length}, {arguments.steps} steps\n")
    print(f"| {' | '.join(HEADER)} |", "| --- " * len(HEADER) + "|", sep="\n")
    rows = []
    for scene, conditions in scenes.items():
        for kind, settings in kinds.items():
            figures = []
            for seed in range(arguments.seeds):
                sampling = Sampling(steps=arguments.steps, **settings)
                video = compose(composer, TEXT, conditions=conditions, frames=frames, seed=seed, sampling=sampling)
                figures.append(measure(video, windows, composer))
                rows += [(f"{scene}: {kind}", video)] if seed == 0 else []
            cells = [f"{figure:.2f}" for figure in torch.tensor(figures).median(dim=0).values.tolist()]
            print(f"| {' | '.join([scene, kind, *cells])} |", flush=True)
    if arguments.sheet:
        write_contact_sheet(arguments.sheet, rows, title=TEXT)


if __name__ == "__main__":
    main()
