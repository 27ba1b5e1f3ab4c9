"""The bundled checkpoint's steps on a GPU: of equal shapes, and asking nothing of the device; captured and replayed."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training.bundled.design import read_design
from training.bundled.network import NetworkStep
from training.bundled.replayed import Replayed
from training.bundled.ring import Ring, padded
from training.muon import Muon
from training.precision import attend_split
from vc_core.model.unet import UNet3D

STORED = {
    "latents": (16, 4, 8, 8), "video": (16, 3, 32, 32), "edges": (16, 1, 32, 32), "outline": (16, 1, 32, 32),
    "object": (16, 1, 32, 32), "depth": (16, 1, 32, 32), "motion": (16, 2, 32, 32), "text": (4, 77, 64),
    "style": (4, 64),
}  # fmt: skip


@pytest.fixture(scope="module")
def design():
    return read_design()


def step_on(device: str, design, fixed: bool = True) -> tuple[NetworkStep, Ring]:
    """A step of the smallest network of the design's form, and a ring of tensors in no order."""
    settings, config = design
    config = replace(config, unet=replace(config.unet, width=32, head_dim=32))
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet3D(config.unet, attend=attend_split)
        empty = torch.randn(1, 77, 64)
        ring = Ring.__new__(Ring)  # without the encoders that fill it
        ring._kept = {name: torch.rand(8, *shape) for name, shape in STORED.items()}
    return NetworkStep(unet, config, settings.network, empty, fixed), ring


def lots(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_indices_are_padded_with_what_counts_nothing():
    rows, counts = padded(torch.tensor([3, 5]), 4)
    assert rows.tolist() == [3, 5, 0, 0] and counts.tolist() == [1, 1, 0, 0]
    assert [each.tolist() for each in padded(torch.tensor([3, 5]), 1)] == [[3], [1]]
    assert [each.tolist() for each in padded(torch.tensor([3, 5]), None)] == [[3, 5], [1, 1]]


def test_fixed_steps_of_a_kind_have_equal_shapes_and_lose_hardly_a_sample(design):
    step, _ = step_on("meta", design)
    free, _ = step_on("meta", design, fixed=False)
    shapes, counted, kept = {}, 0.0, 0
    for seed in range(60):
        given = step.drawn(8, 128, lots(seed))
        shapes.setdefault("style" in given, set()).add(tuple((name, t.shape) for name, t in given.items()))
        counted += sum(t.sum().item() for name, t in given.items() if name.endswith("counts"))
        kept += sum(len(t) for name, t in free.drawn(8, 128, lots(seed)).items() if name.endswith("rows"))
    assert {style: len(found) for style, found in shapes.items()} == {True: 1, False: 1}
    assert 0.999 * kept < counted <= kept


def test_what_counts_nothing_changes_nothing(design):
    step, ring = step_on("cpu", design)
    given = {"clips": torch.arange(4), "text": torch.ones(4, dtype=torch.bool)}
    loss = {}
    for room in (None, 4):  # depth is the condition that is given as it is
        rows, counts = padded(torch.tensor([1, 2]), room)
        depth = {"depth rows": rows, "depth counts": counts, "depth by hand": torch.zeros(len(rows), dtype=torch.bool)}
        step.unet.zero_grad()
        loss[room] = step(ring, 4, given | depth, lots(1))
        loss[room].backward()
        loss[room, "gradient"] = step.unet.stc["depth"].conv1.weight.grad.clone()
    assert loss[None] == loss[4]
    torch.testing.assert_close(loss[None, "gradient"], loss[4, "gradient"])


class Asked(TorchDispatchMode):
    """Notes what a host would have to wait for, or copy to the device, in a program on the device `meta`."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) and leaf.device.type != "meta" for leaf in tree_leaves(made)):
            self.found.append(str(function))
        return made


def test_a_step_asks_the_device_nothing(design):
    step, ring = step_on("meta", design)
    optimizer = Muon(step.unet.parameters(), 1e-3, weight_decay=0.01)
    optimizer.make_capturable()
    given = {name: tensor.to("meta") for name, tensor in step.drawn(8, 4, lots(0)).items()}
    for _ in range(2):  # in the first one the optimizer's state is made
        with Asked() as asked:  # `meta` itself raises for what asks for a number
            optimizer.zero_grad()
            step(ring, 16, given).backward()
            nn.utils.clip_grad_norm_(step.unet.parameters(), 1.0)
            optimizer.step()
        assert asked.found == []
    with Asked() as asked:
        torch.zeros(2).to("meta")
    assert asked.found  # it does see what is made on the host
    with pytest.raises(NotImplementedError):
        torch.ones(2, device="meta").nonzero()


def trained(steps: Iterator[int], capturable_from: int) -> Tensor:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3))
    optimizer = Muon(model.parameters(), 0.02, weight_decay=0.1)
    for step in steps:
        if step == capturable_from:
            optimizer.make_capturable()
        optimizer.zero_grad()
        model(torch.randn(9, 6, generator=lots(step))).square().mean().backward()
        optimizer.step()
    return torch.cat([parameter.flatten() for parameter in model.parameters()])


def test_muon_learns_the_same_where_a_graph_could_hold_it():
    expected = trained(range(12), -1)
    torch.testing.assert_close(trained(range(12), 0), expected)
    torch.testing.assert_close(trained(range(12), 5), expected)  # as one that was saved on a CPU and goes on on a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_replayed_step_is_the_step(design):
    step, ring = step_on("cuda", design)
    replayed = Replayed(lambda frames, given: step(ring, frames, given), step.unet, Muon(step.unet.parameters(), 1e-3))
    given = step.drawn(8, 4, lots(0))
    first = replayed(16, given)[0].item()
    torch.manual_seed(5)
    with torch.no_grad():
        expected = step(ring, 16, {name: tensor.cuda() for name, tensor in given.items()}).item()
    torch.manual_seed(5)
    loss, norm = replayed(16, given).tolist()
    assert loss == pytest.approx(expected, rel=1e-3) and loss != first and norm > 0
