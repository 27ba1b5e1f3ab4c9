"""The objective: the target, the dropout, and batches that are a function of seed and step alone."""

import pytest
import torch

from training.data.batches import draw_batch, draw_mask, spoil_motion
from training.data.cache import ClipCache, build
from training.network import CONFIG, initialise, loss_of
from training.objective import NAMES, Objective, draw_kept, embed_conditions, make_context, moving_weight
from vc_core.conditions import CONDITIONS
from vc_core.config import DiffusionConfig
from vc_core.model.unet import UNet3D


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_dropout_keeps_all_drops_all_and_else_each_with_half():
    kept = torch.stack(list(draw_kept(40_000, generator()).values()))
    assert kept.shape == (len(NAMES), 40_000)
    independent = 0.8 * 0.5 ** len(NAMES)
    assert kept.all(0).float().mean() == pytest.approx(0.1 + independent, abs=0.01)
    assert (~kept).all(0).float().mean() == pytest.approx(0.1 + independent, abs=0.01)
    assert kept.float().mean(1) == pytest.approx(torch.full((len(NAMES),), 0.5), abs=0.02)
    some = kept[:, kept.any(0) & ~kept.all(0)].float()
    correlation = torch.corrcoef(some[:2])[0, 1]
    assert abs(correlation) < 0.03


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_target_gives_back_the_clean_latent(prediction):
    objective = Objective(DiffusionConfig(prediction=prediction))
    latents, noise = torch.randn(3, 4, 2, 4, 4), torch.randn(3, 4, 2, 4, 4)
    t = torch.tensor([1, 500, 950])
    noisy, target = objective.noised(latents, noise, t)
    alpha = objective.alphas_cumprod[t].view(-1, 1, 1, 1, 1)
    signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
    clean = (noisy - sigma * target) / signal if prediction == "epsilon" else signal * noisy - sigma * target
    torch.testing.assert_close(clean, latents, rtol=1e-3, atol=1e-3)
    assert noisy[2].sub(noise[2]).abs().mean() < 0.3  # nearly all noise at 950


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    net = UNet3D(CONFIG.unet)
    initialise(net)
    return net


def test_motion_alone_more_often():
    kept = draw_kept(40_000, generator(), lone_motion=0.5)
    table = torch.stack(list(kept.values()))
    none, every = 0.1 + 0.8 * 0.5 * 0.5 ** len(NAMES), 0.1 + 0.8 * 0.5 * 0.5 ** len(NAMES)
    assert (~table).all(0).float().mean() == pytest.approx(none, abs=0.01)
    assert table.all(0).float().mean() == pytest.approx(every, abs=0.01)
    alone = kept["motion"] & ~kept["depth"] & ~kept["sketch"] & ~kept["mask"]
    assert alone.float().mean() == pytest.approx(0.8 * (0.5 + 0.5 / 16), abs=0.01)
    assert kept["text"].float().mean() == pytest.approx(0.5, abs=0.02)


def test_moving_content_weighs_more():
    latents = torch.zeros(1, 4, 3, 4, 4)
    latents[:, :, 1:, :2] = 1.0
    weight = moving_weight(latents, 6.0)
    assert weight.mean() == pytest.approx(1.0)
    assert weight[0, 0, 2, 0, 0] == pytest.approx(7 * weight[0, 0, 2, 3, 3].item())
    assert torch.equal(moving_weight(torch.ones(1, 4, 3, 4, 4), 6.0), torch.ones(1, 1, 3, 4, 4))


def test_a_fresh_network_predicts_zero(unet):
    x = torch.randn(2, 4, 2, 4, 4)
    context = make_context(
        unet, torch.randn(2, 77, 64), torch.randn(1, 77, 64), torch.randn(2, 1, 64),
        {"text": torch.tensor([True, True]), "style": torch.tensor([True, True])},
    )  # fmt: skip
    assert torch.equal(unet(x, torch.tensor([5, 500]), context), torch.zeros_like(x))


def test_dropped_conditions_add_nothing(unet):
    kept = {"motion": torch.tensor([False, True, False])}
    motion = torch.randn(1, 2, 4, 32, 32)
    total = embed_conditions(unet, {"motion": motion}, kept, (4, 4), 4)
    assert torch.equal(total[0], torch.zeros_like(total[0])) and torch.equal(total[2], total[0])
    torch.testing.assert_close(total[1:2], unet.encode_condition("motion", motion, (4, 4)))


def test_dropped_tokens_are_the_empty_prompt_and_the_token_of_zeros(unet):
    text, empty, style = torch.randn(2, 77, 64), torch.randn(1, 77, 64), torch.randn(2, 1, 64)
    kept = {"text": torch.tensor([True, False]), "style": torch.tensor([False, True])}
    context = make_context(unet, text, empty, style, kept)
    assert torch.equal(context[0, :77], text[0]) and torch.equal(context[1, :77], empty[0])
    torch.testing.assert_close(context[0:1, 77:], unet.encode_style(torch.zeros(1, 1, 64)))
    torch.testing.assert_close(context[1:2, 77:], unet.encode_style(style[1:2]))
    assert make_context(unet, text, empty, None, kept).shape == (2, 77, 64)


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
