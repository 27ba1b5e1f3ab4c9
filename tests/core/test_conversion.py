"""`convert` and `inspect`: every layout in both directions, and what they refuse."""

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vc_core.checkpoint.conversion import convert
from vc_core.checkpoint.files import open_tensors, save_tensors
from vc_core.checkpoint.inspection import inspect
from vc_core.checkpoint.loading import load_unet
from vc_core.checkpoint.reading import read_checkpoint, save_checkpoint
from vc_core.checkpoint.released import to_released
from vc_core.config import Config, TowersConfig, UNetConfig
from vc_core.errors import UserError
from vc_core.model.unet import UNet3D

RELEASED_LIKE = UNetConfig(width=64, multipliers=(1, 2), res_blocks=1, attention_levels=(0, 1), context_dim=24)


def same(a, b) -> bool:
    a, b = open_tensors(a), open_tensors(b)
    get_a, get_b = a.get(), b.get()
    return a.shapes == b.shapes and a.dtypes == b.dtypes and all(torch.equal(get_a(n), get_b(n)) for n in a.shapes)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A file like the released one: a `.pth` of a small network with only names and shapes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("released") / "non_ema.pth"
    save_tensors(path, to_released(UNet3D(RELEASED_LIKE)))
    return path


def test_the_released_file_there_and_back(released, tmp_path):
    info = convert(released, tmp_path / "ours.safetensors")
    assert info.config == Config(unet=RELEASED_LIKE) and not info.assumed and not info.extra
    assert [(part.name, part.layout, part.wrong) for part in info.parts] == [("model", "released", None)]
    assert all(name.startswith("model.") for name in open_tensors(tmp_path / "ours.safetensors").shapes)
    back = convert(tmp_path / "ours.safetensors", tmp_path / "back.pth")
    assert back.assumed
    assert same(released, tmp_path / "back.pth")


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_network_there_and_back(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    config = UNetConfig(
        width=64,
        multipliers=tuple(data.draw(st.lists(st.integers(1, 2), min_size=1, max_size=2))),
        res_blocks=data.draw(st.integers(1, 2)),
        attention_levels=tuple(sorted(data.draw(st.sets(st.just(0))))),
        context_dim=data.draw(st.sampled_from([8, 24])),
        conditions=tuple(n for n in UNetConfig().conditions if data.draw(st.booleans()) or n == "motion"),
    )
    torch.manual_seed(data.draw(st.integers(0, 99)))
    save_tensors(folder / "a.pth", to_released(UNet3D(config)))
    info = convert(folder / "a.pth", folder / "b.safetensors")
    assert info.config.unet == config
    convert(folder / "b.safetensors", folder / "c.pth")
    assert same(folder / "a.pth", folder / "c.pth")


@pytest.mark.parametrize(("dtype", "kinds"), [("fp16", {"float16"}), ("fp8", {"float8_e4m3fn", "bfloat16"})])
def test_types(released, tmp_path, dtype, kinds):
    info = convert(released, tmp_path / "x.safetensors", dtype=dtype)
    assert set(info.parts[0].dtypes) == kinds
    assert info.nbytes < 0.6 * released.stat().st_size
    load_unet(read_checkpoint(tmp_path / "x.safetensors"))


def test_a_pth_that_cannot_store_the_config_is_not_written(tiny_checkpoint, tmp_path):
    with pytest.raises(
        UserError, match=r"x\.pth: \.pth cannot store this config .*unet\.head_dim is 16.*\.safetensors"
    ):
        convert(tiny_checkpoint, tmp_path / "x.pth")
    assert not list(tmp_path.iterdir())
    info = convert(tiny_checkpoint, tmp_path / "x.safetensors", layout="released")
    assert info.config == read_checkpoint(tiny_checkpoint).config
    assert "out.2.weight" in open_tensors(tmp_path / "x.safetensors").shapes


# --- Parts ----------------------------------------------------------------------------------------------------------


def test_parts_out_and_in_again(tiny_checkpoint, tmp_path):
    """A complete file is split into parts, with the towers in each library's layout, and joined again."""
    convert(tiny_checkpoint, tmp_path / "model.safetensors", parts=["model"])
    convert(tiny_checkpoint, tmp_path / "vae.safetensors", layout="taesd")
    for layout in ("open_clip", "transformers"):
        convert(tiny_checkpoint, tmp_path / "text.safetensors", parts=["text"], layout=layout)
        convert(tiny_checkpoint, tmp_path / "image.safetensors", parts=["image"], layout=layout)
        files = [tmp_path / f"{name}.safetensors" for name in ("vae", "text", "image")]
        for file in files:
            assert {part.wrong for part in inspect(file).parts} == {None}
        joined = convert(tmp_path / "model.safetensors", tmp_path / f"{layout}.safetensors", add=files)
        assert [part.name for part in joined.parts] == ["model", "vae", "text", "image"]
        before, after = open_tensors(tiny_checkpoint), open_tensors(tmp_path / f"{layout}.safetensors")
        assert after.metadata["config"] == before.metadata["config"]
        # TAESD's two constants are not parameters, and transformers stores no logit scale with a text model.
        assert set(before.shapes) - set(after.shapes) <= {"vae.vae_scale", "vae.vae_shift", "text.logit_scale"}
        get_before, get_after = before.get(), after.get()
        assert all(torch.equal(get_before(name), get_after(name)) for name in after.shapes)


def test_both_towers_in_one_file(tiny_checkpoint, tmp_path):
    for layout, names in (
        ("open_clip", {"visual.conv1.weight", "token_embedding.weight"}),
        ("transformers", {"vision_model.embeddings.class_embedding", "text_model.final_layer_norm.weight"}),
    ):
        info = convert(tiny_checkpoint, tmp_path / f"{layout}.safetensors", layout=layout)
        assert [(part.name, part.layout) for part in info.parts] == [("text", layout), ("image", layout)]
        assert names <= set(open_tensors(tmp_path / f"{layout}.safetensors").shapes)


def test_a_stable_diffusion_checkpoint(tmp_path):
    """An SD 2.x checkpoint with the right names and shapes, and zeros in half precision: its autoencoder is read."""
    from vc_core.checkpoint.formats import layout_of
    from vc_core.checkpoint.origins import part
    from vc_core.encoders.autoencoder import new_autoencoder

    with torch.device("meta"):
        module = new_autoencoder("ldm", device="meta")
    state = {name: torch.zeros(tensor.shape, dtype=torch.float16) for name, tensor in module.state_dict().items()}
    vae = part(state, layout_of("vae", "ldm", module))
    full = {f"first_stage_model.{name}": tensor for name, tensor in vae.items()}
    full |= {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3, dtype=torch.float16)}
    save_tensors(tmp_path / "sd.ckpt", full)
    info = inspect(tmp_path / "sd.ckpt")
    assert [(p.name, p.layout, p.tensors, p.wrong) for p in info.parts] == [("vae", "ldm", 248, None)]
    assert info.config is None
    assert info.extra == ("model.diffusion_model.input_blocks.0.0.weight",)
    info = convert(tmp_path / "sd.ckpt", tmp_path / "vae.safetensors", layout="diffusers")
    assert [(p.name, p.layout, p.tensors) for p in info.parts] == [("vae", "diffusers", 248)]
    convert(tmp_path / "vae.safetensors", tmp_path / "ldm.safetensors", layout="ldm")
    assert open_tensors(tmp_path / "ldm.safetensors").shapes == {n: tuple(t.shape) for n, t in vae.items()}


# --- Refusals -------------------------------------------------------------------------------------------------------


def test_a_missing_tensor_is_reported(tiny_checkpoint, tiny_config, tmp_path):
    tensors = open_tensors(tiny_checkpoint)
    state = tensors.below("model.").state()
    del state["out.2.bias"]
    save_checkpoint(tmp_path / "broken.safetensors", tiny_config, {"model": state})
    assert "lacks 1 tensor of the network (out.2.bias)" in inspect(tmp_path / "broken.safetensors").parts[0].wrong
    with pytest.raises(UserError, match=r"broken\.safetensors lacks 1 tensor"):
        convert(tmp_path / "broken.safetensors", tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "lora"}, "Unknown layout 'lora'. Expected one of videocomposer, released"),
        ({"dtype": "int4"}, "Unknown dtype 'int4'. Expected one of fp32"),
        ({"layout": "ldm"}, "layout 'ldm' can store only vae, but the files contain model"),
        ({"parts": ["vae"]}, "None of the files contains the part 'vae'. They contain model"),
        ({"parts": ["model"], "layout": "open_clip"}, "can store only text, image, not 'model'"),
        ({"layout": "videocomposer", "out": "x.pth"}, r"x\.pth: \.pth cannot store a config"),
        ({"out": "x.txt"}, r"x\.txt cannot be written\. Expected a name that ends in \.safetensors or \.pth"),
    ],
)
def test_refusals(released, tmp_path, options, message):
    out = tmp_path / options.pop("out", "x.safetensors")
    with pytest.raises(UserError, match=message):
        convert(released, out, **options)
    assert not list(tmp_path.iterdir())


def test_a_tower_of_another_size(tiny_checkpoint, tiny_config, tmp_path):
    """A text tower without a config is compared with ViT-H/14's, and the differences are listed."""
    save_tensors(tmp_path / "text.pth", open_tensors(tiny_checkpoint).below("text.").state())
    assert "of another shape than the text tower" in (wrong := inspect(tmp_path / "text.pth").parts[0].wrong) or (
        "lacks" in wrong
    )
    other = dataclasses.replace(tiny_config, towers=TowersConfig())
    state = open_tensors(tiny_checkpoint).below("text.").state()
    save_checkpoint(tmp_path / "other.safetensors", other, {"text": state})
    with pytest.raises(UserError, match="the text tower"):
        convert(tmp_path / "other.safetensors", tmp_path / "x.safetensors", layout="transformers")


# --- Found in a review ----------------------------------------------------------------------------------------------


def test_the_config_comes_from_the_file_with_the_network(tiny_checkpoint, tiny_config, tmp_path):
    other = dataclasses.replace(tiny_config, name="other", guidance=7.0)
    save_checkpoint(
        tmp_path / "text.safetensors", other, {"text": open_tensors(tiny_checkpoint).below("text.").state()}
    )
    convert(tiny_checkpoint, tmp_path / "model.safetensors", parts=["model", "vae"])
    info = convert(tmp_path / "text.safetensors", tmp_path / "x.safetensors", add=[tmp_path / "model.safetensors"])
    assert info.config == tiny_config and info.names == ("model", "vae", "text")


def test_a_scale_of_latents_is_not_dropped(tiny_checkpoint, tmp_path):
    vae = open_tensors(tiny_checkpoint).below("vae.").state() | {"vae_scale": torch.tensor(0.5)}
    save_tensors(tmp_path / "vae.safetensors", vae)
    assert "vae_scale of 0.5" in inspect(tmp_path / "vae.safetensors").parts[0].wrong
    with pytest.raises(UserError, match=r"vae_scale of 0\.5"):
        convert(tmp_path / "vae.safetensors", tmp_path / "x.safetensors")
    for layout in ("ldm", "diffusers"):
        with pytest.raises(
            UserError, match=rf"layout {layout} does not fit this network \(the autoencoder, layout taesd\)"
        ):
            convert(tiny_checkpoint, tmp_path / "y.safetensors", layout=layout)
    assert not (tmp_path / "y.safetensors").exists()
    convert(tiny_checkpoint, tmp_path / "y.safetensors", layout="taesd")
    assert open_tensors(tmp_path / "y.safetensors").state()["vae_scale"] == 1


def test_one_tensor_under_two_names(tmp_path):
    tied = torch.rand(3)
    save_tensors(tmp_path / "x.safetensors", {"a": tied, "b": tied})
    assert open_tensors(tmp_path / "x.safetensors").state()["b"].tolist() == tied.tolist()


def test_unused_tensors_are_reported_in_every_part(tiny_checkpoint, tmp_path):
    from vc_core import VideoComposer

    tensors = open_tensors(tiny_checkpoint)
    odd = ("text.odd", "image.odd", "vae.odd", "text.transformer.resblocks.7.ln_1.weight")
    state = tensors.state() | {name: torch.zeros(1) for name in odd}
    save_tensors(tmp_path / "x.safetensors", state, tensors.metadata)
    assert set(inspect(tmp_path / "x.safetensors").extra) == {name.partition(".")[2] for name in odd}
    with (
        pytest.warns(UserWarning, match="2 tensors are not used: odd, transformer"),
        pytest.warns(match="1 tensor is not used"),
    ):
        VideoComposer.load(tmp_path / "x.safetensors", device="cpu")


def test_a_file_that_changes_after_it_was_read(tiny_checkpoint, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(tiny_checkpoint.read_bytes())
    checkpoint = read_checkpoint(path)
    path.write_bytes(tiny_checkpoint.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"x\.safetensors was changed or deleted after it was read"):
        load_unet(checkpoint)


def test_sparse_and_meta_tensors_are_ignored(tmp_path):
    torch.save(
        {"a": torch.rand(3), "b": torch.eye(3).to_sparse(), "c": torch.empty(3, device="meta")}, tmp_path / "x.pth"
    )
    assert set(open_tensors(tmp_path / "x.pth").shapes) == {"a"}
