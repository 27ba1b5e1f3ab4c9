"""The bundled checkpoint's text and image towers, on frames and captions of synthetic scenes.

Contrastive, on pairs of a frame and a caption. A single frame does not show motion, so words of direction and pace
would never be learned from it; linear read-outs of the text layer that the network will see are trained on them
beside it, and others on what a frame shows, which takes far fewer steps than contrast alone. They are not kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from training.data.captions import caption_tokens, captions, motion_class
from training.data.render import render
from training.data.scenes import (
    BACKGROUNDS,
    COLOR_NAMES,
    DIRECTION_WORDS,
    OBJECT_COLORS,
    SHAPES,
    Scenes,
    sample_scenes,
    scene_seeds,
)
from training.muon import Muon
from training.precision import fast_type
from training.ranks import World
from training.timed import TimedRun
from vc_core.config import Config, TowersConfig
from vc_core.encoders.clip import new_towers, preprocess, text_layers, tokenize
from vc_core.files import save_tensors

SIZES = TowersConfig(
    embed_dim=64, text_width=64, text_heads=4, text_layers=4, image_size=64, patch_size=8, image_width=128,
    image_head_width=32, image_layers=4,
)  # fmt: skip
"""The bundled small towers: 4.2 M parameters, of which 3.2 M are the token embedding."""

TRAIN_SEED, TEST_SEED = 11, 12
FILE = "towers.safetensors"
READOUTS = {
    "shape": len(SHAPES),
    "color": len(COLOR_NAMES),
    "other_shape": len(SHAPES) + 1,
    "other_color": len(COLOR_NAMES) + 1,
    "direction": len(DIRECTION_WORDS) + 2,
    "pace": 3,
    "background": len(BACKGROUNDS) + 1,
    "background_first": len(COLOR_NAMES) + 1,
    "background_second": len(COLOR_NAMES) + 1,
}
"""What the text tokens must tell, with the number of classes; the last of most is "not said"."""


IMAGE_READOUTS = {"objects": len(SHAPES) * len(COLOR_NAMES), "colors": len(COLOR_NAMES), "kind": len(BACKGROUNDS)}
"""What the image embedding must tell: the objects seen, the background's colours (any number each) and its kind."""


@dataclass(frozen=True)
class Settings:
    """How the towers are trained: `batch` pairs in a step, of all ranks together, by the type of the device."""

    batch: dict[str, int]
    learning_rate: float


class Towers(nn.Module):
    """The CLIP model, and read-outs that are used in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = new_towers(SIZES)
        width = SIZES.text_width
        embedded = SIZES.embed_dim
        self.readouts = nn.ModuleDict({name: nn.Linear(width, classes) for name, classes in READOUTS.items()})
        self.image_readouts = nn.ModuleDict({name: nn.Linear(embedded, n) for name, n in IMAGE_READOUTS.items()})
        for name in ("objects", "colors"):
            nn.init.constant_(self.image_readouts[name].bias, -2.5)  # most are absent


def labels(scenes: Scenes, motion: bool, background: bool) -> dict[str, torch.Tensor]:
    """What a caption of these scenes says, as classes of READOUTS, each (N,)."""
    single = scenes.count == 1
    direction, pace = motion_class(scenes) if motion else (None, None)
    nothing = torch.zeros_like(scenes.count)

    def said(values: torch.Tensor | None, classes: int) -> torch.Tensor:
        return nothing + classes - 1 if values is None else values

    first, second = scenes.background_color.unbind(1) if background else (None, None)
    return {
        "shape": scenes.shape[:, 0],
        "color": scenes.color[:, 0],
        "other_shape": torch.where(single, len(SHAPES), scenes.shape[:, 1]),
        "other_color": torch.where(single, len(COLOR_NAMES), scenes.color[:, 1]),
        "direction": said(direction, READOUTS["direction"]),
        "pace": nothing if pace is None else pace,
        "background": said(scenes.background_kind if background else None, READOUTS["background"]),
        "background_first": said(first, READOUTS["background_first"]),
        "background_second": said(second, READOUTS["background_second"]),
    }


def image_labels(scenes: Scenes) -> dict[str, torch.Tensor]:
    """What a frame of these scenes shows: "objects" and "colors" (N, classes) of 0 and 1, "kind" (N,)."""
    objects = F.one_hot(scenes.color * len(SHAPES) + scenes.shape, IMAGE_READOUTS["objects"]).float()
    objects = objects[:, 0] + objects[:, 1] * (scenes.count == 2)[:, None]
    colors = F.one_hot(scenes.background_color, IMAGE_READOUTS["colors"]).float().sum(1)
    return {"objects": objects.clamp_max(1.0), "colors": colors, "kind": scenes.background_kind}


def pairs(
    seed: int, start: int, count: int, motion: bool, background: bool, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, Scenes]:
    """Frames (N, 3, 64, 64) in [0, 1], tokens (N, L) cut after the longest caption, and the scenes."""
    seeds = scene_seeds(seed, start, count)
    told = sample_scenes(seeds)
    scenes = sample_scenes(seeds.to(device))
    frames = render(scenes, 64, 1, seeds.remainder(16), ("video",)).video[:, :, 0]
    tokens = caption_tokens(captions(told, variation=start, motion=float(motion), background=float(background)))
    return frames, trim(tokens).to(device), scenes


def trim(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens (N, L) without the columns in which every caption has ended."""
    return tokens[:, : int(tokens.argmax(1).max()) + 1]


def image_features(towers: Towers, frames: torch.Tensor) -> torch.Tensor:
    """Embeddings (N, D), not normalised, of frames (N, 3, H, W) in [0, 1]; while training in the fastest type."""
    size = SIZES.image_size
    dtype = fast_type(frames.device)
    with torch.autocast(frames.device.type, dtype, enabled=towers.training and dtype != torch.float32):
        return towers.clip.visual(preprocess(frames, (size, size))).float()


def text_features(towers: Towers, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised embeddings (N, D) of captions, and the penultimate layer's token at the end of each (N, D)."""
    ends = tokens.argmax(1)  # the end token has the highest number
    rows = torch.arange(len(tokens), device=tokens.device)
    penultimate, final = (layer[rows, ends] for layer in text_layers(towers.clip, tokens))
    return F.normalize(final @ towers.clip.text_projection, dim=-1), penultimate


def readout_loss(towers: Towers, token: torch.Tensor, targets: dict[str, torch.Tensor]) -> torch.Tensor:
    losses = [F.cross_entropy(towers.readouts[name](token), target) for name, target in targets.items()]
    return torch.stack(losses).mean()


def image_readout_loss(towers: Towers, embedding: torch.Tensor, targets: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sums over the classes of what can occur together, so that the few that do are not drowned."""
    said = {name: head(embedding) for name, head in towers.image_readouts.items()}
    together = [
        F.binary_cross_entropy_with_logits(said[name], targets[name], reduction="sum") / len(embedding)
        for name in ("objects", "colors")
    ]
    return torch.stack([*together, F.cross_entropy(said["kind"], targets["kind"])]).mean()


@torch.no_grad()
def evaluate(towers: Towers, batches: int = 4, batch: int = 128) -> dict[str, float]:
    """Retrieval in batches of held-out pairs, nearest text for colour and shape, how often read-outs are right."""
    towers.eval()
    found, read = [], {name: [] for name in READOUTS}
    for i in range(batches):
        motion = bool(i % 2)
        frames, tokens, scenes = pairs(TEST_SEED, i * batch, batch, motion, background=True)
        texts, token = text_features(towers, tokens)
        similar = F.normalize(image_features(towers, frames), dim=-1) @ texts.T
        found.append((similar.argmax(1) == torch.arange(batch)).float().mean())
        for name, target in labels(scenes, motion, background=True).items():
            read[name].append((towers.readouts[name](token).argmax(1) == target).float().mean())
    scenes = sample_scenes(scene_seeds(TEST_SEED, 10_000, 800))
    scenes = scenes[(scenes.count == 1).nonzero(as_tuple=True)[0]]
    frames = render(scenes, 64, 1, 8, ("video",)).video[:, :, 0]
    names = [f"{'an' if c[0] == 'o' else 'a'} {c} {s}" for c in OBJECT_COLORS for s in SHAPES]
    texts, _ = text_features(towers, trim(tokenize(names)))
    nearest = (F.normalize(image_features(towers, frames), dim=-1) @ texts.T).argmax(1)
    return {
        "retrieval": torch.stack(found).mean().item(),
        "nearest_text_color": (nearest // len(SHAPES) == scenes.color[:, 0]).float().mean().item(),
        "nearest_text_shape": (nearest % len(SHAPES) == scenes.shape[:, 0]).float().mean().item(),
    } | {f"read_{name}": torch.stack(values).mean().item() for name, values in read.items()}


def _optimizer(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """Muon for the layers' matrices; Adam, without decay, for embeddings (most words are never seen) and vectors."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        (matrices if parameter.dim() >= 2 and "embedding" not in name else others).append(parameter)
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": others, "orthogonal": False}]
    return Muon(groups, lr=learning_rate)


def train(out: Path, minutes: float, settings: Settings, world: World, say: Callable[[str], None] = print) -> TimedRun:
    """Trains for `minutes`, or goes on with what is in `out`.

    Once the time is up OUT/towers.safetensors (open_clip's names, the config in the metadata) and OUT/report.json are
    there.
    """
    from open_clip.loss import ClipLoss

    device, batch = world.device, max(settings.batch[world.device.type] // world.size, 2)
    torch.manual_seed(0)
    towers, contrast = Towers().to(device), ClipLoss()
    run = TimedRun(out, towers, _optimizer(towers, settings.learning_rate), minutes, world=world, say=say)
    for step in run:
        towers.train()
        motion, background = step % 2 == 0, step % 4 < 3
        start = (step * world.size + world.rank) * batch
        frames, tokens, scenes = pairs(TRAIN_SEED, start, batch, motion, background, device)
        images = image_features(towers, frames)
        texts, token = text_features(towers, tokens)
        loss = contrast(F.normalize(images, dim=-1), texts, towers.clip.logit_scale.exp())
        reading = readout_loss(towers, token, labels(scenes, motion, background))
        seeing = image_readout_loss(towers, images, image_labels(scenes))
        run.update(loss + 0.5 * reading + 0.5 * seeing)
        with torch.no_grad():
            towers.clip.logit_scale.clamp_(0.0, math.log(100.0))
        if step % 20 == 0:
            scale = towers.clip.logit_scale.exp().item()
            run.log(contrast=loss.item(), reading=reading.item(), seeing=seeing.item(), scale=scale)
    if world.main and not run.came:
        run.report(**evaluate(run.average.cpu()), batch=batch * world.size)
        state = run.average.clip.float().state_dict()
        save_tensors(out / FILE, state, {"config": Config(towers=SIZES).to_json()})
    return run
