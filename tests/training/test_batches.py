"""Batches out of the cache of synthetic clips: functions of seed and step alone, and learnt from."""

import pytest
import torch

from training.data.batches import draw_batch, draw_mask, spoil_motion
from training.data.cache import ClipCache, build
from training.network import CONFIG, initialise, loss_of
from training.objective import Objective
from vc_core.conditions import CONDITIONS
from vc_core.model.unet import UNet3D


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_spoiled_motion_is_still_that_motion():
    motion = torch.zeros(6, 2, 64, 64)
    motion[1:, 0, 16:48, 16:48] = 2.0
    for seed in range(20):
        spoiled = spoil_motion(motion, generator(seed))
        assert spoiled.shape == motion.shape
        assert not spoiled[0].any()
        inside = spoiled[1:, :, 20:44, 20:44].mean((0, 2, 3))
        assert inside == pytest.approx(torch.tensor([2.0, 0.0]), abs=0.35)
        assert spoiled[1:, :, :12].abs().mean() < 0.1


def test_masks_paint_some_and_keep_some():
    objects = torch.zeros(4, 1, 48, 48)
    objects[:, :, 10:20, 10:20] = 1
    kinds = set()
    for seed in range(60):
        keep = draw_mask(objects, generator(seed))
        assert set(keep.unique().tolist()) == {0.0, 1.0}
        painted = 1 - keep.mean().item()
        assert 0.02 < painted < 0.8
        kinds.add(painted == 0.5)
    assert kinds == {True, False}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A handful of clips with untrained towers and autoencoder."""
    import training.data.cache as module
    from training.towers import SMALL_CONFIG
    from vc_core.encoders.autoencoder import new_autoencoder
    from vc_core.encoders.clip import build_clip

    folder = tmp_path_factory.mktemp("cache")
    size, module.SHARD = module.SHARD, 3
    try:
        shards = build(folder, 1, 0, 6, new_autoencoder(), build_clip(SMALL_CONFIG).eval())
        assert shards == build(folder, 1, 0, 6, None, None)  # what exists is not made again
    finally:
        module.SHARD = size
    return ClipCache(shards)


@pytest.mark.slow
def test_batches_repeat_and_hold_what_is_kept(cache):
    assert len(cache) == 6
    batch, again = (draw_batch(cache, 8, 4, generator(3)) for _ in range(2))
    assert torch.equal(batch.latents, again.latents)
    assert batch.latents.shape == (8, 4, 4, 8, 8)
    assert batch.text.shape == (8, 77, 64) and batch.style.shape == (8, 1, 64)
    for name, spec in CONDITIONS.items():
        count = int(batch.kept[name].sum())
        if count:
            tensor = batch.conditions[name]
            frames = 1 if spec.kind == "spatial" else 4
            assert tensor.shape == (count, spec.channels, frames, spec.scale * 8, spec.scale * 8)
            assert torch.equal(tensor, again.conditions[name])
            assert tensor.min() >= spec.low and tensor.max() <= spec.high
    assert not torch.equal(batch.latents, draw_batch(cache, 8, 4, generator(4)).latents)


@pytest.mark.slow
def test_the_loss_falls(cache):
    torch.manual_seed(0)
    net = UNet3D(CONFIG.unet)
    initialise(net)
    objective, optimizer = Objective(CONFIG.diffusion), torch.optim.Adam(net.parameters(), 2e-3)
    losses = []
    for step in range(12):
        batch = draw_batch(cache, 4, 2, generator(step % 2))
        loss = loss_of(net, objective, batch, torch.zeros(1, 77, 64), generator(7), "cpu")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-2:]) < 0.8 * sum(losses[:2])
    assert all(p.grad is not None for name, p in net.named_parameters() if not name.startswith(("stc.", "style")))
