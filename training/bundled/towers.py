"""Training of the bundled checkpoint's text and image towers, on frames and captions of synthetic scenes.

The loss is contrastive, on pairs of a frame and a caption. A single frame does not show motion, so the towers would
never learn words of direction and pace. So linear read-outs of the text layer that the network uses are trained on
these words too, and others on the contents of a frame, which needs far fewer steps than contrast alone. Read-outs are
not saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.bundled.design import PartPlan, read_design
from training.data.synthetic.captions import caption_tokens, captions, motion_class
from training.data.synthetic.render import render
from training.data.synthetic.scenes import (
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
from vc_core.checkpoint.files import save_tensors
from vc_core.config import Config
from vc_core.encoders.clip import new_towers, preprocess, text_layers, tokenize

SIZES = read_design()[1].towers
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
"""What is predicted from the text tokens, with the number of classes; the last class of most is "not mentioned"."""
IMAGE_READOUTS = {"objects": len(SHAPES) * len(COLOR_NAMES), "colors": len(COLOR_NAMES), "kind": len(BACKGROUNDS)}
"""What is predicted from the image embedding: visible objects and background colours (several each), and its kind."""


class Towers(nn.Module):
    """The CLIP model, and read-outs that are used only in training."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = new_towers(SIZES)
        self.readouts = nn.ModuleDict({name: nn.Linear(SIZES.text_width, n) for name, n in READOUTS.items()})
        self.image_readouts = nn.ModuleDict({name: nn.Linear(SIZES.embed_dim, n) for name, n in IMAGE_READOUTS.items()})
        for name in ("objects", "colors"):
            nn.init.constant_(self.image_readouts[name].bias, -2.5)  # most are absent


def labels(scenes: Scenes, motion: bool, background: bool) -> dict[str, Tensor]:
    """Return the contents of the scenes' captions as classes of READOUTS, each (N,)."""
    single = scenes.count == 1
    direction, pace = motion_class(scenes)
    classes = {
        "shape": scenes.shape[:, 0],
        "color": scenes.color[:, 0],
        "other_shape": torch.where(single, len(SHAPES), scenes.shape[:, 1]),
        "other_color": torch.where(single, len(COLOR_NAMES), scenes.color[:, 1]),
        "direction": direction,
        "pace": pace if motion else torch.zeros_like(pace),
        "background": scenes.background_kind,
        "background_first": scenes.background_color[:, 0],
        "background_second": scenes.background_color[:, 1],
    }
    missing = [] if background else [name for name in READOUTS if name.startswith("background")]
    missing += [] if motion else ["direction"]
    return classes | {name: torch.full_like(classes[name], READOUTS[name] - 1) for name in missing}


def image_labels(scenes: Scenes) -> dict[str, Tensor]:
    """Return the contents of the scenes' frames: "objects" and "colors" (N, classes) of 0 and 1, "kind" (N,)."""
    objects = F.one_hot(scenes.color * len(SHAPES) + scenes.shape, IMAGE_READOUTS["objects"]).float()
    objects = objects[:, 0] + objects[:, 1] * (scenes.count == 2)[:, None]
    colors = F.one_hot(scenes.background_color, IMAGE_READOUTS["colors"]).float().sum(1)
    return {"objects": objects.clamp_max(1.0), "colors": colors, "kind": scenes.background_kind}


def pairs(
    seed: int, start: int, count: int, motion: bool, background: bool, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, Scenes]:
    """Return frames (N, 3, 64, 64) in [0, 1], tokens (N, L) cut after the longest caption, and the scenes."""
    seeds = scene_seeds(seed, start, count)
    on_cpu = sample_scenes(seeds)
    scenes = sample_scenes(seeds.to(device))
    frames = render(scenes, 64, 1, seeds.remainder(16), ("video",)).video[:, :, 0]
    tokens = caption_tokens(captions(on_cpu, variation=start, motion=float(motion), background=float(background)))
    return frames, trim(tokens).to(device), scenes


def trim(tokens: Tensor) -> Tensor:
    """Return tokens (N, L) without the columns after the end of every caption."""
    return tokens[:, : int(tokens.argmax(1).max()) + 1]


def image_features(towers: Towers, frames: Tensor) -> Tensor:
    """Return embeddings (N, D), not normalised, of frames (N, 3, H, W) in [0, 1]; fastest dtype in training."""
    dtype = fast_type(frames.device)
    with torch.autocast(frames.device.type, dtype, enabled=towers.training and dtype != torch.float32):
        return towers.clip.visual(preprocess(frames, (SIZES.image_size, SIZES.image_size))).float()


def text_features(towers: Towers, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return normalised embeddings (N, D) of captions, and the penultimate layer's end token of each (N, D)."""
    ends = tokens.argmax(1)  # the end token has the highest number
    rows = torch.arange(len(tokens), device=tokens.device)
    penultimate, final = (layer[rows, ends] for layer in text_layers(towers.clip, tokens))
    return F.normalize(final @ towers.clip.text_projection, dim=-1), penultimate


def image_readout_loss(towers: Towers, embedding: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """Return the loss of the image read-outs. It sums over classes that can occur together, because a mean would be
    dominated by the many absent ones."""
    logits = {name: head(embedding) for name, head in towers.image_readouts.items()}
    together = [
        F.binary_cross_entropy_with_logits(logits[name], targets[name], reduction="sum") / len(embedding)
        for name in ("objects", "colors")
    ]
    return torch.stack([*together, F.cross_entropy(logits["kind"], targets["kind"])]).mean()


@torch.no_grad()
def evaluate(towers: Towers, batches: int = 4, batch: int = 128) -> dict[str, float]:
    """Measure retrieval in batches of held-out pairs, nearest text for colour and shape, and accuracy of read-outs."""
    towers.eval()
    retrieved, read = [], {name: [] for name in READOUTS}
    for i in range(batches):
        motion = bool(i % 2)
        frames, tokens, scenes = pairs(TEST_SEED, i * batch, batch, motion, background=True)
        texts, token = text_features(towers, tokens)
        similar = F.normalize(image_features(towers, frames), dim=-1) @ texts.T
        retrieved.append((similar.argmax(1) == torch.arange(batch)).float().mean())
        for name, target in labels(scenes, motion, background=True).items():
            read[name].append((towers.readouts[name](token).argmax(1) == target).float().mean())
    scenes = sample_scenes(scene_seeds(TEST_SEED, 10_000, 800))
    scenes = scenes[(scenes.count == 1).nonzero(as_tuple=True)[0]]
    frames = render(scenes, 64, 1, 8, ("video",)).video[:, :, 0]
    names = [f"{'an' if c[0] == 'o' else 'a'} {c} {s}" for c in OBJECT_COLORS for s in SHAPES]
    texts, _ = text_features(towers, trim(tokenize(names)))
    nearest = (F.normalize(image_features(towers, frames), dim=-1) @ texts.T).argmax(1)
    return {
        "retrieval": torch.stack(retrieved).mean().item(),
        "nearest_text_color": (nearest // len(SHAPES) == scenes.color[:, 0]).float().mean().item(),
        "nearest_text_shape": (nearest % len(SHAPES) == scenes.shape[:, 0]).float().mean().item(),
    } | {f"read_{name}": torch.stack(values).mean().item() for name, values in read.items()}


def train(out: Path, minutes: float, plan: PartPlan, world: World, say: Callable[[str], None] = print) -> TimedRun:
    """Train for `minutes`, or continue the run in `out`.

    At the end it writes OUT/towers.safetensors (open_clip's names, the config in the metadata) and OUT/report.json.
    """
    from open_clip.loss import ClipLoss

    device, batch = world.device, max(plan.batch[world.device.type] // world.size, 2)
    torch.manual_seed(0)
    towers, contrast = Towers().to(device), ClipLoss()
    # Adam without weight decay for vectors, and for embeddings, because most words never occur.
    matrices, others = [], []
    for name, parameter in towers.named_parameters():
        (matrices if parameter.dim() >= 2 and "embedding" not in name else others).append(parameter)
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": others, "orthogonal": False}]
    run = TimedRun(out, towers, Muon(groups, lr=plan.learning_rate), minutes, world=world, say=say)
    for step in run:
        towers.train()
        motion, background = step % 2 == 0, step % 4 < 3
        start = (step * world.size + world.rank) * batch
        frames, tokens, scenes = pairs(TRAIN_SEED, start, batch, motion, background, device)
        images = image_features(towers, frames)
        texts, token = text_features(towers, tokens)
        loss = contrast(F.normalize(images, dim=-1), texts, towers.clip.logit_scale.exp())
        targets = labels(scenes, motion, background)
        read = [F.cross_entropy(towers.readouts[name](token), target) for name, target in targets.items()]
        reading = torch.stack(read).mean()
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
