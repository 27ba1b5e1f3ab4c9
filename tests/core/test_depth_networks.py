"""Depth by transformers' networks: DPT and Depth Anything, and and the message if a file is missing."""

import json
import sys

import numpy as np
import pytest
import torch

from tests.core.pictures import clip, depth
from vc_core.errors import UserError
from vc_core.extract.depth.maps import USUAL, by_percentiles
from vc_core.extract.depth.networks import load_depth_model
from vc_core.published import MODELS


@pytest.fixture
def no_network(monkeypatch):
    """Whoever opens a connection fails."""

    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


# --- DPT and Depth Anything ---------------------------------------------------------------------------------------

NECK = {"neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8}
VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}


def saved(network, folder):
    """A network with weights that give depth everywhere, saved as transformers saves it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
            elif name.endswith("head.4.bias") or name.endswith("conv3.bias"):
                parameter.fill_(2.0)
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dpt(tmp_path_factory):
    from transformers import DPTConfig, DPTForDepthEstimation

    config = DPTConfig(**VIT, **NECK, image_size=64, patch_size=16, backbone_out_indices=[0, 1, 2, 3])
    return saved(DPTForDepthEstimation(config), tmp_path_factory.mktemp("models") / "dpt")


def new_depth_anything(**settings):
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation

    backbone = {"model_type": "dinov2", **VIT, "image_size": 56, "patch_size": 14, "out_indices": [1, 2, 3, 4]}
    backbone |= {"reshape_hidden_states": False, "apply_layernorm": True}
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=32, head_hidden_size=8, **NECK, **settings
    )
    return DepthAnythingForDepthEstimation(config)


@pytest.fixture(scope="module")
def depth_anything(tmp_path_factory):
    return saved(new_depth_anything(), tmp_path_factory.mktemp("models") / "depth_anything")


def test_dpt_gives_transformers_values_in_the_released_unit(dpt, no_network):
    from transformers import DPTForDepthEstimation

    video = clip(64, 64)
    network = DPTForDepthEstimation.from_pretrained(dpt, local_files_only=True)
    with torch.no_grad():
        expected = network((video[0].transpose(0, 1) - 0.5) / 0.5).predicted_depth
    for model in (str(dpt), dpt / "model.safetensors"):
        out, which = depth(video, model)
        assert which == "dpt"
        torch.testing.assert_close(out[0, 0], (expected / 20).clamp(0, 10))


def test_depth_anything_is_scaled_to_the_released_range(depth_anything, no_network):
    from transformers import DepthAnythingForDepthEstimation

    video = clip(56, 84)
    network = DepthAnythingForDepthEstimation.from_pretrained(depth_anything, local_files_only=True)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    frames = ((video[0].permute(1, 2, 3, 0) - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        raw = network(frames).predicted_depth
    reports = []
    out, which = depth(video, depth_anything, at_once=2, progress=lambda *done: reports.append(done))
    assert which == "depth_anything" and reports == [("depth", 2, 3), ("depth", 3, 3)]
    torch.testing.assert_close(out, by_percentiles(raw[None, None]))
    assert np.percentile(out.numpy(), (2, 98)) == pytest.approx(USUAL, abs=1e-4)


def test_metres_become_inverse_depth(depth_anything, tmp_path):
    near_large, _ = depth(clip(56, 56), depth_anything)
    folder = saved(new_depth_anything(depth_estimation_type="metric", max_depth=20), tmp_path / "metric")
    model = load_depth_model(folder)
    frames = clip(56, 56)[0].transpose(0, 1)
    with torch.no_grad():
        metres = model(frames)[:, 0]
    out, _ = depth(clip(56, 56), model)
    assert model.values == "metres" and metres.min() > 0 and metres.max() <= 20
    torch.testing.assert_close(out, by_percentiles(1 / metres[None, None]))
    assert torch.corrcoef(torch.stack([out.flatten(), near_large.flatten()]))[0, 1] < 0


def test_a_dpt_on_a_backbone_is_read_in_metres(tmp_path):
    from transformers import DPTConfig, DPTForDepthEstimation

    backbone = {"model_type": "dinov2", **VIT, "image_size": 56, "patch_size": 14, "out_indices": [1, 2, 3, 4]}
    config = DPTConfig(backbone_config={**backbone, "reshape_hidden_states": False}, **NECK)
    model = load_depth_model(saved(DPTForDepthEstimation(config), tmp_path))
    assert (model.which, model.values, model.side, model.multiple) == ("dpt", "metres", 56, 14)
    assert depth(clip(), model)[0].shape == (1, 1, 3, 24, 32)


def test_published_files_with_older_names_are_read(depth_anything, tmp_path):
    """Depth Anything's files call DINOv2's queries attention.attention.query; newer versions of transformers do not."""
    model = load_depth_model(depth_anything)
    (tmp_path / "config.json").write_bytes((depth_anything / "config.json").read_bytes())
    renames = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}
    renames |= {"o_proj": "output.dense"}
    state = {}
    for name, tensor in model.network.state_dict().items():
        for new, old in renames.items():
            name = name.replace(f"attention.{new}", f"attention.{old}")
        state[name] = tensor
    assert "backbone.encoder.layer.0.attention.attention.query.weight" in state
    torch.save(state, tmp_path / "pytorch_model.bin")
    torch.testing.assert_close(depth(clip(), tmp_path)[0], depth(clip(), model)[0])


def test_the_folders_own_statistics_are_used(dpt, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((dpt / name).read_bytes())
    reports = {"image_mean": [25.5, 51, 76.5], "image_std": [255, 255, 255]}
    for rescaled, unit in ((True, 1), (False, 255)):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(reports | {"do_rescale": rescaled}))
        mean, std = load_depth_model(tmp_path).statistics
        assert mean == pytest.approx(np.array([25.5, 51, 76.5]) / unit) and std == (255 / unit,) * 3


def test_a_depth_network_prints_nothing(dpt, capfd):
    depth(clip(), dpt)
    assert capfd.readouterr() == ("", "")


def test_the_working_size_keeps_the_shape(dpt, depth_anything):
    assert load_depth_model(dpt).working_size(180, 320) == (64, 128)  # multiples of 32
    assert load_depth_model(depth_anything).working_size(180, 320) == (56, 98)  # of 14
    assert load_depth_model(dpt).working_size(10, 10) == (64, 64)


def test_without_a_model_the_error_names_what_to_get(tmp_path):
    model = next(model for model in MODELS if model.name == "midas_v3_dpt_large.pth")
    with pytest.raises(UserError) as caught:
        depth(clip(), models=tmp_path)
    command = f"./vc get {model.name} --to {tmp_path} to download the model (1.4 GB)"
    assert f"Pass depth maps of the clip (--depth-maps), or run {command}." in str(caught.value)
    with pytest.raises(UserError, match=r"There is no depth model at .*absent.*1372\.2 MB.*Depth-Anything-V2"):
        depth(clip(), tmp_path / "absent")


def test_what_is_not_a_depth_model_is_refused(dpt, tmp_path, depth_anything):
    with pytest.raises(UserError, match=r"contains no weights of a depth model\. Expected model.safetensors or"):
        depth(clip(), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes((dpt / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"contains no config.json of transformers' DPT or Depth Anything"):
        depth(clip(), weights)
    config = tmp_path / "config.json"
    for text, message in (
        ("{", "cannot be read"),
        ('{"model_type": "zoedepth"}', "has model_type 'zoedepth'. Expected dpt or"),
        ('{"model_type": "dpt", "backbone": "facebook/dinov2-base"}', "names a backbone that is not in the folder"),
        ((depth_anything / "config.json").read_text(), "does not match its settings"),
        (json.dumps({**json.loads((dpt / "config.json").read_text()), "hidden_size": 64}), "have another shape"),
        (json.dumps({**json.loads((dpt / "config.json").read_text()), "hidden_act": "none"}), "can build"),
    ):
        config.write_text(text)
        with pytest.raises(UserError, match=message):
            depth(clip(), tmp_path)


def test_depth_without_transformers_says_what_to_install(dpt, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="pip install 'transformers"):
        depth(clip(), dpt)
