"""Checkpoint files: saving and loading, the released layout in both directions, and damaged or foreign files."""

import dataclasses
import errno
import json
import re

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vc_core.checkpoint.inspection import knows_scenes_only
from vc_core.checkpoint.loading import load_unet
from vc_core.checkpoint.origins import names_of
from vc_core.checkpoint.reading import BUNDLED, CONFIG_TENSOR, TRAINING, read_checkpoint, save_checkpoint
from vc_core.checkpoint.released import key_table, released_layout, tensor_names, to_released
from vc_core.config import (
    AutoencoderConfig,
    Config,
    DiffusionConfig,
    TowersConfig,
    UNetConfig,
    unet_config_from_shapes,
)
from vc_core.errors import UserError
from vc_core.model.unet import UNet3D


def arguments(unet):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 2, 4, 4, generator=generator)
    return x, torch.tensor([300]), torch.randn(1, 5, unet.config.context_dim, generator=generator)


@torch.inference_mode()
def test_saved_and_loaded_gives_the_same_output(tiny_unet, tiny_checkpoint, tiny_config):
    checkpoint = read_checkpoint(tiny_checkpoint)
    assert checkpoint.config == tiny_config
    assert not checkpoint.assumed and not checkpoint.extra
    loaded = load_unet(checkpoint)
    for name, parameter in tiny_unet.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter)
    # Not bit-exact: mapped tensors have another alignment, and some kernels then add in another order.
    torch.testing.assert_close(loaded(*arguments(loaded)), tiny_unet(*arguments(tiny_unet)), rtol=1e-5, atol=1e-6)


def test_the_config_in_a_tensor(tiny_unet, tiny_config, tmp_path):
    """As saved by programs that do not keep metadata."""
    state = {f"model.{name}": tensor.clone() for name, tensor in to_released(tiny_unet).items()}
    state[CONFIG_TENSOR] = torch.frombuffer(bytearray(tiny_config.to_json().encode()), dtype=torch.uint8)
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    checkpoint = read_checkpoint(tmp_path / "a.safetensors")
    assert checkpoint.config == tiny_config and not checkpoint.assumed and not checkpoint.extra
    state[CONFIG_TENSOR] = state[CONFIG_TENSOR][:50].clone()
    safetensors.torch.save_file(state, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="valid JSON"):
        read_checkpoint(tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    "training, expected",
    [
        ('{"design": {}}', True),
        ('{"recipe": {"data": [{"kind": "synthetic"}, {"kind": "synthetic"}]}}', True),
        ('{"recipe": {"data": [{"kind": "synthetic"}, {"kind": "folder"}]}}', False),
        ('{"recipe": {"data": []}}', False),
        ('["design"]', False),
        ("by hand", False),
        (None, False),
    ],
)
def test_the_training_metadata_shows_whether_a_network_knows_drawn_scenes_only(
    training, expected, tiny_unet, tiny_config, tmp_path
):
    metadata = {} if training is None else {TRAINING: training}
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, tiny_config, {"model": to_released(tiny_unet)}, metadata=metadata)
    checkpoint = read_checkpoint(path)
    assert knows_scenes_only(checkpoint) == expected
    wide = dataclasses.replace(tiny_config, unet=dataclasses.replace(tiny_config.unet, width=320))
    assert not knows_scenes_only(dataclasses.replace(checkpoint, config=wide))  # a released network, tuned on scenes
    assert knows_scenes_only(read_checkpoint(BUNDLED))


def test_half_precision_in_the_file(tiny_unet, tiny_config, tmp_path):
    save_checkpoint(tmp_path / "half.safetensors", tiny_config, {"model": to_released(tiny_unet)}, torch.float16)
    with safetensors.safe_open(tmp_path / "half.safetensors", framework="pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118
        assert json.loads(file.metadata()["config"])["name"] == "tiny"
    loaded = load_unet(read_checkpoint(tmp_path / "half.safetensors"))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


@torch.inference_mode()
def test_a_released_pth_loads_without_conversion(tmp_path):
    """Without metadata the config comes from the shapes. Known leftovers are ignored; other extra tensors listed."""
    config = UNetConfig(width=64, multipliers=(1, 2), res_blocks=1, attention_levels=(0, 1), context_dim=24)
    torch.manual_seed(0)
    unet = UNet3D(config).eval()
    state = to_released(unet)
    state |= {"canny_embedding.0.weight": torch.zeros(1), "fps_embedding.2.bias": torch.zeros(1), "odd": torch.zeros(1)}
    torch.save(state, tmp_path / "released.pth")
    checkpoint = read_checkpoint(tmp_path / "released.pth")
    assert checkpoint.config.unet == config
    assert checkpoint.config.diffusion.prediction == "epsilon"
    assert checkpoint.extra == ["odd"]
    assert len(checkpoint.assumed) == 1
    loaded = load_unet(checkpoint)
    torch.testing.assert_close(loaded(*arguments(loaded)), unet(*arguments(unet)), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match=r"contains no 'vae' part \(the autoencoder\)\. It contains model\."):
        checkpoint.part("vae")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_the_config_is_inferred_from_shapes(data):
    levels = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    attention = data.draw(st.sets(st.integers(0, len(levels) - 1)))
    conditions = data.draw(st.sets(st.sampled_from(UNetConfig().conditions), min_size=1))
    config = UNetConfig(
        width=data.draw(st.sampled_from([64, 128])),
        multipliers=tuple(levels),
        res_blocks=data.draw(st.integers(1, 3)),
        attention_levels=tuple(sorted(attention)),
        temporal_in_heads=data.draw(st.integers(1, 3)),
        context_dim=data.draw(st.sampled_from([8, 24])),
        stc_heads=data.draw(st.integers(1, 3)),
        conditions=tuple(n for n in UNetConfig().conditions if n in conditions),
    )
    with torch.device("meta"):
        layout = released_layout(UNet3D(config))
    assert len(names_of(layout)) == len(layout)
    assert tensor_names(key_table(config)) == names_of(layout)
    assert unet_config_from_shapes({origin.names[0]: origin.shape for origin in layout.values()}) == config


def test_config_survives_json():
    config = dataclasses.replace(Config(), name="x", unet=UNetConfig(multipliers=(1, 2), conditions=("motion",)))
    assert Config.from_json(config.to_json()) == config
    with pytest.raises(UserError, match=r"unet has unknown keys \['wings'\].*Update this pack"):
        Config.from_json('{"unet": {"wings": 2}}')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"unet": {"width": "big"}}', "unet.width is 'big'. Expected an integer from 1 to"),
        ('{"unet": {"width": 30}}', "level of the network is 30 wide"),
        ('{"diffusion": {"prediction": "x0"}}', "prediction is 'x0'. Expected one of epsilon, v_prediction"),
        ('{"extraction": {"motion_layout": "dense"}}', "motion_layout dense with motion_unit source_pixels"),
        ("[", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"frames": 1' + "0" * 5000 + "}", "not valid JSON"),
        ("[]", "Expected a JSON object"),
        ('{"unet": 3}', "config.unet has the type int. Expected a JSON object"),
    ],
)
def test_impossible_configs_are_refused(tmp_path, text, message):
    safetensors.torch.save_file({"model.a": torch.zeros(1)}, tmp_path / "x.safetensors", {"config": text})
    with pytest.raises(UserError, match=message) as raised:
        read_checkpoint(tmp_path / "x.safetensors")
    assert "x.safetensors" in str(raised.value)


NAN, INF, MANY = float("nan"), float("inf"), 10**400
IMPOSSIBLE = {
    "": {
        "name": (3, None), "frames": (0, -1, 1.5, True), "height": (0, -8), "width": (0, MANY),
        "rate": (0, -1.0, NAN, INF), "guidance": (NAN, INF, -INF, MANY, "9", None),
    },
    "unet": {
        "channels": (0, -4, 4.0), "width": (0, -32, 2**40), "res_blocks": (0, 3000), "stc_heads": (0, -1),
        "multipliers": ([], 3, None, [0], [-1], [65], [1.5], ["1"], [NAN], [[1]], [1] * 17), "stc_channels": (-1, 0),
        "attention_levels": ([-1], 0, ["0"]), "head_dim": (0, -16), "temporal_in_heads": (0, -1),
        "context_dim": (0, -1), "dropout": (-0.1, 1.0, 2.0, NAN), "stc_dropout": (1.0, NAN), "conditions": (3, [[]]),
    },
    "diffusion": {
        "steps": (0, 1, -5, 10**9, 10.0), "beta_start": (-1, 0, NAN, 0.5, 2.0),
        "beta_end": (5.0, 0, NAN, 1.0, 1e-5, 0.9), "beta_schedule": ("cosine", []), "prediction": ("x0", None),
    },
    "extraction": {"sketch": ("canny", 1), "depth": ("zoe",), "condition_scale": (5, 0, -4, True, "8", 4.0, [4], NAN)},
    "autoencoder": {"layout": ("vq",), "scale": (0, -1, NAN, INF)},
    "towers": {
        "embed_dim": (0, -3), "text_width": (0, 1000), "text_heads": (0, 3, -1), "text_layers": (0, 1, -1, 3000),
        "image_size": (0, 13), "patch_size": (0, -1, 225), "image_width": (-32, 32),
        "image_head_width": (0, 3, -1, 2560), "image_layers": (0, -1, 3000),
    },
}  # fmt: skip


@pytest.mark.parametrize(("section", "key"), [(section, key) for section in IMPOSSIBLE for key in IMPOSSIBLE[section]])
def test_every_value_of_a_config_has_a_range(section, key):
    """The message names the key or its section, the value and what was expected, both from JSON and from Python."""
    for value in IMPOSSIBLE[section][key]:
        changed = {section: {key: value}} if section else {key: value}
        with pytest.raises(UserError, match=r"^(Config key|The config|A level)\b.*\bExpected \S+") as raised:
            Config.from_json(json.dumps(changed))
        assert len(str(raised.value)) < 250
        part = getattr(Config(), section) if section else Config()
        with pytest.raises(UserError) as direct:
            dataclasses.replace(part, **{key: value})
        assert str(direct.value) == str(raised.value)


def test_the_ends_of_the_ranges_are_possible():
    UNetConfig(multipliers=(1,) * 16, attention_levels=(), res_blocks=16, dropout=0.0, temporal_in_heads=1)
    assert UNetConfig(conditions=(), stc_channels=0).stc_channels == 0
    TowersConfig(16, 16, 16, 2, 16, 16, 16, 16, 1)
    DiffusionConfig(steps=2, beta_start=0.5, beta_end=0.5, beta_schedule="linear")
    Config(frames=1, rate=8, guidance=-1)
    numbers = {
        (part, f.name)
        for part in (Config, UNetConfig, DiffusionConfig, AutoencoderConfig, TowersConfig)
        for f in dataclasses.fields(part)
        if re.search(r"\b(int|float)\b", repr(f.type)) and not {"Ge", "Le"} <= {*re.findall(r"\w+", repr(f.type))}
    }
    assert not numbers  # a new number needs a range


# --- Damaged and foreign files --------------------------------------------------------------------------------------


def test_missing_and_misshapen_tensors_are_listed(tiny_unet, tiny_config, tmp_path):
    state = to_released(tiny_unet)
    del state["out.2.weight"], state["time_embed.0.bias"]
    save_checkpoint(tmp_path / "a.safetensors", tiny_config, {"model": state})
    with pytest.raises(UserError, match=r"a\.safetensors lacks 2 tensors.*time_embed\.0\.bias, out\.2\.weight"):
        load_unet(read_checkpoint(tmp_path / "a.safetensors"))
    state = to_released(tiny_unet) | {"out.0.bias": torch.zeros(5)}
    save_checkpoint(tmp_path / "b.safetensors", tiny_config, {"model": state})
    with pytest.raises(UserError, match=r"out\.0\.bias is \(5,\), expected \(32,\)"):
        load_unet(read_checkpoint(tmp_path / "b.safetensors"))


def test_a_checkpoint_of_another_model(tmp_path):
    safetensors.torch.save_file({"lora.up.weight": torch.zeros(3)}, tmp_path / "lora.safetensors")
    message = r"lora\.safetensors contains no VideoComposer network.*Expected tensors such as out\.2\.weight and"
    with pytest.raises(UserError, match=message):
        read_checkpoint(tmp_path / "lora.safetensors")


@pytest.mark.parametrize("length", [0, 5, 8, 100, 100_000, -1])
def test_truncated_files(tiny_checkpoint, tmp_path, length):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(tiny_checkpoint.read_bytes()[:length])
    wrong = r"cut off or damaged \(" if length else "empty"
    with pytest.raises(UserError, match=rf"cut\.safetensors is {wrong}.*Download or save it again"):
        read_checkpoint(path)


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_truncated_pth(tmp_path, length):
    torch.save({"input_blocks.0.0.weight": torch.zeros(64, 64)}, tmp_path / "complete.pth")
    path = tmp_path / "cut.pth"
    path.write_bytes((tmp_path / "complete.pth").read_bytes()[:length])
    wrong = r"cut off or damaged \(" if length else "empty"
    with pytest.raises(UserError, match=rf"cut\.pth is {wrong}.*Download or save it again"):
        read_checkpoint(path)


def test_a_pickle_with_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    torch.save({"input_blocks.0.0.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"evil\.pth contains objects that are not tensors"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "written").exists()


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match=r"There is no checkpoint at .*none\.safetensors. Check the path\."):
        read_checkpoint(tmp_path / "none.safetensors")


def test_a_failed_save_leaves_nothing(tiny_unet, tiny_config, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(UserError, match=r"x\.safetensors cannot be written \(No space left on device\)\. Free space"):
        save_checkpoint(tmp_path / "x.safetensors", tiny_config, {"model": to_released(tiny_unet)})
    assert list(tmp_path.iterdir()) == []
