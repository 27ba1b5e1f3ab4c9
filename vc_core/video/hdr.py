"""Convert HDR signals (PQ and HLG) to SDR.

In torch, because many builds of ffmpeg, including PyAV's, do not contain the filters that do it well."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

WHITE = 203.0
"""Candela per square metre of diffuse white, a sheet of paper in the light of the scene: ITU-R BT.2408, table 1."""

PEAK = 1000.0
"""Peak luminance of the display that HLG's scene light is converted for: the nominal one of ITU-R BT.2100, table 5.
Diffuse white is at 75 % of the signal then."""

KNEE = 0.9
"""As a fraction of diffuse white: darker light stays unchanged, brighter light is compressed to below 1."""

PQ, HLG = 16, 18
"""Transfer functions by their numbers in ITU-T H.273, as stored in files."""

NAMES = {PQ: "PQ", HLG: "HLG"}

_TO_709 = {
    9: ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187)),  # BT.2020: ITU-R BT.2407
    12: ((1.2249, -0.2247, 0.0), (-0.0421, 1.0421, 0.0), (-0.0196, -0.0786, 1.0979)),  # P3 with the white D65
}
"""Primaries, by their numbers in H.273 -> the matrix for linear light to BT.709's primaries. BT.2020 is the default."""

_SAME = (1, 5, 6, 7)  # BT.709's own primaries, and those of older televisions, which differ little
_LUMINANCE = (0.2627, 0.6780, 0.0593)  # of BT.2020's primaries


def tone_mapped(pixels: Tensor, transfer: int, primaries: int = 9) -> Tensor:
    """Convert HDR pixels (..., 3), a 16-bit signal (int32), to an SDR signal in [0, 1] float32.

    The steps: display light (PQ's as it is, HLG's by the OOTF of BT.2100 at 1000 cd/m²); BT.2020's primaries to
    BT.709's (BT.2407, out-of-range colours are clipped); diffuse white, 203 cd/m², becomes 99 % of SDR's
    white signal (BT.2408 sets them equal), and brighter light is compressed into the remaining range with its hue kept;
    then the inverse of BT.1886's gamma 2.4, which an SDR display has.
    """
    light = _light(transfer)[pixels.long()]
    if transfer == HLG:  # the OOTF, with gamma 1.2
        luminance = (light * torch.tensor(_LUMINANCE)).sum(-1, keepdim=True)
        light = light * luminance.clamp(min=1e-9) ** 0.2 * (PEAK / WHITE)
    if primaries not in _SAME:
        light = light @ torch.tensor(_TO_709.get(primaries, _TO_709[9])).T
    light = light.clamp(min=0)
    brightest = light.amax(-1, keepdim=True)
    bent = KNEE + (1 - KNEE) * torch.tanh((brightest - KNEE) / (1 - KNEE))
    return (light * torch.where(brightest > KNEE, bent / brightest, 1.0)) ** (1 / 2.4)


@cache
def _light(transfer: int) -> Tensor:
    """A table of light for each of 65536 signal levels: PQ's EOTF relative to diffuse white, HLG's inverse OETF in the
    scene (BT.2100, tables 4, 5)."""
    signal = torch.linspace(0, 1, 2**16, dtype=torch.float64)
    if transfer == PQ:
        m1, m2 = 2610 / 16384, 2523 / 32
        c1, c2, c3 = 3424 / 4096, 2413 / 128, 2392 / 128
        root = signal ** (1 / m2)
        return (10000 * ((root - c1).clamp(min=0) / (c2 - c3 * root)) ** (1 / m1) / WHITE).float()
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return torch.where(signal <= 0.5, signal**2 / 3, (((signal - c) / a).exp() + b) / 12).float()


def note(what: object, transfer: int) -> str:
    """Return a note for users about the conversion of this transfer function; empty for SDR."""
    if transfer not in NAMES:
        return ""
    return (
        f"{what} is HDR video ({NAMES[transfer]}) and was converted to SDR. Diffuse white ({WHITE:g} cd/m²) became "
        "white, and colours outside BT.709 were clipped."
    )
