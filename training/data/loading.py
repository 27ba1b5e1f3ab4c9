"""Batches of one rank, read ahead by worker processes: the same whatever their number."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.data.order import Order, Share, Slot, generator_for
from training.data.sample import BadSample, Batch, Clips, Sample
from vc_core.errors import UserError

try:
    import resource
except ImportError:  # Windows, where tensors of other processes are no files
    resource = None

Keep = Callable[[Sequence[int]], Mapping[str, Tensor]]
"""From the numbers of a batch's samples to which of them keep text, style and each condition, `(B,)` bool by name."""

ATTEMPTS = 100  # clips that are tried for one sample; where none of so many can be read, the data set is not there
FEW = 1000  # samples that the share of bad ones is reckoned of at least: one of the first ten is not yet a tenth
TOLD = 3  # bad samples that the error names, the last ones


class Batches(Dataset):
    """The batches of a domain as a map from `Slot`s."""

    def __init__(self, clips: Mapping[int, Clips], order: Order, keep: Keep):
        self.clips, self.order, self.keep = dict(clips), order, keep

    def __getitem__(self, slot: Slot) -> Batch | UserError:
        """A batch, or an error that the trainer's process is to raise: a worker's would come with its traceback."""
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

    def _sample(self, count: int, frames: int, kept: set[str], bad: list[str]) -> Sample:
        for attempt in range(ATTEMPTS):
            generator = generator_for(self.order.seed, self.order.number(count), "sample", attempt)
            try:
                return self.clips[frames].sample(self.order.index(count, attempt), kept, generator)
            except BadSample as error:
                bad.append(str(error))
        raise UserError(f"{ATTEMPTS} samples in a row cannot be read, the last one because: {bad[-1]}; check the data.")


def load(
    clips: Mapping[int, Clips],
    share: Share,
    keep: Keep,
    count: int = 0,
    workers: int = 0,
    max_bad: float = 0.01,
) -> Iterator[Batch]:
    """This rank's batches without end, `share.accumulate` for each step.

    Args:
        clips: the domain's, by their number of frames, for each of `share.frames`.
        keep: which conditions each sample keeps. With workers it must be picklable.
        count: where the domain's order goes on: `Batch.after` of the last step that was done.
        workers: processes that read ahead; 0 reads in this one.
        max_bad: share of samples that may be unreadable, of those that this rank took since it started.

    Raises:
        UserError: more of them are unreadable; it names some.
    """
    loader = DataLoader(
        Batches(clips, share.order, keep),
        batch_size=None,
        sampler=share.slots(count),
        num_workers=workers,
        worker_init_fn=_leave_signals,
        generator=torch.Generator(),  # the global one is the network's, whose dropout would depend on the workers
    )
    if workers and resource:  # each tensor that comes from another process is an open file: the limit is soon reached
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    taken, bad, last = 0, 0, []
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        taken, bad, last = taken + len(batch.samples), bad + len(batch.bad), [*last, *batch.bad][-TOLD:]
        if bad > max_bad * max(taken, FEW):
            raise UserError(
                f"{bad} of {taken} samples cannot be read, and max_bad allows a share of {max_bad:g} (of at least {FEW}"
                f"): mend the data or allow more. The last ones: {'; '.join(last)}."
            )
        yield batch


def _leave_signals(_: int) -> None:
    """Signals that reach all processes of a run are for the trainer, which needs its workers until the step is done."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
