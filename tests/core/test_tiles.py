"""Tiles of large frames, and the second pass of `./vc compose --upscale`."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.composing import composed
from vc_core import Condition, UserError, VideoComposer
from vc_core.cli import main
from vc_core.commands import compose as composing
from vc_core.commands.record import read_record
from vc_core.commands.second_pass import enlarged, second_pass
from vc_core.commands.settings import Settings
from vc_core.config import Config, DiffusionConfig
from vc_core.diffusion.samplers import SAMPLERS, Sampling, make_sampler, starting_at
from vc_core.diffusion.tiles import TiledNetwork, Tiles
from vc_core.memory import activation_elements
from vc_core.video import probe

TILES = Tiles(32, 40, 8)


@pytest.mark.parametrize("size", [(4, 5), (8, 10), (7, 9), (4, 20), (3, 3)])
@pytest.mark.parametrize("overlap", [0, 8, 24, None])
def test_weights_sum_to_one_and_tiles_are_full(size, overlap):
    total = torch.zeros(size)
    for rows, columns, weights in Tiles(32, 40, overlap).parts(*size):
        assert weights.shape == (min(4, size[0]), min(5, size[1])) == total[rows, columns].shape
        assert (weights > 0).all()
        total[rows, columns] += weights
    torch.testing.assert_close(total, torch.ones(size))


def test_neighbouring_tiles_fade_over_their_overlap():
    (_, first, left), (_, second, right) = Tiles(32, 32, 16).parts(4, 6)
    assert (first, second) == (slice(0, 4), slice(2, 6))
    torch.testing.assert_close(left[0], torch.tensor([1, 1, 2 / 3, 1 / 3]))
    torch.testing.assert_close(right[0], torch.tensor([1 / 3, 2 / 3, 1, 1]))


def test_each_tile_sees_only_its_crop():
    x, stc = torch.randn(2, 4, 2, 8, 10), torch.randn(2, 4, 1, 8, 10)
    seen = []

    def network(x, timesteps, context, stc):
        seen.append((x, stc))
        return 2 * x + stc

    result = TiledNetwork(network, TILES)(x, torch.tensor([5]), torch.zeros(1), stc)
    torch.testing.assert_close(result, 2 * x + stc)
    parts = TILES.parts(8, 10)
    assert len(seen) == len(parts) == 9
    for (tile, crop), (rows, columns, _) in zip(seen, parts, strict=True):
        assert torch.equal(tile, x[..., rows, columns]) and torch.equal(crop, stc[..., rows, columns])


def test_one_tile_is_the_entire_frame_to_the_bit(tiny_composer):
    depth = Condition("depth", torch.rand(1, 1, 3, 32, 40, generator=torch.Generator().manual_seed(0)))
    options = {"conditions": [depth], "steps": 2, "seed": 1}
    plain = composed(tiny_composer, "a", **options)
    assert torch.equal(plain, composed(tiny_composer, "a", tiles=TILES, **options))
    large = composed(tiny_composer, "a", size=(64, 80), tiles=TILES, **options)
    assert large.shape == (1, 3, 3, 64, 80)
    assert not torch.allclose(large, composed(tiny_composer, "a", size=(64, 80), **options), atol=1e-3)


def test_a_change_in_one_tile_does_not_reach_places_that_only_others_cover(tiny_composer):
    """Two tiles of a wide frame: the network's part of the left one is as before."""
    unet, tiles = tiny_composer.unet, Tiles(32, 32, 16)
    x, context = torch.randn(1, 4, 3, 4, 6), torch.randn(1, 77, 16)
    changed = x.clone()
    changed[..., 4:] += 1
    with torch.inference_mode():
        before, after = (TiledNetwork(unet, tiles)(x, torch.tensor([500]), context) for x in (x, changed))
    assert torch.equal(before[..., :2], after[..., :2])
    assert ((before - after)[..., 2:].abs().amax((0, 1, 2, 3)) > 1e-4).all()


def test_the_network_sees_every_tile_of_every_window(tiny_composer):
    shapes = []
    hook = tiny_composer.unet.register_forward_pre_hook(lambda module, inputs: shapes.append(inputs[0].shape[2:]))
    motion = Condition("motion", torch.ones(1, 2, 5, 64, 80))
    try:
        video = composed(tiny_composer, conditions=[motion], size=(64, 80), frames=5, tiles=TILES, steps=2)
    finally:
        hook.remove()
    assert video.shape == (1, 3, 5, 64, 80) and video.isfinite().all()
    assert shapes == [(3, 4, 5)] * (2 * 9 * 2)  # windows, tiles, steps


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((36, 64), "multiples of 8, such as 256x256 pixels. Got 64x36"),
        ((0, 64), "multiples of 8"),
        ((64, 80, 64), "0 to 56 pixels, got 64"),
        ((64, 64, 4), "multiple of 8 from 0"),
        ((64, 64, -8), "got -8"),
    ],
)
def test_wrong_tiles(values, words):
    with pytest.raises(UserError, match=words):
        Tiles(*values)


def test_the_smallest_tiles_of_a_network(tiny_composer):
    with pytest.raises(UserError, match=r"tiles are 16x8 pixels.* at least 16x16"):
        composed(tiny_composer, size=(32, 32), tiles=Tiles(8, 16), steps=1)
    assert composed(tiny_composer, size=(32, 32), tiles=Tiles(16, 16), steps=1).isfinite().all()
    with pytest.raises(UserError, match="at least 64x64"):
        Tiles(64, 56).check(Config().unet)
    assert Tiles.trained(Config(height=256, width=448)) == Tiles(256, 448, 128)
    assert Tiles.trained(Config(height=32, width=64), 8) == Tiles(64, 64, 8)


def test_memory_is_counted_for_a_tile():
    config, tiles = Config().unet, Tiles(256, 256)
    small, large = (activation_elements(config, 2, 16, side, side) for side in (32, 128))
    assert activation_elements(config, 2, 16, 32, 32, tiles=tiles) == small
    assert small <= activation_elements(config, 2, 16, 128, 128, tiles=tiles) < large / 3


def test_tiles_show_no_seams_with_the_bundled_checkpoint():
    """On a smooth gradient: neighbouring pixels differ at the borders of tiles about as much as elsewhere."""
    composer = VideoComposer.load()
    blue, purple = (torch.tensor(color).view(1, 3, 1, 1, 1) for color in ((0.26, 0.35, 0.77), (0.54, 0.29, 0.68)))
    gradient = torch.lerp(blue, purple, torch.linspace(0, 1, 128)).expand(1, 3, 4, 128, 128)
    sampling = second_pass(Sampling(steps=10).filled(composer.config), 0.4, composer.config)
    video = composed(composer, "a yellow circle on a blue and purple gradient", init=gradient, size=(128, 128),
                     **vars(sampling))  # fmt: skip
    assert sampling.tiles == Tiles(64, 64, 32)
    for axis in (-2, -1):
        change = video.diff(dim=axis).abs().movedim(axis, 0).flatten(1).mean(1)
        at_seams = torch.tensor([i + 1 in (32, 64, 96) for i in range(127)])
        assert change[at_seams].mean() < 1.2 * change[~at_seams].mean()  # 3.5 times without overlap


# --- The second pass --------------------------------------------------------------------------------------------------


def test_bicubic_enlargement():
    videos = torch.rand(2, 3, 3, 8, 16, generator=torch.Generator().manual_seed(0))
    large = enlarged(videos, (16, 32))
    assert large.shape == (2, 3, 3, 16, 32) and large.min() >= 0 and large.max() <= 1
    torch.testing.assert_close(large.mean((3, 4)), videos.mean((3, 4)), atol=0.02, rtol=0)


def test_upscaled_and_repeated(tiny_checkpoint, tmp_path, capsys):
    out, sheet = tmp_path / "out.mp4", tmp_path / "sheet.png"
    words = ["compose", "--checkpoint", str(tiny_checkpoint), "--text", "a", "--steps", "2", "--scale", "1"]
    assert main([*words, "--upscale", "1.5", "--sheet", str(sheet), "-o", str(out)]) == 0
    assert "3 frames of 64x48" in capsys.readouterr().out
    info = probe(out)
    assert (info.width, info.height) == (64, 48)
    with Image.open(sheet) as image:
        assert image.height > 2 * 128  # the first and the second pass
    settings = read_record(out).settings
    assert (settings.upscale, settings.upscale_denoise, settings.size) == (1.5, 0.4, (32, 40))
    again = tmp_path / "again.mp4"
    assert main(["compose", "--from", str(out), "-o", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()


@pytest.fixture
def calls(monkeypatch):
    """The settings of each call of `compose`."""
    calls, compose = [], composing.pipeline.compose

    def spied(*args, **settings):
        calls.append({**settings, "videos": compose(*args, **settings)})
        return calls[-1]["videos"]

    monkeypatch.setattr(composing.pipeline, "compose", spied)
    return calls


def run(checkpoint, tmp_path, *words):
    return main(["compose", "--checkpoint", str(checkpoint), "--steps", "2", "-o", str(tmp_path / "o.gif"), *words])


def test_the_second_pass_has_conditions_of_its_size(tiny_checkpoint, tmp_path, calls):
    words = ["--pan=0.2,0", "--upscale", "2", "--upscale-denoise", "0.3", "--steps", "10"]
    assert run(tiny_checkpoint, tmp_path, *words) == 0
    first, second = calls
    assert (first["size"], second["size"]) == ((32, 40), (64, 80))
    torch.testing.assert_close(second["init"], enlarged(first["videos"], (64, 80)))
    assert (first["sampling"].denoise, first["sampling"].tiles) == (1.0, None)
    assert (second["sampling"].steps, second["sampling"].tiles) == (3, Tiles(32, 40))
    start, *_ = make_sampler(second["sampling"], DiffusionConfig()).timesteps
    assert abs(start - 300) < 60
    small, large = (call["conditions"][0].tensor for call in calls)
    assert large.shape[-2:] == (2 * small.shape[-2], 2 * small.shape[-1])
    torch.testing.assert_close(large[0, :, 1:, 0, 0], 2 * small[0, :, 1:, 0, 0])  # in pixels of the larger video


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_it_starts_at_a_fraction_of_the_timesteps(sampler, zero_snr):
    config = DiffusionConfig(prediction="v_prediction", zero_terminal_snr=zero_snr)
    for fraction in (0.2, 0.4, 0.6):
        start, *_ = make_sampler(starting_at(Sampling(sampler, steps=10), fraction, config), config).timesteps
        assert abs(start - 1000 * fraction) < 50


def test_tracks_stay_where_they_were_drawn(tiny_checkpoint, tmp_path, calls):
    tracks = tmp_path / "tracks.json"
    tracks.write_text('[{"x": 10, "y": 16}, {"x": 20, "y": 16}]')
    assert run(tiny_checkpoint, tmp_path, "--tracks", str(tracks), "--upscale", "2") == 0
    small, large = (call["conditions"][0].tensor[0, 0, 1] for call in calls)
    expected = 2 * F.interpolate(small[None, None], size=large.shape, mode="bilinear")[0, 0]
    assert expected.max() > 4
    torch.testing.assert_close(large, expected, atol=0.5, rtol=0)


def fake_spandrel(scale=2, channels=3, known=True):
    """A package with the names that are used. Its upscale model repeats pixels."""

    class UnsupportedModelError(Exception):
        pass

    class ImageModelDescriptor(SimpleNamespace):
        def eval(self):
            return self

        def __call__(self, image):
            return image.repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2)

    class ModelLoader:
        def __init__(self, device):
            pass

        def load_from_state_dict(self, state):
            if not known:
                raise UnsupportedModelError
            assert set(state) == {"weight"}
            return ImageModelDescriptor(scale=scale, input_channels=channels, output_channels=channels)

    package = ModuleType("spandrel")
    package.ModelLoader, package.ImageModelDescriptor = ModelLoader, ImageModelDescriptor
    package.UnsupportedModelError = UnsupportedModelError
    return package


@pytest.fixture
def upscale_model(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"params_ema": {"weight": torch.zeros(3)}}, path)
    return path


def test_an_upscale_model_enlarges_the_video(tiny_checkpoint, tmp_path, calls, monkeypatch, upscale_model):
    monkeypatch.setitem(sys.modules, "spandrel", fake_spandrel(scale=2))
    assert run(tiny_checkpoint, tmp_path, "--upscale", "2", "--upscale-model", str(upscale_model)) == 0
    first, second = calls
    repeated = first["videos"].repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(second["init"], repeated, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("package", "words"),
    [
        (None, "--upscale-model requires the package spandrel. Run: pip install 'spandrel>=0.4,<0.5'."),
        (fake_spandrel(scale=1), "enlarges 1 times, but --upscale is 2. Choose a smaller --upscale"),
        (fake_spandrel(channels=1), "does not enlarge RGB images"),
        (fake_spandrel(known=False), "is not an upscale model that spandrel reads"),
    ],
)
def test_upscale_models_that_do_not_fit(
    tiny_checkpoint, tmp_path, calls, monkeypatch, upscale_model, package, words, capsys
):
    monkeypatch.setitem(sys.modules, "spandrel", package)
    assert run(tiny_checkpoint, tmp_path, "--upscale", "2", "--upscale-model", str(upscale_model)) == 2
    assert words in capsys.readouterr().err
    assert not calls  # before the first pass


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--upscale-denoise", "0.3"], "--upscale-denoise requires --upscale. Add --upscale"),
        (["--upscale-model", __file__], "--upscale-model requires --upscale"),
        (["--upscale", "1"], "--upscale is 1"),
        (["--upscale", "2", "--upscale-denoise", "1"], "--upscale-denoise is 1"),
        (["--upscale", "2", "--steps", "1000", "--upscale-denoise", "0.9"], "Use fewer steps or a larger denoise"),
    ],
)
def test_contradictions_are_refused_before_the_first_pass(tiny_checkpoint, tmp_path, calls, options, words, capsys):
    assert run(tiny_checkpoint, tmp_path, *options) == 2
    assert words in capsys.readouterr().err
    assert not calls


def test_the_memory_note_counts_the_second_pass(tiny_composer, monkeypatch):
    needs = []
    monkeypatch.setattr(composing.memory, "as_text", lambda need, *rest: needs.append(need) or "")
    monkeypatch.setattr(composing, "NOTED", 0)
    settings = Settings(size=(32, 40), frames=3, guidance=2.0)
    for upscale in (None, 8.0):
        composing.memory_note(Settings(**{**vars(settings), "upscale": upscale}), tiny_composer)
    first, both = needs
    assert both.decoding == 64 * first.decoding and both.activations >= first.activations
