"""Motion from any codec: both modes against known motion, and fields that are followed and drawn."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import needs
from tests.core.moving_clips import (
    CODECS,
    OWN,
    PLAN,
    RATE,
    SHOWN,
    assert_moves,
    encode,
    extract_motion,
    moving,
    scene,
    sprite,
)
from vc_core.extract.motion.from_video import block_vectors, read_motion
from vc_core.extract.motion.stream import CELL, follow, holes_filled, own_rows, summed_between_frames
from vc_core.extract.motion.vectors import VECTOR, CellMap, PointMap, exported
from vc_core.video import FramePlan, resize_crop
from vc_core.video.decoding import decode
from vc_core.video.frames import chosen_times, planned_index
from vc_core.video.opening import opened
from vc_core.video.sequences import media
from vc_core.video.showing import filtering
from vc_core.video.timeline import index

quick = settings(max_examples=15, deadline=None)


@pytest.fixture(scope="module", params=CODECS)
def coded(request):
    codec, form, pix_fmt, options, own = CODECS[request.param]
    needs.encoders(codec)
    return encode(None, moving(3, -2), codec, form, pix_fmt, **options), own


# --- the two modes --------------------------------------------------------------------------------------------


def test_stream_motion_is_the_true_motion_of_any_codec(coded):
    """From the file's own vectors where they serve; else from an encoding, and that is said."""
    data, own = coded
    motion = read_motion(data, PLAN, (96, 128), "dense", mode="stream")
    assert_moves(motion.field, 9, -6)
    assert (motion.reencoded is None) == own and (motion.why is None) == own
    assert ("own" in motion.note) if own else ("because" in motion.note and "libx264" in motion.note)


def test_released_motion_reads_any_codec(coded):
    motion = read_motion(coded[0], FramePlan(0.0, Fraction(RATE), 8), (96, 128), "points")
    vectors = block_vectors(coded[0], FramePlan(0.0, Fraction(RATE), 8))
    assert (motion.reencoded, motion.why) == ("mpeg4", None)
    assert abs(np.median(vectors.rows["dx"]) - 3) <= 0.5 and abs(np.median(vectors.rows["dy"]) + 2) <= 0.5


def test_frames_do_not_depend_on_which_others_are_requested(coded):
    """Segments are independent, also if groups of pictures are open."""
    with media(coded[0]) as video:
        table = index(video)

        def pictures(times):
            run = filtering(video, [("format", "rgb24")])
            return [(time, run(frame).to_ndarray().tobytes()) for time, frame in decode(video, table, times)]

        everything = pictures(table.times)
        assert [time for time, _ in everything] == list(table.times) and len(table.times) == 13
        assert pictures(table.times[2::4]) == everything[2::4]  # the other frames are skipped
        with av.open(video.open()) as container:
            plain = [frame.to_ndarray(format="rgb24").tobytes() for frame in container.decode(video=0)]
    if "alpha" not in str(table.codec) and table.codec != "qtrle":
        same = [a == b for a, (_, b) in zip(plain, everything, strict=True)]
        assert sum(same) >= len(same) - 13 * (table.codec in ("mjpeg", "h264"))  # scalers may choose another range


def test_own_vectors_are_exact_at_every_run():
    data = encode(None, moving(3, -2, 26), **{**OWN, "g": "5"})

    def own() -> list[tuple[str, np.ndarray]]:
        with media(data) as video:
            table = index(video)
            return [(letter, rows) for _, letter, rows in own_rows(video, table, table.times)]

    first = own()
    assert "".join(letter for letter, _ in first) == "IPPPP" * 5 + "I"
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.flags2 |= av.codec.context.Flags2.export_mvs
        sides = [frame.side_data.get("MOTION_VECTORS") for frame in container.decode(stream)]
        raw = [None if side is None else side.to_ndarray().copy() for side in sides]
    for (_, rows), expected in zip(first, raw, strict=True):
        assert len(rows) == (0 if expected is None else len(expected))
        if expected is not None:
            assert np.array_equal(rows["dst_x"], expected["dst_x"])
            assert np.array_equal(rows["dx"], -expected["motion_x"] / expected["motion_scale"].astype(np.float32))
    for _ in range(4):
        assert [rows.tobytes() for _, rows in own()] == [rows.tobytes() for _, rows in first]
        fields = [extract_motion(data, PLAN, "dense", (48, 64), mode="stream") for _ in range(2)]
        assert torch.equal(*fields)


@pytest.mark.parametrize("keyframes", [60, 8])
def test_vectors_of_b_frames_are_exact_at_every_run(keyframes):
    """Threads that decode several frames at once would export other vectors, at every run others."""
    data = encode(None, moving(1, -1, 60), bf="3", g=str(keyframes))

    with media(data) as video:
        with opened(video) as (container, stream):
            stream.thread_type = "NONE"
            stream.codec_context.flags2 |= av.codec.context.Flags2.export_mvs
            expected = [exported(frame).tobytes() for frame in container.decode(stream)]
        table = index(video)
        for _ in range(3):
            result = decode(video, table, table.times, vectors=True)
            assert [exported(frame).tobytes() for _, frame in result] == expected


def test_an_i_frame_in_the_window_leaves_no_gap():
    data = encode(None, moving(3, -2), **{**OWN, "g": "4"})
    motion = read_motion(data, FramePlan(0.0, Fraction(RATE), 13), (96, 128), "dense", mode="stream")
    assert motion.reencoded is None
    assert_moves(motion.field, 3, -2)
    for frame in (4, 8, 12):
        assert_moves(motion.field[:, :, [0, frame]], 3, -2)


@pytest.mark.parametrize("own", [True, False], ids=["own vectors", "re-encoded"])
def test_an_object_is_followed_along_skipped_frames(own):
    """The square moves 8 pixels a frame; a fixed place that summed what passes would see less at its rim."""
    data = encode(None, sprite(8), **(OWN if own else {"bf": "2"}), crf="10")
    motion = read_motion(data, FramePlan(0.0, Fraction(2), 2), (96, 192), "dense", mode="stream")
    assert (motion.reencoded is None) == own
    with media(data) as video:
        plan = FramePlan(0.0, Fraction(2), 2)
        a, b = (list(index(video).times).index(t) for t in chosen_times(video, planned_index(video, plan), plan))
    left = 8 + 8 * b  # where the square is by the second frame
    inside = motion.field[0, :, 1, 32:64, left + 8 : left + 40]
    assert (inside[0] - 8 * (b - a)).abs().median() < 0.5 and inside[1].abs().median() < 0.5
    assert ((inside[0] - 8 * (b - a)).abs() < 1.5).float().mean() > 0.9
    ground = motion.field[0, :, 1, :, : left - 56]
    assert ground.abs().median() < 0.05


@pytest.mark.parametrize("mode", ["released", "stream"])
def test_zoom_and_rotation(mode):
    """Fields that differ from place to place, against their formulas."""
    picture = torch.from_numpy(scene(3)).permute(2, 0, 1)[None].float()

    def turned(matrix: np.ndarray, frames: int = 7) -> tuple[list[np.ndarray], torch.Tensor]:
        y, x = torch.meshgrid(torch.arange(128) - 63.5, torch.arange(128) - 63.5, indexing="ij")
        places, result = torch.stack([x, y], dim=-1), []
        for n in range(frames):
            back = torch.tensor(np.linalg.matrix_power(np.linalg.inv(matrix), n), dtype=torch.float32)
            view = F.grid_sample(picture, (places @ back.T / 159.5)[None], align_corners=True)
            result.append(view[0].permute(1, 2, 0).round().byte().numpy())
        step = torch.tensor(np.eye(2) - np.linalg.inv(matrix), dtype=torch.float32)
        return result, (places @ step.T).permute(2, 0, 1)

    angle = 0.04
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    for matrix in (np.eye(2) * 1.04, rotation):
        frames, expected = turned(matrix)
        data = encode(None, frames, **OWN, crf="12")
        field = extract_motion(data, FramePlan(0.0, Fraction(RATE), 7), "dense", (128, 128), mode=mode)
        error = (field[0, :, 1:] - expected[:, None]).norm(dim=0)[:, SHOWN, SHOWN]
        assert error.median() < 0.35 < 1 < expected.norm(dim=0).max()


def test_points_of_a_stream_are_sparse_and_in_source_pixels():
    data = encode(None, moving(3, -2), **OWN)
    result = extract_motion(data, PLAN, "points", (96, 128), mode="stream")
    expected = torch.zeros(96, 128, dtype=torch.bool)
    expected[8::16, 8::16] = True
    assert (result[0, :, 1:, ~expected] == 0).all()
    assert (result[0, 0, 1:, expected] - 9).abs().median() < 0.5


@pytest.mark.parametrize("mode", ["released", "stream"])
def test_a_nominal_height_scales_the_source(mode):
    data = encode(None, moving(3, -2), **OWN)
    options = {"mode": mode, "nominal_height": 192}
    field = extract_motion(data, FramePlan(0.0, Fraction(RATE), 6), "dense", (96, 128), **options)
    assert_moves(field, 3, -2)


def test_progress_is_reported():
    seen = []
    read_motion(encode(None, moving(1, 0), **OWN), PLAN, (32, 32), progress=lambda *each: seen.append(each))
    assert seen == [("motion", n, 4) for n in (1, 2, 3, 4)]


# --- fields ---------------------------------------------------------------------------------------------------


def uniform(dx: float, dy: float, rows: int = 12, columns: int = 16) -> np.ndarray:
    return np.broadcast_to(np.array([dx, dy], np.float32)[:, None, None], (2, rows, columns)).copy()


offsets = st.floats(-20, 20, width=16)


@quick
@given(st.lists(st.tuples(offsets, offsets), min_size=1, max_size=70))
def test_uniform_steps_add(steps):
    """However many there are, also where they are followed in parts."""
    result = next(summed_between_frames(iter([uniform(*step) for step in steps]), [len(steps)]))
    assert np.allclose(result, uniform(*np.sum(steps, axis=0, dtype=np.float32)), atol=1e-2)


@quick
@given(st.integers(0, 2**31), st.integers(0, 3), st.integers(0, 3))
def test_shifting_the_content_shifts_the_followed_field(seed, down, right):
    rng = np.random.default_rng(seed)
    steps = [np.zeros((2, 20, 20), np.float32) for _ in range(3)]
    for step in steps:
        step[:, 7:12, 7:12] = rng.integers(-8, 9, (2, 5, 5))
    shifted = [np.roll(step, (down, right), (1, 2)) for step in steps]
    assert np.array_equal(follow(shifted), np.roll(follow(steps), (down, right), (1, 2)))


def test_motion_is_added_along_its_path_and_not_at_a_fixed_place():
    """Content of one cell moves to the right by one cell per step: at its last place, it has moved three cells."""
    steps = [np.zeros((2, 4, 8), np.float32) for _ in range(3)]
    for number, step in enumerate(steps):
        step[0, 2, 2 + number] = CELL
    assert follow(steps)[0, 2].tolist() == [0, 0, CELL, 2 * CELL, 3 * CELL, 0, 0, 0]
    assert sum(steps)[0, 2, 4] == CELL


@quick
@given(st.integers(-2, 2), st.integers(-2, 2))
def test_shifting_the_frames_shifts_the_field(down, right):
    """By blocks, away from the border."""
    height, width = 160, 160
    still, square = scene(1)[:height, :width], scene(2)[100:132, 100:132]

    def field(top: int, left: int) -> torch.Tensor:
        frames = []
        for n in range(3):
            picture = still.copy()
            picture[top : top + 32, left + 4 * n : left + 4 * n + 32] = square
            frames.append(picture)
        video = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
        return extract_motion(video, FramePlan(0.0, Fraction(8), 3), "dense", (height, width))

    a, b = field(64, 56), field(64 + 16 * down, 56 + 16 * right)
    middle = a[0, 0, 2, 72:88, 72:88]
    moved = b[0, 0, 2, 72 + 16 * down : 88 + 16 * down, 72 + 16 * right : 88 + 16 * right]
    assert (middle - 4).abs().median() < 0.3 and (moved - middle).abs().median() < 0.3


def test_holes_are_filled_from_around_them():
    grid = uniform(4, -2)
    grid[:, 4:8, 5:9] = np.nan
    assert np.allclose(holes_filled(grid), uniform(4, -2))
    assert (holes_filled(np.full((2, 4, 4), np.nan, np.float32)) == 0).all()


def blocks(rng: np.random.Generator, height: int, width: int, block: int) -> np.ndarray:
    """Vectors on some of the blocks of a frame."""
    y, x = np.mgrid[: -(-height // block), : -(-width // block)] * block + block // 2
    rows = np.zeros(x.size, VECTOR)
    rows["dst_x"], rows["dst_y"], rows["w"], rows["h"] = x.ravel(), y.ravel(), block, block
    rows["dx"], rows["dy"] = rng.normal(size=(2, x.size)) * 10
    return rows[rng.random(x.size) < 0.8]


@quick
@given(st.integers(0, 2**31), st.integers(20, 90), st.integers(20, 90), st.integers(8, 70), st.integers(8, 70))
def test_maps_equal_the_resized_map_of_the_source_size(seed, height, width, h, w):
    """The released code draws its map at the source's size and resizes it; ours is drawn at the target's size."""
    rows = blocks(np.random.default_rng(seed), height, width, 16)
    points, dense = np.zeros((2, 2, height + 16, width + 16), np.float32)
    for _, x, y, _, _, dx, dy in rows.tolist():
        points[:, min(y, height - 1), min(x, width - 1)] = dx, dy
        dense[:, y - 8 : y + 8, x - 8 : x + 8] = np.array([dx, dy])[:, None, None]
    points, dense = (torch.from_numpy(each[None, :, :height, :width].copy()) for each in (points, dense))
    draw = PointMap((height, width), (h, w))
    assert torch.allclose(draw(rows), resize_crop(points, (h, w), antialias=False)[0], atol=1e-3)
    assert torch.allclose(CellMap((height, width), (h, w))(rows), resize_crop(dense, (h, w))[0], atol=1e-3)
