"""Batches of one rank, read ahead by worker processes. The number of workers does not change the batches."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.data.order import Order, RankOrder, Slot, generator_for
from training.data.sample import BadSample, Batch, Clips, Sample
from vc_core.errors import UserError

try:
    import resource
except ImportError:  # Windows, where tensors of other processes are not files
    resource = None

Keep = Callable[[Sequence[int]], Mapping[str, Tensor]]
"""From the numbers of a batch's samples to `(B,)` bool by name: whether they keep text, style and each condition."""

ATTEMPTS = 100  # number of clips to try for one sample before reading stops with an error
FEW = 1000  # `max_bad` is a fraction of at least this many samples: 1 bad sample of the first 10 is not yet 10%
SHOWN = 3  # number of the latest bad samples that the error names


class Batches(Dataset):
    """The batches of a domain as a map from `Slot`s."""

    def __init__(self, clips: Mapping[int, Clips], order: Order, keep: Keep):
        self.clips, self.order, self.keep = dict(clips), order, keep

    def __getitem__(self, slot: Slot) -> Batch | UserError:
        """A batch, or an error for the trainer's process to raise: raised in a worker, it would have a traceback."""
        numbers = tuple(map(self.order.number, slot.counts))
        kept = dict(self.keep(numbers))
        bad: list[str] = []
        try:
            samples = [
                self._sample(count, slot.frames, {name for name, rows in kept.items() if rows[row]}, bad)
                for row, count in enumerate(slot.counts)
            ]
        except UserError as error:
            return error
        return Batch(samples, kept, numbers, slot.after, tuple(bad))

    def _sample(self, count: int, frames: int, inputs: set[str], bad: list[str]) -> Sample:
        for attempt in range(ATTEMPTS):
            generator = generator_for(self.order.seed, self.order.number(count), "sample", attempt)
            try:
                return self.clips[frames].sample(self.order.index(count, attempt), inputs, generator)
            except BadSample as error:
                bad.append(str(error))
        raise UserError(f"{ATTEMPTS} samples in a row cannot be read. Check the data. The last error: {bad[-1]}")


def load(
    clips: Mapping[int, Clips],
    own: RankOrder,
    keep: Keep,
    count: int = 0,
    workers: int = 0,
    max_bad: float = 0.01,
) -> Iterator[Batch]:
    """Yield this rank's batches forever, `own.accumulate` for each step.

    Args:
        clips: the domain's, by number of frames, for each of `own.frames`.
        own: this rank's part of the domain's order.
        keep: the conditions that each sample keeps. With workers it must be picklable.
        count: position in the domain's order: `Batch.after` of the last finished step.
        workers: processes that read ahead; 0 reads in this process.
        max_bad: fraction of samples that may be unreadable, of those that this rank has read since it started.

    Raises:
        UserError: more of them are unreadable; it names some.
    """
    loader = DataLoader(
        Batches(clips, own.order, keep),
        batch_size=None,
        sampler=own.slots(count),
        num_workers=workers,
        worker_init_fn=_leave_signals,
        generator=torch.Generator(),  # not the global one: the network's dropout would depend on the workers
    )
    if workers and resource:  # each tensor from another process is an open file: the limit is soon reached
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    total, bad, last = 0, 0, []
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        total, bad, last = total + len(batch.samples), bad + len(batch.bad), [*last, *batch.bad][-SHOWN:]
        if bad > max_bad * max(total, FEW):
            raise UserError(
                f"{bad} of {total} samples cannot be read. max_bad allows a fraction of {max_bad:g} (of at least {FEW} "
                f"samples). Fix the data or raise max_bad. The last errors: {' '.join(last)}"
            )
        yield batch


def _leave_signals(_: int) -> None:
    """Ignore signals in workers: the trainer handles them, and needs its workers until the step is done."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
