"""What is seen of a run: tensorboard, a line of JSON every few steps, and a line of progress."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.data.sample import Batch
from training.ranks import Lane, World
from training.recipe import Domain, Recipe
from vc_core.disk import append, writing, written_beside

QUARTERS = 4
"""Parts of the schedule whose losses are told apart: little noise tells of detail, much of content."""


def domain_names(data: Iterable[Domain]) -> list[str]:
    """What the log calls the domains: `videos` or `images`, with a number where there are several of a kind."""
    kinds = ["images" if max(domain.lengths or (domain.frames,)) == 1 else "videos" for domain in data]
    return [f"{kind}{i}" if kinds.count(kind) > 1 else kind for i, kind in enumerate(kinds)]


class Log:
    """Gathers what happens on all ranks; the main one writes it to `out/log.jsonl` and `out/tensorboard`.

    Args:
        timesteps: of the noise schedule.
        step: where the run goes on. What an interrupted one logged beyond is forgotten.
        seconds: that the run has used in the starts before this one.
    """

    def __init__(self, out: Path, recipe: Recipe, world: World, timesteps: int, step: int = 0, seconds: float = 0.0):
        self.path, self.recipe, self.world, self.timesteps = Path(out) / "log.jsonl", recipe, world, timesteps
        self.names = domain_names(recipe.data)
        self.seconds, self._now, self._written = seconds, time.monotonic(), seconds
        self._bad: list[str] = []
        self._told: list[tuple[int, int, Tensor, Tensor]] = []  # domain, frames, losses and timesteps of batches
        self._board = self._bar = None
        if world.main:
            from torch.utils.tensorboard import SummaryWriter
            from tqdm import tqdm

            _forget(self.path, step)
            threading.excepthook = partial(_of_thread, threading.excepthook)
            with self._boarding():
                self._board = SummaryWriter(str(Path(out) / "tensorboard"), purge_step=step + 1)
            # Where nobody looks, a line every few minutes is enough.
            interval = 0.5 if sys.stderr.isatty() else 120.0
            self._bar = tqdm(total=recipe.steps, initial=step, unit="step", mininterval=interval, dynamic_ncols=True)

    def take(self, batches: Sequence[tuple[Lane, Batch]], outcomes: Sequence[tuple[Tensor, Tensor]]) -> None:
        """What one step on this rank has learned from, and the losses and timesteps of each batch's samples."""
        for (lane, batch), outcome in zip(batches, outcomes, strict=True):
            self._told.append((lane.domain, batch.frames, *outcome))
            self._bad += batch.bad
        now = time.monotonic()
        self.seconds, self._now = self.seconds + now - self._now, now
        if self._bar is not None:
            self._bar.update()

    def write(self, step: int, norms: Mapping[str, float], rates: Mapping[str, float], **more: Any) -> dict[str, Any]:
        """Writes the means since the last time, and this step's norms of the gradient and learning rates, by the groups
        of parameters. All ranks take part; the main one gets what was written."""
        sums = torch.zeros(2, len(self.names), QUARTERS, dtype=torch.float64)
        for domain, _, losses, timesteps in self._told:  # only now: before, it would wait for the device in every step
            quarters = (timesteps.cpu().long() * QUARTERS // self.timesteps).clamp(max=QUARTERS - 1)
            losses = losses.cpu().double()
            sums[:, domain].index_add_(1, quarters, torch.stack([losses, torch.ones_like(losses)]))
        losses, counts = self.world.sum(sums)
        own = [sum(frames * len(losses) for _, frames, losses, _ in self._told), len(self._bad)]
        frames, bad = self.world.sum(torch.tensor(own)).tolist()
        memory = self.world.most(_memory(self.world.device))
        reasons = self.world.gathered(self._bad) if bad else []
        seconds = max(self.seconds - self._written, 1e-9)
        self._written, self._told, self._bad = self.seconds, [], []
        if not self.world.main:
            return {}
        values = {
            **self._means(losses, counts),
            **{f"norm/{name}": norm for name, norm in norms.items()},
            **{f"rate/{name}": rate for name, rate in rates.items()},
            "clips_per_second": float(counts.sum()) / seconds,
            "frames_per_second": frames / seconds,
            "memory_gib": memory / 2**30,
            **more,
            **({"bad_samples": bad} if bad else {}),
        }
        with self._boarding():
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, step)
        line = {"step": step, "seconds": round(self.seconds, 1), **values, **({"bad": reasons} if reasons else {})}
        append(self.path, json.dumps(line) + "\n")
        speed = "{clips_per_second:.3g} clips/s, {frames_per_second:.3g} frames/s".format(**values)
        self._bar.set_postfix_str(f"loss {values['loss']:.4f}, {speed}", refresh=False)
        return line

    def _means(self, losses: Tensor, counts: Tensor) -> dict[str, float]:
        """The loss of the run, of each domain and of each quarter of the schedule that had samples."""
        weights = torch.tensor([domain.weight for domain in self.recipe.data], dtype=torch.float64)
        of_domains = losses.sum(1) / counts.sum(1).clamp(min=1)
        means = {"loss": float((weights * of_domains).sum() / weights.sum())}
        for d, name in enumerate(self.names):
            means[f"loss/{name}"] = float(of_domains[d])
            for q in range(QUARTERS):
                if counts[d, q]:
                    first, last = (self.timesteps * end // QUARTERS for end in (q, q + 1))
                    means[f"loss/{name}/{first}-{last - 1}"] = float(losses[d, q] / counts[d, q])
        return means

    def say(self, text: str) -> None:
        """A line for the user, beside the progress."""
        if self._bar is not None:
            self._bar.write(f"vc: {text}", file=sys.stderr)

    def video(self, name: str, video: Tensor, step: int) -> None:
        """A video `(3, F, H, W)` in [0, 1], into tensorboard as its frames side by side."""
        if self._board is not None:
            with self._boarding():
                self._board.add_image(name, torch.cat(list(video.clamp(0, 1).unbind(1)), dim=-1), step)

    def skip_time(self) -> None:
        """What has passed since the last step was no training, and does not count for the throughput."""
        self._now = time.monotonic()

    def close(self) -> None:
        """Ends it, with all of it written."""
        self.leave()
        if self._board is not None:
            with self._boarding():
                self._board.close()

    def leave(self) -> None:
        """Gives the terminal back, however the run ends."""
        if self._bar is not None:
            self._bar.close()

    def _boarding(self) -> AbstractContextManager[None]:
        return writing(self.path.parent / "tensorboard")


def _of_thread(others: Callable[[Any], Any], told: Any) -> None:
    """What tensorboard's own thread fails at is raised by its next call too, and told once."""
    if not type(told.thread).__module__.startswith("tensorboard."):
        others(told)


def _forget(path: Path, step: int) -> None:
    """Removes the lines beyond a step, and one that was half written."""
    if not path.exists():
        return
    kept = []
    with suppress(ValueError):
        for line in path.read_text(encoding="utf-8").splitlines():
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    with written_beside(path) as part:
        part.write_text("".join(kept), encoding="utf-8")


def _memory(device: torch.device) -> int:
    """Bytes at the peak: of the device, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
