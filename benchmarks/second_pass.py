"""What the second pass of `--upscale 2` does to a video: ./vc bench second_pass [CHECKPOINT]

Videos of a textured disc, with the text, motion and first frame of a clip, are composed at the checkpoint's size,
enlarged twice, and composed again from there, in tiles or as entire frames. Figures are means over the seeds:

- sharpness: the change of colour across the disc's outline, relative to the clip itself at that size
- overlap: of the disc with the enlarged video's disc (IoU), so 1 if its place and outline stay the same
- seams: the mean difference of neighbouring pixels at the borders of tiles, relative to all others
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from training.evaluate.measures import outline_gradient
from vc_core import Condition, Sampling, VideoComposer, compose
from vc_core.checkpoint.reading import BUNDLED
from vc_core.commands.enlarging import enlarged
from vc_core.demo import RATE, RED, STRIPES, TEXT, draw_clip
from vc_core.diffusion.tiles import Tiles
from vc_core.extract.sources import Source, extract
from vc_core.video import plan_frames, probe, write_video

STEPS = 12
PASSES = [(denoise, tiled) for denoise in (0.1, 0.15, 0.2, 0.4) for tiled in (True, False)]


def disc(video: Tensor) -> Tensor:
    """Return the pixels `(B, F, H, W)` bool of a video that are closest to the disc's colour."""
    middle = tuple(sum(color) / 2 for color in zip(*STRIPES, strict=True))
    palette = torch.tensor([RED, *STRIPES, middle])
    return (video[:, None] - palette[None, :, :, None, None, None]).norm(dim=2).argmin(1) == 0


def seams(video: Tensor, tiles: Tiles) -> float:
    """Return the mean difference at the borders of tiles, relative to all other neighbouring pixels."""
    height, width = video.shape[-2:]
    spans = [(rows, columns) for rows, columns, _ in tiles.parts(height // 8, width // 8)]
    ratios = []
    for axis, side in ((-2, height), (-1, width)):
        change = video.diff(dim=axis).abs().movedim(axis, 0).flatten(1).mean(1)
        borders = {8 * end for pair in spans for end in (pair[axis].start, pair[axis].stop)} - {0, side}
        at_border = torch.tensor([i + 1 in borders for i in range(side - 1)])
        ratios.append(float(change[at_border].mean() / change[~at_border].mean()))
    return sum(ratios) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=BUNDLED, help="default: the bundled one")
    parser.add_argument("--seeds", type=int, default=4, help="number of videos (default: 4)")
    arguments = parser.parse_args()
    composer = VideoComposer.load(arguments.checkpoint)
    config = composer.config
    size, tiles = (config.height, config.width), Tiles(config.height, config.width)
    large = (2 * size[0], 2 * size[1])
    rows: dict[str, list[tuple[float, float, float]]] = {}
    with TemporaryDirectory() as folder:
        clip = write_video(Path(folder) / "clip.mp4", draw_clip(frames=config.frames), RATE)
        plan = plan_frames(probe(clip), config.frames, rate=RATE)

        def conditions(size: tuple[int, int]) -> list[Condition]:
            source = Source(clip, plan, size, config.extraction)
            return [Condition(name, extract(name, source)) for name in ("motion", "single_image")]

        small, larger = conditions(size), conditions(large)
        truth = draw_clip(size=large[0], frames=config.frames)
        sharp = outline_gradient(truth, disc(truth)).item()
        sampling = Sampling(steps=STEPS)
        for seed in range(arguments.seeds):
            first = compose(composer, TEXT, conditions=small, sampling=sampling, seed=seed)
            start = enlarged(first, large, None, composer.device)
            videos = {"enlarged only": start}
            for denoise, tiled in PASSES:
                again = replace(sampling, denoise=denoise, steps=max(2, round(STEPS * denoise)))
                again = replace(again, tiles=tiles if tiled else None)
                name = f"denoise {denoise}, {'tiles' if tiled else 'entire frames'}"
                videos[name] = compose(
                    composer, TEXT, conditions=larger, init=start, size=large, sampling=again, seed=seed
                )
            for name, video in videos.items():
                mask, before = disc(video), disc(start)
                overlap = float((mask & before).sum() / (mask | before).sum())
                sharpness = outline_gradient(video, mask).item() / sharp
                rows.setdefault(name, []).append((sharpness, overlap, seams(video, tiles)))
    print("| | sharpness | overlap | seams |", "| --- | --- | --- | --- |", sep="\n")
    for name, figures in rows.items():
        print(f"| {name} | {' | '.join(f'{sum(column) / len(column):.2f}' for column in zip(*figures, strict=True))} |")


if __name__ == "__main__":
    main()
