"""Motion control error and ObjMC: exact for known motion, and refused for files that contain neither weights nor
tracks."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.models.optical_flow import raft_small

from tests.training.clips import make_folder
from training.evaluate import evaluation
from training.evaluate.evaluation import EvaluationSettings, evaluate
from training.evaluate.measures import MEASURES, SLOWEST, Features, motion_control_error, track_errors
from training.evaluate.tracking import (
    GRID,
    chained,
    clip_tracks,
    load_raft,
    read_tracks_file,
    track_error,
    tracks_from,
)
from training.evaluate.trials import ARMS, Composing
from vc_core.errors import UserError

SIZE, FRAMES = (64, 96), 5


def moving(dx, dy, frames=FRAMES):
    """A random texture (3, F, H, W) that moves by (dx, dy) pixels per frame, and around the borders."""
    texture = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))
    return torch.stack([texture.roll((dy * n, dx * n), (1, 2)) for n in range(frames)], dim=1)


def shift_flow(first, second):
    """The exact flow between frames that are shifted completely, by the maximum of their correlation."""
    spectrum = torch.fft.fft2(second.mean(1)) * torch.fft.fft2(first.mean(1)).conj()
    height, width = first.shape[-2:]
    best = torch.fft.ifft2(spectrum / spectrum.abs().clamp_min(1e-9)).real.flatten(1).argmax(1)
    dy, dx = best // width, best % width
    vectors = torch.stack([(dx + width // 2) % width - width // 2, (dy + height // 2) % height - height // 2], 1)
    return vectors.float()[:, :, None, None].expand(-1, -1, height, width)


# --- Motion control error -------------------------------------------------------------------------------------------


def test_the_motion_control_error_is_a_mean_distance_in_pixels():
    target = torch.zeros(2, 2, 3, *SIZE)
    motion = target.clone()
    motion[0, 0], motion[0, 1] = 3 / SIZE[1], 4 / SIZE[1]  # everywhere
    motion[1, 0, 1, : SIZE[0] // 2] = 2 / SIZE[1]  # in half of one of two frames that count
    motion[1, :, 0] = 9.0  # before the first frame nothing moves
    assert motion_control_error(motion, target).tolist() == pytest.approx([5.0, 0.5])


def test_the_motion_control_error_compares_vectors_of_the_same_extractor(tiny_config):
    from training.evaluate.examples import held_out_clips

    clips = held_out_clips(2, tiny_config)
    row = MEASURES["motion_control"]
    own = row.of(Features(clips.truth.video, clips.texts, None), clips.truth)
    still = row.of(Features(clips.truth.video[:, :, :1].expand_as(clips.truth.video), clips.texts, None), clips.truth)
    assert own.max() < 1e-6
    width = clips.truth.video.shape[-1]
    expected = clips.truth.vectors[:, :, 1:].norm(dim=1).mean((1, 2, 3)) * width
    assert still.tolist() == pytest.approx(expected.tolist(), abs=0.05)  # the codec finds some motion in noise


# --- Tracks ---------------------------------------------------------------------------------------------------------


def test_tracks_follow_the_motion_exactly():
    starts = torch.tensor([[0.25, 0.25], [0.5, 0.125]])
    tracks = chained(moving(3, -2), starts, shift_flow)
    steps = torch.arange(FRAMES)[:, None] * torch.tensor([3.0, -2.0]) / SIZE[1]
    assert (tracks - (starts[:, None] + steps)).abs().max() < 1e-5


def test_target_tracks_end_where_their_point_leaves_the_frame():
    tracks = clip_tracks(moving(12, 0), shift_flow, SLOWEST)
    visible = ~tracks[..., 0].isnan()
    starts = (torch.arange(GRID) + 0.5) / GRID
    frames = [min(FRAMES, int((1 - start) * SIZE[1] // 12) + 1) for start in starts.tolist()]
    # A point that is visible only in the first frame has no motion.
    assert visible.sum(1).tolist() == GRID * [count if count > 1 else 0 for count in frames] and min(frames) == 1
    assert (visible[:, 1:] <= visible[:, :-1]).all()


def test_target_tracks_end_where_the_flow_back_contradicts_them():
    def forward(first, second):
        flow = shift_flow(first, second).clone()
        if flow[0, 0, 0, 0] < 0:  # backwards, in the second pair of frames
            flow[1] = 0
        return flow

    visible = ~clip_tracks(moving(4, 0), forward, SLOWEST)[..., 0].isnan()
    assert visible[:, :2].all() and not visible[:, 2:].any()


def test_still_points_are_no_targets():
    assert clip_tracks(moving(0, 0), shift_flow, SLOWEST).isnan().all()
    still = moving(0, 0)
    assert track_errors(still[None], clip_tracks(still, shift_flow, SLOWEST)[None], shift_flow).isnan().all()


def test_objmc_is_the_mean_distance_from_the_targets():
    targets = clip_tracks(moving(3, 0), shift_flow, SLOWEST)
    own = track_errors(moving(3, 0)[None], targets[None], shift_flow)
    off = track_errors(moving(3, 1)[None], targets[None], shift_flow)
    assert own.item() < 1e-6
    seen = ~targets[:, 1:, 0].isnan()
    expected = (seen * torch.arange(1, FRAMES)).sum() / seen.sum() / SIZE[1]  # a pixel more with every frame
    assert off.item() == pytest.approx(expected.item(), rel=1e-4)
    assert track_error(targets, targets).item() == 0 and track_error(targets * torch.nan, targets).isnan()


# --- RAFT -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    file = tmp_path_factory.mktemp("raft") / "raft_small.pth"
    torch.manual_seed(0)
    torch.save(raft_small(weights=None).state_dict(), file)
    return file


def test_raft_is_recognized_and_returns_pixels_of_the_frames(weights):
    flow = load_raft(weights)
    model = raft_small(weights=None)
    model.load_state_dict(torch.load(weights, weights_only=True))
    frames = torch.rand(2, 1, 3, 128, 160, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.eval()(*(frames * 2 - 1))[-1]
    torch.testing.assert_close(flow(*frames), expected)
    assert flow(*frames[..., :50, :70]).shape == (1, 2, 50, 70)  # enlarged, because RAFT requires 128 pixels
    assert load_raft(None) is None


def test_other_files_are_not_raft(tmp_path, tiny_checkpoint):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    for file in (tmp_path / "other.pth", tiny_checkpoint):
        with pytest.raises(UserError, match=r"is not a RAFT of torchvision\. Pass raft_large"):
            load_raft(file)
    with pytest.raises(UserError, match="gone"):
        load_raft(tmp_path / "gone.pth")


# --- Evaluations ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("videos"), {"right.mp4": (3, 0), "down.mp4": (0, 2)})


def settings_for(checkpoint, folder, **others):
    sampling = Composing(seeds=1, steps=1)
    return EvaluationSettings(
        (checkpoint,), clips=2, data=folder, sampling=sampling, only=("objmc",), device="cpu", jobs=1, **others
    )


def test_objmc_is_measured_by_raft(folder, tiny_checkpoint, weights, monkeypatch):
    monkeypatch.setattr(evaluation, "load_raft", lambda *_: shift_flow)
    (result,) = evaluate(settings_for(tiny_checkpoint, folder, raft=weights))
    assert list(result.rows) == ["objmc"]
    assert {values.shape for values in result.rows["objmc"].values.values()} == {(2, 1)}
    assert set(result.rows["objmc"].values) == {*ARMS, "source"}


def test_a_files_tracks_are_the_targets(folder, tiny_checkpoint, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "load_raft", lambda *_: lambda first, second: torch.zeros_like(first[:, :2]))
    file = tmp_path / "tracks.json"
    file.write_text(json.dumps({"down.mp4": [[{"x": 8, "y": 8}, {"x": 8, "y": 12}, {"x": 8, "y": 16}]]}))
    (result,) = evaluate(settings_for(tiny_checkpoint, folder, raft=weights, tracks=file))
    width = result.clips.truth.video.shape[-1]
    errors = result.rows["objmc"].values["given"]
    assert errors[1, 0] == pytest.approx((4 + 8) / 2 / width) and np.isnan(errors[0, 0])  # no tracks of right.mp4


def test_tracks_may_be_hidden_and_have_other_numbers_of_points(tmp_path):
    file = tmp_path / "tracks.json"
    file.write_text(json.dumps({"a.mp4": [[[0, 0], [10, 0]], [[4, 4]]]}))
    tracks = tracks_from(file, read_tracks_file(file), ["b.mp4", "a.mp4"], 3, 10)
    assert tracks.shape == (2, 2, 3, 2) and tracks[0].isnan().all()
    assert tracks[1, 0, :, 0].tolist() == [0.0, 0.5, 1.0]
    assert (tracks[1, 1] - 0.4).abs().max() < 1e-6


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "cannot be read as JSON"),
        ("[]", "contains no tracks by clip"),
        ('{"a.mp4": 5}', "a.mp4"),
        ('{"a.mp4": []}', "There are no tracks"),
    ],
)
def test_wrong_files_of_tracks_are_refused(text, message, tmp_path):
    file = tmp_path / "tracks.json"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        read_tracks_file(file)
    assert "tracks.json" in str(raised.value)


def test_wrong_options_are_refused_before_anything_is_composed(folder, tiny_checkpoint, weights, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"objmc requires the weights of torchvision's RAFT\. Pass --raft"):
        settings_for(tiny_checkpoint, folder)
    with pytest.raises(UserError, match="--tracks requires --data and --raft"):
        EvaluationSettings(tracks=tmp_path / "tracks.json")
    monkeypatch.setattr(evaluation, "compose_wirings", None)
    file = tmp_path / "tracks.json"
    file.write_text(json.dumps({"rihgt.mp4": [[[0, 0], [10, 0]]]}))
    with pytest.raises(UserError, match=r"tracks of rihgt\.mp4, which is not a clip\. Did you mean 'right\.mp4'"):
        evaluate(settings_for(tiny_checkpoint, folder, raft=weights, tracks=file))
    monkeypatch.setattr(evaluation, "_evaluate", None)
    with pytest.raises(UserError, match="cannot be read as JSON"):
        evaluate(replace(settings_for(tiny_checkpoint, folder, raft=weights), tracks=tmp_path / "gone.json"))
