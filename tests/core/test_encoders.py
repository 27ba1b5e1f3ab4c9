"""Autoencoders and towers: every file layout that users have, compared with diffusers and transformers."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from vc_core.checkpoint.files import open_tensors, save_tensors
from vc_core.checkpoint.formats import find_parts, layout_of
from vc_core.checkpoint.loading import load_autoencoder, load_towers
from vc_core.checkpoint.origins import part
from vc_core.checkpoint.reading import BUNDLED, Part
from vc_core.checkpoint.tensors import Tensors
from vc_core.config import TowersConfig
from vc_core.encoders import autoencoder as autoencoders
from vc_core.encoders import clip as towers
from vc_core.encoders.autoencoder import Tiling, decode, encode, new_autoencoder
from vc_core.encoders.clip import encode_image, encode_text
from vc_core.errors import UserError

WIDTHS = (32, 32, 64, 64)
TINY = TowersConfig(
    embed_dim=24, text_width=32, text_heads=2, text_layers=3, image_size=28, patch_size=14, image_width=48,
    image_head_width=16, image_layers=2,
)  # fmt: skip
PROMPTS = ["a red circle moving right", ""]


def shaken(module):
    """Add noise to new weights, so that all tensors differ: new norms are ones and zeros, which would hide a mix-up."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return new_autoencoder().eval()


@pytest.fixture(scope="module")
def kl():
    torch.manual_seed(0)
    return shaken(new_autoencoder("ldm", WIDTHS))


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return shaken(towers.new_towers(TINY))


def text_tower(clip):
    """The text tower of a CLIP, for `layout_of`."""
    alone = towers.new_towers(TINY, "meta")
    alone.visual = None
    alone.load_state_dict({k: v for k, v in clip.state_dict().items() if not k.startswith("visual.")}, assign=True)
    return alone


def exported(name, layout, module, file=None):
    return part(module.state_dict(), layout_of(name, layout, module, file))


def as_part(name, layout, state):
    return Part(name, layout, Tensors.of(state, "x.safetensors"))


def tower_parts(clip, layout="open_clip"):
    return (
        as_part("text", layout, exported("text", layout, text_tower(clip))),
        as_part("image", layout, exported("image", layout, clip.visual)),
    )


def assert_same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


# --- Layouts of autoencoders ----------------------------------------------------------------------------------------


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def old_names(state):
    """The names in diffusers' first files."""
    result = {}
    for name, tensor in state.items():
        for new, old in OLD.items():
            name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
        result[name] = tensor
    return result


def other_matrices(state):
    """Turn the attention's linear layers into 1 x 1 convolutions, or the reverse."""

    def other(name, tensor):
        if not name.endswith("weight") or not ("attn_1" in name or ".attentions." in name) or "norm" in name:
            return tensor
        return tensor.flatten(1) if tensor.ndim == 4 else tensor[..., None, None]

    return {name: other(name, tensor) for name, tensor in state.items()}


@pytest.mark.parametrize("layout", ["taesd", "ldm", "diffusers"])
@pytest.mark.parametrize("variant", [dict, old_names, other_matrices, lambda s: other_matrices(old_names(s))])
def test_autoencoders_are_read_and_written_in_every_layout(tiny, kl, tmp_path, layout, variant):
    model = tiny if layout == "taesd" else kl
    state = variant(exported("vae", layout, model))
    save_tensors(tmp_path / "vae.safetensors", state | {"loss.logvar": torch.zeros(())})
    tensors = open_tensors(tmp_path / "vae.safetensors")
    assert find_parts(tensors.shapes) == {"vae": (layout, "")}
    loaded = load_autoencoder(Part("vae", layout, tensors), widths=WIDTHS)
    assert_same_state(loaded, model)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    again = exported("vae", layout, loaded, tensors.shapes)
    assert {k: t.shape for k, t in again.items()} == {k: t.shape for k, t in state.items()}
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_ldm_and_diffusers_layouts_equal_diffusers_conversion(kl):
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    state = kl.state_dict()
    converted = convert_ldm_vae_checkpoint(exported("vae", "ldm", kl), dict(kl.config))
    assert converted.keys() == state.keys() == exported("vae", "diffusers", kl).keys()
    for name in state:
        assert torch.equal(converted[name], state[name]), name


def test_the_size_of_stable_diffusions_autoencoder():
    model = new_autoencoder("ldm", device="meta")
    assert sum(p.numel() for p in model.parameters()) == 83_653_863
    shapes = {k: tuple(t.shape) for k, t in exported("vae", "ldm", model).items()}
    assert len(shapes) == 248
    published = {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.down.0.downsample.conv.weight": (128, 128, 3, 3),
        "encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "encoder.norm_out.weight": (512,),
        "encoder.conv_out.weight": (8, 512, 3, 3),
        "decoder.mid.block_2.conv2.weight": (512, 512, 3, 3),
        "decoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
        "decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        "decoder.up.0.block.2.conv2.weight": (128, 128, 3, 3),
        "quant_conv.weight": (8, 8, 1, 1),
        "post_quant_conv.weight": (4, 4, 1, 1),
    }
    assert published.items() <= shapes.items()
    assert "decoder.up.0.upsample.conv.weight" not in shapes and "encoder.down.3.downsample.conv.weight" not in shapes


def test_weights_are_not_copied(kl, clip):
    state = exported("vae", "ldm", kl)
    loaded = exported("vae", "ldm", load_autoencoder(as_part("vae", "ldm", state), widths=WIDTHS))
    assert all(loaded[name].data_ptr() == state[name].data_ptr() for name in state)
    text, image = tower_parts(clip)
    loaded = load_towers(TINY, text, image)
    assert loaded.token_embedding.weight.data_ptr() == text.tensors.get()("token_embedding.weight").data_ptr()
    assert not any(t.is_meta for t in [*loaded.parameters(), *loaded.buffers()])


def test_wrong_autoencoders_are_named(kl):
    state = exported("vae", "ldm", kl)

    def load(state, layout="ldm"):
        return load_autoencoder(as_part("vae", layout, state), widths=WIDTHS)

    without = {k: v for k, v in state.items() if k != "decoder.up.0.block.0.conv1.bias"}
    with pytest.raises(UserError, match=r"x\.safetensors lacks 1 tensor of Stable .*decoder\.up\.0\.block\.0\.conv1"):
        load(without)
    sixteen = {"decoder.conv_in.weight": torch.zeros(64, 16, 3, 3)}
    with pytest.raises(UserError, match=r"decoder\.conv_in\.weight is \(64, 16, 3, 3\), expected \(64, 4, 3, 3\)"):
        load(state | sixteen)
    video = {"decoder.up.0.block.0.time_stack.in_layers.0.weight": torch.zeros(32)}
    with pytest.raises(UserError, match=r"autoencoder does not have \(decoder\.up\.0\.block\.0\.time_stack"):
        load(state | video)
    transposed = {"encoder.mid.attn_1.q.weight": torch.zeros(64, 1, 64, 1)}
    with pytest.raises(UserError, match=r"attn_1\.q\.weight is \(64, 1, 64, 1\)"):
        load(state | transposed)
    load(state | {"model_ema.decay": torch.zeros(()), "loss.perceptual_loss.lin0.weight": torch.zeros(3)})


# --- Layouts of towers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["open_clip", "transformers"])
def test_towers_are_read_and_written_in_every_layout(clip, tmp_path, layout):
    text, image = tower_parts(clip, layout)
    extras = {"text_model.embeddings.position_ids": torch.arange(77)} if layout == "transformers" else {}
    save_tensors(tmp_path / "text.safetensors", text.tensors.state() | extras)
    save_tensors(tmp_path / "image.safetensors", image.tensors.state())
    files = [open_tensors(tmp_path / name) for name in ("text.safetensors", "image.safetensors")]
    assert [find_parts(file.shapes) for file in files] == [{name: (layout, "")} for name in ("text", "image")]
    loaded = load_towers(TINY, Part("text", layout, files[0]), Part("image", layout, files[1]), complete=True)
    assert_same_state(loaded, clip)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    for written, module in ((text, text_tower(loaded)), (image, loaded.visual)):
        again = exported(written.name, layout, module)
        assert again.keys() == written.tensors.shapes.keys()
        assert all(torch.equal(again[name], tensor) for name, tensor in written.tensors.state().items())


def text_model(with_projection=True):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=32, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2, projection_dim=24,
        hidden_act="gelu",
    )  # fmt: skip
    return shaken((CLIPTextModelWithProjection if with_projection else CLIPTextModel)(config))


@pytest.mark.parametrize("with_projection", [True, False])
def test_text_is_encoded_as_in_transformers(with_projection):
    model = text_model(with_projection)
    tensors = Tensors.of(model.state_dict())
    ((name, (layout, prefix)),) = find_parts(tensors.shapes).items()
    assert (name, layout) == ("text", "transformers")  # version 5 omits the prefix text_model. without a projection
    clip = load_towers(TINY, Part("text", "transformers", tensors.below(prefix)), None)
    tokens = towers.tokenize(PROMPTS)
    with torch.no_grad():
        hidden = model(input_ids=tokens, output_hidden_states=True).hidden_states[-2]
        final_norm = getattr(model, "text_model", model).final_layer_norm
        expected = final_norm(hidden)
    torch.testing.assert_close(encode_text(clip, PROMPTS), expected, atol=1e-5, rtol=1e-5)


def test_images_are_embedded_as_in_transformers():
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=48, intermediate_size=192, num_hidden_layers=2, num_attention_heads=3, projection_dim=24,
        hidden_act="gelu", image_size=28, patch_size=14,
    )  # fmt: skip
    model = shaken(CLIPVisionModelWithProjection(config))
    state = model.state_dict()
    assert find_parts(state) == {"image": ("transformers", "")}
    clip = load_towers(TINY, None, as_part("image", "transformers", state))
    image = torch.rand(2, 3, 40, 31)
    with torch.no_grad():
        expected = model(pixel_values=towers.preprocess(image, (28, 28))).image_embeds
    torch.testing.assert_close(encode_image(clip, image)[:, 0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", ["open_clip", "transformers"])
def test_the_last_text_block_is_not_required_and_not_loaded(clip, layout):
    text, _ = tower_parts(clip, layout)
    blocks = {"open_clip": "transformer.resblocks.", "transformers": "text_model.encoder.layers."}[layout]
    state = {k: v for k, v in text.tensors.state().items() if not k.startswith((f"{blocks}2.", "text_proj", "logit"))}
    short = load_towers(TINY, as_part("text", layout, state), None)
    assert len(short.transformer.resblocks) == 2
    assert len(load_towers(TINY, text, None).transformer.resblocks) == 2
    assert torch.equal(encode_text(short, PROMPTS), encode_text(clip, PROMPTS))
    with pytest.raises(UserError, match=r"lacks \d+ tensors of the text tower"):
        load_towers(TINY, as_part("text", layout, state), None, complete=True)
    fewer = {k: v for k, v in state.items() if not k.startswith(f"{blocks}1.")}
    with pytest.raises(UserError, match=r"lacks \d+ tensors of the text tower \(.*\.1\."):
        load_towers(TINY, as_part("text", layout, fewer), None)


def test_one_tower_works_without_the_other(clip):
    text, image = tower_parts(clip)
    alone = load_towers(TINY, text, None)
    assert torch.equal(encode_text(alone, PROMPTS), encode_text(clip, PROMPTS))
    assert not any(name.startswith("visual") for name, _ in alone.named_parameters())
    with pytest.raises(UserError, match=r"no image tower.*OpenCLIP ViT-H/14"):
        encode_image(alone, torch.rand(1, 3, 28, 28))
    alone, pixels = load_towers(TINY, None, image), torch.rand(1, 3, 28, 28)
    assert torch.equal(encode_image(alone, pixels), encode_image(clip, pixels))
    assert all(name.startswith("visual.") for name, _ in alone.named_parameters())
    with pytest.raises(UserError, match="no text tower"):
        encode_text(alone, PROMPTS)


def test_towers_of_another_width_are_refused(clip):
    text, image = tower_parts(clip, "transformers")
    with pytest.raises(
        UserError, match=r"x\.safetensors belongs to another model: its text tower has width 32, expected 1024"
    ):
        load_towers(TowersConfig(), text, None)
    with pytest.raises(
        UserError, match=r"x\.safetensors belongs to another model: its image tower has width 48, expected 1280"
    ):
        load_towers(TowersConfig(), None, image)
    with pytest.raises(UserError, match=r"positional_embedding|position_embedding"):
        load_towers(replace(TINY, image_size=56), None, image)


def test_the_size_of_the_released_towers():
    clip = towers.new_towers(TowersConfig(), "meta")
    assert sum(p.numel() for p in clip.parameters()) == 986_109_441
    visual, clip.visual = clip.visual, None
    assert len(layout_of("text", "open_clip", clip)) == 24 * 12 + 6
    assert len(layout_of("image", "open_clip", visual)) == 32 * 12 + 8
    text = {k: tuple(t.shape) for k, t in exported("text", "transformers", clip).items()}
    image = {k: tuple(t.shape) for k, t in exported("image", "transformers", visual).items()}
    assert text["text_model.encoder.layers.23.self_attn.v_proj.weight"] == (1024, 1024)
    assert text["text_model.embeddings.position_embedding.weight"] == (77, 1024)
    assert image["vision_model.embeddings.patch_embedding.weight"] == (1280, 3, 14, 14)
    assert image["vision_model.embeddings.position_embedding.weight"] == (257, 1280)
    assert image["vision_model.encoder.layers.31.mlp.fc1.weight"] == (5120, 1280)
    assert image["visual_projection.weight"] == (1024, 1280)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_the_cpu(tiny, kl, clip, dtype):
    half = load_towers(TINY, *tower_parts(clip), dtype)
    assert {p.dtype for p in half.parameters()} == {dtype} == {half.attn_mask.dtype}
    image, video = torch.rand(1, 3, 40, 30), torch.rand(1, 3, 1, 16, 24)
    for result, expected in (
        (encode_text(half, PROMPTS), encode_text(clip, PROMPTS)),
        (encode_image(half, image), encode_image(clip, image)),
    ):
        assert result.dtype == dtype
        assert (result.float() - expected).norm() < 0.05 * expected.norm()
    for layout, model in (("taesd", tiny), ("ldm", kl)):
        loaded = load_autoencoder(as_part("vae", layout, exported("vae", layout, model)), dtype, widths=WIDTHS)
        assert {p.dtype for p in loaded.parameters()} == {dtype}
        latent, expected = encode(loaded, video), encode(model, video)
        assert latent.dtype == torch.float32
        assert (latent - expected).norm() < 0.05 * expected.norm()
        assert (decode(loaded, latent.to(dtype)) - decode(model, latent)).abs().mean() < 0.01


# --- Encoding and decoding ------------------------------------------------------------------------------------------


def test_stable_diffusions_latents_are_the_mode_of_the_posterior(kl):
    video = torch.rand(2, 3, 3, 16, 24)
    frames = video.transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        moments = kl.quant_conv(kl.encoder(frames * 2 - 1))
        latents = moments[:, :4]
        pixels = kl.decoder(kl.post_quant_conv(latents)) / 2 + 0.5
    latent = encode(kl, video)
    assert latent.shape == (2, 4, 3, 2, 3)
    torch.testing.assert_close(latent.transpose(1, 2).flatten(0, 1), latents)
    result = decode(kl, latent)
    assert result.shape == video.shape and result.min() >= 0 and result.max() <= 1
    torch.testing.assert_close(result.transpose(1, 2).flatten(0, 1), pixels.clamp(0, 1), atol=1e-5, rtol=1e-5)


def input_shapes(module, run):
    """Shapes of a module's inputs while `run` runs."""
    shapes = []
    handle = module.register_forward_pre_hook(lambda _, arguments: shapes.append(tuple(arguments[0].shape)))
    try:
        run()
    finally:
        handle.remove()
    return shapes


@pytest.mark.parametrize("kind", ["tiny", "kl"])
def test_chunks_and_tiles_limit_what_is_computed_at_a_time(kind, request):
    ae = request.getfixturevalue(kind)
    first = ae.encoder.layers if kind == "tiny" else ae.encoder
    video, calls = torch.rand(1, 3, 3, 64, 80), []
    chunked = input_shapes(first, lambda: encode(ae, video, Tiling(2), lambda *call: calls.append(call)))
    assert [shape[0] for shape in chunked] == [2, 1]
    assert calls == [("encoding", 2, 3), ("encoding", 3, 3)]
    tiled = input_shapes(first, lambda: encode(ae, video, tiling=Tiling(tile=64)))
    assert [shape[-2:] for shape in tiled] == [(64, 64)] * 2
    latent = encode(ae, video, tiling=Tiling(2))
    torch.testing.assert_close(latent, encode(ae, video))
    full = decode(ae, latent)
    torch.testing.assert_close(decode(ae, latent, tiling=Tiling(2)), full)
    assert decode(ae, latent, tiling=Tiling(tile=64)).shape == video.shape
    assert torch.equal(decode(ae, latent, tiling=Tiling(tile=87)), full)  # one tile covers the frame


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 17), (23, 8), (30, 41)])
def test_tiles_cover_everything_without_seams(height, width):
    latents = torch.rand(2, 4, height, width, dtype=torch.float64).float()

    def enlarge(piece):
        return F.interpolate(piece, scale_factor=8.0)

    for tile in (8, 11, 50):
        result = autoencoders._tiled(enlarge, tile, latents, scale=(1, 8))
        torch.testing.assert_close(result, enlarge(latents))
        back = autoencoders._tiled(lambda p: F.avg_pool2d(p, 8), tile, result, scale=(8, 1))
        torch.testing.assert_close(back, latents)


def test_tiles_change_an_image_little():
    tensors = open_tensors(BUNDLED)
    ae = load_autoencoder(Part("vae", "taesd", tensors.below("vae.")))
    axis = torch.linspace(0, 6, 128)
    video = torch.stack(
        [axis.sin()[None] * axis.cos()[:, None], axis[None].expand(128, -1) / 6, axis[:, None].cos().expand(-1, 128)]
    )
    video = (video / 2 + 0.5).clamp(0, 1)[None, :, None]
    latent = encode(ae, video)
    assert (encode(ae, video, tiling=Tiling(tile=80)) - latent).abs().mean() < 0.05 * latent.abs().mean()
    assert (decode(ae, latent, tiling=Tiling(tile=80)) - decode(ae, latent)).abs().mean() < 0.004


def test_wrong_videos_chunks_and_tiles_are_named(tiny):
    with pytest.raises(
        UserError, match=r"\(1, 3, 1, 16, 20\)\. Expected \(B, 3, F, H, W\) with H and W multiples of 8"
    ):
        encode(tiny, torch.rand(1, 3, 1, 16, 20))
    with pytest.raises(UserError, match=r"\(1, 16, 1, 2, 2\)\. Expected \(B, 4, F, h, w\)"):
        decode(tiny, torch.rand(1, 16, 1, 2, 2))
    with pytest.raises(UserError, match="chunk must be at least 1 frame, got 0"):
        Tiling(chunk=0)
    with pytest.raises(UserError, match=r"tile must be at least 64 pixels.* Got 32"):
        Tiling(tile=32)


@pytest.mark.slow
def test_stable_diffusions_autoencoder_from_a_complete_file(tmp_path):
    model = new_autoencoder("ldm", device="meta")
    zeros = {k: torch.zeros(t.shape, dtype=torch.float16) for k, t in exported("vae", "ldm", model).items()}
    save_tensors(tmp_path / "sd.safetensors", {f"first_stage_model.{k}": t for k, t in zeros.items()})
    tensors = open_tensors(tmp_path / "sd.safetensors")
    ((name, (layout, prefix)),) = find_parts(tensors.shapes).items()
    loaded = load_autoencoder(Part(name, layout, tensors.below(prefix)), torch.float16)
    assert sum(p.numel() for p in loaded.parameters()) == 83_653_863
    assert torch.equal(decode(loaded, torch.rand(1, 4, 1, 2, 2)), torch.full((1, 3, 1, 16, 16), 0.5))
