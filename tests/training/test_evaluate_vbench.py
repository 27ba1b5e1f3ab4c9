"""`./vc evaluate --vbench`: VBench's custom input, and its results in the report, if they are of the same videos."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from training.evaluate import __main__ as program
from training.evaluate import evaluation
from training.evaluate.evaluation import EvaluationSettings, evaluate
from training.evaluate.page import as_page
from training.evaluate.report import as_mapping, as_table
from training.evaluate.statistics import estimate
from training.evaluate.trials import Composing, arms_of
from training.evaluate.vbench import PROMPTS, VIDEOS, check_vbench, export, read_scores
from vc_core.errors import UserError
from vc_core.video import FramePlan, probe, read_frames

SEEDS = 2
SCORES = {"0001-0.mp4": 0.5, "0001-1.mp4": 0.7, "0002-0.mp4": 0.9, "0002-1.mp4": 0.9}


@pytest.fixture(scope="module")
def settings(tiny_checkpoint):
    sampling = Composing(seeds=SEEDS, steps=1)
    return EvaluationSettings(
        (tiny_checkpoint, tiny_checkpoint),
        clips=2,
        sampling=sampling,
        only=("similarity", "together"),
        device="cpu",
        jobs=1,
    )


@pytest.fixture(scope="module")
def results(settings):
    return evaluate(settings)


def write_results(folder, dimension="motion_smoothness", scores=SCORES, factor=1.0, name="results_1"):
    """Write a file as VBench does, after measuring the videos of a folder."""
    videos = [{"video_path": f"{folder / VIDEOS}/{name}", "video_results": score} for name, score in scores.items()]
    mean = factor * sum(float(score) for score in scores.values()) / len(scores)
    path = folder / f"{name}_eval_results.json"
    path.write_text(json.dumps({dimension: [mean, videos]}))
    return path


# --- Videos and texts -----------------------------------------------------------------------------------------------


def test_videos_and_prompts_are_vbenchs_custom_input(results, tmp_path):
    wiring = arms_of("text")["given"]
    grey = 50 * torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1, 1)  # the tiny network's videos are all black
    videos = results[0].videos | {wiring: torch.zeros_like(results[0].videos[wiring]) + grey}
    results = [replace(results[0], videos=videos), results[1]]
    scored = export(tmp_path, results, SEEDS)
    assert {path.name for path in tmp_path.iterdir()} == {"1-tiny", "2-tiny"}
    assert {path.name for path in (tmp_path / "1-tiny").iterdir()} == {"text", "together"}
    folder = tmp_path / "1-tiny" / "text"
    prompts = json.loads((folder / PROMPTS).read_text())
    assert list(prompts) == list(SCORES) == sorted(path.name for path in (folder / VIDEOS).iterdir())
    assert list(prompts.values()) == [text for text in results[0].clips.texts for _ in range(SEEDS)]
    expected = videos[wiring]
    info = probe(folder / VIDEOS / "0002-1.mp4")
    frames = read_frames(folder / VIDEOS / "0002-1.mp4", FramePlan(0.0, info.rate, expected.shape[2]))
    assert float(info.rate) == results[0].clips.sources[1]["rate"]
    assert (frames[0] - expected[3] / 255).abs().max() < 0.03
    note = scored[0].vbench[0].note
    assert f"--videos_path {folder / VIDEOS} --prompt_file {folder / PROMPTS} --output_path {folder}" in note
    assert "--mode=custom_input" in note and scored[0].vbench[0].figures == {}


def test_videos_of_an_earlier_evaluation_are_removed_and_other_files_stay(results, tmp_path):
    videos = tmp_path / "1-tiny" / "text" / VIDEOS
    videos.mkdir(parents=True)
    for name in ("0003-0.mp4", "mine.mp4"):
        (videos / name).write_bytes(b"")
    export(tmp_path, results[:1], SEEDS)
    assert sorted(path.name for path in videos.iterdir()) == [*SCORES, "mine.mp4"]


# --- Results --------------------------------------------------------------------------------------------------------


def test_results_of_these_videos_are_in_the_report(settings, results, tmp_path):
    export(tmp_path, results, SEEDS)
    write_results(tmp_path / "1-tiny" / "text")
    more = {name: score - 0.1 for name, score in SCORES.items()}
    write_results(tmp_path / "2-tiny" / "text", scores=more)
    scored = export(tmp_path, results, SEEDS)
    entry, other = (next(each for each in result.vbench if each.kind == "text") for result in scored)
    assert entry.figures == {"motion_smoothness": estimate([[0.5, 0.7], [0.9, 0.9]])} and entry.note == ""
    gain = other.over_first["motion_smoothness"]
    assert (gain.mean, gain.low, gain.high) == pytest.approx((-0.1, -0.1, -0.1))
    table = as_table(settings, scored)
    assert "| motion smoothness | text | 1-tiny | 75.0 % [60.0, 90.0] |  |" in table  # the first itself
    assert "| -10.0 % [-10.0, -10.0] |" in table and "VBench, together: not measured yet" in table
    page = as_page(settings, scored)
    assert "motion smoothness" in page and '75.0 % <span class="interval">[60.0, 90.0]</span>' in page
    plain = json.loads(json.dumps(as_mapping(settings, scored), default=str))
    entry = next(each for each in plain["checkpoints"][0]["vbench"] if each["kind"] == "text")
    assert entry["values"]["motion_smoothness"] == [[0.5, 0.7], [0.9, 0.9]]
    assert entry["figures"]["motion_smoothness"]["mean"] == pytest.approx(0.75)


def test_results_of_other_videos_are_not_used(results, tmp_path):
    export(tmp_path, results[:1], SEEDS)
    folder = tmp_path / "1-tiny" / "text"
    write_results(folder)
    (folder / VIDEOS / "0002-0.mp4").write_bytes(b"another video")
    entry = export(tmp_path, results[:1], SEEDS)[0].vbench[0]
    assert entry.figures == {} and "its results are of other videos. Run VBench again: for d in" in entry.note
    assert (folder / "results_1_eval_results.json").exists()


def test_results_with_another_text_are_not_used(results, tmp_path):
    export(tmp_path, results[:1], SEEDS)
    write_results(tmp_path / "1-tiny" / "text")
    clips = replace(results[0].clips, texts=["another", "text"])
    entry = export(tmp_path, [replace(results[0], clips=clips)], SEEDS)[0].vbench[0]
    assert "of other videos" in entry.note


def test_later_results_replace_earlier_ones_and_dimensions_are_merged(results, tmp_path):
    export(tmp_path, results[:1], SEEDS)
    folder = tmp_path / "1-tiny" / "text"
    write_results(folder, name="results_2")
    write_results(folder, scores=dict.fromkeys(SCORES, 0.1), name="results_1")
    percent = {name: 100 * score for name, score in SCORES.items()}
    write_results(folder, "imaging_quality", percent, factor=0.01, name="results_3")
    write_results(folder, "dynamic_degree", dict(zip(SCORES, (True, False, True, True), strict=True)), name="results_4")
    figures = export(tmp_path, results[:1], SEEDS)[0].vbench[0].figures
    assert {name: figure.mean for name, figure in figures.items()} == pytest.approx(
        {"motion_smoothness": 0.75, "imaging_quality": 0.75, "dynamic_degree": 0.75}
    )


def test_the_mean_is_vbenchs_own(tmp_path):
    for dimension, factor in (("imaging_quality", 0.01), ("aesthetic_quality", 1.0)):
        path = write_results(tmp_path, dimension, factor=factor)
        mean, _ = json.loads(path.read_text())[dimension]
        assert np.mean([*read_scores(path)[dimension].values()]) == pytest.approx(mean)


@pytest.mark.parametrize(
    "text",
    ["{", "[1]", '{"motion_smoothness": 3}', '{"motion_smoothness": [1, [{"video_path": "a"}]]}', '{"a": [1, 2]}'],
)
def test_damaged_results_are_refused_before_anything_is_composed(text, tmp_path, tiny_checkpoint, monkeypatch, capsys):
    folder = tmp_path / "tiny" / "text"
    folder.mkdir(parents=True)
    (folder / "results_1_eval_results.json").write_text(text)
    monkeypatch.setattr(evaluation, "_evaluate", None)
    with pytest.raises(UserError, match=r"results_1_eval_results\.json cannot be read as results of VBench"):
        check_vbench(tmp_path)
    words = [str(tiny_checkpoint), "--vbench", str(tmp_path), "--only", "text", "-o", str(tmp_path / "out")]
    assert program.main(words) == 2 and "Remove it." in capsys.readouterr().err


def test_only_must_leave_videos_for_vbench(tmp_path):
    with pytest.raises(UserError, match="--vbench requires videos composed from text"):
        EvaluationSettings(vbench=tmp_path, only=("depth",))
    assert EvaluationSettings(vbench=tmp_path, only=("depth", "together")).composes_for_vbench
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        check_vbench(tmp_path / "file")
