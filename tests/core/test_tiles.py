"""Tiles of large frames, and the second pass of `./vc compose --upscale`."""

import pytest
import torch

from tests.composing import composed
from vc_core import Condition, UserError
from vc_core.cli import main
from vc_core.commands.enlarging import enlarged
from vc_core.commands.record import read_record
from vc_core.diffusion.tiles import Tiles
from vc_core.video import probe

TILES = Tiles(32, 40, 8)


@pytest.mark.parametrize("size", [(4, 5), (8, 10), (7, 9), (4, 20), (3, 3)])
def test_weights_sum_to_one_and_tiles_are_full(size):
    total = torch.zeros(size)
    for rows, columns, weights in TILES.parts(*size):
        assert weights.shape == (min(4, size[0]), min(5, size[1]))
        total[rows, columns] += weights
    torch.testing.assert_close(total, torch.ones(size))


def test_each_tile_sees_its_own_part_only():
    x = torch.randn(1, 4, 2, 8, 10)
    stc = torch.randn(1, 3, 1, 8, 10)
    seen = []

    def network(x, timesteps, context, stc):
        seen.append((x, stc))
        return 2 * x + stc.mean(1, keepdim=True)

    result = TILES.run(network, x, torch.tensor([5]), torch.zeros(1), stc)
    torch.testing.assert_close(result, 2 * x + stc.mean(1, keepdim=True))
    assert len(seen) == len(list(TILES.parts(8, 10))) == 9
    for (part, stc_part), (rows, columns, _) in zip(seen, TILES.parts(8, 10), strict=True):
        assert torch.equal(part, x[..., rows, columns]) and torch.equal(stc_part, stc[..., rows, columns])


def test_one_tile_is_the_entire_frame_to_the_bit(tiny_composer):
    depth = Condition("depth", torch.rand(1, 1, 3, 32, 40, generator=torch.Generator().manual_seed(0)))
    options = {"conditions": [depth], "steps": 2, "seed": 1}
    plain = composed(tiny_composer, "a", **options)
    assert torch.equal(plain, composed(tiny_composer, "a", tiles=TILES, **options))
    large = composed(tiny_composer, "a", size=(64, 80), tiles=TILES, **options)
    assert large.shape == (1, 3, 3, 64, 80)
    assert not torch.allclose(large, composed(tiny_composer, "a", size=(64, 80), **options), atol=1e-3)


def test_tiles_and_windows_together(tiny_composer):
    video = composed(tiny_composer, "a", size=(64, 80), frames=5, tiles=TILES, steps=2)
    assert video.shape == (1, 3, 5, 64, 80) and video.isfinite().all()


@pytest.mark.parametrize(
    ("values", "words"),
    [((24, 64), "at least 32 pixels, got 64x24"), ((36, 64), "multiples of 8"),
     ((64, 64, 64), "0 to 56 pixels, got 64"), ((64, 64, 4), "multiple of 8 from 0")],
)  # fmt: skip
def test_wrong_tiles(values, words):
    with pytest.raises(UserError, match=words):
        Tiles(*values)


def test_bicubic_enlargement():
    videos = torch.rand(2, 3, 3, 8, 16, generator=torch.Generator().manual_seed(0))
    large = enlarged(videos, (16, 32), None, torch.device("cpu"))
    assert large.shape == (2, 3, 3, 16, 32) and large.min() >= 0 and large.max() <= 1
    torch.testing.assert_close(large.mean((3, 4)), videos.mean((3, 4)), atol=0.02, rtol=0)


def test_second_pass(tiny_checkpoint, tmp_path, capsys):
    out = tmp_path / "out.mp4"
    words = ["compose", "--checkpoint", str(tiny_checkpoint), "--text", "a", "--steps", "2", "--scale", "1"]
    assert main([*words, "--upscale", "1.5", "-o", str(out)]) == 0
    assert "3 frames of 64x48" in capsys.readouterr().out
    info = probe(out)
    assert (info.width, info.height) == (64, 48)
    settings = read_record(out).settings
    assert (settings.upscale, settings.upscale_denoise, settings.size) == (1.5, 0.15, (32, 40))
    again = tmp_path / "again.mp4"
    assert main(["compose", "--from", str(out), "-o", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()


def test_the_second_pass_uses_conditions_at_its_size(tiny_checkpoint, tmp_path, monkeypatch):
    from vc_core import pipeline

    calls, compose = [], pipeline.compose

    def spied(*args, **settings):
        calls.append(settings)
        return compose(*args, **settings)

    monkeypatch.setattr(pipeline, "compose", spied)
    words = ["compose", "--checkpoint", str(tiny_checkpoint), "--pan=0.2,0", "--steps", "2", "--upscale", "2"]
    assert main([*words, "--upscale-denoise", "0.3", "-o", str(tmp_path / "out.gif")]) == 0
    first, second = calls
    assert first["size"] == (32, 40) and second["size"] == (64, 80) and second["init"].shape[-2:] == (64, 80)
    assert second["sampling"].denoise == 0.3 and second["sampling"].tiles == Tiles(32, 40)
    shapes = [call["conditions"][0].tensor.shape[-2:] for call in calls]
    assert shapes[1] == (2 * shapes[0][0], 2 * shapes[0][1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--upscale-denoise", "0.3"], "--upscale-denoise"),
        (["--upscale", "1"], "--upscale"),
        (["--upscale", "2", "--upscale-model", "none.pth"], "none.pth"),
    ],
)
def test_wrong_options(tiny_checkpoint, tmp_path, capsys, options, words):
    out = tmp_path / "o.gif"
    assert main(["compose", "--checkpoint", str(tiny_checkpoint), *options, "-o", str(out)]) == 2
    assert words in capsys.readouterr().err and not out.exists()


def test_an_upscale_model(tmp_path, monkeypatch):
    """A small ESRGAN with random weights, and a file that is not an upscale model."""
    spandrel = pytest.importorskip("spandrel")
    from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact

    torch.manual_seed(0)
    network = SRVGGNetCompact(num_feat=8, num_conv=1, upscale=2)
    torch.save({"params": network.state_dict()}, tmp_path / "x2.pth")
    videos = torch.rand(1, 3, 2, 8, 16)
    large = enlarged(videos, (16, 32), tmp_path / "x2.pth", torch.device("cpu"))
    expected = torch.stack([network(frame[None])[0] for frame in videos[0].transpose(0, 1)], dim=1).clamp(0, 1)
    torch.testing.assert_close(large[0], expected.detach(), atol=1e-4, rtol=0)
    assert spandrel
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other.pth is not an upscale model"):
        enlarged(videos, (16, 32), tmp_path / "other.pth", torch.device("cpu"))


def test_without_spandrel(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "spandrel", None)
    with pytest.raises(UserError, match=r"requires the library spandrel. Run: pip install 'spandrel"):
        enlarged(torch.rand(1, 3, 2, 8, 16), (16, 32), tmp_path / "x.pth", torch.device("cpu"))
