"""The order of samples and their batches depend only on the seed and the count."""

from collections import Counter
from itertools import islice

import pytest
import torch

from tests.training.clips import same
from training.data.loading import ATTEMPTS, FEW, load
from training.data.order import Order, RankOrder, draw, generator_for, permuted
from training.data.sample import BadSample, Sample
from vc_core.errors import UserError


@pytest.mark.parametrize("length", [1, 2, 3, 5, 64, 1000, 1025])
def test_a_permutation_maps_to_every_place_once(length):
    for key in range(3):
        assert sorted(permuted(place, length, key) for place in range(length)) == list(range(length))


def test_permutations_are_uniform_and_differ_by_key():
    orders = Counter(tuple(permuted(place, 3, epoch) for place in range(3)) for epoch in range(6000))
    assert len(orders) == 6
    assert sum((count - 1000) ** 2 / 1000 for count in orders.values()) < 20.5  # chi-square, p = 0.001
    million = [permuted(place, 400_000_000, "images") for place in range(50)]
    assert len(set(million)) == 50 and max(million) > 300_000_000 > 100_000_000 > min(million)


def test_draws_are_the_same_on_every_machine():
    assert draw(0, "noise", 7) == 6771629725129447101
    numbers = [torch.rand((), generator=generator_for(0, n)).item() for n in range(1000)]
    assert len(set(numbers)) > 990 and abs(sum(numbers) / 1000 - 0.5) < 0.03


def test_an_epoch_uses_every_clip_once_and_the_next_has_another_order():
    order = Order(seed=4, length=37)
    epochs = [[order.index(epoch * 37 + n) for n in range(37)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(37)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != [Order(5, 37).index(n) for n in range(37)]
    assert epochs[0] != [Order(4, 37, domain=1, domains=2).index(n) for n in range(37)]


def test_numbers_of_domains_are_different():
    numbers = [Order(0, 10, domain, 3).number(count) for domain in range(3) for count in range(50)]
    assert len(set(numbers)) == 150


def test_an_empty_domain_is_refused():
    with pytest.raises(UserError, match="empty"):
        Order(0, 0)


def counts_of_steps(steps, batch, ranks, accumulate, frames=(16,), start=0):
    """For each step the number of frames and the counts of all ranks together."""
    orders = [RankOrder(Order(1, 1000), frames, batch, rank, ranks, accumulate) for rank in range(ranks)]
    result = []
    for _ in range(steps):
        slots = [slot for order in orders for slot in order.step(start)]
        assert len({slot.after for slot in slots}) == 1 and len({slot.frames for slot in slots}) == 1
        result.append((slots[0].frames, sorted(count for slot in slots for count in slot.counts)))
        start = slots[0].after
    return result


@pytest.mark.parametrize("frames", [(16,), (4, 8, 16)])
def test_any_number_of_ranks_uses_the_same_samples_in_each_step(frames):
    alone = counts_of_steps(5, 6, 1, 1, frames)
    assert [count for _, counts in alone for count in counts] == list(range(sum(len(counts) for _, counts in alone)))
    for batch, ranks, accumulate in [(3, 2, 1), (2, 3, 1), (1, 3, 2), (1, 2, 3), (2, 1, 3)]:
        assert counts_of_steps(5, batch, ranks, accumulate, frames) == alone


def test_a_run_resumes_where_it_stopped_also_with_other_ranks():
    complete = counts_of_steps(6, 6, 1, 1)
    assert counts_of_steps(3, 2, 3, 1, start=18) == complete[3:]


def test_ranks_use_samples_in_turn():
    ranks = [RankOrder(Order(0, 100), (16,), 2, rank, 3).step(0)[0] for rank in range(3)]
    assert [slot.counts for slot in ranks] == [(0, 3), (1, 4), (2, 5)]
    assert RankOrder(Order(0, 100), (16,), 2, 0, 3).step(12)[-1].after == 18


def test_shorter_clips_come_in_larger_batches_and_as_often_as_listed():
    order = RankOrder(Order(0, 100), (4, 16, 16), batch=2)
    slots = list(islice(order.slots(), 600))
    assert {(slot.frames, len(slot.counts)) for slot in slots} == {(4, 8), (16, 2)}
    assert 0.27 < sum(slot.frames == 4 for slot in slots) / 600 < 0.40


# --- Batches --------------------------------------------------------------------------------------------------------


class Numbered:
    """Clips that contain their index and a random number of their generator; some cannot be read."""

    def __init__(self, length=20, bad=()):
        self.length, self.bad = length, set(bad)

    def __len__(self):
        return self.length

    def sample(self, index, inputs, generator):
        if index in self.bad:
            raise BadSample(f"clip {index}: broken")
        video = torch.full((3, 2, 4, 4), float(index)) + torch.rand((), generator=generator)
        return Sample(f"clip {index}", video=video, text=",".join(sorted(inputs)))


def keep_some(numbers):
    return {"text": torch.tensor([n % 2 == 0 for n in numbers]), "motion": torch.tensor([n % 3 == 0 for n in numbers])}


def batches_of(count, clips, workers=0, start=0, **options):
    order = RankOrder(Order(7, len(clips)), (2,), batch=3)
    return list(islice(load({2: clips}, order, keep_some, start, workers, **options), count))


def equal(a, b):
    assert (a.numbers, a.after, a.bad) == (b.numbers, b.after, b.bad)
    assert all(torch.equal(a.kept[name], b.kept[name]) for name in a.kept)
    return all(same(x, y) for x, y in zip(a.samples, b.samples, strict=True))


def test_batches_have_the_numbers_of_their_samples():
    first, second = batches_of(2, Numbered())
    assert (first.numbers, first.after, second.numbers, second.after) == ((0, 1, 2), 3, (3, 4, 5), 6)
    assert [sample.text for sample in first.samples] == ["motion,text", "", "text"]
    assert [sample.key for sample in first.samples] == [f"clip {Order(7, 20).index(n)}" for n in range(3)]


def test_batches_do_not_depend_on_the_workers_nor_change_the_networks_randomness():
    clips = Numbered(bad=(3, 4))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    alone, two = batches_of(9, clips, max_bad=1.0), batches_of(9, clips, workers=2, max_bad=1.0)
    assert all(equal(a, b) for a, b in zip(alone, two, strict=True))
    assert torch.equal(state, torch.get_rng_state())
    resumed = batches_of(5, clips, start=alone[3].after, max_bad=1.0)
    assert all(equal(a, b) for a, b in zip(alone[4:], resumed, strict=True))


def test_a_bad_sample_is_replaced_and_counted():
    batches, intact = batches_of(7, Numbered(bad=(3,)), max_bad=1.0), batches_of(7, Numbered(), max_bad=1.0)
    for batch, other in zip(batches, intact, strict=True):
        replaced = [a.key for a, b in zip(batch.samples, other.samples, strict=True) if a.key != b.key]
        assert len(batch.samples) == 3 and "clip 3" not in [sample.key for sample in batch.samples]
        assert len(replaced) == sum(sample.key == "clip 3" for sample in other.samples) == len(batch.bad)
    assert sum((batch.bad for batch in batches), ()) == ("clip 3: broken",)


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_samples_stop_the_run_and_are_named(workers):
    with pytest.raises(UserError, match=r"^\d+ of \d+ samples cannot be read.*max_bad.*clip \d+: broken$"):
        batches_of(10_000, Numbered(20, bad=range(4)), workers, max_bad=0.01)
    assert len(batches_of(40, Numbered(20, bad=(0,)), max_bad=8 / FEW)) == 40  # 6 of 120
    with pytest.raises(UserError, match="1 of"):
        batches_of(40, Numbered(20, bad=(0,)), workers, max_bad=0.0)


@pytest.mark.parametrize("workers", [0, 1])
def test_data_without_a_readable_sample_stops_the_run_at_once(workers):
    with pytest.raises(UserError, match=rf"^{ATTEMPTS} samples in a row"):
        batches_of(1, Numbered(5, bad=range(5)), workers, max_bad=1.0)
