"""LoRA: the change of the weights, merging, files with ComfyUI's names; which parameters train."""

import copy
import json
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from training.lora import LoRALinear, add_lora, load_lora, lora_layers, merge_lora, save_lora
from training.recipe import Optimizer, Recipe, Train
from training.start import choose_parameters, parameter_groups
from vc_core.checkpoint.diffusers_unet import diffusers_names
from vc_core.checkpoint.loading import load_unet
from vc_core.checkpoint.reading import read_checkpoint, save_checkpoint
from vc_core.checkpoint.released import to_released
from vc_core.errors import UserError
from vc_core.model.unet import UNet3D

ON = ("spatial.block", "temporal.block")


@pytest.fixture
def unet(tiny_config):
    torch.manual_seed(0)
    return UNet3D(tiny_config.unet).eval()


def trained(unet, rank=4, alpha=8.0, on=ON):
    """Add a LoRA with a change that is not zero. Returns the layers' names."""
    names = add_lora(unet, rank, alpha, on)
    with torch.no_grad():
        for layer in lora_layers(unet).values():
            layer.lora_up.weight.normal_(std=0.2)
    return names


@torch.no_grad()
def output(unet):
    generator = torch.Generator().manual_seed(1)
    x, context = torch.randn(1, 4, 3, 4, 5, generator=generator), torch.randn(1, 77, 16, generator=generator)
    return unet(x, torch.tensor([300]), context)


def test_a_new_lora_changes_nothing_and_only_the_lora_trains(unet):
    before, names_before = output(unet), set(unet.state_dict())
    names = add_lora(unet, 4, None, ON)
    torch.testing.assert_close(output(unet), before, rtol=1e-4, atol=1e-5)
    assert all(any(part in name for part in ON) for name in names)
    assert names_before == {name for name in unet.state_dict() if ".lora_" not in name}  # no other name has changed
    assert {name for name, p in unet.named_parameters() if p.requires_grad} == {
        f"{name}.lora_{which}.weight" for name in names for which in ("down", "up")
    }
    assert all(layer.scale == 1.0 for layer in lora_layers(unet).values())
    with pytest.raises(UserError, match="already"):
        add_lora(unet, 4, None, ON)


def test_the_merged_network_gives_the_same(unet):
    plain = output(unet)
    trained(unet)
    adapted = output(unet)
    assert (adapted - plain).abs().max() > 0.01
    merge_lora(unet)
    assert not lora_layers(unet) and not any(".lora_" in name for name in unet.state_dict())
    torch.testing.assert_close(output(unet), adapted, rtol=1e-4, atol=1e-5)


def test_a_saved_lora_is_the_change_of_the_weights(unet, tmp_path):
    bare = copy.deepcopy(unet)
    names = trained(unet)
    adapted = output(unet)
    save_lora(tmp_path / "lora.safetensors", unet, {"base": "tiny"})
    tensors = load_file(tmp_path / "lora.safetensors")
    assert len(tensors) == 3 * len(names)
    for name in names:  # as every loader applies it
        down, up, alpha = (
            tensors[f"diffusion_model.{name}.{leaf}"] for leaf in ("lora_down.weight", "lora_up.weight", "alpha")
        )
        assert down.shape[0] == 4 and alpha.item() == 8.0
        with torch.no_grad():
            bare.get_parameter(f"{name}.weight").add_(alpha / down.shape[0] * up @ down)
    torch.testing.assert_close(output(bare), adapted, rtol=1e-4, atol=1e-5)


def test_a_lora_is_loaded_again(unet, tmp_path):
    bare = copy.deepcopy(unet)
    names = trained(unet)
    save_lora(tmp_path / "lora.safetensors", unet)
    assert load_lora(bare, tmp_path / "lora.safetensors") == names
    assert torch.equal(output(bare), output(unet))
    assert isinstance(bare.get_submodule(names[0]), LoRALinear)


def test_the_core_adds_what_training_saved(unet, tiny_config, tmp_path):
    save_checkpoint(tmp_path / "net.safetensors", tiny_config, {"model": to_released(unet)})
    trained(unet)
    save_lora(tmp_path / "lora.safetensors", unet)
    merged = load_unet(read_checkpoint(tmp_path / "net.safetensors"), loras={tmp_path / "lora.safetensors": 1.0})
    torch.testing.assert_close(output(merged), output(unet), rtol=1e-4, atol=1e-5)


def test_training_continues_from_loras_of_other_programs(unet, tmp_path):
    """With diffusers' names, by peft, and with keys of a text encoder. Convolutions do not train and are errors."""
    names = diffusers_names(unet.config, temporal=True)
    other = copy.deepcopy(unet)
    files = {}
    for name in trained(other, alpha=4.0):
        layer = lora_layers(other)[name]
        files[f"unet.{names[name]}.lora_A.weight"] = layer.lora_down.weight.detach()
        files[f"unet.{names[name]}.lora_B.weight"] = layer.lora_up.weight.detach()
    text = {f"text_encoder.text_model.layers.0.fc1.lora_{end}.weight": torch.zeros(2, 2) for end in "AB"}
    save_file({**files, **text}, tmp_path / "peft.safetensors")
    with pytest.warns(UserWarning, match="The changes of 1 layer are not used .text_encoder"):
        load_lora(unet, tmp_path / "peft.safetensors")
    assert torch.equal(output(unet), output(other))
    merge_lora(unet)
    width = unet.conv_out.in_channels
    conv = {
        "unet.conv_out.lora_A.weight": torch.zeros(4, width, 3, 3),
        "unet.conv_out.lora_B.weight": torch.zeros(4, 4, 1, 1),
    }
    save_file({**files, **conv}, tmp_path / "conv.safetensors")
    with pytest.raises(UserError, match=r"1 layer that is not a linear layer of the network \(conv_out\)"):
        load_lora(unet, tmp_path / "conv.safetensors")


def test_keys_that_match_nothing_are_errors(unet, tmp_path):
    bare = copy.deepcopy(unet)
    names = trained(unet)
    save_lora(tmp_path / "lora.safetensors", unet)
    good = load_file(tmp_path / "lora.safetensors")
    down = f"diffusion_model.{names[0]}.lora_down.weight"
    for wrong, message in (
        ({**good, "lora_unet_down.lora_up.weight": torch.zeros(1)}, "lora_unet_down"),
        ({key: tensor for key, tensor in good.items() if key != down}, "has no down tensor"),
        ({**good, down: good[down][:, :-1].contiguous()}, "Use a LoRA of this network"),
    ):
        save_file(wrong, tmp_path / "wrong.safetensors")
        with pytest.raises(UserError, match=message):
            load_lora(bare, tmp_path / "wrong.safetensors")
    assert not lora_layers(bare)
    with pytest.raises(UserError, match="spatial"):
        add_lora(bare, 4, None, ("spatial.block", "nothing"))


_LOAD = """
import json, sys
sys.path.insert(0, sys.argv[1])
path, names = sys.argv[2], json.loads(sys.argv[3])
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import comfy.lora, comfy.utils
class Model:
    class model_config:
        unet_config = {"videocomposer": None}
    def state_dict(self):
        return {f"diffusion_model.{name}.weight": None for name in names}
keys = comfy.lora.model_lora_keys_unet(Model(), {})
loaded = comfy.lora.load_lora(comfy.utils.load_torch_file(path), keys, log_missing=True)
changes = {}
for key, adapter in loaded.items():
    up, down, alpha = adapter.weights[:3]
    changes[key] = float((alpha / down.shape[0] * up @ down).double().sum())
print(json.dumps(changes))
"""


@pytest.mark.slow
def test_comfyuis_stock_loader_reads_it(comfyui, unet, tmp_path):
    folder, python, _ = comfyui
    names = trained(unet)
    save_lora(tmp_path / "lora.safetensors", unet)
    run = subprocess.run(
        [python, "-c", _LOAD, folder, str(tmp_path / "lora.safetensors"), json.dumps(names)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "not loaded" not in run.stderr
    changes = json.loads(run.stdout.splitlines()[-1])
    assert changes == pytest.approx(
        {f"diffusion_model.{name}.weight": lora_layers(unet)[name].change().double().sum().item() for name in names},
        abs=1e-3,
    )


# --- Which parameters train -----------------------------------------------------------------------------------------


def trains(unet):
    return {name for name, parameter in unet.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("all", lambda name: True),
        ("temporal", lambda name: "temporal" in name and not name.startswith("stc.")),
        ("stc", lambda name: name.startswith("stc.")),
    ],
)
def test_only_the_chosen_parts_train(unet, what, expected):
    choose_parameters(unet, Recipe(train=Train(what)))
    assert trains(unet) == {name for name, _ in unet.named_parameters() if expected(name)}
    groups = {group["name"]: group for group in parameter_groups(dict(unet.named_parameters()), Recipe())}
    assert sum(len(group["params"]) for group in groups.values()) == len(trains(unet))
    assert set(groups) == ({"spatial", "temporal"} if what == "all" else {"temporal"})


def test_temporal_weights_and_stc_encoders_have_their_learning_rate(unet):
    recipe = Recipe(optimizer=Optimizer(learning_rate=1e-5, temporal_learning_rate=3e-5))
    rates = {
        id(p): group["lr"] for group in parameter_groups(dict(unet.named_parameters()), recipe) for p in group["params"]
    }
    for name, parameter in unet.named_parameters():
        assert rates[id(parameter)] == (3e-5 if "temporal" in name or name.startswith("stc.") else 1e-5), name
    assert {
        group["lr"]
        for group in parameter_groups(dict(unet.named_parameters()), Recipe(optimizer=Optimizer(learning_rate=2.0)))
    } == {2.0}


def test_stage_1_leaves_conditions_and_style_alone(unet):
    choose_parameters(unet, Recipe(stage=1))
    assert not any(name.startswith(("stc.", "style_")) for name in trains(unet))
    assert "conv_in.weight" in trains(unet)
    with pytest.raises(UserError, match="nothing to train in stage 1"):
        choose_parameters(unet, Recipe(stage=1, train=Train("stc")))


def test_stc_encoders_without_a_gradient_are_not_trained_alone(unet):
    with torch.no_grad():
        unet.conv_in.weight[:, 4:] = 0
    with pytest.raises(UserError, match="would learn nothing"):
        choose_parameters(unet, Recipe(train=Train("stc")))


def test_a_lora_from_the_recipe(unet):
    choose_parameters(unet, Recipe(train=Train("lora", lora_rank=2, lora_on=("spatial.block.attn2",))))
    assert trains(unet) and all("spatial.block.attn2" in name and ".lora_" in name for name in trains(unet))
    assert {layer.alpha for layer in lora_layers(unet).values()} == {2}


def test_a_loras_initial_weights_depend_on_the_recipes_seed(unet):
    def initial(seed):
        torch.manual_seed(torch.seed() % 1000)  # whatever the state of the global generator
        own = copy.deepcopy(unet)
        choose_parameters(own, Recipe(seed=seed, train=Train("lora", lora_rank=2)))
        return {name: p for name, p in own.named_parameters() if p.requires_grad}

    first, again, other = initial(0), initial(0), initial(1)
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())
    assert any(not torch.equal(weight, other[name]) for name, weight in first.items())


def test_training_continues_from_a_loras_file(unet, tmp_path):
    other = copy.deepcopy(unet)
    names = trained(other)
    save_lora(tmp_path / "lora.safetensors", other)
    choose_parameters(unet, Recipe(train=Train("lora", lora_from=tmp_path / "lora.safetensors", lora_rank=9)))
    assert set(lora_layers(unet)) == set(names) and all(".lora_" in name for name in trains(unet))
    for name, layer in lora_layers(unet).items():
        assert torch.equal(layer.change(), lora_layers(other)[name].change())
