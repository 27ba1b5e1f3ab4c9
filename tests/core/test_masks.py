"""Masks: from files and tensors, drawn ones, and random ones as the released training drew them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.core.pictures import as_mask, plan, read_mask
from vc_core import cli
from vc_core.errors import UserError
from vc_core.extract.drawing import Rectangle, Stroke, draw_shapes, half
from vc_core.extract.mask import RANDOM_MASKS, Mask, load_mask, mask_of, masked_video, random_mask
from vc_core.video import FramePlan, write_video

SIZE = (48, 64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def save(path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


# --- from tensors ---------------------------------------------------------------------------------------------


def test_white_is_painted_unless_it_is_to_be_kept():
    white = torch.zeros(1, 1, 8, 8)
    white[..., :4] = 1
    keep = as_mask(white)
    assert keep.shape == (1, 1, 1, 8, 8)
    assert torch.equal(keep[:, :, 0], 1 - white)
    assert torch.equal(as_mask(white, "keep")[:, :, 0], white)


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (2, 3, 8, 8), (2, 1, 1, 8, 8), (1, 3, 5, 8, 8)], ids=str)
def test_every_shape_of_a_mask(shape):
    picture = torch.rand(shape, generator=generator())
    keep = as_mask(picture, frames=5)
    assert keep.shape == (shape[0], 1, 5, 8, 8) and set(keep.unique().tolist()) == {0, 1}
    frames = picture if picture.ndim == 5 else picture[:, :, None]
    for frame in range(5):
        assert torch.equal(keep[:, :, frame], as_mask(frames[:, :, frame % frames.shape[2]])[:, :, 0])


def test_middle_grey_counts_as_white():
    greys = torch.tensor([0.0, 0.49, 0.5, 1.0]).view(1, 1, 1, 4)
    assert as_mask(greys, "keep").flatten().tolist() == [0, 0, 1, 1]
    assert as_mask(greys.expand(-1, 3, -1, -1), "keep").flatten().tolist() == [0, 0, 1, 1]


def test_a_mask_is_fitted_as_its_video_is():
    wide = torch.zeros(1, 1, 32, 64)
    wide[..., 16:32] = 1
    keep = as_mask(wide, size=(16, 16))
    assert keep.shape == (1, 1, 1, 16, 16) and (keep[..., :8] == 0).all() and (keep[..., 8:] == 1).all()


@pytest.mark.parametrize(
    ("picture", "options", "says"),
    [
        (torch.zeros(1, 4, 8, 8), {}, "shape"),
        (torch.zeros(1, 1, 3, 8, 8), {"frames": 5}, "3 frames. Expected 5, or 1"),
        (torch.full((1, 1, 8, 8), 255), {}, "outside 0..1"),
        (torch.full((1, 1, 8, 8), math.nan), {}, "outside 0..1"),
        (torch.zeros(1, 1, 8, 8), {"white": "erase"}, "'erase'. Expected one of paint, keep"),
    ],
)
def test_what_is_not_a_mask_is_reported(picture, options, says):
    with pytest.raises(UserError, match=says):
        as_mask(picture, **options)


# --- from a folder --------------------------------------------------------------------------------------------


def test_a_folder_of_images_is_a_moving_mask(tmp_path):
    for number in (2, 10, 1):  # by numbers, not by letters
        pixels = np.zeros((16, 32), np.uint8)
        pixels[:, number] = 255
        save(tmp_path / f"mask_{number}.png", pixels)
    (tmp_path / "notes.txt").write_text("no image")
    keep = read_mask(tmp_path, 3)
    assert keep.shape == (1, 1, 3, 16, 32)
    assert [(1 - keep[0, 0, f, 0]).nonzero().item() for f in range(3)] == [1, 2, 10]
    assert torch.equal(read_mask(tmp_path, FramePlan(0.0, 8, 3), white="keep"), 1 - keep)
    assert read_mask(tmp_path, 3, size=(8, 8)).shape == (1, 1, 3, 8, 8)


def test_a_folder_must_have_one_image_per_frame(tmp_path):
    with pytest.raises(UserError, match="0 images for 2 frames") as error:
        read_mask(tmp_path, 2, size=(8, 8))
    assert str(tmp_path) in str(error.value)
    save(tmp_path / "1.png", np.zeros((16, 32), np.uint8))
    save(tmp_path / "2.png", np.zeros((16, 16), np.uint8))
    assert read_mask(tmp_path, 2, size=(8, 8)).shape == (1, 1, 2, 8, 8)
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1\.png"):
        read_mask(tmp_path, 2, size=(8, 8))


# --- labels, and the note -------------------------------------------------------------------------------------


def labels():
    """Three objects, numbered as DAVIS numbers them, on the right half."""
    numbers = np.zeros((32, 64), np.uint8)
    numbers[:, 32:] = 1
    numbers[8:16, 40:50] = 2
    numbers[20:, 50:] = 3
    return numbers


DAVIS = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0] + [0] * 756


def as_palette(numbers, palette=DAVIS):
    image = Image.fromarray(numbers).convert("P")
    image.putpalette(palette)
    return image


LABELLED = {
    "zero and one": lambda n: Image.fromarray((n > 0).astype(np.uint8)),
    "numbers": Image.fromarray,
    "16 bits": lambda n: Image.fromarray(n.astype(np.uint16)),
    "palette": as_palette,
    "palette, as RGB": lambda n: as_palette(n).convert("RGB"),
    "palette, as grey": lambda n: as_palette(n).convert("L"),
    "dark colours": lambda n: as_palette(n, [0, 0, 0, 64, 0, 0, 0, 64, 0, 0, 0, 64] + [0] * 756),
    "VOC's border": lambda n: as_palette(np.where(n == 3, 255, n).astype(np.uint8), [*DAVIS[:765], 224, 224, 192]),
}


@pytest.mark.parametrize("kind", LABELLED)
@pytest.mark.parametrize("size", [(32, 64), (16, 32)])
def test_labelled_areas_are_painted(tmp_path, kind, size):
    LABELLED[kind](labels()).save(tmp_path / "mask.png")
    mask = load_mask(tmp_path / "mask.png", plan(2), "paint", size)
    width = mask.keep.shape[-1]
    assert (mask.keep[..., : width // 2] == 1).all() and (mask.keep[..., width // 2 :] == 0).all()
    assert mask.note == (
        "Mask: 50 percent of the frame area is repainted. It contains no white, so everything that is not black counts "
        "as white."
    )
    assert torch.equal(read_mask(tmp_path / "mask.png", 2, "keep", size), 1 - mask.keep)


def test_a_folder_of_labels_is_one_mask(tmp_path):
    """A frame without objects, or with one alone, is read as the others are."""
    for number, numbers in enumerate([labels() * 0, labels(), (labels() == 3).astype(np.uint8) * 3]):
        as_palette(numbers).save(tmp_path / f"{number:05d}.png")
    mask = load_mask(tmp_path, plan(3), "paint", (32, 64))
    assert [int((1 - mask.keep[0, 0, f]).sum()) for f in range(3)] == [0, 32 * 32, 12 * 14]
    assert "and nothing in 1 frame of 3" in mask.note


@pytest.mark.parametrize(
    ("pixels", "fraction"),
    [
        (np.tile(np.linspace(0, 120, 64).astype(np.uint8), (32, 1)), 0),  # a soft one that is nowhere white
        (np.full((32, 64), 100, np.uint8), 0),  # no black
        (np.tile(np.linspace(0, 255, 64).astype(np.uint8), (32, 1)), 0.5),
        (np.where(labels() > 0, 255, 0).astype(np.uint8), 0.5),
        (np.where(labels() > 1, 255, 40).astype(np.uint8), (labels() > 1).mean()),
        (np.stack([np.where(labels() > 0, c, 255).astype(np.uint8) for c in (200, 0, 0)], -1), 0.5),  # red on white
    ],
    ids=["soft", "grey", "ramp", "white", "dark grey around", "red on white"],
)
def test_other_masks_are_read_by_their_brightness(tmp_path, pixels, fraction):
    save(tmp_path / "mask.png", pixels)
    mask = load_mask(tmp_path / "mask.png", plan(1), "paint", (32, 64))
    assert not mask.labels and (1 - mask.keep).mean().item() == pytest.approx(fraction, abs=0.02)


@pytest.mark.parametrize(
    ("painted", "says"),
    [
        (torch.zeros(1, 1, 2, 8, 8), "nothing is repainted. Use another mask"),
        (torch.ones(1, 1, 2, 8, 8), "the entire frame is repainted"),
        (torch.ones(1, 1, 2, 8, 8).tril(), "56 percent of the frame area is repainted."),
        (torch.nn.functional.pad(torch.ones(1, 1, 1, 1, 1), (0, 31, 0, 31)), "less than 1 percent"),
    ],
)
def test_what_a_mask_paints_is_reported(painted, says):
    assert says in Mask(1 - painted).note


def test_masks_of_nodes_may_be_of_zero_and_one_255th():
    areas = mask_of((torch.from_numpy(labels()) > 0).float()[None, None, None] / 255, "paint", 3, (32, 64))
    assert areas.labels and areas.keep.shape[2] == 3 and (1 - areas.keep).mean() == 0.5


def test_extract_reports_what_the_mask_paints(tmp_path, capsys):
    clip = write_video(tmp_path / "a.mp4", torch.rand(1, 3, 8, 32, 64, generator=generator()), 8)
    for name, pixels in (("labels", labels()), ("empty", labels() * 0), ("full", labels() * 0 + 255)):
        save(tmp_path / f"{name}.png", pixels)
    printed = {}
    for name in ("labels", "empty", "full"):
        command = ["extract", "mask", clip, "--mask", tmp_path / f"{name}.png", "-o", tmp_path / "m.safetensors"]
        options = ["--frames", 2, "--size", "64x32", "--rate", 8]
        assert cli.main([str(word) for word in (*command, *options)]) == 0
        printed[name] = capsys.readouterr().out
    assert "Mask: 50 percent of the frame area is repainted" in printed["labels"]
    assert "nothing is repainted" in printed["empty"] and "the entire frame is repainted" in printed["full"]


# --- drawn ----------------------------------------------------------------------------------------------------


def test_a_rectangle_is_painted_and_the_rest_kept():
    video = torch.rand(1, 3, 2, *SIZE)
    keep = 1 - draw_shapes([Rectangle(10, 5, 20, 25)], SIZE).expand(-1, -1, 2, -1, -1)
    assert (keep[..., 5:25, 10:20] == 0).all() and (1 - keep).sum() == 2 * 10 * 20
    seen = masked_video(video, keep)
    assert (seen[..., 5:25, 10:20] == 0).all()
    assert torch.equal(seen[:, :3, ..., 30:, :], video[..., 30:, :] * 2 - 1) and (seen[:, 3, :, 30:] == 1).all()


def test_a_stroke_is_round_and_as_wide_as_its_brush():
    area = draw_shapes([Stroke((20, 24), (44, 24), 12)], SIZE)[0, 0, 0]
    assert area[:, 30].sum() == 12 and area[24].sum() == 24 + 12
    assert area.sum() == pytest.approx(24 * 12 + math.pi * 36, rel=0.03)
    dot = draw_shapes([Stroke((32, 24), (32, 24), 20)], SIZE)
    assert dot.sum() == pytest.approx(math.pi * 100, rel=0.03)
    segments = Stroke((10, 10), (30, 10), 6), Stroke((30, 10), (30, 40), 6)
    apart = [draw_shapes([segment], SIZE) for segment in segments]
    assert torch.equal(draw_shapes(segments, SIZE), torch.maximum(*apart))


@settings(max_examples=30, deadline=None)
@given(*[st.floats(1, 46)] * 4)
def test_the_thinnest_stroke_has_no_gap(x1, y1, x2, y2):
    drawn = draw_shapes([Stroke((x1, y1), (x2, y2), 1e-6)], SIZE)[0, 0, 0]
    for fraction in torch.linspace(0, 1, 200).tolist():  # each place of the line is in or next to a drawn pixel
        x, y = int(x1 + fraction * (x2 - x1)), int(y1 + fraction * (y2 - y1))
        assert drawn[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].any()
    assert drawn[int(y1), int(x1)] == drawn[int(y2), int(x2)] == 1


@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
def test_halves(side):
    where = {"left": np.s_[:, :32], "right": np.s_[:, 32:], "top": np.s_[:24], "bottom": np.s_[24:]}[side]
    expected = torch.zeros(SIZE)
    expected[where] = 1
    assert torch.equal(draw_shapes([half(side, SIZE)], SIZE)[0, 0, 0], expected)


def test_shapes_lie_on_their_canvas():
    large = draw_shapes([Rectangle(40, 20, 80, 100), Stroke((160, 40), (160, 40), 40)], SIZE, (192, 256))
    small = draw_shapes([Rectangle(10, 5, 20, 25), Stroke((40, 10), (40, 10), 10)], SIZE)
    assert torch.equal(large, small) and large.any()


# --- random ---------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([None, *RANDOM_MASKS]),
    st.sampled_from([(24, 24), (32, 32), (48, 80), (80, 48), (96, 96)]),
    st.integers(0, 10**6),
)
def test_random_masks_paint_something_and_repeat(kind, size, seed):
    keep = random_mask(4, size, generator(seed), kind)
    assert keep.shape == (1, 1, 4, *size) and set(keep.unique().tolist()) <= {0, 1}
    assert torch.equal(keep, random_mask(4, size, generator(seed), kind))
    assert 0 < (1 - keep[:, :, 0]).mean() <= (1 if kind in (None, "strokes") else 0.6)
    assert torch.equal(keep, keep[:, :, :1].expand_as(keep))


def test_the_same_state_gives_the_same_shapes_at_every_size():
    for kind in RANDOM_MASKS:
        large, small = (random_mask(1, (side, side), generator(5), kind)[0, 0, 0] for side in (256, 64))
        coarse = large.unflatten(0, (64, 4)).unflatten(-1, (64, 4)).mean(dim=(1, 3))
        assert (coarse - small).abs().mean() < 0.02 and small.mean() < 1


def test_rectangles_are_as_the_released_training_drew_them():
    """One to four with sides of 30 to 149 of 512 that keep 10 from the edges."""
    painted = torch.cat([1 - random_mask(1, (128, 128), generator(seed), "rectangles") for seed in range(200)])
    assert painted[..., :2, :].max() == painted[..., -2:, :].max() == painted[..., :2].max() == 0
    assert painted[..., 10:-10, 10:-10].any(dim=0).all()
    fraction = painted.mean(dim=(1, 2, 3, 4))
    assert fraction.max() < 4 * (150 / 512) ** 2 and fraction.min() > (28 / 512) ** 2
    # 2.5 of mean side 89.5, less what overlaps
    assert 0.06 < fraction.mean() < 2.5 * (89.5 / 512) ** 2


def test_halves_are_as_the_released_training_drew_them():
    masks = {tuple(random_mask(1, (16, 16), generator(seed), "half").flatten().tolist()) for seed in range(60)}
    assert len(masks) == 4 and all(sum(mask) == 128 for mask in masks)


def test_strokes_are_as_the_released_training_drew_them():
    """Their areas against the same rule (1 to 5 strokes of 1 to 5 segments) drawn by another hand."""
    from PIL import ImageDraw

    lots = np.random.default_rng(0)
    expected = []
    for _ in range(300):
        image = Image.new("1", (512, 512))
        draw = ImageDraw.Draw(image)
        for stroke in range(lots.integers(1, 6)):
            x, y = lots.integers(512, size=2)
            for _ in range(lots.integers(1, 6)):
                angle = 0.01 + lots.integers(4)
                angle = 2 * math.pi - angle if stroke % 2 == 0 else angle
                length, width = lots.integers(10, 210), int(lots.integers(5, 105))
                end = np.clip([x + length * math.sin(angle), y + length * math.cos(angle)], 0, 512).astype(int)
                draw.line([int(x), int(y), *map(int, end)], fill=1, width=width)
                for cx, cy in ((x, y), end):
                    draw.ellipse([cx - width / 2, cy - width / 2, cx + width / 2, cy + width / 2], fill=1)
                x, y = end
        expected.append(np.asarray(image).mean())
    areas = [(1 - random_mask(1, (64, 64), generator(seed), "strokes")).mean().item() for seed in range(300)]
    assert np.mean(areas) == pytest.approx(np.mean(expected), abs=0.03)
    assert np.quantile(areas, [0.1, 0.9]) == pytest.approx(np.quantile(expected, [0.1, 0.9]), abs=0.06)


def test_strokes_turn_to_the_left_and_to_the_right_in_turn():
    lots, sides = generator(), set()

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=lots))

    for _ in range(40):
        strokes: list[list[Stroke]] = []
        for segment in RANDOM_MASKS["strokes"][1](draw, 10**6, 10**6):  # far from the edges, where nothing is clipped
            goes_on = strokes and strokes[-1][-1].end == segment.start
            strokes[-1].append(segment) if goes_on else strokes.append([segment])
        assert len(strokes) <= 5 and all(len(segments) <= 5 for segments in strokes)
        for number, segments in enumerate(strokes):
            right = sum(segment.end[0] - segment.start[0] for segment in segments)
            assert right <= 2 if number % 2 == 0 else right >= -2
            sides.add(right > 0)
    assert sides == {True, False}


def test_kinds_are_drawn_as_often_as_in_the_released_code():
    lots, total = generator(1), 400
    halves = [1 - draw_shapes([half(side, (16, 16))], (16, 16)) for side in ("left", "right", "top", "bottom")]
    drawn = [random_mask(1, (16, 16), lots) for _ in range(total)]
    assert [fraction for fraction, _ in RANDOM_MASKS.values()] == [0.7, 0.2, 0.1]
    assert sum(any(torch.equal(keep, half_mask) for half_mask in halves) for keep in drawn) / total == pytest.approx(
        0.1, abs=0.045
    )


def test_an_unknown_kind_is_reported():
    with pytest.raises(UserError, match="strokes, rectangles, half"):
        random_mask(1, SIZE, generator(), "circle")


def test_a_seed_keeps_its_mask():
    """Settings name seeds, and a training that goes on draws from the same numbers."""
    shares = [(1 - random_mask(1, (64, 64), generator(seed))).mean().item() for seed in range(6)]
    assert shares == pytest.approx([0.13770, 0.10938, 0.07056, 0.03174, 0.5, 0.13916], abs=1e-5)
    lots = generator(3)
    for _ in range(5):
        random_mask(1, (16, 16), lots)
    assert torch.randint(0, 10**6, (3,), generator=lots).tolist() == [908833, 289201, 601729]
