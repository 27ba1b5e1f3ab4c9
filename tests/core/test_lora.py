"""LoRA files with the names of different programs: each gives the same network; what does not fit is reported."""

import json

import pytest
import torch
from safetensors.torch import save_file

from vc_core.checkpoint.diffusers_unet import diffusers_names
from vc_core.checkpoint.files import open_tensors, save_tensors
from vc_core.checkpoint.formats import layout_of
from vc_core.checkpoint.loading import load_unet, on_meta
from vc_core.checkpoint.lora import read_lora
from vc_core.checkpoint.origins import part
from vc_core.checkpoint.reading import Checkpoint, Part, read_checkpoint, save_checkpoint
from vc_core.checkpoint.released import key_table, to_released
from vc_core.composer import VideoComposer
from vc_core.config import UNetConfig
from vc_core.errors import UserError
from vc_core.model.unet import UNet3D

RANK, ALPHA = 2, 3.0
MATRICES = (
    "encoder.0.spatial.block.attn1.to_q",
    "middle.spatial.block.attn2.to_out",
    "decoder.3.temporal.block.attn1.to_v",
)
LINEAR = (*MATRICES, "encoder.0.spatial.block.ff.proj_in", "temporal_in.proj_in", "style_out", "time_in")
KERNELS = ("encoder.0.resnet.conv1", "encoder.0.resnet.temporal.convs.1", "conv_in", "decoder.1.upsample.conv")


def changes(unet, modules):
    """Return random halves by module: (rank, in, *kernel) and (out, rank)."""
    generator = torch.Generator().manual_seed(5)
    weights = {name: unet.get_parameter(f"{name}.weight") for name in modules if f"{name}.weight" in unet.state_dict()}
    halves = {name: ((RANK, *weight.shape[1:]), (len(weight), RANK)) for name, weight in weights.items()}
    return {name: tuple(0.3 * torch.randn(*s, generator=generator) for s in shapes) for name, shapes in halves.items()}


def file_of(halves, name_of, down, up, alpha=None, before=""):
    """Return the tensors of a file: `name_of` returns a module's name; `down`, `up` and `alpha` are ends of keys."""
    tensors = {}
    for module, (a, b) in halves.items():
        name = before + name_of(module)
        tensors[name + down], tensors[name + up] = a, b.reshape(*b.shape, *[1] * (a.ndim - 2))
        if alpha:
            tensors[name + alpha] = torch.tensor(ALPHA)
    return {key: tensor.contiguous() for key, tensor in tensors.items()}


def expected(unet, halves, alpha=ALPHA, strength=1.0):
    state = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    for module, (a, b) in halves.items():
        weight = state[f"{module}.weight"]
        weight += strength * alpha / RANK * (b @ a.flatten(1)).reshape(weight.shape)
    return state


@pytest.fixture
def released(tiny_config):
    return key_table(tiny_config.unet)


@pytest.fixture
def checkpoint(tiny_config, tiny_unet, tmp_path):
    save_checkpoint(tmp_path / "net.safetensors", tiny_config, {"model": to_released(tiny_unet)})
    return read_checkpoint(tmp_path / "net.safetensors")


def processor(name):
    """Return the name of an attention's matrix in diffusers' first LoRAs."""
    attention, _, matrix = name.removesuffix(".0").rpartition(".")
    return f"{attention}.processor.{matrix}_lora"


KOHYA = {"down": ".lora_down.weight", "up": ".lora_up.weight", "alpha": ".alpha"}
PEFT = {"down": ".lora_A.weight", "up": ".lora_B.weight"}
OLD = {"down": ".down.weight", "up": ".up.weight"}


@pytest.mark.parametrize("names", ["ours", "released", "diffusers"])
@pytest.mark.parametrize(
    ("before", "spelt", "ends", "modules"),
    [
        ("lora_unet_", lambda name: name.replace(".", "_"), KOHYA, (*LINEAR, *KERNELS)),
        ("diffusion_model.", str, KOHYA, (*LINEAR, *KERNELS)),
        ("base_model.model.", str, PEFT, (*LINEAR, *KERNELS)),
        ("base_model.model.", str, {"down": ".lora_A.default.weight", "up": ".lora_B.default.weight"}, LINEAR),
        ("unet.", str, PEFT, LINEAR),
        ("unet.", lambda name: f"{name}.lora", OLD, LINEAR),
        ("unet.", processor, OLD, MATRICES),
        ("", processor, {**OLD, "alpha": ".alpha"}, MATRICES),
    ],
)
def test_every_naming_changes_the_same_weights(
    checkpoint, tiny_unet, released, tmp_path, before, spelt, ends, modules, names
):
    table = {
        "ours": {name: name for name in released},
        "released": released,
        "diffusers": diffusers_names(tiny_unet.config, temporal=True),
    }[names]
    halves = changes(tiny_unet, [name for name in modules if name in table])
    assert len(halves) >= 3
    save_file(file_of(halves, lambda module: spelt(table[module]), **ends, before=before), tmp_path / "x.safetensors")
    if "base_model" in before:
        (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": ALPHA, "r": RANK}))
    alpha = ALPHA if "alpha" in ends or "base_model" in before else RANK
    state = load_unet(checkpoint, loras={tmp_path / "x.safetensors": 0.5}).state_dict()
    for name, tensor in expected(tiny_unet, halves, alpha, 0.5).items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_a_network_in_diffusers_layout_accepts_loras(tmp_path):
    """ModelScope's network, which has other shapes of temporal convolutions and matrices in the file."""
    text_only = {"conditions": (), "stc_channels": 0, "style_tokens": 0}
    unet = UNet3D(UNetConfig(width=32, multipliers=(1,), res_blocks=1, attention_levels=(0,), head_dim=16, **text_only))
    unet.requires_grad_(False)
    save_tensors(tmp_path / "net.safetensors", part(unet.state_dict(), layout_of("model", "diffusers", unet)))
    halves = kohya(unet, tmp_path / "x.safetensors", ("temporal_in.proj_in", "encoder.0.resnet.temporal.convs.1"))
    state = load_unet(
        read_checkpoint(tmp_path / "net.safetensors"), loras={tmp_path / "x.safetensors": 1.0}
    ).state_dict()
    for name, tensor in expected(unet, halves).items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_a_convolution_in_three_parts(tiny_unet, tmp_path):
    """LyCORIS' form: 1 x 1, the kernel at the rank, 1 x 1."""
    module = "encoder.0.resnet.conv1"
    weight, key = tiny_unet.get_parameter(f"{module}.weight"), f"lora_unet_{module.replace('.', '_')}"
    up, mid, down = (
        torch.randn(*shape) for shape in ((len(weight), 2, 1, 1), (2, 2, 3, 3), (2, weight.shape[1], 1, 1))
    )
    save_file(
        {f"{key}.lora_up.weight": up, f"{key}.lora_mid.weight": mid, f"{key}.lora_down.weight": down},
        tmp_path / "x.safetensors",
    )
    change = read_lora(tmp_path / "x.safetensors", tiny_unet).changes[module].change().reshape(weight.shape)
    x = torch.randn(1, weight.shape[1], 5, 5)
    conv = torch.nn.functional.conv2d
    torch.testing.assert_close(conv(x, change), conv(conv(conv(x, down), mid), up), rtol=1e-4, atol=1e-3)


def kohya(tiny_unet, path, modules=LINEAR, more=None):
    halves = changes(tiny_unet, modules)
    save_file({**file_of(halves, str, **KOHYA, before="diffusion_model."), **(more or {})}, path)
    return halves


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_weights_of_every_dtype_and_no_file_is_changed(tiny_config, tiny_unet, tmp_path, suffix, dtype):
    path, lora = tmp_path / f"net.{suffix}", tmp_path / "lora.safetensors"
    save_tensors(path, {name: tensor.half() for name, tensor in to_released(tiny_unet).items()})
    checkpoint = Checkpoint(path, tiny_config, {"model": Part("model", "released", open_tensors(path))})
    before = path.read_bytes()
    halves = kohya(tiny_unet, lora)
    changed = load_unet(checkpoint, dtype=dtype, loras={lora: 2.0}).state_dict()
    plain = load_unet(checkpoint, dtype=dtype).state_dict()
    assert path.read_bytes() == before
    halved = {name: tensor.half().float() for name, tensor in tiny_unet.state_dict().items()}
    for module, (a, b) in halves.items():
        target = (halved[f"{module}.weight"] + 2.0 * ALPHA / RANK * b @ a).to(dtype)  # rounded once
        torch.testing.assert_close(
            changed[f"{module}.weight"].float(), target.float(), rtol=0.13 if dtype.itemsize < 2 else 1e-2, atol=1e-3
        )
    others = [name for name in plain if name.removesuffix(".weight") not in halves]
    assert all(torch.equal(changed[name].float(), plain[name].float()) for name in others)


def test_several_loras_are_added(checkpoint, tiny_unet, tmp_path):
    first = kohya(tiny_unet, tmp_path / "a.safetensors")
    kohya(tiny_unet, tmp_path / "b.safetensors")
    state = load_unet(
        checkpoint, loras={tmp_path / "a.safetensors": 1.0, tmp_path / "b.safetensors": -0.25}
    ).state_dict()
    for name, tensor in expected(tiny_unet, first, strength=0.75).items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("offload", [False, True])
def test_a_composer_with_loras(tiny_checkpoint, tiny_unet, tmp_path, offload):
    halves = kohya(tiny_unet, tmp_path / "x.safetensors")
    composer = VideoComposer.load(
        tiny_checkpoint, loras={tmp_path / "x.safetensors": 1.0}, device="cpu", offload=offload
    )
    plain = VideoComposer.load(tiny_checkpoint, device="cpu")
    if not offload:
        module = next(iter(halves))
        assert not torch.equal(
            composer.unet.get_parameter(f"{module}.weight"), plain.unet.get_parameter(f"{module}.weight")
        )
    x, context = torch.randn(1, 4, 2, 4, 4), torch.randn(1, 7, 16)
    reference = UNet3D(plain.config.unet).eval()
    reference.load_state_dict(expected(tiny_unet, halves))
    with torch.no_grad():
        output, target = (net(x, torch.tensor([300]), context) for net in (composer.unet, reference))
    torch.testing.assert_close(output, target, rtol=1e-4, atol=1e-4)


# --- What does not fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_unet_x.hada_w1_a", "LoHa"),
        ("lora_unet_x.lokr_w1", "LoKr"),
        ("lora_unet_x.dora_scale", "DoRA"),
        ("base_model.model.x.lora_magnitude_vector", "DoRA"),
        ("diffusion_model.x.diff", "a file of full weight differences"),
    ],
)
def test_other_kinds_are_refused_by_name(tiny_unet, tmp_path, key, kind):
    kohya(tiny_unet, tmp_path / "x.safetensors", more={key: torch.zeros(1)})
    with pytest.raises(UserError, match=rf"x\.safetensors is {kind} \(key {key}\)\. Only LoRA is supported"):
        read_lora(tmp_path / "x.safetensors", tiny_unet)


def test_unused_changes_are_reported(checkpoint, tiny_unet, tmp_path):
    """Layers that the network does not have, or of a text encoder, are not used; the rest is, as in ComfyUI."""
    foreign = {
        "diffusion_model.blocks.7.self_attn.q": 1,
        "lora_te_text_model_encoder_layers_0_mlp_fc1": 1,
        "text_encoder.text_model.encoder.layers.1.self_attn.q_proj": 1,
    }
    more = {f"{key}.lora_{half}.weight": torch.zeros(2, 2) for key in foreign for half in ("down", "up")}
    more["diffusion_model.time_in.lora_up.bias"] = torch.zeros(2)
    halves = kohya(tiny_unet, tmp_path / "x.safetensors", more=more)
    with pytest.warns(UserWarning) as caught:
        state = load_unet(checkpoint, loras={tmp_path / "x.safetensors": 1.0}).state_dict()
    notes = [str(warning.message) for warning in caught]
    assert any(
        "of 2 layers are not used (diffusion_model.blocks.7.self_attn.q, diffusion_model.time_in.lora_up.bias)" in note
        for note in notes
    )
    assert any("The changes of 2 layers are not used (lora_te" in note and "text encoder" in note for note in notes)
    torch.testing.assert_close(state["time_in.weight"], expected(tiny_unet, halves)["time_in.weight"])


@pytest.mark.parametrize(
    "before", ["diffusion_model.blocks.0.self_attn.q", "lora_te_text_model_encoder_layers_0_mlp_fc1"]
)
def test_a_lora_of_another_network_is_refused(tiny_unet, tmp_path, before):
    save_file(
        {f"{before}.lora_{half}.weight": torch.zeros(2, 2) for half in ("down", "up")}, tmp_path / "x.safetensors"
    )
    message = (
        r"x\.safetensors contains no LoRA for this network\. Expected keys such as diffusion_model\..*, found layers "
    )
    with pytest.raises(UserError, match=message + before):
        read_lora(tmp_path / "x.safetensors", tiny_unet)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, down, up: t | {down: t[down][:, 1:].contiguous()}, "style_out has shapes .* but the layer is"),
        (lambda t, down, up: t | {up: t[up][:, 1:].contiguous()}, "style_out has shapes .* but the layer is"),
        (lambda t, down, up: t | {down: t[down][0].contiguous()}, "style_out has shapes .* but the layer is"),
        (
            lambda t, down, up: {k: v for k, v in t.items() if k != up},
            r"diffusion_model\.style_out has no up tensor",
        ),
        (
            lambda t, down, up: t | {down: t[down][:0].clone(), up: t[up][:, :0].clone()},
            "has shapes .* but the layer is",
        ),
        (
            lambda t, down, up: t | {down.replace("lora_down.weight", "alpha"): torch.ones(2)},
            "is not one finite number",
        ),
        (
            lambda t, down, up: t | {down.replace("lora_down.weight", "alpha"): torch.tensor(torch.nan)},
            "is not one finite number",
        ),
        (
            lambda t, down, up: t | {key.replace("diffusion_model.", "unet."): t[key] for key in (down, up)},
            "twice, also as",
        ),
        (lambda t, down, up: t | {up.replace("lora_up", "lora_B.other"): t[up]}, r"style_out twice \(.*lora_B\.other"),
        (lambda t, down, up: {"a.weight": t[up]}, r"is not a LoRA\. Expected keys that end in \.lora_down\.weight"),
    ],
)
def test_files_that_are_damaged_or_of_another_network(tiny_unet, tmp_path, change, message):
    tensors = file_of(changes(tiny_unet, LINEAR), str, **KOHYA, before="diffusion_model.")
    down, up = (f"diffusion_model.style_out.lora_{half}.weight" for half in ("down", "up"))
    save_tensors(tmp_path / "x.safetensors", change(tensors, down, up))
    with pytest.raises(UserError, match=message) as raised:
        read_lora(tmp_path / "x.safetensors", tiny_unet)
    assert "x.safetensors" in str(raised.value) and "\n" not in str(raised.value)


# --- Alpha ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "alphas"),
    [
        ({"lora_alpha": 8}, (8.0, 8.0)),
        ({"lora_alpha": 8, "use_rslora": True}, (8 * 2**0.5, 8 * 2**0.5)),
        ({"lora_alpha": 8, "alpha_pattern": {"style_out": 4}}, (8.0, 4.0)),
        ({}, (2.0, 2.0)),
    ],
)
@pytest.mark.parametrize("place", ["file", "metadata"])
def test_alpha_in_a_config(tiny_config, tiny_unet, tmp_path, config, alphas, place):
    path = tmp_path / "adapter_model.safetensors"
    before = "base_model.model." if place == "file" else "unet."
    tensors = file_of(changes(tiny_unet, ("time_in", "style_out")), str, **PEFT, before=before)
    prefixed = {f"unet.{key}": value for key, value in config.items()}
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps(prefixed)} if place == "metadata" else None)
    if place == "file":
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    lora = read_lora(path, on_meta(tiny_config))
    assert [lora.changes[name].alpha for name in ("time_in", "style_out")] == pytest.approx(alphas)
    assert not lora.notes


def test_a_missing_config_of_peft_is_reported(tiny_unet, tmp_path):
    tensors = file_of(changes(tiny_unet, ("time_in",)), str, **PEFT, before="base_model.model.")
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    lora = read_lora(tmp_path / "adapter_model.safetensors", tiny_unet)
    assert lora.changes["time_in"].alpha == RANK and "contains no adapter_config.json with alpha" in lora.notes[0]
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": "much"}')
    with pytest.raises(UserError, match=r"adapter_config\.json contains no valid alpha for the LoRA"):
        read_lora(tmp_path / "adapter_model.safetensors", tiny_unet)
