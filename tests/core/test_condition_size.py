"""The size of conditions is the checkpoint's own: a key of its config, which all that makes conditions follows."""

import dataclasses
import json

import pytest
import torch

from tests.composing import composed
from tests.core.moving_clips import OWN, encode, moving
from vc_core import Condition, UserError
from vc_core.checkpoint.conversion import convert
from vc_core.checkpoint.inspection import as_text, inspect
from vc_core.checkpoint.reading import save_checkpoint
from vc_core.composer import VideoComposer
from vc_core.conditions import CONDITIONS, condition_size, drawing_size
from vc_core.config import Config, ExtractionConfig
from vc_core.demo import draw_clip
from vc_core.extract import Options, Source, extract
from vc_core.extract.mask import masked_video
from vc_core.extract.motion.camera import CameraMove, camera_field, condition_from_field
from vc_core.extract.pictures import picture_of
from vc_core.extract.refit import refit
from vc_core.extract.sketch.methods import edges
from vc_core.model.unet import UNet3D
from vc_core.video import plan_frames, probe, read_frames, resize_crop, write_video

SCALES = (None, 4, 8, 12)
FRAMES, SIZE = 4, (48, 64)
DX, DY = 3, -2
"""How the clip's content moves, in its own pixels a frame; it is shown 96 high and 128 wide, twice `SIZE`."""


def extraction(scale, layout="dense", unit="pixels"):
    return ExtractionConfig(layout, unit, "edges", "relative", scale)


def at(name, scale, size=SIZE):
    """Computed independently of `condition_size`."""
    return tuple(side // 8 * (scale or (8 if name == "motion" else 12)) for side in size)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "moving.mp4"
    encode(path, moving(DX, DY), **OWN)
    return path


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("depth") / "grey.mp4", draw_clip(size=96).mean(1, keepdim=True), 8)


def source(clip, scale):
    return Source(clip, plan_frames(probe(clip), FRAMES, rate=12), SIZE, extraction(scale))


# --- The config -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_the_key_survives_json_and_is_missing_if_it_has_no_value(scale):
    config = Config(extraction=extraction(scale))
    section = json.loads(config.to_json())["extraction"]
    assert section.get("condition_scale") == scale and ("condition_scale" in section) == (scale is not None)
    assert Config.from_json(config.to_json()) == config


@pytest.mark.parametrize("wrong", ["5", "true", '"8"', "4.0", "[4]"])
def test_other_sizes_are_refused(wrong):
    with pytest.raises(UserError, match=r"extraction.condition_scale is .*\. Expected one of 4, 8, 12, or no such key"):
        Config.from_json(f'{{"extraction": {{"condition_scale": {wrong}}}}}')


def test_info_shows_the_key_and_a_pth_cannot_store_it(tiny_config, tiny_unet, tmp_path):
    from vc_core.checkpoint.released import to_released

    for scale in (None, 4):
        config = dataclasses.replace(tiny_config, extraction=dataclasses.replace(tiny_config.extraction,
                                                                                 condition_scale=scale))  # fmt: skip
        save_checkpoint(tmp_path / "x.safetensors", config, {"model": to_released(tiny_unet)})
        assert ('"condition_scale": 4' in as_text(inspect(tmp_path / "x.safetensors"))) == (scale == 4)
    released = Config(extraction=ExtractionConfig(condition_scale=4))
    save_checkpoint(tmp_path / "y.safetensors", dataclasses.replace(released, unet=tiny_config.unet),
                    {"model": to_released(tiny_unet)})  # fmt: skip
    with pytest.raises(UserError, match="cannot store this config"):
        convert(tmp_path / "y.safetensors", tmp_path / "y.pth")


@pytest.mark.parametrize("name", CONDITIONS)
def test_sizes(name):
    for scale in SCALES:
        assert condition_size(name, SIZE, scale) == at(name, scale)
        assert drawing_size(name, SIZE) == at(name, None)  # of pictures, whatever the checkpoint


# --- Extraction -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_extracted_conditions_have_the_checkpoints_size(clip, grey, scale):
    results = {}
    for name, spec in CONDITIONS.items():
        options = Options(mask_draw="rectangles", depth_maps=grey if name == "depth" else None)
        results[name] = extract(name, source(clip, scale), options)
        count = 1 if spec.kind == "spatial" else FRAMES
        assert results[name].shape == (1, spec.channels, count, *at(name, scale)), name
        if scale is None:
            assert torch.equal(results[name], extract(name, source(clip, 8 if name == "motion" else 12), options))
    assert results["mask"][:, 3].unique().tolist() == [0.0, 1.0]
    assert not (results["mask"][:, :3] * (1 - results["mask"][:, 3:])).any()


@pytest.mark.parametrize("scale", [4, 8])
def test_lines_are_drawn_at_the_tables_size_and_then_scaled_down(clip, scale):
    here = source(clip, scale)
    pictures = read_frames(clip, here.plan, at("sketch", None))
    drawn = resize_crop(edges(pictures), at("sketch", scale))
    assert torch.equal(extract("sketch", here), drawn)
    assert torch.equal(extract("single_sketch", here), drawn[:, :, :1])
    assert not torch.allclose(drawn, edges(resize_crop(pictures, at("sketch", scale))), atol=0.1)  # the order matters


def test_kept_pixels_next_to_a_hole_have_their_own_colour():
    """It is not mixed with the hole, which has no colour."""
    keep = torch.ones(1, 1, 1, 48, 48)
    keep[..., 17:31, 17:31] = 0
    for size in ((16, 16), (32, 32)):
        masked = masked_video(torch.full((1, 3, 1, 48, 48), 0.9), keep, size)
        kept = masked[:, 3:].bool()
        assert 0 < kept.float().mean() < 1
        colours = masked[:, :3][kept.expand(-1, 3, -1, -1, -1)]
        torch.testing.assert_close(colours, torch.full_like(colours, 0.8))


# --- Motion is in pixels of the video -------------------------------------------------------------------------------


def inside(field):
    """The median vector (2,) of all frames but the first, away from the border, where new content appears."""
    *_, height, width = field.shape
    return field[0, :, 1:, height // 4 : -height // 4, width // 4 : -width // 4].flatten(1).median(1).values


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("mode", ["released", "stream"])
def test_vectors_of_a_video_do_not_depend_on_the_maps_size(clip, scale, mode):
    field = extract("motion", source(clip, scale), Options(motion_mode=mode))
    assert field.shape[-2:] == at("motion", scale)
    torch.testing.assert_close(inside(field), torch.tensor([DX / 2, DY / 2]), atol=0.1, rtol=0)


@pytest.mark.parametrize("scale", SCALES)
def test_vectors_in_pixels_of_the_source_do_not_depend_on_it_either(clip, scale):
    """At half the size, single points are not lost between the pixels."""
    drawn, field = (
        extract("motion", dataclasses.replace(source(clip, None), extraction=extraction(s, "points", "source_pixels")))
        for s in (None, scale)
    )
    assert field.shape[-2:] == at("motion", scale)
    torch.testing.assert_close(field.mean((2, 3, 4)), drawn.mean((2, 3, 4)), atol=5e-4, rtol=0.15)
    assert drawn.mean((2, 3, 4)).abs().min() > 5e-3


@pytest.mark.parametrize("scale", SCALES)
def test_motion_made_by_hand(scale):
    move = camera_field(CameraMove((0.25, 0.0)), 5, SIZE)
    hand = condition_from_field(move, extraction(scale), SIZE)
    assert hand.shape[-2:] == at("motion", scale)
    torch.testing.assert_close(inside(hand), torch.tensor([-0.25 * SIZE[1] / 4, 0.0]))
    points = condition_from_field(move, extraction(scale, "points", "source_pixels"), SIZE)
    assert points.shape == hand.shape and points.any()
    assert picture_of("motion", hand).shape[-2:] == picture_of("motion", points).shape[-2:] == at("motion", scale)


# --- Of another size ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", CONDITIONS)
def test_refit_resizes_any_condition_to_the_checkpoints_size(name, scale):
    spec = CONDITIONS[name]
    count = 1 if spec.kind == "spatial" else FRAMES
    tensor = torch.rand(1, spec.channels, count, *at(name, None)) * (torch.arange(count) > 0).view(1, 1, -1, 1, 1)
    for size in (SIZE, (96, 128)):
        fitted = refit(name, tensor, size, FRAMES, extraction(scale), SIZE)
        assert fitted.shape == (1, spec.channels, count, *at(name, scale, size))
        assert refit(name, fitted, size, FRAMES, extraction(scale), size) is fitted
        assert (
            refit(name, fitted, size, FRAMES, extraction(scale)) is fitted
        )  # the size of the tensor is also that of the checkpoint
        if name == "mask" and at(name, scale, size) != at(name, None):
            assert fitted[:, 3].unique().tolist() == [0.0, 1.0]


def test_vectors_grow_with_the_video_and_not_with_the_map():
    field = torch.zeros(1, 2, FRAMES, 48, 64)
    field[:, 0, 1:] = 2.0
    for scale, size, length in ((4, (48, 64), 2.0), (4, (96, 128), 4.0), (8, (96, 128), 4.0), (12, (24, 32), 1.0)):
        fitted = refit("motion", field, size, FRAMES, extraction(scale), (48, 64))
        assert fitted[:, 0, 1:].unique().tolist() == [length] and fitted.shape[-2:] == at("motion", scale, size)
    halved = refit("motion", field, (48, 64), FRAMES, extraction(4), (48, 64))  # and on from there
    assert refit("motion", halved, (96, 128), FRAMES, extraction(4))[:, 0, 1:].unique().tolist() == [4.0]
    assert refit("motion", halved, (96, 128), FRAMES, extraction(8), (48, 64))[:, 0, 1:].unique().tolist() == [4.0]


# --- Composing ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def composers(tiny_composer):
    """One network, configured for each size of conditions."""
    results = {}
    for scale in SCALES:
        config = dataclasses.replace(tiny_composer.config, extraction=extraction(scale))
        results[scale] = VideoComposer(config, *(getattr(tiny_composer, name) for name in (
            "unet", "autoencoder", "towers", "checkpoint", "device", "dtype")))  # fmt: skip
    return results


def seen_by(composer, monkeypatch, *conditions):
    """The video, and the sizes at which the network's STC-encoders got the conditions."""
    sizes, encode_condition = {}, UNet3D.encode_condition

    def spied(self, name, tensor, size):
        sizes[name] = tuple(tensor.shape[-2:])
        return encode_condition(self, name, tensor, size)

    monkeypatch.setattr(UNet3D, "encode_condition", spied)
    return composed(composer, "a", conditions=conditions, steps=2, seed=1), sizes


@pytest.mark.parametrize("name", CONDITIONS)
def test_compose_resizes_conditions_to_the_networks_size(composers, monkeypatch, name):
    video = (32, 40)
    spec, count = CONDITIONS[name], 1 if CONDITIONS[name].kind == "spatial" else 3
    table = torch.rand(1, spec.channels, count, *at(name, None, video), generator=torch.Generator().manual_seed(3))
    if name == "motion":
        table[:, :, 0] = 0
    videos = {}
    for scale, composer in composers.items():
        own = refit(name, table, video, 3, composer.config.extraction, video)
        videos[scale], sizes = seen_by(composer, monkeypatch, Condition(name, own))
        assert sizes == {name: at(name, scale, video)}
        given, sizes = seen_by(composer, monkeypatch, Condition(name, table))
        assert sizes == {name: at(name, scale, video)} and torch.equal(given, videos[scale])
    assert not torch.equal(videos[4], videos[None])
    assert torch.equal(videos[8 if name == "motion" else 12], videos[None])


def test_compose_scales_vectors_of_another_video(composers):
    field = torch.zeros(1, 2, 3, 32, 40)
    field[:, 0, 1:] = 1.0
    half = Condition("motion", field, video=(64, 80))  # twice the size of the composed video
    for scale, composer in composers.items():
        same = Condition("motion", refit("motion", field * 0.5, (32, 40), 3, extraction(scale), (32, 40)))
        results = [composed(composer, "a", conditions=[each], steps=2, seed=1) for each in (half, same)]
        torch.testing.assert_close(*results)
