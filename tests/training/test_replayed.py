"""The bundled checkpoint's steps on a GPU: equal shapes, no waiting for the device; captured and replayed."""

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
    """Return a step of a small network of this design, and a ring of random tensors."""
    settings, config = design
    config = replace(config, unet=replace(config.unet, width=32, head_dim=32))
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet3D(config.unet, attend=attend_split)
        empty = torch.randn(1, 77, 64)
        ring = Ring.__new__(Ring)  # without the encoders that fill it
        ring._scenes = {name: torch.rand(8, *shape) for name, shape in STORED.items()}
    return NetworkStep(unet, config, settings.network, empty, fixed), ring


def lots(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_indices_are_padded_with_weight_0():
    rows, counts = padded(torch.tensor([3, 5]), 4)
    assert rows.tolist() == [3, 5, 0, 0] and counts.tolist() == [1, 1, 0, 0]
    assert [tensor.tolist() for tensor in padded(torch.tensor([3, 5]), 1)] == [[3], [1]]
    assert [tensor.tolist() for tensor in padded(torch.tensor([3, 5]), None)] == [[3, 5], [1, 1]]


def test_fixed_steps_of_a_kind_have_equal_shapes_and_lose_hardly_a_sample(design):
    step, _ = step_on("meta", design)
    free, _ = step_on("meta", design, fixed=False)
    shapes, counted, kept = {}, 0.0, 0
    for seed in range(60):
        inputs = step.draw(8, 128, lots(seed))
        shapes.setdefault("style" in inputs, set()).add(tuple((name, t.shape) for name, t in inputs.items()))
        counted += sum(t.sum().item() for name, t in inputs.items() if name.endswith("counts"))
        kept += sum(len(t) for name, t in free.draw(8, 128, lots(seed)).items() if name.endswith("rows"))
    assert {style: len(sets) for style, sets in shapes.items()} == {True: 1, False: 1}
    assert 0.999 * kept < counted <= kept


def test_samples_with_weight_0_change_nothing(design):
    step, ring = step_on("cpu", design)
    inputs = {"clips": torch.arange(4), "text": torch.ones(4, dtype=torch.bool)}
    loss = {}
    for room in (None, 4):  # depth is the condition without random changes
        rows, counts = padded(torch.tensor([1, 2]), room)
        depth = {"depth rows": rows, "depth counts": counts, "depth by hand": torch.zeros(len(rows), dtype=torch.bool)}
        step.unet.zero_grad()
        loss[room] = step(ring, 4, inputs | depth, lots(1))
        loss[room].backward()
        loss[room, "gradient"] = step.unet.stc["depth"].conv1.weight.grad.clone()
    assert loss[None] == loss[4]
    torch.testing.assert_close(loss[None, "gradient"], loss[4, "gradient"])


class HostCalls(TorchDispatchMode):
    """Records calls for which the host would wait or copy to the device, in a program on the device `meta`."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) and leaf.device.type != "meta" for leaf in tree_leaves(result)):
            self.names.append(str(function))
        return result


def test_a_step_never_waits_for_the_device(design):
    step, ring = step_on("meta", design)
    optimizer = Muon(step.unet.parameters(), 1e-3, weight_decay=0.01)
    optimizer.make_capturable()
    inputs = {name: tensor.to("meta") for name, tensor in step.draw(8, 4, lots(0)).items()}
    for _ in range(2):  # the first one creates the optimizer's state
        with HostCalls() as calls:  # `meta` itself raises if a value is read
            optimizer.zero_grad()
            step(ring, 16, inputs).backward()
            nn.utils.clip_grad_norm_(step.unet.parameters(), 1.0)
            optimizer.step()
        assert calls.names == []
    with HostCalls() as calls:
        torch.zeros(2).to("meta")
    assert calls.names  # tensors on the host are recorded
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


def test_muon_learns_the_same_if_it_is_capturable():
    expected = trained(range(12), -1)
    torch.testing.assert_close(trained(range(12), 0), expected)
    torch.testing.assert_close(
        trained(range(12), 5), expected
    )  # as a run that was saved on a CPU and continues on a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_replayed_step_is_the_step(design):
    step, ring = step_on("cuda", design)
    optimizer = Muon(step.unet.parameters(), 1e-3)
    replayed = Replayed(lambda frames, inputs: step(ring, frames, inputs), step.unet, optimizer)
    inputs = step.draw(8, 4, lots(0))
    first = replayed(16, inputs)[0].item()
    torch.manual_seed(5)
    with torch.no_grad():
        expected = step(ring, 16, {name: tensor.cuda() for name, tensor in inputs.items()}).item()
    torch.manual_seed(5)
    loss, norm = replayed(16, inputs).tolist()
    assert loss == pytest.approx(expected, rel=1e-3) and loss != first and norm > 0
