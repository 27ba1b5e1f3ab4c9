"""`./vc evaluate --data`: the user's own clips, from folders and shards, by the general measures."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.training.clips import MOTIONS, make_folder
from tests.training.test_data_foreign import write_tar
from training.data.folder import read_captions
from training.data.shard_writing import PrepareOptions, prepare
from training.evaluate import __main__ as program
from training.evaluate import evaluation
from training.evaluate.evaluation import EvaluationSettings, Result, Row, evaluate, over_first
from training.evaluate.judge import Judge
from training.evaluate.measures import MEASURES, Features
from training.evaluate.own_clips import covered, open_data, read_clips
from training.evaluate.report import NAMED, as_table, notes_on, sheet_rows
from training.evaluate.statistics import estimate
from training.evaluate.trials import ARMS, TOGETHER, Composing, Wiring
from vc_core.conditions import CONDITIONS
from vc_core.config import ExtractionConfig
from vc_core.errors import UserError

GENERAL = [
    "consistency",
    "similarity",
    "style_palette",
    "style_palette_beside_text",
    "style_similarity",
    "first_frame",
    "endpoint",
    "motion_consistency",
    "motion_control",
]
FAST = Composing(seeds=2, steps=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("videos"))


@pytest.fixture
def damaged(folder, tmp_path):
    """The same with one truncated video."""
    shutil.copytree(folder, tmp_path / "videos")
    (tmp_path / "videos" / "left.mp4").write_bytes((folder / "left.mp4").read_bytes()[:200])
    return tmp_path / "videos"


@pytest.fixture(scope="module")
def clips(folder, tiny_config):
    return read_clips(open_data(folder, tiny_config), 8)


# --- Reading --------------------------------------------------------------------------------------------------------


def test_clips_of_a_folder_match_the_checkpoint(clips, tiny_config):
    size, count = (tiny_config.height, tiny_config.width), len(MOTIONS)
    assert clips.keys == [f"{number + 1}: {name}" for number, name in enumerate(MOTIONS)]
    assert clips.texts == [f"a scene, {name.split('.')[0]}" for name in MOTIONS] and clips.skipped == []
    assert clips.truth.video.shape == (count, 3, tiny_config.frames, *size)
    assert clips.truth.style.shape == (count, 3, *(tiny_config.towers.image_size,) * 2)
    assert set(clips.conditions) == {"single_image", "motion"}
    for name, tensor in clips.conditions.items():
        frames = 1 if CONDITIONS[name].kind == "spatial" else tiny_config.frames
        assert tensor.shape[:3] == (count, CONDITIONS[name].channels, frames)
    assert clips.truth.mask is clips.truth.color is clips.truth.shape is clips.truth.keep is None


def test_the_motion_is_the_clips_own_in_frame_widths(clips):
    moved = clips.truth.motion[:, :, 1:].flatten(2).median(2).values  # per three frames of the source, 128 wide
    expected = torch.tensor([[3 * dx / 120, 3 * dy / 120] for dx, dy in MOTIONS.values()])  # 120 remain after the crop
    assert (moved - expected).abs().max() < 0.01


def test_the_end_point_error_is_0_for_the_clips_themselves_and_large_for_others(clips):
    row = MEASURES["endpoint"]
    assert row.of(Features(clips.truth.video, clips.texts, None), clips.truth).max() < 1e-6
    others = Features(clips.truth.video.roll(1, 0), clips.texts, None)
    assert row.of(others, clips.truth).min() > 0.03


def test_a_dense_condition_covers_all_after_the_first_frame_and_points_only_their_positions():
    command = torch.zeros(1, 2, 3, 4, 4)
    command[0, 1, 2, 3, 0] = -2
    assert covered(command, "dense", (4, 4)).sum((0, 2, 3)).tolist() == [0, 16, 16]
    assert covered(command, "points", (4, 4)).nonzero().tolist() == [[0, 2, 3, 0]]
    # Maps of half the video's height and width cover all of its pixels.
    assert covered(command, "dense", (8, 8)).sum((0, 2, 3)).tolist() == [0, 64, 64]
    assert covered(command, "points", (8, 8)).nonzero().tolist() == [[0, 2, y, x] for y in (6, 7) for x in (0, 1)]


def test_points_are_compared_with_the_same_motion_as_dense_fields(folder, clips, tiny_config):
    points = read_clips(open_data(folder, replace(tiny_config, extraction=ExtractionConfig())), 8)
    assert points.truth.motion.equal(clips.truth.motion)
    assert 0 < points.truth.motion_mask.sum() < clips.truth.motion_mask.sum()


def test_few_clips_are_evenly_spread_and_the_same_as_among_many(folder, clips, tiny_config):
    few = read_clips(open_data(folder, tiny_config), 2)
    assert few.keys == [clips.keys[0], clips.keys[2]]
    assert few.truth.video.equal(clips.truth.video[[0, 2]])


def test_a_folders_rate_and_nominal_height_work_as_in_training(folder, tiny_config):
    data = open_data(folder, tiny_config, rate=12, nominal_height=48)
    assert (data.rate, data.nominal_height) == (12, 48)
    moved = read_clips(data, 2).truth.motion[0, 0, 1:].median()
    assert moved.item() == pytest.approx(3 / 120, abs=0.005)


def test_shards_are_read_as_folders_are(folder, tiny_config, tmp_path):
    options = PrepareOptions(folder, 3, (tiny_config.height, tiny_config.width), layout="dense")
    prepare(options, read_captions(folder), tmp_path / "shards")
    stored = read_clips(open_data(tmp_path / "shards", tiny_config), 8)
    assert len(stored) == len(MOTIONS) and stored.texts[0] == "a scene, right" and "shard-000000.tar" in stored.keys[0]
    assert stored.truth.motion[0, 0, 1:].median().item() == pytest.approx(9 / 120, abs=0.01)
    with pytest.raises(UserError, match="Leave out --rate and --nominal-height"):
        open_data(tmp_path / "shards", tiny_config, rate=4)
    with pytest.raises(UserError, match="was prepared at 40x32"):
        open_data(tmp_path / "shards", replace(tiny_config, height=64, width=64))


def test_shards_of_other_programs_are_read_as_their_files_are(folder, clips, tiny_config, tmp_path):
    members = {}
    for name, text in zip(MOTIONS, clips.texts, strict=True):
        members |= {name: (folder / name).read_bytes(), name.replace(".mp4", ".txt"): text}
    write_tar(tmp_path / "00000.tar", members)
    stored = read_clips(open_data(tmp_path, tiny_config), 8)
    assert stored.texts == clips.texts and stored.truth.video.shape == clips.truth.video.shape
    assert stored.truth.motion[0, 0, 1:].median().item() == pytest.approx(9 / 120, abs=0.01)


def test_unreadable_clips_are_skipped_and_named(damaged, clips, tiny_config):
    readable = read_clips(open_data(damaged, tiny_config), 8)
    assert readable.keys == [key for key in clips.keys if "left" not in key]
    (reason,) = readable.skipped
    assert "left.mp4" in reason and readable.truth.video.flatten(1).std(1).min() > 0.01
    with pytest.raises(UserError, match="at least 2"):
        read_clips(open_data(damaged, tiny_config), 1)
    for name in list(MOTIONS)[2:]:
        (damaged / name).unlink()
    with pytest.raises(UserError, match=r"^Expected at least 2 readable clips .* only 1 of 5 can be read.*left\.mp4"):
        read_clips(open_data(damaged, tiny_config), 8)


def test_folders_without_clips_are_errors(tiny_config, tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        open_data(tmp_path / "gone", tiny_config)
    (tmp_path / "swan.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="contains neither shards nor videos with captions"):
        open_data(tmp_path, tiny_config)
    (tmp_path / "captions.csv").write_text("file,caption\nswan.mp4,a swan\nswan.png,a swan\n")
    with pytest.raises(UserError, match=r"swan\.png is an image"):
        open_data(tmp_path, tiny_config)


# --- Evaluations ----------------------------------------------------------------------------------------------------


def test_the_general_measures_are_computed_for_every_video(folder, tiny_checkpoint):
    settings = EvaluationSettings((tiny_checkpoint,), clips=2, data=folder, sampling=FAST, device="cpu", jobs=1)
    (result,) = evaluate(settings)
    assert list(result.rows) == GENERAL and result.notes == []
    for row in result.rows.values():
        assert {arm: values.shape for arm, values in row.values.items()} == {
            **dict.fromkeys([*ARMS, TOGETHER], (2, 2)),
            "source": (2, 1),
        }
        assert all(np.isfinite(values).all() for values in row.values.values())
    assert result.together == Wiring(frozenset({"text", "style", "single_image", "motion"}))
    table = as_table(settings, [result])
    assert "Not measured, because these require synthetic scenes: colour, shape, direction, sharpness," in table
    assert "2 clips from" in table and "held-out" not in table and "sketches" not in table
    labels = [label for label, _ in sheet_rows(result, "motion", seeds=2)]
    assert labels == [
        f"{clip + 1}: source" if row == "source" else row
        for clip in range(2)
        for row in ("source", "motion given", *ARMS)
    ]


def test_only_measures_that_require_scenes_are_an_error(folder):
    assert [row.name for row in EvaluationSettings(data=folder, only=("text",)).measures()] == [
        "consistency",
        "similarity",
    ]
    with pytest.raises(UserError, match="depth can be measured only on synthetic scenes"):
        EvaluationSettings(data=folder, only=("depth",))
    with pytest.raises(UserError, match="work only with videos of --data"):
        EvaluationSettings(rate=4.0)


def test_wrong_data_is_reported_before_anything_is_composed(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "_evaluate", None)
    with pytest.raises(UserError, match="gone"):
        evaluate(EvaluationSettings((tiny_checkpoint,), data=tmp_path / "gone"))


def test_checkpoints_are_compared_on_their_common_clips():
    def rows(*figures):
        values = {"given": np.array(figures)[:, None]}
        return {"endpoint": Row(MEASURES["endpoint"], values, {}, {})}

    gains = over_first(rows(5.0, 7.0, 1.0), rows(4.0, 2.0), ["a", "b", "c"], ["b", "a"])
    assert gains["endpoint"] == estimate(np.array([[3.0], [3.0]]))
    assert over_first(rows(5.0), rows(4.0), ["a"], ["b"]) == {}


def test_fvd_requires_no_tower(folder, tiny_checkpoint, monkeypatch):
    missing = {name: f"the checkpoint contains no {name} tower" for name in ("text", "image")}
    monkeypatch.setattr(evaluation, "load_judge", lambda *_: Judge("", None, missing))
    monkeypatch.setattr(evaluation, "load_fvd", lambda *_: "an I3D")
    calls = []
    monkeypatch.setattr(evaluation, "described", lambda fvd, real, arms, rates: calls.append((real, arms)) or {})
    sampling = replace(FAST, seeds=1)
    (result,) = evaluate(
        EvaluationSettings((tiny_checkpoint,), clips=2, data=folder, sampling=sampling, device="cpu", jobs=1)
    )
    ((real, arms),) = calls
    palettes = ["style_palette", "style_palette_beside_text"]
    assert list(result.rows) == [*palettes, "first_frame", "endpoint", "motion_control"] and list(arms) == list(ARMS)
    assert real.dtype == torch.uint8 and real.shape == arms["given"].shape


def test_the_command_lists_skipped_clips(damaged, tiny_checkpoint, tmp_path, capsys):
    out = tmp_path / "results"
    words = ["--data", str(damaged), "--seeds", "1", "--steps", "1", "--only", "motion,style_similarity"]
    words += ["--jobs", "1", "-o", str(out)]
    assert program.main([str(tiny_checkpoint), *words]) == 0
    printed = capsys.readouterr().out
    assert "Skipped 1 of 5 clips that cannot be read. " in printed and "left.mp4" in printed
    assert {path.name for path in out.iterdir()} == {
        "report.html",
        "table.md",
        "evaluation.json",
        "clips.json",
        "motion.png",
        "motion_with_text.png",
        "style.png",
    }
    report = json.loads((out / "evaluation.json").read_text())
    (checkpoint,) = report["checkpoints"]
    assert report["settings"]["data"] == str(damaged) and "held_out_seed" not in report["settings"]
    assert len(checkpoint["clips"]) == 4 and len(checkpoint["skipped"]) == 1
    assert np.shape(checkpoint["results"]["endpoint"]["given"]["values"]) == (4, 1)


def test_the_table_names_a_few_of_many_unreadable_clips(clips):
    skipped = [f"{number}.mp4: broken." for number in range(NAMED + 3)]
    result = Result(
        "", {}, {}, [], {"note": "", "distances": {}}, {}, replace(clips, skipped=skipped), {}, None, Judge("")
    )
    _, note = notes_on(EvaluationSettings(), [result])
    assert f"{NAMED + 3} of {NAMED + 3 + len(clips)} clips" in note and "3 more" in note and "4.mp4" in note
    assert "5.mp4" not in note and len(notes_on(EvaluationSettings(), [replace(result, clips=clips)])) == 1
