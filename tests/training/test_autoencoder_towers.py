"""The small autoencoder and towers: file layout, conventions of inputs and outputs, and their training."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from training.bundled import autoencoder as autoencoder_training
from training.bundled import towers as towers_training
from training.data.synthetic.scenes import DIRECTION_WORDS
from training.muon import Muon, orthogonalize
from training.timed import TimedRun
from vc_core.checkpoint import loading
from vc_core.checkpoint.reading import Part
from vc_core.checkpoint.tensors import Tensors
from vc_core.config import TowersConfig
from vc_core.encoders import autoencoder as ae_module
from vc_core.encoders import clip as clip_module
from vc_core.errors import UserError

TINY = TowersConfig(24, 32, 2, 3, 28, 14, 32, 16, 2)


@pytest.fixture(scope="module")
def ae():
    torch.manual_seed(0)
    return ae_module.new_autoencoder().eval()


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return clip_module.new_towers(TINY).eval()


# --- autoencoder ---


class _Block(nn.Module):
    """TAESD's residual block under TAESD's names."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()]
        self.conv = nn.Sequential(*layers, nn.Conv2d(64, 64, 3, padding=1))

    def forward(self, x):
        return F.relu(self.conv(x) + x)


class _Clamp(nn.Module):
    def forward(self, x):
        return torch.tanh(x / 3) * 3


def taesd_decoder() -> nn.Sequential:
    """TAESD's decoder with the numbering of its file: layer 0 is the clamp."""
    layers = [_Clamp(), nn.Conv2d(4, 64, 3, padding=1), nn.ReLU()]
    for _ in range(3):
        layers += [
            _Block(),
            _Block(),
            _Block(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(64, 64, 3, padding=1, bias=False),
        ]
    return nn.Sequential(*layers, _Block(), nn.Conv2d(64, 3, 3, padding=1))


def taesd_encoder() -> nn.Sequential:
    layers = [nn.Conv2d(3, 64, 3, padding=1), _Block()]
    for _ in range(3):
        layers += [nn.Conv2d(64, 64, 3, padding=1, stride=2, bias=False), _Block(), _Block(), _Block()]
    return nn.Sequential(*layers, nn.Conv2d(64, 4, 3, padding=1))


def test_a_taesd_reads_the_file(ae):
    state = loading.to_taesd_layout(ae)
    assert state["vae_scale"] == 1.0 and state["vae_shift"] == 0.0
    video = torch.rand(1, 3, 2, 32, 32)
    parts = {}
    for prefix, network in (("taesd_encoder.", taesd_encoder()), ("taesd_decoder.", taesd_decoder())):
        network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        parts[prefix] = network
    with torch.no_grad():
        latent = parts["taesd_encoder."](video[0].transpose(0, 1))  # RGB in [0, 1]
        pixels = parts["taesd_decoder."](latent)
    torch.testing.assert_close(ae_module.encode(ae, video)[0].transpose(0, 1), latent, atol=1e-5, rtol=1e-4)
    ours = ae_module.decode(ae, latent.transpose(0, 1)[None])[0].transpose(0, 1)
    torch.testing.assert_close(ours, pixels.clamp(0, 1), atol=1e-5, rtol=1e-4)


def test_diffusers_own_encode_and_decode_agree(ae):
    video = torch.rand(2, 3, 3, 24, 40)
    frames = video.transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        latents = ae.encode(frames * 2 - 1).latents
        pixels = (ae.decode(latents).sample + 1) / 2
    latent = ae_module.encode(ae, video)
    assert latent.shape == (2, 4, 3, 3, 5)
    torch.testing.assert_close(latent.transpose(1, 2).flatten(0, 1), latents)
    result = ae_module.decode(ae, latent)
    assert result.shape == video.shape and result.min() >= 0.0 and result.max() <= 1.0
    torch.testing.assert_close(result.transpose(1, 2).flatten(0, 1), pixels.clamp(0, 1))


def test_chunks_change_nothing(ae):
    video = torch.rand(1, 3, 5, 16, 16)
    latent = ae_module.encode(ae, video)
    torch.testing.assert_close(ae_module.encode(ae, video, ae_module.Tiling(2)), latent)
    torch.testing.assert_close(ae_module.decode(ae, latent, ae_module.Tiling(2)), ae_module.decode(ae, latent))


def vae_part(state: dict[str, torch.Tensor]) -> Part:
    return Part("vae", "taesd", Tensors.of(state, "x.safetensors"))


def test_an_autoencoder_survives_its_file(ae):
    again = loading.load_autoencoder(vae_part(loading.to_taesd_layout(ae)))
    assert not again.training
    for key, value in ae.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_wrong_autoencoder_files_are_named(ae):
    state = loading.to_taesd_layout(ae)
    load = loading.load_autoencoder
    with pytest.raises(UserError, match=r"x.safetensors lacks 1 tensor.*taesd_decoder.1.weight"):
        load(vae_part({k: v for k, v in state.items() if k != "taesd_decoder.1.weight"}))
    with pytest.raises(UserError, match=r"does not have \(taesd_decoder.surplus\)"):
        load(vae_part(state | {"taesd_decoder.surplus": torch.zeros(1)}))
    with pytest.raises(UserError, match=r"taesd_decoder.1.weight is \(64, 16, 3, 3\), expected \(64, 4, 3, 3\)"):
        load(vae_part(state | {"taesd_decoder.1.weight": torch.zeros(64, 16, 3, 3)}))
    with pytest.raises(UserError, match=r"vae_scale of 0\.18215"):
        load(vae_part(state | {"vae_scale": torch.tensor(0.18215)}))
    with pytest.raises(UserError, match="multiples of 8"):
        ae_module.encode(ae, torch.rand(1, 3, 1, 20, 24))
    with pytest.raises(UserError, match="latent"):
        ae_module.decode(ae, torch.rand(4, 3, 8, 8))


def test_latents_are_penalised_for_other_than_unit_variance():
    good = torch.randn(64, 4, 16, 16).clamp(-2.5, 2.5)
    penalty = autoencoder_training.latent_penalty
    assert penalty(good) < 0.01
    assert penalty(good * 2) > 1.0 and penalty(good * 0.5) > 1.0 and penalty(good + 1) > 0.8


def test_psnr_of_a_known_error():
    image = torch.full((2, 3, 8, 8), 0.5)
    torch.testing.assert_close(autoencoder_training.psnr(image + 0.1, image), torch.full((2,), 20.0))


@pytest.mark.slow
def test_a_few_steps_of_autoencoder_training_help():
    torch.manual_seed(0)
    model = autoencoder_training.initialize(ae_module.new_autoencoder()).train()
    optimizer = Muon(model.parameters(), lr=1e-3)
    frames = autoencoder_training.random_frames(0, 0, 2, size=48, crop=32)
    assert frames.shape == (2, 4, 32, 32)
    losses = []
    for _ in range(8):
        loss, _ = autoencoder_training.training_loss(model, frames)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


# --- towers ---


def test_text_tokens_are_the_penultimate_layer_after_the_final_norm(clip):
    outputs = {}
    handle = clip.transformer.resblocks[-2].register_forward_hook(lambda module, args, out: outputs.update(hidden=out))
    tokens = clip_module.tokenize(["a red circle moving right", ""])
    with torch.no_grad():
        pooled = clip.encode_text(tokens)
        expected = clip.ln_final(outputs["hidden"])
    handle.remove()
    context = clip_module.encode_text(clip, ["a red circle moving right", ""])
    assert context.shape == (2, 77, 32)
    torch.testing.assert_close(context, expected)
    # The last layer, pooled and projected, is open_clip's own result.
    last = clip_module.text_layers(clip, tokens)[-1]
    own = last[torch.arange(2), tokens.argmax(1)] @ clip.text_projection
    torch.testing.assert_close(own.detach(), pooled)


def test_text_is_causal_so_tokens_may_be_trimmed(clip):
    tokens = clip_module.tokenize(["a blue star", "a red circle and a green square"])
    trimmed = towers_training.trim(tokens)
    assert trimmed.shape[1] < 12 and (trimmed.argmax(1) == tokens.argmax(1)).all()
    with torch.no_grad():
        full, short = clip_module.text_layers(clip, tokens)[0], clip_module.text_layers(clip, trimmed)[0]
    torch.testing.assert_close(full[:, : short.shape[1]], short)


def test_an_image_is_embedded_projected_and_not_normalised(clip):
    image = torch.rand(2, 3, 28, 28)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (clip_module.IMAGE_MEAN, clip_module.IMAGE_STD))
    with torch.no_grad():
        expected = clip.encode_image((image - mean) / std, normalize=False)
    token = clip_module.encode_image(clip, image)
    assert token.shape == (2, 1, 24)
    torch.testing.assert_close(token[:, 0], expected)
    assert (token.norm(dim=-1) - 1).abs().min() > 1e-3


def test_images_are_resized_and_cropped_at_the_centre(clip):
    wide = torch.rand(1, 3, 56, 112)
    other = wide.clone()
    other[..., :20] = 0.0
    other[..., -20:] = 1.0
    torch.testing.assert_close(clip_module.encode_image(clip, wide), clip_module.encode_image(clip, other))
    assert clip_module.preprocess(wide, (28, 28)).shape == (1, 3, 28, 28)
    flat = clip_module.preprocess(torch.full((1, 3, 50, 61), 0.5), (28, 28))
    expected = (0.5 - torch.tensor(clip_module.IMAGE_MEAN)) / torch.tensor(clip_module.IMAGE_STD)
    torch.testing.assert_close(flat.mean((0, 2, 3)), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match=r"\(B, 3, H, W\)"):
        clip_module.encode_image(clip, wide[:, :1])


def test_the_small_towers_fit_their_budget():
    with torch.device("meta"):
        model = clip_module.new_towers(towers_training.SIZES)
    assert sum(p.numel() for p in model.parameters()) * 2 < 9e6


def test_labels_match_the_captions():
    frames, tokens, scenes = towers_training.pairs(1, 0, 12, motion=True, background=True)
    assert frames.shape == (12, 3, 64, 64) and len(tokens) == 12
    labels = towers_training.labels(scenes, motion=True, background=True)
    for name, values in labels.items():
        assert values.min() >= 0 and values.max() < towers_training.READOUTS[name], name
    texts = towers_training.captions(scenes, variation=0, motion=1.0, background=1.0)
    for text, direction in zip(texts, labels["direction"].tolist(), strict=True):
        assert (*DIRECTION_WORDS, "standing still")[direction] in text
    silent = towers_training.labels(scenes, motion=False, background=False)
    assert (silent["direction"] == towers_training.READOUTS["direction"] - 1).all()
    assert (silent["background_first"] == towers_training.READOUTS["background_first"] - 1).all()
    visible = towers_training.image_labels(scenes)
    assert torch.equal(visible["objects"].sum(1), scenes.count.float())
    assert (visible["colors"].sum(1) == 2).all()


# --- the optimizer and timed runs ---


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (4, 576), (8, 288), (64, 128)])
@pytest.mark.parametrize("spread", [0, 2, 4])
def test_muon_orthogonalizes(shape, spread):
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(8, *shape), full_matrices=False)
    matrices = left * torch.logspace(0, -spread, min(shape)) @ right
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert values.max() < 1.4  # no direction is enlarged, however much the directions of a gradient differ
    assert values[..., 0].min() > 0.5 and (spread > 0 or values.min() > 0.5)


def test_muon_learns_and_leaves_embeddings_to_adam():
    torch.manual_seed(0)
    table, layer = nn.Embedding(5, 8), nn.Linear(8, 3)
    groups = [{"params": layer.parameters()}, {"params": table.parameters(), "orthogonal": False}]
    optimizer = Muon(groups, lr=0.03)
    before, target = table.weight.detach().clone(), torch.tensor([0, 1, 2])
    for _ in range(60):
        loss = F.cross_entropy(layer(table(torch.arange(3))), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    assert torch.equal(table.weight[3:], before[3:])  # rows without a gradient stay
    assert not torch.equal(table.weight[:3], before[:3])


def test_a_timed_run_resumes_where_it_was(tmp_path):
    def start() -> TimedRun:
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
        return TimedRun(tmp_path, model, Muon(model.parameters(), lr=0.01), minutes=1.0)

    run = start()
    for step in run:
        run.update(run.model(torch.ones(3, 4)).square().mean())
        if step == 4:
            run.used = run.budget  # this is the last step
    run.used = 30.0
    run.log(loss=0.5)
    run.save()
    again = start()
    assert again.step == 5 and again.used == 30.0 and again.used / again.budget == 0.5
    for name in ("model", "average"):
        for key, value in getattr(run, name).state_dict().items():
            assert torch.equal(getattr(again, name).state_dict()[key], value)
    assert again.optimizer.state_dict()["state"].keys() == run.optimizer.state_dict()["state"].keys()
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 5, "seconds": 30.0, "loss": 0.5}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "state.pt"]


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    run = TimedRun(tmp_path, model, Muon(model.parameters()), minutes=1.0)
    with pytest.raises(UserError, match="not finite at step 0"):
        run.update(model(torch.full((1, 2), float("inf"))).sum())
    assert torch.equal(model.weight, before)
