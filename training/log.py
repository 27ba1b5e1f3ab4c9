"""The log of a run: tensorboard, a line of JSON every few steps, and a progress bar."""

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
from vc_core.errors import counted

QUARTERS = 4
"""Parts of the noise schedule with separate losses: those at low noise measure detail, those at high noise content."""


def domain_names(data: Iterable[Domain]) -> list[str]:
    """Return the domains' names in the log: `videos` or `images`, with a number if there are several of a kind."""
    kinds = ["images" if max(domain.lengths or (domain.frames,)) == 1 else "videos" for domain in data]
    return [f"{kind}{i}" if kinds.count(kind) > 1 else kind for i, kind in enumerate(kinds)]


class Log:
    """Collects losses on all ranks; the main rank writes them to `out/log.jsonl` and `out/tensorboard`.

    Args:
        timesteps: number of steps of the noise schedule.
        step: the step that the run continues from. Later lines of an interrupted run are removed.
        seconds: training time before this start.
    """

    def __init__(self, out: Path, recipe: Recipe, world: World, timesteps: int, step: int = 0, seconds: float = 0.0):
        self.path, self.recipe, self.world, self.timesteps = Path(out) / "log.jsonl", recipe, world, timesteps
        self.names = domain_names(recipe.data)
        self.seconds, self._now, self._written = seconds, time.monotonic(), seconds
        self._bad: list[str] = []
        self._total_bad = 0  # on all ranks
        self._batches: list[tuple[int, int, Tensor, Tensor]] = []  # domain, frames, losses and timesteps of each
        self._board = self._bar = None
        if world.main:
            from torch.utils.tensorboard import SummaryWriter
            from tqdm import tqdm

            _forget(self.path, step)
            threading.excepthook = partial(_thread_error, threading.excepthook)
            with self._boarding():
                self._board = SummaryWriter(str(Path(out) / "tensorboard"), purge_step=step + 1)
            # Not a terminal: a line every few minutes is enough.
            interval = 0.5 if sys.stderr.isatty() else 120.0
            self._bar = tqdm(total=recipe.steps, initial=step, unit="step", mininterval=interval, dynamic_ncols=True)

    def take(self, batches: Sequence[tuple[Lane, Batch]], outcomes: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Add one step of this rank: its batches, and the losses and timesteps of each batch's samples."""
        for (lane, batch), outcome in zip(batches, outcomes, strict=True):
            self._batches.append((lane.domain, batch.frames, *outcome))
            self._bad += batch.bad
        now = time.monotonic()
        self.seconds, self._now = self.seconds + now - self._now, now
        if self._bar is not None:
            self._bar.update()

    def write(self, step: int, norms: Mapping[str, float], rates: Mapping[str, float], **more: Any) -> dict[str, Any]:
        """Write the mean losses since the last call, and this step's gradient norms and learning rates of each
        parameter group. All ranks must call this. Returns the line that was written, on the main rank."""
        sums = torch.zeros(2, len(self.names), QUARTERS, dtype=torch.float64)
        for domain, _, losses, timesteps in self._batches:  # not in `take`, which would then wait for the device
            quarters = (timesteps.cpu().long() * QUARTERS // self.timesteps).clamp(max=QUARTERS - 1)
            losses = losses.cpu().double()
            sums[:, domain].index_add_(1, quarters, torch.stack([losses, torch.ones_like(losses)]))
        losses, counts = self.world.sum(sums)
        own = [sum(frames * len(losses) for _, frames, losses, _ in self._batches), len(self._bad)]
        frames, bad = self.world.sum(torch.tensor(own)).tolist()
        memory = self.world.most(_memory(self.world.device))
        reasons = self.world.gathered(self._bad) if bad else []
        seconds = max(self.seconds - self._written, 1e-9)
        self._written, self._batches, self._bad = self.seconds, [], []
        if not self.world.main:
            return {}
        if bad and not self._total_bad:
            self.say(f"a sample was unreadable and another one was used. {reasons[0]}")
        self._total_bad += bad
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
        """Return the loss of the run, of each domain and of each quarter of the schedule that had samples."""
        weights = torch.tensor([domain.weight for domain in self.recipe.data], dtype=torch.float64)
        domain_losses = losses.sum(1) / counts.sum(1).clamp(min=1)
        means = {"loss": float((weights * domain_losses).sum() / weights.sum())}
        for d, name in enumerate(self.names):
            means[f"loss/{name}"] = float(domain_losses[d])
            for q in range(QUARTERS):
                if counts[d, q]:
                    first, last = (self.timesteps * end // QUARTERS for end in (q, q + 1))
                    means[f"loss/{name}/{first}-{last - 1}"] = float(losses[d, q] / counts[d, q])
        return means

    def say(self, text: str) -> None:
        """Print a line for the user, above the progress bar."""
        if self._bar is not None:
            self._bar.write(f"vc: {text}", file=sys.stderr)

    def video(self, name: str, video: Tensor, step: int) -> None:
        """Write a video `(3, F, H, W)` in [0, 1] to tensorboard, as its frames side by side."""
        if self._board is not None:
            with self._boarding():
                self._board.add_image(name, torch.cat(list(video.clamp(0, 1).unbind(1)), dim=-1), step)

    def skip_time(self) -> None:
        """Do not count the time since the last step as training time, for example after saving."""
        self._now = time.monotonic()

    def close(self) -> None:
        """Write everything and close the log."""
        if self._total_bad:
            samples = counted(self._total_bad, "sample was", "samples were")
            self.say(f"{samples} unreadable and replaced by others; {self.path} lists them")
        self.leave()
        if self._board is not None:
            with self._boarding():
                self._board.close()

    def leave(self) -> None:
        """Close the progress bar, also after an error."""
        if self._bar is not None:
            self._bar.close()

    def _boarding(self) -> AbstractContextManager[None]:
        return writing(self.path.parent / "tensorboard")


def _thread_error(handler: Callable[[Any], Any], arguments: Any) -> None:
    """Do not print errors of tensorboard's own thread, because its next call raises them again."""
    if not type(arguments.thread).__module__.startswith("tensorboard."):
        handler(arguments)


def _forget(path: Path, step: int) -> None:
    """Remove the lines after a step, and an incomplete last line."""
    if not path.exists():
        return
    lines = []
    with suppress(ValueError):
        for line in path.read_text(encoding="utf-8").splitlines():
            if json.loads(line)["step"] <= step:
                lines.append(line + "\n")
    with written_beside(path) as part:
        part.write_text("".join(lines), encoding="utf-8")


def _memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of the device, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
