"""`./vc evaluate`: what is composed, how results are compared, and which files are written."""

import json
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch

from training.data.synthetic.scenes import OBJECT_COLORS, SHAPES
from training.evaluate import __main__ as program
from training.evaluate import evaluation, fvd, trials
from training.evaluate.evaluation import EvaluationSettings, evaluate, names_of, possible
from training.evaluate.evaluation import row_of as measured_row
from training.evaluate.examples import HELD_OUT, PACES, clip_size, held_out_clips, held_out_scenes
from training.evaluate.judge import Judge, load_judge
from training.evaluate.measures import MEASURES
from training.evaluate.processes import run_in_processes
from training.evaluate.report import as_table, sheet_rows
from training.evaluate.statistics import Estimate
from training.evaluate.summary import FEWEST, HEADLINES, TOO_FEW, headline, kept_together, verdicts
from training.evaluate.trials import (
    ARMS,
    TOGETHER,
    TRIALS,
    Composing,
    Task,
    Wiring,
    arms_of,
    compose_wirings,
    run_here,
)
from training.lora import add_lora, lora_layers, save_lora
from training.recipe import Recipe
from vc_core.checkpoint.loading import load_unet
from vc_core.checkpoint.lora import FEW_STEPS
from vc_core.checkpoint.reading import read_checkpoint, save_checkpoint
from vc_core.conditions import CONDITIONS
from vc_core.errors import UserError

FAST = Composing(seeds=2, steps=1)


@pytest.fixture(scope="module")
def clips(tiny_config):
    return held_out_clips(2, tiny_config)


# --- Scenes and trials ----------------------------------------------------------------------------------------------


def test_no_recipe_can_train_on_the_held_out_scenes():
    with pytest.raises(UserError):
        Recipe(seed=HELD_OUT)


def test_scenes_do_not_depend_on_their_number():
    few, many = held_out_scenes(3), held_out_scenes(90)
    assert few.seed.tolist() == many.seed[:3].tolist()
    assert len(set(many.seed.tolist())) == 90 and (many.count == 1).all()
    with pytest.raises(UserError, match="at most"):
        held_out_scenes(100_000)


def test_few_scenes_have_all_shapes_colours_and_paces():
    scenes = held_out_scenes(8)
    assert set(scenes.shape[:, 0].tolist()) == set(range(len(SHAPES)))
    assert set(scenes.color[:, 0].tolist()) == set(range(len(OBJECT_COLORS)))
    speed = scenes.displacement()[:, 0].norm(dim=1) / 15
    counts = [int((speed >= pace).sum()) for pace in PACES]
    assert counts[0] == 8 and 5 <= counts[1] <= 6 and 2 <= counts[2] <= 3


def test_clips_match_the_checkpoint(clips, tiny_config):
    side = min(tiny_config.height, tiny_config.width)
    assert clip_size(tiny_config) == (side, side)
    assert set(clips.conditions) == set(CONDITIONS)
    for name, spec in CONDITIONS.items():
        frames = 1 if spec.kind == "spatial" else tiny_config.frames
        assert clips.conditions[name].shape == (2, spec.channels, frames, *(side // 8 * spec.scale,) * 2)
    assert clips.truth.video.shape == (2, 3, tiny_config.frames, side, side)
    keep = clips.conditions["mask"][:, 3:]  # the hole covers the object, and is larger
    in_object = torch.nn.functional.interpolate(clips.truth.mask[:, None].float(), keep.shape[2:]) > 0.5
    assert (keep[in_object] == 0).float().mean() > 0.99 and keep.mean() > 0.6


def test_the_arms_of_a_trial_differ_only_in_its_condition():
    for name, trial in TRIALS.items():
        given, shuffled, absent = (arms_of(name)[arm] for arm in ARMS)
        assert given == Wiring(absent.own | {trial.condition}) and shuffled == Wiring(absent.own, trial.condition)
        assert absent.own == set(trial.others) and trial.condition not in absent.own
    assert len({wiring for name in TRIALS for wiring in arms_of(name).values()}) == 21  # common ones only once


def test_videos_are_paired_by_scene_and_noise(monkeypatch, clips, tiny_composer):
    calls = []

    def compose(composer, text, **options):
        calls.append((text, options))
        frames, size = options["frames"], options["size"]
        return torch.full((options["batch"], 3, frames, *size), options["seed"] / 10)

    monkeypatch.setattr(trials, "compose", compose)
    wirings = [Wiring(frozenset({"text", "single_image"})), Wiring(frozenset({"single_image"}), "motion")]
    videos = compose_wirings(run_here(tiny_composer), clips, wirings, replace(FAST, batch=3))
    assert [video.shape[0] for video in videos.values()] == [4, 4]
    (texts, first), (_, second), (text, third), _ = calls  # batches of 3 and 1 of each wiring
    assert (first["seed"], second["seed"], third["seed"]) == (0, 3, 0)
    assert texts == [clips.texts[i] for i in (0, 0, 1)] and text == ""
    assert [c.name for c in third["conditions"]] == ["motion", "single_image"]
    motion, image = (c.tensor for c in third["conditions"])
    assert motion.equal(clips.conditions["motion"][[1, 1, 0]])  # from the other scene
    assert image.equal(clips.conditions["single_image"][[0, 0, 1]])


# --- Evaluations ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings(tiny_checkpoint):
    return EvaluationSettings((tiny_checkpoint,), clips=2, sampling=FAST, device="cpu", jobs=1)


@pytest.fixture(scope="module")
def result(settings):
    return evaluate(settings)[0]


def test_all_measures_are_computed_for_every_video(result):
    assert list(result.rows) == [name for name, row in MEASURES.items() if not row.needs_flow] and result.notes == []
    assert result.together == Wiring(frozenset({"text", "style", *CONDITIONS}))
    for name, row in result.rows.items():
        pairs = () if not name.endswith(("_slope", "_r2")) else (4, 2) if "motion" in name else (2, 2)
        assert {arm: values.shape for arm, values in row.values.items()} == {
            **dict.fromkeys([*ARMS, TOGETHER], (2, 2, *pairs)),
            "source": (2, 1, *pairs),
        }


def test_figures_are_reproducible_and_the_same_file_twice_has_no_difference(
    result, settings, tiny_checkpoint, tmp_path
):
    only = ("style", "kept")
    both = evaluate(replace(settings, checkpoints=(tiny_checkpoint, tiny_checkpoint), only=only))
    assert [each.name for each in both] == ["1-tiny", "2-tiny"]
    assert list(both[0].rows) == ["style_palette", "style_palette_beside_text", "style_similarity", "kept"]
    for name, row in both[1].rows.items():
        for arm in ARMS:
            np.testing.assert_array_equal(row.values[arm], result.rows[name].values[arm])
        gap = both[1].over_first[name]
        assert gap.mean in (0.0, None) and gap.low in (0.0, None)


def test_conditions_that_a_checkpoint_does_not_have_are_noted_and_not_measured(settings):
    towers = Judge("", None, {"image": "the checkpoint contains no image tower"})
    measures, notes = possible(settings.measures(), ["text", "motion", "depth"], towers)
    names = {row.name for row in measures}
    assert "depth_overlap" in names and not names & {"sketch_overlap", "consistency", "style_similarity", "kept"}
    assert "style_palette: not measured, because the checkpoint has no style, or no image tower for it." in notes
    assert "endpoint" not in names  # it requires a single image
    assert len(measures) + len(notes) == len(settings.measures())
    assert "kept: not measured, because the checkpoint has no mask condition." in notes


def test_names_are_unique(tmp_path):
    assert names_of([tmp_path / "a/x.pth", tmp_path / "y.pth", tmp_path / "b/x.pth"]) == ["1-x", "y", "3-x"]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"clips": 1}, "at least 2 clips, got 1"),
        ({"only": ("colours",)}, "Unknown measure 'colours' in --only"),
        ({"sampling": Composing(seeds=0)}, "--seeds is 0"),
    ],
)
def test_wrong_settings_are_errors(wrong, message):
    with pytest.raises(UserError, match=message):
        EvaluationSettings(**wrong)


def test_a_missing_checkpoint_is_reported_before_the_others_are_evaluated(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "_evaluate", None)
    with pytest.raises(UserError, match="gone"):
        evaluate(EvaluationSettings((tiny_checkpoint, tmp_path / "gone.safetensors"), clips=2))


# --- Summary --------------------------------------------------------------------------------------------------------


def row_of(name, figure, source, together=None):
    """A row with these figures of six clips, with an interval around each."""
    arms = {"given": figure, "shuffled": 0.0, "absent": 0.0, "source": source}
    arms |= {} if together is None else {TOGETHER: together}
    jitter = np.linspace(-0.01, 0.01, 6)[:, None]
    return measured_row(MEASURES[name], {arm: figure + jitter for arm, figure in arms.items()})


def test_headline_figures_depend_on_the_measure(result):
    rows = {
        "colour": row_of("colour", 0.9, 1.0, 0.81),
        "first_frame": row_of("first_frame", 0.06, 0.04, 0.08),
        "depth_overlap": row_of("depth_overlap", 0.6, 0.8, 0.6),
        "consistency": row_of("consistency", 0.95, 0.99, 0.95),
    }
    assert headline(replace(result, rows=rows)) == pytest.approx(
        {"colour": 0.9, "first_frame_ratio": 1.5, "depth_ratio": 0.75, "consistency": -0.04, "together": 0.75}
    )
    assert kept_together(rows["first_frame"]) == pytest.approx(0.75)  # a larger error is worse
    assert {measure for measure, _ in HEADLINES.values()} <= set(MEASURES)


def test_better_depends_on_the_measures_aim(result):
    gap = {
        "up": Estimate(0.1, 0.05, 0.15, 0.0, FEWEST),
        "down": Estimate(-0.1, -0.2, -0.05, 0.0, FEWEST),
        "none": Estimate(0.1, -0.1, 0.3, 0.0, FEWEST),
        "few": Estimate(0.1, 0.05, 0.15, 0.0, FEWEST - 1),
        "alone": Estimate(0.1, None, None, 0.0, 1),
    }
    cases = {  # given, the first checkpoint's given, source, difference, verdict
        "colour": (0.8, 0.7, 1.0, "up", "better"),
        "first_frame": (0.08, 0.07, 0.04, "up", "worse"),
        "kept": (0.07, 0.08, 0.04, "down", "better"),
        "motion_consistency": (0.97, 0.96, 0.99, "up", "better"),
        "way": (1.3, 1.1, 1.0, "up", "worse"),  # too far
        "shape": (0.8, 0.7, 1.0, "none", "within the interval"),
        "direction": (0.8, 0.7, 1.0, "few", TOO_FEW),
        "similarity": (0.8, 0.7, 1.0, "alone", TOO_FEW),
    }
    second = replace(
        result,
        rows={name: row_of(name, case[0], case[2]) for name, case in cases.items()},
        over_first={name: gap[case[3]] for name, case in cases.items()},
    )
    first = replace(result, rows={name: row_of(name, case[1], case[2]) for name, case in cases.items()})
    assert {name: word for word, names in verdicts(second, first).items() for name in names} == {
        name: case[4] for name, case in cases.items()
    }


def test_files_with_other_towers_are_compared_by_the_towers_of_the_first(
    settings, tiny_checkpoint, tiny_config, tiny_composer, tmp_path
):
    """Here a file without towers and autoencoder, which composes at another size."""
    from vc_core.checkpoint.released import to_released

    part = tmp_path / "network.safetensors"
    config = replace(tiny_config, height=64, width=64)
    assert clip_size(config) != clip_size(tiny_config)
    save_checkpoint(part, config, {"model": to_released(tiny_composer.unet)})
    loaded = []

    def watched(path, composer, parts):
        loaded.append(composer.checkpoint.path)
        return load_judge(path, composer, parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "load_judge", watched)
        settings = replace(settings, only=("consistency",), sampling=replace(FAST, seeds=1))
        both = evaluate(replace(settings, checkpoints=(tiny_checkpoint, part), parts=(tiny_checkpoint,)))
    assert loaded == [tiny_checkpoint] and both[1].judge.model is both[0].judge.model
    assert both[1].over_first["consistency"].mean is not None and both[1].clips.keys == both[0].clips.keys
    table = as_table(settings, both)
    assert "network compared with tiny: no verdict with fewer than 10 clips, " in table and "better: " not in table


def test_a_lora_is_compared_with_its_checkpoint_in_few_steps_if_it_is_distilled(settings, tiny_checkpoint, tmp_path):
    unet = load_unet(read_checkpoint(tiny_checkpoint))
    add_lora(unet, 2, None, ["spatial.block"])
    for layer in lora_layers(unet).values():
        torch.nn.init.normal_(layer.lora_up.weight)
    for name, metadata in (("plain", {}), ("student", {FEW_STEPS: "yes"})):
        save_lora(tmp_path / f"{name}.safetensors", unet, metadata)
    loras = tuple(tmp_path / f"{name}.safetensors" for name in ("plain", "student"))
    sampling = Composing(seeds=1, many=3)
    results = evaluate(replace(settings, only=("consistency",), sampling=sampling, loras=loras))
    assert [result.name for result in results] == ["tiny", "plain", "student"]
    assert [result.about["sampling"] for result in results] == [
        "3 steps of dpmpp_2m", "3 steps of dpmpp_2m", "4 steps of lcm"
    ]  # fmt: skip
    assert [result.about["lora"] for result in results] == [None, *map(str, loras)]
    videos = [result.videos[arms_of("text")["given"]] for result in results]
    assert not any(videos[i].equal(videos[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert "student compared with tiny" in as_table(settings, results)


def test_together_has_its_own_sheet(result):
    labels = [label for label, _ in sheet_rows(result, TOGETHER, seeds=2)]
    assert (labels[1:3] == ["given", "  object found"] and "moving" in labels[0]) or "going" in labels[0]


# --- Processes ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_processes_compose_the_same_videos_in_the_same_order(tiny_checkpoint, tiny_composer, clips):
    wirings = [arms_of("depth")["given"], arms_of("style")["shuffled"]]
    reports = []
    with evaluation.one_thread(torch.device("cpu")):
        expected = compose_wirings(run_here(tiny_composer), clips, wirings, replace(FAST, batch=1))
    run = run_in_processes(tiny_checkpoint, (), "cpu", 2)
    videos = compose_wirings(run, clips, wirings, replace(FAST, batch=1), lambda *report: reports.append(report))
    assert list(expected) == list(videos) and all(expected[wiring].equal(videos[wiring]) for wiring in expected)
    assert reports[-1] == ("composing", 8, 8)


@pytest.mark.slow
def test_user_errors_of_a_process_are_raised(tiny_checkpoint):
    task = Task("", None, {}, {"frames": 0, "size": (32, 32)})
    with pytest.raises(UserError, match="frames must be at least 1, got 0"):
        list(run_in_processes(tiny_checkpoint, (), "cpu", 2)([task], None))


# --- CLIP -----------------------------------------------------------------------------------------------------------


def test_embeddings_are_open_clips(tiny_composer):
    clip = load_judge(None, tiny_composer)
    texts, pictures = ["a red circle", "two"], torch.rand(3, 3, 32, 32)
    from vc_core.encoders.clip import preprocess, tokenize

    model = clip.model
    torch.testing.assert_close(clip.texts(texts), model.encode_text(tokenize(texts)))
    torch.testing.assert_close(clip.images(pictures), model.encode_image(preprocess(pictures, (32, 32))))


def test_a_file_without_towers_is_an_error(tiny_composer, tiny_config, tiny_unet, tmp_path):
    from vc_core.checkpoint.released import to_released

    save_checkpoint(tmp_path / "network.safetensors", tiny_config, {"model": to_released(tiny_unet)})
    with pytest.raises(UserError, match="contains no text and image tower"):
        load_judge(tmp_path / "network.safetensors", tiny_composer)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no file of weights"):
        load_judge(tmp_path / "empty", tiny_composer)


# --- FVD ------------------------------------------------------------------------------------------------------------


class FakeStatistics:
    def __init__(self, capture_all=False):
        assert capture_all
        self.features = []

    def get_all(self):
        return np.concatenate(self.features)


class FakePackage:
    """The part of cd-fvd's interface that is used. Its features are the mean and the standard deviation of a video."""

    def __init__(self, model, n_fake, ckpt_path, device):
        assert (model, n_fake, device) == ("i3d", "full", "cpu")
        self.real_stats = FakeStatistics(True)

    def add_real_stats(self, videos):
        assert videos.dtype == np.uint8 and videos.shape[-1] == 3
        self.real_stats.features.append(np.stack([videos.mean((1, 2, 3, 4)), videos.std((1, 2, 3, 4))], 1))


@pytest.fixture
def i3d(tmp_path, monkeypatch):
    package = types.ModuleType("cdfvd")
    package.fvd = types.SimpleNamespace(cdfvd=FakePackage)
    monkeypatch.setitem(sys.modules, "cdfvd", package)
    torch.save({"a": torch.zeros(1)}, tmp_path / "i3d.pt")
    return fvd.load_fvd(tmp_path / "i3d.pt")


def test_without_weights_fvd_says_what_to_install():
    entry = fvd.described(fvd.load_fvd(None), torch.zeros(1), {}, [])
    assert entry["distances"] == {} and "i3d_pretrained_400.pt" in entry["note"] and "cd-fvd" in entry["note"]


def test_missing_weights_or_a_missing_package_are_errors(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"i3d\.pt does not exist"):
        fvd.load_fvd(tmp_path / "i3d.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "i3d.pt")
    monkeypatch.setitem(sys.modules, "cdfvd", None)
    with pytest.raises(UserError, match="pip install cd-fvd"):
        fvd.load_fvd(tmp_path / "i3d.pt")


def test_fvd_is_between_the_sources_and_each_arm_and_says_what_it_depends_on(i3d):
    videos = torch.full((4, 3, 16, 8, 8), 100, dtype=torch.uint8) + torch.arange(4, dtype=torch.uint8).view(
        4, 1, 1, 1, 1
    )
    twice = videos.repeat_interleave(2, 0)
    entry = fvd.described(i3d, videos, {"given": twice, "absent": twice + 20}, [4.0, 8.0, 4.0, 4.0])
    assert entry["distances"] == pytest.approx({"given": 0.0, "absent": 400.0}, abs=1e-6)
    for arm, (low, high) in entry["intervals"].items():
        assert low <= entry["distances"][arm] <= high
    expected = {"weights": "i3d.pt", "clips": 4, "videos": 8, "frames": 16, "rate": "4 to 8", "width": 8, "height": 8}
    assert expected.items() <= entry["details"].items() and len(entry["details"]["sha256"]) == 64
    for word in ("4 clips and 8 videos of 16 frames at 4 to 8 per second, 8x8 stretched to 224x224", "customary 2048"):
        assert word in entry["note"]
    assert entry["details"]["sha256"][:16] in entry["note"]
    assert fvd.described(i3d, videos[:, :, :3], {"given": videos}, [4.0])["distances"] == {}


def test_frechet_distances_are_those_of_normal_distributions():
    random = np.random.default_rng(0)
    first = random.normal(size=(300, 5)) * np.array([1, 2, 3, 1, 1])
    second = random.normal(size=(200, 5)) + np.array([1, 0, 0, 0, 2])
    covariances = [np.cov(features.T, bias=True) for features in (first, second)]
    root = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1])).sum()  # the trace of the product's root
    expected = np.square(first.mean(0) - second.mean(0)).sum() + np.trace(sum(covariances)) - 2 * root
    assert fvd.frechet_distance(first, second) == pytest.approx(expected)
    assert fvd.frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    # Fewer features than dimensions, where the root of the product does not exist.
    assert fvd.frechet_distance(first[:3], first[:3]) == pytest.approx(0, abs=1e-9)
    assert fvd.frechet_distance(first[:3], first[:3] + 1) == pytest.approx(5)


def test_intervals_of_fvd_resample_clips_with_all_of_their_videos():
    random = np.random.default_rng(1)
    sources, videos = random.normal(size=(40, 3)), random.normal(size=(40, 1, 3)) + 1
    single, many = fvd.interval(sources, videos), fvd.interval(sources, videos.repeat(5, axis=1))
    assert single == pytest.approx(many)  # copies of a video are not more samples
    figure = fvd.frechet_distance(sources, videos[:, 0])
    assert single[0] < figure < single[1] and single[1] - single[0] < 3 * figure
    wide = fvd.interval(sources[:8], videos[:8])
    assert wide[1] - wide[0] > single[1] - single[0]


# --- The command line -----------------------------------------------------------------------------------------------


def test_the_command_writes_a_table_json_and_sheets(tiny_checkpoint, tmp_path, capsys):
    out = tmp_path / "new" / "results"
    words = [
        str(tiny_checkpoint),
        "-o",
        str(out),
        "--clips",
        "2",
        "--seeds",
        "1",
        "--steps",
        "1",
        "--jobs",
        "1",
        "--only",
        "sketch,first_frame,together",
    ]
    assert program.main(words) == 0
    printed = capsys.readouterr().out
    assert (out / "table.md").read_text() in printed
    assert {path.name for path in out.iterdir()} == {
        "report.html",
        "table.md",
        "evaluation.json",
        "clips.json",
        "sketch.png",
        "single_image.png",
        "together.png",
    }
    first = (out / "evaluation.json").read_text()
    report = json.loads(first)
    (checkpoint,) = report["checkpoints"]
    assert len(checkpoint["sha256"]) == 64 and report["settings"]["clips"] == 2 and len(checkpoint["clips"]) == 2
    figures = checkpoint["results"]["outline_overlap"]
    assert np.shape(figures["given"]["values"]) == (2, 1)
    assert figures["given"]["mean"] == pytest.approx(np.mean(figures["given"]["values"]), abs=1e-5)
    assert {"first_frame_ratio", "together"} <= {*checkpoint["headline"]} and "of its own" in printed
    assert program.main(words) == 0  # earlier results are replaced
    assert (out / "evaluation.json").read_text() == first


def test_folders_with_other_files_are_not_used(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert program.main(["-o", str(tmp_path)]) == 2
    assert "contains other files. Use another -o" in capsys.readouterr().err and (tmp_path / "notes.txt").exists()


def test_an_interruption_leaves_nothing(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "compose_wirings", interrupted)
    assert program.main([str(tiny_checkpoint), "-o", str(tmp_path / "out"), "--clips", "2"]) == 130
    monkeypatch.undo()
    monkeypatch.setattr("training.evaluate.report.write_contact_sheet", interrupted)
    words = ["--clips", "2", "--seeds", "1", "--steps", "1", "--jobs", "1", "--only", "depth"]
    assert program.main([str(tiny_checkpoint), "-o", str(tmp_path / "out"), *words]) == 130
    assert list(tmp_path.iterdir()) == []
    assert "nothing was written" in capsys.readouterr().err


def test_the_launcher_passes_the_command_on():
    from vc_core.cli import PROGRAMS, PROJECT

    assert "evaluate" in PROGRAMS and "./vc evaluate" in (PROJECT / "vc").read_text()
