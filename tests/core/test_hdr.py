"""HDR video as SDR: known light gives known pixels, in all common codecs and containers."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from tests.core.odd_files import deep_frame, hdr_video, tagged_container
from vc_core import cli
from vc_core.extract.motion.from_video import read_motion
from vc_core.video import FramePlan, hdr, plan_frames, probe, read_frames
from vc_core.video.showing import as_sdr, rgb48

PQ, HLG, SDR = 16, 18, 1


def pq_signal(light):
    """The inverse of the EOTF: SMPTE ST 2084, implemented independently from its formula."""
    y = (light / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375


WHITE = {PQ: pq_signal(203), HLG: 0.75}
"""The signal of diffuse white: ITU-R BT.2408, table 1."""

FILES = [("libx265", "mp4"), ("libx265", "ts"), ("libsvtav1", "mp4"), ("libsvtav1", "webm"), ("ffv1", "mkv")]


def colour(path):
    info = probe(path)
    return read_frames(path, plan_frames(info, 2, 10)).mean((0, 2, 3, 4)) * 255, info


@pytest.mark.parametrize(("codec", "ending"), FILES)
@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_diffuse_white_is_white_and_a_note_says_so(tmp_path, codec, ending, transfer):
    white, info = colour(hdr_video(tmp_path / f"a.{ending}", codec, [WHITE[transfer]] * 3, transfer))
    assert white.min() >= 250
    assert hdr.NAMES[transfer] in info.note and str(tmp_path) in info.note


def test_sdr_video_is_unchanged(tmp_path):
    grey, info = colour(hdr_video(tmp_path / "a.mkv", "ffv1", [0.75] * 3, SDR))
    assert (grey - 0.75 * 255).abs().max() < 3 and not info.note


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_a_grey_card_is_grey_and_highlights_differ(tmp_path, transfer):
    """18 % reflectance: 38 % of the signal in both (BT.2408, table 1), and 41 % in SDR (BT.709)."""
    grey, _ = colour(hdr_video(tmp_path / "grey.mkv", "ffv1", [0.38] * 3, transfer))
    assert (grey - 0.41 * 255).abs().max() < 6
    levels = [hdr.tone_mapped(torch.full((1, 3), round(65535 * s), dtype=torch.int32), transfer).mean().item()
              for s in (0.0, 0.2, 0.4, 0.5, WHITE[transfer], 1.0)]  # fmt: skip
    assert levels == sorted(set(levels)) and levels[0] == 0 and levels[-1] > 0.9999


@pytest.mark.parametrize("kind", ["yuv420p", "yuvj420p", "yuv420p10le", "yuv444p12le"])
@pytest.mark.parametrize("level", [0.0, 0.25, 0.58, 1.0])
def test_16_bit_pixels_are_as_exact_as_their_source(kind, level):
    bits = int(kind[7:9]) if kind.endswith("le") else 8
    low, range_ = (0, 2**bits - 1) if kind == "yuvj420p" else (16 << bits - 8, 219 << bits - 8)
    luma = low + round(level * range_)
    frame = av.VideoFrame(64, 64, kind)
    for number, plane in enumerate(frame.planes):
        size = np.uint8 if bits == 8 else np.uint16
        plane.update(np.full(plane.buffer_size // size().itemsize, luma if number == 0 else 1 << bits - 1, size))
    frame.colorspace, frame.color_range = 9, 2 if kind == "yuvj420p" else 1
    expected = (luma - low) / range_ * 65535
    assert np.abs(rgb48(frame)[8:56, 8:56].astype(float) - expected).max() < 24  # a tenth of an 8-bit level


def test_wide_colours_become_those_of_bt709(tmp_path):
    """A pure red of BT.709, of 100 candela, has three parts in BT.2020 (BT.2087) and one here."""
    red = [pq_signal(100 * part) for part in (0.6274, 0.0691, 0.0164)]
    result, _ = colour(hdr_video(tmp_path / "red.mkv", "ffv1", red, PQ))
    assert (result - torch.tensor([255 * (100 / 203) ** (1 / 2.4), 0, 0])).abs().max() < 16
    assert result[1:].max() < 40 < 180 < result[0]  # without the matrix green would be above 60


def test_tags_of_only_the_container_are_used(tmp_path):
    raw = hdr_video(tmp_path / "raw.h265", "libx265", [WHITE[HLG]] * 3, 2, format="hevc")
    white, info = colour(tagged_container(tmp_path / "tagged.mkv", raw, HLG))
    assert white.min() >= 250 and "HLG" in info.note


def test_the_curve_keeps_hue_and_light_below_its_knee():
    dim = torch.full((1, 3), round(65535 * pq_signal(100)), dtype=torch.int32)
    assert hdr.tone_mapped(dim, PQ).mean().item() == pytest.approx((100 / 203) ** (1 / 2.4), abs=2e-3)
    bright = torch.tensor([[pq_signal(2000), pq_signal(1000), pq_signal(1000)]])
    red, green, _ = hdr.tone_mapped((bright * 65535).int(), PQ, primaries=1)[0].tolist()
    assert red > 0.999 and green == pytest.approx(0.5 ** (1 / 2.4), abs=2e-3)


def test_motion_and_commands_read_sdr(tmp_path, capsys):
    path = hdr_video(tmp_path / "a.mkv", "ffv1", [WHITE[PQ]] * 3, PQ)
    assert read_motion(path, FramePlan(0.0, Fraction(10), 3), (64, 64)).field.abs().max() == 0
    command = ["extract", "single_image", path, "-o", tmp_path / "a.safetensors", "--size", "64x64"]
    assert cli.main([str(word) for word in command]) == 0
    assert "is HDR video (PQ)" in capsys.readouterr().err


def test_a_frame_keeps_its_time():
    frame = deep_frame([0.5] * 3, PQ)
    frame.pts, frame.time_base = 7, Fraction(1, 25)
    mapped = as_sdr(frame)
    assert (mapped.pts, mapped.time_base, mapped.format.name) == (7, Fraction(1, 25), "rgb24")
