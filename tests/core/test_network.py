"""Behaviour of the network that the golden values do not show: any size, layers of a host, no repeated work."""

import dataclasses

import pytest
import torch
from torch import nn

from vc_core.conditions import CONDITIONS
from vc_core.errors import UserError
from vc_core.model import blocks
from vc_core.model.unet import UNet3D


def inputs(config, batch=2, frames=3, size=(5, 6)):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(batch, config.channels, frames, *size, generator=generator)
    return x, torch.tensor([7, 900])[:batch], torch.randn(batch, 9, config.context_dim, generator=generator)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(4, 4), (5, 7), (1, 1), (9, 3)])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_any_latent_size_and_length(tiny_unet, size, frames):
    x, t, context = inputs(tiny_unet.config, frames=frames, size=size)
    condition = torch.randn(2, 2, frames, size[0] * 8, size[1] * 8)
    stc = tiny_unet.encode_condition("motion", condition, size)
    assert stc.shape == (2, 8, frames, *size)
    out = tiny_unet(x, t, context, stc)
    assert out.shape == x.shape
    assert out.isfinite().all()


@torch.inference_mode()
def test_samples_of_a_batch_do_not_mix(tiny_unet):
    x, t, context = inputs(tiny_unet.config)
    stc = torch.randn(2, 8, *x.shape[2:])
    both = tiny_unet(x, t, context, stc)
    for i in range(2):
        alone = tiny_unet(x[i : i + 1], t[i : i + 1], context[i : i + 1], stc[i : i + 1])
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_one_frame_of_a_spatial_condition_equals_all_frames(tiny_unet):
    x, t, context = inputs(tiny_unet.config)
    image = torch.rand(2, 3, 1, 60, 72)
    once = tiny_unet.encode_condition("single_image", image, (5, 6))
    repeated = tiny_unet.encode_condition("single_image", image.expand(-1, -1, 3, -1, -1), (5, 6))
    assert once.shape[2] == 1
    torch.testing.assert_close(once.expand_as(repeated), repeated, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tiny_unet(x, t, context, once), tiny_unet(x, t, context, repeated), rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_tokens_keys_and_time_are_computed_once_per_clip(tiny_config):
    """With 8 times the frames, the layers for text and time do the same work."""
    rows = {}
    frames = 0

    class Linear(nn.Linear):
        def forward(self, x):
            rows.setdefault((id(self), frames), x.shape[:-1].numel())
            return super().forward(x)

    class Operations:
        Conv2d, GroupNorm, LayerNorm = nn.Conv2d, nn.GroupNorm, nn.LayerNorm

    Operations.Linear = Linear
    unet = UNet3D(tiny_config.unet, operations=Operations)
    for frames in (2, 16):
        unet(*inputs(tiny_config.unet, frames=frames))
    shared = [unet.time_in, unet.time_out, unet.encoder[0].resnet.time_proj]
    shared += [unet.middle.spatial.block.attn2.to_k, unet.middle.spatial.block.attn2.to_v]
    for layer in shared:
        assert rows[id(layer), 2] == rows[id(layer), 16]
    query = unet.middle.spatial.block.attn2.to_q
    assert rows[id(query), 16] == 8 * rows[id(query), 2]


@torch.inference_mode()
def test_layers_and_attention_come_from_the_host(tiny_unet, tiny_config):
    layers, attended = [], []

    class Operations:
        def __getattr__(self, name):
            def make(*args, **kwargs):
                layers.append(name)
                return getattr(nn, name)(*args, **kwargs)

            return make

    def attend(q, k, v, heads):
        attended.append(heads)
        return blocks.attend(q, k, v, heads)

    unet = UNet3D(tiny_config.unet, Operations(), attend).eval()
    unet.load_state_dict(tiny_unet.state_dict())
    leaves = [m for m in unet.modules() if not list(m.children()) and list(m.parameters())]
    assert len(layers) == len(leaves)
    arguments = inputs(tiny_config.unet)
    assert torch.equal(unet(*arguments), tiny_unet(*arguments))
    unet.encode_condition("depth", torch.rand(1, 1, 2, 48, 48), (4, 4))
    assert attended


def test_forward_keeps_no_state(tiny_unet):
    before = {name: set(vars(module)) for name, module in tiny_unet.named_modules()}
    with torch.inference_mode():
        tiny_unet(*inputs(tiny_unet.config))
    assert before == {name: set(vars(module)) for name, module in tiny_unet.named_modules()}


def test_a_network_has_encoders_only_for_its_conditions(tiny_config):
    unet = UNet3D(dataclasses.replace(tiny_config.unet, conditions=("motion", "depth")))
    assert set(unet.stc) == {"motion", "depth"}
    with pytest.raises(UserError, match=r"does not support 'sketch'.*motion, depth"):
        unet.encode_condition("sketch", torch.rand(1, 1, 2, 48, 48), (4, 4))
    assert set(CONDITIONS) == set(UNet3D(tiny_config.unet).stc)
