"""`./vc clean`: where videos are split, what is dropped and why, and the list that `./vc prepare` reads."""

import csv
import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from tests.core.moving_clips import OWN, RATE, encode, encode_streamed, scene
from tests.training.clips import SIZE
from training.data import clean as command
from training.data.caption_lists import Entry
from training.data.cleaning.captioner import load_captioner
from training.data.cleaning.measuring import Measured, Measurements, key_of, measure
from training.data.cleaning.rules import CleanOptions, judged, mark_duplicates
from training.data.cleaning.scenes import Clip, SceneOptions, read_clips
from training.data.folder import read_captions
from training.data.prepare import main as prepare
from training.data.shards import Shards
from vc_core.errors import UserError

needs_detectors = pytest.mark.skipif(
    find_spec("scenedetect") is None, reason="scenedetect-headless (the extra `clean`) is not installed"
)


TINTS = [(1.0, 0.3, 0.3), (0.3, 1.0, 0.3), (0.3, 0.3, 1.0), (1.0, 1.0, 0.3)]


def shot(seed, frames=24, speed=2, height=96, width=128):
    """A smooth scene of its own in one of four colours, which moves by `speed` pixels per frame."""
    tinted = (scene(seed) * np.array(TINTS[seed % 4])).astype(np.uint8)
    tinted = np.array(Image.fromarray(tinted).resize((960, 960)))
    return [tinted[40 : 40 + height, speed * n : speed * n + width] for n in range(frames)]


def still(seed, frames=24):
    return shot(seed, frames, 0)


def black(frames=12):
    return [np.zeros((96, 128, 3), np.uint8)] * frames


def barred(frames, rows=0, columns=0):
    """Frames with black bars at two opposite sides."""
    height, width = frames[0].shape[:2]
    inside = np.zeros((height, width, 1), np.uint8)
    inside[rows : height - rows, columns : width - columns] = 1
    return [frame * inside for frame in frames]


def small(frames):
    return [np.array(Image.fromarray(frame).resize((64, 48), Image.BOX)) for frame in frames]


VIDEOS = {
    "cuts.mp4": [*shot(1), *shot(2, 30), *black(), *shot(3)],
    "still.mp4": [*still(4), *shot(5, 5), *shot(6)],
    "letterbox.mp4": barred(shot(7), rows=12),
    "pillars.mp4": barred(shot(8), columns=20),
    "copy.mp4": small(shot(2, 30)),
    "vertical.mp4": shot(9, height=160, width=72),
    "one.mp4": shot(10, 1),
}
EXPECTED = [  # file, number of the first frame and of the first one after the clip, why it is dropped
    ("cuts.mp4", 0, 24, None),
    ("cuts.mp4", 24, 54, None),
    ("cuts.mp4", 54, 66, "black"),
    ("cuts.mp4", 66, 90, None),
    ("still.mp4", 0, 24, "still"),
    ("still.mp4", 24, 29, "short"),
    ("still.mp4", 29, 53, None),
    ("letterbox.mp4", 0, 24, "letterbox"),
    ("pillars.mp4", 0, 24, "letterbox"),
    ("copy.mp4", 0, 30, "duplicate"),
    ("vertical.mp4", 0, 24, None),
    ("one.mp4", 0, 1, "short"),
    ("cut_off.mp4", None, None, None),  # where it breaks depends on the encoder
    ("cut_off.mp4", None, None, "damaged"),
    ("noise.mp4", None, None, "unreadable"),
    ("gone.mp4", None, None, "missing"),
    ("image.png", None, None, "image"),
    ("", None, None, "caption"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, frames in VIDEOS.items():
        encode(folder / name, frames, crf="35" if name == "copy.mp4" else "20", **OWN)
    encode_streamed(folder / "cut_off.mp4", [*shot(11), *shot(12, 40)], **OWN)
    data = (folder / "cut_off.mp4").read_bytes()
    (folder / "cut_off.mp4").write_bytes(data[: len(data) * 45 // 100])
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(2000))
    Image.fromarray(scene(13)).save(folder / "image.png")
    names = [*VIDEOS, "cut_off.mp4", "noise.mp4", "gone.mp4", "image.png", ""]
    rows = [f'{name},"a scene, {number}",CC0' for number, name in enumerate(names)]
    (folder / "captions.csv").write_text("\n".join(["file,caption,license", *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def cleaned(folder, tmp_path_factory):
    """The folder with the list, the report and the sheet."""
    pytest.importorskip("scenedetect", reason="scenedetect-headless (the extra `clean`) is not installed")
    out = tmp_path_factory.mktemp("cleaned")
    assert command.main([str(folder), "-o", str(out / "clips.csv"), "--jobs", "1"]) == 0
    return out


def report_of(out):
    return json.loads((out / "clips.report.json").read_text())


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_videos_are_split_at_their_cuts_and_every_clip_has_its_reason(cleaned):
    """Nothing is lost: each file and each second is in the report."""
    clips = report_of(cleaned)["clips"]
    numbers = [tuple(round(clip[key] * RATE) if key in clip else None for key in ("start", "end")) for clip in clips]
    assert [(clip["file"], *pair, clip.get("reason")) for clip, pair in zip(clips, numbers, strict=True)][:12] == (
        EXPECTED[:12]
    )
    assert [(clip["file"], clip.get("reason")) for clip in clips][12:] == [(row[0], row[3]) for row in EXPECTED[12:]]
    for clip, (start, end) in zip(clips, numbers, strict=True):
        assert start is None or clip["start"] == pytest.approx(start / RATE, abs=1e-5)
        assert end is None or clip["end"] == pytest.approx(end / RATE, abs=1e-5)
        assert clip["dropped"] == ("reason" in clip)


def test_the_report_counts_clips_and_seconds_for_each_reason(cleaned):
    report = report_of(cleaned)
    assert {reason: total["clips"] for reason, total in report["dropped"].items()} == {
        "missing": 1, "caption": 1, "image": 1, "unreadable": 1, "damaged": 1, "black": 1, "short": 2, "still": 1,
        "letterbox": 2, "duplicate": 1,
    }  # fmt: skip
    assert report["dropped"]["still"]["seconds"] == 2 and report["dropped"]["letterbox"]["seconds"] == 4
    kept = [clip for clip in report["clips"] if not clip["dropped"]]
    assert (report["files"], report["clips_found"], report["clips_kept"]) == (12, 18, len(kept))
    assert report["seconds_kept"] == pytest.approx(sum(clip["end"] - clip["start"] for clip in kept), abs=1e-3)
    details = {clip["file"]: clip["detail"] for clip in report["clips"] if clip["dropped"]}
    assert details["copy.mp4"].startswith("It looks like cuts.mp4 from 2 s on")
    assert details["letterbox.mp4"] == "A black bar covers 12.5% at each of two sides, 2.0% or more."
    assert details["one.mp4"] == "It has only one frame."
    assert "Nothing can be read from" in details["cut_off.mp4"] and "cannot be read" in details["noise.mp4"]
    assert "There is no file at" in details["gone.mp4"] and "has no text for 'file'" in details[""]


def test_the_list_has_each_remaining_clip_with_the_caption_and_columns_of_its_video(cleaned):
    rows = rows_of(cleaned / "clips.csv")
    assert [row["file"] for row in rows] == [file for file, *_, reason in EXPECTED if reason is None]
    assert rows[1] == {
        "file": "cuts.mp4", "start": "2.000000", "end": "4.500000", "caption": "a scene, 0", "license": "CC0",
    }  # fmt: skip


def test_prepare_takes_clips_inside_the_spans_of_the_list(folder, cleaned, tmp_path):
    size = f"{SIZE[1]}x{SIZE[0]}"
    arguments = [folder, "-o", tmp_path, "--captions", cleaned / "clips.csv", "--frames", 8, "--size", size]
    assert prepare([*map(str, arguments), "--jobs", "1", "--clips", "3"]) == 0
    shards, rows = Shards(tmp_path), rows_of(cleaned / "clips.csv")
    samples = [json.loads(shards.read(n, ["json"])[1]["json"]) for n in range(len(shards))]
    assert [sample["file"] for sample in samples] == [row["file"] for row in rows for _ in range(3)]
    for number, sample in enumerate(samples):
        start, end = (float(rows[number // 3][key]) for key in ("start", "end"))
        assert start <= sample["plan"]["start"] and sample["plan"]["start"] + 8 / sample["fps"] <= end + 1e-6
        assert sample["others"]["license"] == "CC0"
    assert len({sample["plan"]["start"] for sample in samples[:3]}) == 3


def test_the_contact_sheet_shows_the_dropped_clips(cleaned):
    """One row for each of the reasons; the letterboxed clips are side by side, on grey."""
    with Image.open(cleaned / "clips.dropped.png") as sheet:
        pixels = np.array(sheet.convert("RGB")).astype(int)
    colours = (np.ptp(pixels, axis=2) > 30).any(axis=1)
    assert np.count_nonzero(np.diff(colours.astype(int)) == 1) >= 4  # short, still, letterbox, duplicate
    assert (pixels == 0xD0).all(axis=2).sum() > 5 * 120 * 100  # five files without a frame


@needs_detectors
def test_both_detectors_find_the_cuts(folder):
    for detector in ("adaptive", "content"):
        options = SceneOptions(detector)
        clips, until, problem = read_clips(folder / "cuts.mp4", "cuts.mp4", options)
        assert [round(clip.start * RATE) for clip in clips] == [0, 24, 54, 66] and not problem
        assert until == pytest.approx(90 / RATE)
    clips, *_ = read_clips(folder / "cuts.mp4", "cuts.mp4", SceneOptions("content", cut=254.0))
    assert [round(clip.start * RATE) for clip in clips] == [0, 54, 66]  # black frames are always split off


@needs_detectors
def test_thresholds_of_zero_and_keep_change_what_is_dropped(folder, tmp_path, capsys):
    arguments = [folder, "-o", tmp_path / "clips.csv", "--jobs", "1", "--still", "0", "--duplicates", "0"]
    assert command.main([*map(str, arguments), "--keep", "letterbox", "--min-seconds", "0.1"]) == 0
    report = report_of(tmp_path)
    assert report["reported"] == {"letterbox": {"clips": 2, "seconds": 4.0}}
    assert {"still", "duplicate", "letterbox"}.isdisjoint(report["dropped"])
    assert [clip["file"] for clip in report["clips"] if clip.get("reason") == "short"] == ["one.mp4"]
    printed = capsys.readouterr().out
    assert "kept, but reported: 2 letterbox, 4.0 s" in printed and "dropped: 1 missing" in printed
    assert {"letterbox.mp4", "pillars.mp4", "copy.mp4"} <= {row["file"] for row in rows_of(tmp_path / "clips.csv")}


@needs_detectors
def test_long_scenes_become_clips_of_at_most_the_longest_length_without_a_gap(tmp_path):
    """The last 2.5 seconds are halved, because a clip of 2 seconds would leave half a second."""
    encode(tmp_path / "long.mp4", shot(1, 54), **OWN)
    options = SceneOptions(shortest=0.5, longest=2.0)
    clips, *_ = read_clips(tmp_path / "long.mp4", "long.mp4", options)
    assert [round(clip.start * RATE) for clip in clips] == [0, 24, 39] and clips[-1].end == pytest.approx(4.5)
    assert all(a.end == b.start for a, b in pairwise(clips))
    assert {clip.scene for clip in clips} == {0} and sum(clip.frames for clip in clips) == 54


@needs_detectors
def test_frames_that_stay_longer_than_a_clip_may_be_are_clips_of_one_frame(tmp_path):
    """Such as in a slide show."""
    encode(tmp_path / "slides.mkv", shot(1, 4), times=[0, 40_000, 80_000, 80_500])
    clips, *_ = read_clips(tmp_path / "slides.mkv", "slides.mkv", SceneOptions())
    assert [(clip.start, clip.frames) for clip in clips] == [(0, 1), (40, 1), (80, 2)]


@needs_detectors
def test_parts_of_one_scene_are_not_duplicates_of_each_other(tmp_path):
    """Otherwise a long scene with a small motion would lose all parts but the first."""
    frames = still(1, 60)
    for number, frame in enumerate(frames):
        frames[number] = frame.copy()
        frames[number][30:60, number : number + 30] = 255
    encode(tmp_path / "a.mp4", frames, **OWN)
    (tmp_path / "captions.csv").write_text("file,caption\na.mp4,x\n")
    options = CleanOptions(SceneOptions(longest=2.0), duplicates=20.0)
    (entry,) = read_captions(tmp_path)
    results = judged(entry, measure(entry, tmp_path, options.scenes), options)
    assert len(results) == 3 and not any(result.reason for result in mark_duplicates(results, options))
    copies = [*results, *(replace(result, entry=replace(entry, file="b.mp4")) for result in results)]
    assert [result.reason for result in mark_duplicates(copies, options)] == [""] * 3 + ["duplicate"] * 3


@needs_detectors
def test_a_span_of_the_list_is_cleaned_alone(folder, tmp_path):
    (tmp_path / "spans.csv").write_text("file,caption,start,end\ncuts.mp4,x,2.5,4\ncuts.mp4,y,70,80\n")
    arguments = [folder, "-o", tmp_path / "clips.csv", "--captions", tmp_path / "spans.csv", "--jobs", "1"]
    assert command.main([*map(str, arguments)]) == 0
    ((row),) = rows_of(tmp_path / "clips.csv")
    assert row == {"file": "cuts.mp4", "start": "2.500000", "end": "4.000000", "caption": "x"}
    detail = report_of(tmp_path)["clips"][1]["detail"]
    assert "has no frames between start and end" in detail


@needs_detectors
def test_black_around_a_small_object_is_not_a_letterbox(tmp_path):
    frames = [frame.copy() for frame in black(24)]
    for number, frame in enumerate(frames):
        frame[30:60, number : number + 40] = 200
    encode(tmp_path / "moon.mp4", frames, **OWN)
    ((clip), *_), *_ = read_clips(tmp_path / "moon.mp4", "moon.mp4", SceneOptions())
    assert not clip.black and clip.bars == 0


@needs_detectors
def test_the_memory_does_not_grow_with_the_length_of_a_video(tmp_path, monkeypatch):
    """Frames are measured one by one, and a scene without an end does not collect figures."""
    from training.data.cleaning import scenes

    largest = []
    clip_of = scenes._Splitter._clip
    monkeypatch.setattr(
        scenes._Splitter, "_clip", lambda self, *rest: largest.append(len(self.frames)) or clip_of(self, *rest)
    )
    endless = ((n / 10, (n + 1) / 10, np.full((36, 64, 3), 100 + n % 50, np.uint8)) for n in range(3000))
    monkeypatch.setattr(scenes, "_small_frames", lambda *_: endless)
    clips, until, _ = read_clips(tmp_path, "endless", SceneOptions(longest=5.0))
    assert until == 300 and len(clips) == 60 and max(largest) <= 10


@needs_detectors
def test_errors_of_our_own_are_not_taken_for_damage(folder, monkeypatch):
    from training.data.cleaning import scenes

    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(scenes, "_hash", broken)
    with pytest.raises(ZeroDivisionError):
        read_clips(folder / "cuts.mp4", "cuts.mp4", SceneOptions())


@needs_detectors
@pytest.mark.slow
def test_the_result_does_not_depend_on_the_number_of_processes(folder, cleaned, tmp_path):
    assert command.main([str(folder), "-o", str(tmp_path / "clips.csv"), "--jobs", "2"]) == 0
    for name in ("clips.csv", "clips.report.json", "clips.dropped.png"):
        assert (tmp_path / name).read_bytes() == (cleaned / name).read_bytes()


@needs_detectors
def test_a_second_run_measures_only_what_is_new_or_was_not_complete(folder, cleaned, tmp_path, monkeypatch):
    """So thresholds can be changed without waiting. A killed run may leave half a line."""
    lines = (cleaned / "clips.measured.jsonl").read_text().strip().split("\n")
    assert len(lines) == len(VIDEOS)
    (tmp_path / "clips.measured.jsonl").write_text("\n".join([*lines[:-1], lines[-1][:100]]))
    calls = []
    monkeypatch.setattr(command, "measure", lambda entry, *rest: calls.append(entry.file) or measure(entry, *rest))
    again = ["-o", str(tmp_path / "clips.csv"), "--jobs", "1"]
    assert command.main([str(folder), *again]) == 0
    assert calls == ["one.mp4", "cut_off.mp4", "noise.mp4", "gone.mp4", "image.png", ""]
    for name in ("clips.csv", "clips.report.json", "clips.dropped.png"):
        assert (tmp_path / name).read_bytes() == (cleaned / name).read_bytes()
    calls.clear()
    assert command.main([str(folder), *again, "--still", "0"]) == 0
    assert "cuts.mp4" not in calls and "one.mp4" not in calls
    assert "still.mp4" in {row["file"] for row in rows_of(tmp_path / "clips.csv") if float(row["start"]) == 0}
    assert command.main([str(folder), *again, "--black", "0.2"]) == 0
    assert set(VIDEOS) <= set(calls)  # because it changes where scenes start


def test_only_complete_files_are_remembered(folder, tmp_path):
    (tmp_path / "frames").mkdir()
    assert [key_of(Entry(file, "", {}), tmp_path, SceneOptions()) for file in ("frames", "gone.mp4")] == ["", ""]
    known, clip = Measurements(tmp_path / "a.jsonl"), Clip(0.0, 1.0, 12, 0, False, 2.0, 0.0, (2**63 + 1,) * 5)
    known.add("", Measured((clip,)))
    known.add("damaged", Measured((clip,), "damaged", "x"))
    known.add("complete", Measured((clip,)))
    known = Measurements(tmp_path / "a.jsonl")
    assert [known.get(key) for key in ("", "damaged", "complete")] == [None, None, Measured((clip,))]
    (tmp_path / "a.jsonl").write_text('{"key": "old", "clips": [{"start": 0}]}')
    assert Measurements(tmp_path / "a.jsonl").get("old") is None


@needs_detectors
def test_if_nothing_remains_the_report_says_why_and_no_list_is_written(tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    encode(tmp_path / "videos" / "still.mp4", still(1), **OWN)
    (tmp_path / "videos" / "still.txt").write_text("nothing moves")
    assert command.main([str(tmp_path / "videos"), "-o", str(tmp_path / "clips.csv"), "--jobs", "1"]) == 2
    captured = capsys.readouterr()
    assert "dropped: 1 still" in captured.out and "No clip of" in captured.err and "Traceback" not in captured.err
    assert report_of(tmp_path)["dropped"] == {"still": {"clips": 1, "seconds": 2.0}}
    assert (tmp_path / "clips.dropped.png").exists() and not (tmp_path / "clips.csv").exists()


@needs_detectors
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "clips.json"], "-o is clips.json. Expected a name that ends in .csv."),
        (["-o", "{folder}/clips.csv"], "Choose a place outside of the videos' folder"),
        (["-o", "{out}/c.csv", "--captions", "{out}/c.csv"], "which contains the captions. Choose another name."),
        (["-o", "{out}/c.csv", "--min-seconds", "20"], "--max-seconds is 30 and --min-seconds 20. --max-seconds must"),
        (["-o", "{out}/c.csv", "--min-seconds", "0", "--max-seconds", "0.5"], "must be at least 1"),
        (["-o", "{out}/c.csv", "--captioner", "{out}", "--captions", "{out}/x.csv"], "are both set. Choose one."),
        (["-o", "{out}/c.csv", "--captioner", "{out}"], "has no config.json. Pass the folder that contains it."),
    ],
)
def test_wrong_options_are_reported_before_any_video_is_read(folder, tmp_path, capsys, arguments, message):
    arguments = [word.format(folder=folder, out=tmp_path) for word in arguments]
    assert command.main([str(folder), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_the_detectors_a_sentence_says_how_to_install_them(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    assert command.main([str(folder), "-o", str(tmp_path / "clips.csv")]) == 2
    assert "pip install 'scenedetect-headless>=0.7,<0.8'" in capsys.readouterr().err


# --- The captioner --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """A folder of a tiny BLIP with random weights."""
    transformers = pytest.importorskip("transformers")
    import torch

    path = tmp_path_factory.mktemp("blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *(f"word{n}" for n in range(26))]
    (path / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizerFast(vocab=str(path / "vocab.txt"), vocab_file=str(path / "vocab.txt"))
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BlipConfig(
        text_config={**small, "vocab_size": 32, "encoder_hidden_size": 16, "bos_token_id": 5, "sep_token_id": 3,
                     "pad_token_id": 0, "eos_token_id": 3, "max_position_embeddings": 80},
        vision_config={**small, "image_size": 32, "patch_size": 16},
        projection_dim=8,
        image_text_hidden_size=8,
    )  # fmt: skip
    torch.manual_seed(3)
    transformers.BlipForConditionalGeneration(config).save_pretrained(path)
    image_processor = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    transformers.BlipProcessor(image_processor, tokenizer).save_pretrained(path)
    return path


def test_a_captioner_describes_an_image_with_files_of_its_folder_only(blip, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was used"))
    describe = load_captioner(blip)
    text = describe(Image.fromarray(scene(1)))
    assert text and set(text.split()) <= set((blip / "vocab.txt").read_text().split())
    assert describe(Image.fromarray(scene(1))) == text


@needs_detectors
def test_the_captioner_writes_the_captions_of_the_list(blip, folder, cleaned, tmp_path):
    """Captions are not needed, and videos without one count too."""
    assert command.main([str(folder), "-o", str(tmp_path / "clips.csv"), "--captioner", str(blip), "--jobs", "1"]) == 0
    rows = rows_of(tmp_path / "clips.csv")
    assert len(rows) == len(rows_of(cleaned / "clips.csv")) and all(row["caption"] for row in rows)
    assert [*rows[0]] == ["file", "start", "end", "caption"]


@needs_detectors
def test_a_clip_with_an_empty_text_of_the_captioner_is_dropped(blip, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "load_captioner", lambda *_: lambda image: "tall" if image.height > 150 else "")
    assert command.main([str(folder), "-o", str(tmp_path / "clips.csv"), "--captioner", "x", "--jobs", "1"]) == 0
    assert [(row["file"], row["caption"]) for row in rows_of(tmp_path / "clips.csv")] == [("vertical.mp4", "tall")]
    assert report_of(tmp_path)["dropped"]["caption"]["clips"] == 5


def test_a_folder_without_a_captioner_is_reported(blip, tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        load_captioner(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="cannot be used as a captioner"):
        load_captioner(tmp_path)
