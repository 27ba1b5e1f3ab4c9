"""Training runs with a time budget, on one rank or several: schedule, averaged weights, log, checkpoints."""

from __future__ import annotations

import copy
import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.launch import StopSignals
from training.muon import falling, follow
from training.ranks import World
from vc_core.checkpoint.files import save_pickled
from vc_core.disk import FULL, WriteError, append, make_folder, written_beside
from vc_core.errors import UserError

SAVE_EVERY = 60.0
"""Seconds between checkpoints."""
WARMUP = 60.0
"""Longest time in seconds over which the learning rate rises from 0."""
CHECK_EVERY = 20
"""Steps on a GPU between checks that the gradient is finite: each check waits for the GPU, which then waits for the
host. Weights that became infinite or NaN stay so, and are never saved."""
WAIT = 10.0
"""Seconds between attempts to write to a full disk."""


def rate(done: float, warmup: float = 0.02, decay: float = 0.3, floor: float = 0.02) -> float:
    """The learning rate's factor after a fraction `done` of the budget: linear warm-up, constant, then a cosine to
    `floor` over the last `decay`. A budget raised before the decay gives the same result as a larger budget from
    the start.
    """
    return max(done / warmup, 0.01) if done < warmup else falling((done - (1.0 - decay)) / decay, floor)


class TimedRun:
    """A training run that ends after `minutes` of its own time, however often it is interrupted.

    Iterating yields step numbers, sets the learning rate before each step and saves every minute. In each step the loop
    calls `update` or `count` once. If the run is started again in the same folder, it resumes with the time that it had
    used; with a larger budget it continues until that is used.

    Several ranks, which start with equal weights, average their gradients. The time of the main rank and a flag for a
    received signal are sent with these, so that all ranks change the learning rate and end in the same step.

    Args:
        decay: upper limit of the decay of the averaged weights. Before it is reached, they are an average over about
            the last tenth of all steps, however long the run is.

    Attributes:
        average: the averaged weights, a copy of the model.
        step, used: number of finished steps, and the seconds that they took.
        came: the signal that ended the run, or 0.
        more: numbers of the main rank that are saved with the rest.
    """

    def __init__(
        self,
        out: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        minutes: float,
        decay: float = 0.998,
        world: World | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.out, self.model, self.optimizer = make_folder(out), model, optimizer
        self.world, self.say = world or World(), say
        self.budget, self.decay = minutes * 60.0, decay
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        pairs = zip(self.average.state_dict().values(), model.state_dict().values(), strict=True)
        self._floating = tuple(map(list, zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)))
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.step, self.used, self.came = 0, 0.0, 0
        self.more: dict[str, float] = {}
        self._state_path, self._signals, self._mark = self.out / "state.pt", StopSignals(), time.monotonic()
        self._norm: Tensor | None = None
        if self._state_path.exists():
            self._resume()

    def _resume(self) -> None:
        try:
            state = torch.load(self._state_path, map_location="cpu", weights_only=True)
            for name in ("model", "average", "optimizer"):
                getattr(self, name).load_state_dict(state[name])
            self.step, self.used, self.more = state["step"], state["used"], state.get("more", {})
        except Exception as error:
            raise UserError(
                f"{self._state_path} cannot be resumed ({type(error).__name__}). It is damaged or from another "
                "network. Remove it to start from the beginning, or choose another folder with --out."
            ) from error

    def save(self) -> None:
        """Write the state. On a full disk, wait until there is space."""
        if not self.world.main:
            return
        self._check()
        state = {name: getattr(self, name).state_dict() for name in ("model", "average", "optimizer")}
        state |= {"step": self.step, "used": self.used, "more": self.more}

        def write() -> None:
            with written_beside(self._state_path) as part:
                save_pickled(state, part)

        self.on_disk(write)

    def forget(self) -> None:
        """Remove the saved state, so that the next run in the folder starts from the beginning."""
        if self.world.main:
            self._state_path.unlink(missing_ok=True)

    def return_to(self, weights: Mapping[str, Tensor]) -> None:
        """Set the model's and the averaged weights to these, reset the optimizer's state, and save."""
        for model in (self.model, self.average):
            model.load_state_dict(weights)
        self.optimizer.state.clear()
        self._norm = None
        self.save()

    def on_disk(self, write: Callable[[], None]) -> None:
        """Write, and retry while the disk is full. Raises `UserError` if the write fails for another reason, or if the
        run receives a signal to stop."""
        reported = False
        while True:
            try:
                return write()
            except WriteError as error:
                if error.number not in FULL:
                    raise
                if self._signals.came:
                    raise UserError(
                        f"The run was stopped while the disk of {self.out} was full. The last save is kept. Free some "
                        "space, then run the same command to resume from it."
                    ) from error
                if not reported:
                    self.say(f"The disk of {self.out} is full. The run waits and continues when there is space again.")
                reported = True
            time.sleep(WAIT)
            self._mark = time.monotonic()  # waiting does not count as training

    def __iter__(self) -> Iterator[int]:
        with self._signals:
            saved = self._mark = time.monotonic()
            while self.used < self.budget and not self.came:
                for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
                    now = base * rate(self.used / self.budget, min(0.02, WARMUP / self.budget))
                    # A captured CUDA graph reads the rate from the same tensor.
                    group["lr"] = group["lr"].fill_(now) if isinstance(group["lr"], Tensor) else now
                yield self.step
                self.step += 1
                if self._mark - saved > SAVE_EVERY:
                    self.save()
                    saved = self._mark = time.monotonic()  # saving does not count as the run's own time
            self.save()
            self.came = self.came or self.world.most(self._signals.came)  # a signal during the last step

    def update(self, loss: Tensor, clip: float = 1.0) -> Tensor:
        """Backward, average over ranks, clip the gradient's norm, step, average the weights. Returns the norm.

        Raises `UserError` if the norm is not finite. Nothing has changed then; on a GPU, nothing on the disk.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._agree()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self._note(norm)
        self.optimizer.step()
        follow(*self._floating, self.decay, self.step)
        return norm

    def count(self, norm: Tensor) -> None:
        """Record a step that the model has already done, with a gradient of this norm. Only for a single rank.

        Raises `UserError` if the norm is not finite. Nothing on the disk has changed then.
        """
        self._agree()
        self._note(norm)
        follow(*self._floating, self.decay, self.step)

    def _note(self, norm: Tensor) -> None:
        self._norm = norm
        if norm.device.type == "cpu" or self.step % CHECK_EVERY == 0:
            self._check()

    def _check(self) -> None:
        if self._norm is not None and not self._norm.isfinite():
            raise UserError(
                f"{self.out}: The gradient is not finite at step {self.step}. Run the same command again to resume "
                "from the last checkpoint."
            )

    def _agree(self) -> None:
        """Average the ranks' gradients, adopt the main rank's time, and stop all ranks if one received a signal."""
        now = time.monotonic()
        elapsed, self._mark = now - self._mark, now
        number = self._signals.came
        if self.world.size > 1:
            parameters = [p for p in self.model.parameters() if p.requires_grad]
            # Zeros for parameters that this rank's batch has not used; another rank's may have.
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            main_time = elapsed * self.world.size * self.world.main  # its mean is the main rank's time
            clock = grads[0].new_tensor([main_time, number > 0])
            flat = torch.cat([grad.flatten() for grad in grads] + [clock])
            dist.all_reduce(flat)
            flat /= self.world.size
            *parts, clock = flat.split([*(grad.numel() for grad in grads), 2])
            for parameter, part in zip(parameters, parts, strict=True):
                parameter.grad = part.view_as(parameter)
            elapsed, stopped = clock.tolist()
            number = number or (signal.SIGTERM if stopped > 0 else 0)
        self.used += elapsed
        self.came = int(number)

    def log(self, **values: Any) -> None:
        """Append one line of JSON to the run's log.jsonl."""
        if self.world.main:
            line = json.dumps({"step": self.step, "seconds": round(self.used, 1)} | values)
            self.on_disk(lambda: append(self.out / "log.jsonl", line + "\n"))

    def report(self, **measured: Any) -> None:
        """Log and print the measures of the finished run, and write them to its report.json."""
        self.log(**measured)
        text = json.dumps(measured | {"steps": self.step}, indent=2)
        with written_beside(self.out / "report.json") as part:
            part.write_text(text + "\n", encoding="utf-8")
        figures = (f"{name} {value:.4g}" for name, value in measured.items() if isinstance(value, int | float))
        self.say(f"{self.out.name}, {self.step} steps: {', '.join(figures)}")
