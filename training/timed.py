"""What short training runs with a time budget share: schedule, averaged weights, log, checkpoints that resume."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vc_core.atomic import written_beside
from vc_core.errors import UserError

SAVE_EVERY = 60.0
"""Seconds between checkpoints."""


def save_tensors(state: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, atomically, in float32 on the CPU."""
    from safetensors.torch import save_file

    tensors = {key: value.detach().float().cpu().contiguous() for key, value in state.items()}
    with written_beside(path) as part:
        save_file(tensors, part, metadata=metadata)
        part.chmod(0o644)  # safetensors makes files that only their owner can read


def rate(done: float, warmup: float = 0.04, floor: float = 0.02) -> float:
    """The learning rate's factor after a fraction `done` of the budget: linear warm-up, then cosine to `floor`."""
    if done < warmup:
        return max(done / warmup, 0.01)
    phase = min((done - warmup) / (1.0 - warmup), 1.0)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * phase))


class TimedRun:
    """A training run that ends after `minutes` of its own time, however often it is interrupted.

    Iterating yields step numbers, sets the learning rate before each and saves every minute; after each step the loop
    calls `update`. The averaged weights are in `average`. A run started again in the same folder resumes, with the
    time that the interrupted one had used.
    """

    def __init__(self, out: Path, model: nn.Module, optimizer: torch.optim.Optimizer, minutes: float,
                 decay: float = 0.998) -> None:  # fmt: skip
        self.out, self.model, self.optimizer = Path(out), model, optimizer
        self.budget, self.decay = minutes * 60.0, decay
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.step, self.used = 0, 0.0
        self.out.mkdir(parents=True, exist_ok=True)
        if self._state_path.exists():
            self._resume()

    @property
    def _state_path(self) -> Path:
        return self.out / "state.pt"

    @property
    def done(self) -> float:
        """The fraction of the budget that is used."""
        return self.used / self.budget

    def _resume(self) -> None:
        try:
            state = torch.load(self._state_path, map_location="cpu", weights_only=True)
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.used = state["step"], state["used"]
        except Exception as error:
            raise UserError(
                f"{self._state_path} cannot be resumed ({type(error).__name__}): it is damaged or of another network; "
                "remove it to start anew, or give another folder with --out."
            ) from error

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "used": self.used,
        }
        with written_beside(self._state_path) as part:
            torch.save(state, part)

    def __iter__(self) -> Iterator[int]:
        now = saved = time.monotonic()
        while self.used < self.budget:
            for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
                group["lr"] = base * rate(self.done)
            yield self.step
            self.step += 1
            before, now = now, time.monotonic()
            self.used += now - before
            if now - saved > SAVE_EVERY:
                self.save()
                saved = now
        self.save()

    def update(self, loss: torch.Tensor, clip: float = 1.0) -> float:
        """Backward, clip the gradient's norm, step, average the weights. Returns the norm.

        Raises:
            FloatingPointError: the gradient is not finite; nothing is changed then.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient is not finite at step {self.step}")
        self.optimizer.step()
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            values = self.model.state_dict()
            for key, mean in self.average.state_dict().items():
                value = values[key]
                if value.is_floating_point():
                    mean.lerp_(value.to(mean.dtype), 1.0 - decay)
        return float(norm)

    def log(self, **values: Any) -> None:
        """Append one line of JSON to the run's log.jsonl."""
        line = json.dumps({"step": self.step, "seconds": round(self.used, 1)} | values)
        with open(self.out / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def report(self, **measured: Any) -> None:
        """Log what the finished run was measured to be, print it, and write it to the run's report.json."""
        self.log(**measured)
        text = json.dumps(measured | {"steps": self.step}, indent=2)
        with written_beside(self.out / "report.json") as part:
            part.write_text(text + "\n", encoding="utf-8")
        print(text)
