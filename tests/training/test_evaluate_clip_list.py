"""`./vc evaluate --clip-list`: exactly the same clips, in any folder that contains them, or a sentence that says why
not."""

import json
import shutil
from dataclasses import replace

import pytest

from tests.training.clips import MOTIONS, make_folder
from training.data.folder import read_captions
from training.data.shard_writing import PrepareOptions, prepare
from training.evaluate import __main__ as program
from training.evaluate import evaluation
from training.evaluate.clip_list import NAME, check_clips, read_clip_list, write_clip_list
from training.evaluate.evaluation import EvaluationSettings, evaluate
from training.evaluate.own_clips import open_data, read_clips
from training.evaluate.page import clip_names
from training.evaluate.trials import Composing
from vc_core.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("videos"))


@pytest.fixture
def listed(folder, tiny_config, tmp_path):
    """A list of two clips."""
    clips = read_clips(open_data(folder, tiny_config), 2)
    write_clip_list(tmp_path / NAME, clips.sources, None, None)
    return tmp_path / NAME


@pytest.fixture
def smaller(folder, tmp_path):
    """The same files in another order, without the one between those of the list."""
    shutil.copytree(folder, tmp_path / "smaller")
    names = [name for name in reversed(MOTIONS) if name != "left.mp4"]
    rows = "\n".join(f'{name},"a scene, {name.split(".")[0]}"' for name in names)
    (tmp_path / "smaller" / "captions.csv").write_text(f"file,caption\n{rows}\n")
    return tmp_path / "smaller"


def settings_for(checkpoint, folder, listed):
    sampling = Composing(seeds=1, steps=1)
    return EvaluationSettings(
        (checkpoint,), data=folder, clip_list=listed, sampling=sampling, only=("first_frame",), device="cpu", jobs=1
    )


def test_a_list_contains_hash_text_and_frames(listed, folder):
    import hashlib

    first, second = json.loads(listed.read_text())["clips"]
    assert (first["file"], second["file"]) == ("right.mp4", "down.mp4")
    assert first["sha256"] == hashlib.sha256((folder / "right.mp4").read_bytes()).hexdigest()
    assert first["text"] == "a scene, right" and first["frames"] == 3 and first["rate"] > 0 and first["start"] >= 0


def test_the_same_clips_are_read_from_a_folder_with_others(listed, folder, smaller, tiny_checkpoint):
    """The random start depends on the list, not on the folder."""
    (own,) = evaluate(settings_for(tiny_checkpoint, folder, listed))
    (other,) = evaluate(settings_for(tiny_checkpoint, smaller, listed))
    assert own.clips.keys == other.clips.keys == ["1: right.mp4", "3: down.mp4"]
    assert own.clips.truth.video.equal(other.clips.truth.video) and own.clips.sources == other.clips.sources
    row = "first_frame"
    assert (own.rows[row].values["given"] == other.rows[row].values["given"]).all()


def change(path, **fields):
    content = json.loads(path.read_text())
    content["clips"][1] |= fields
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"file": "gone.mp4"}, r"does not contain gone\.mp4 of .*clips\.json"),
        ({"sha256": "0" * 64}, r"down\.mp4 in .* differs from .*clips\.json in its sha256: expected 0000"),
        ({"text": "another"}, r"in its text: expected another, got a scene, down"),
        ({"start": 9.0}, r"in its start: expected 9\.0"),
        ({"frames": 5}, r"in its frames: expected 5, got 3"),
    ],
)
def test_other_clips_are_refused_before_anything_is_composed(
    fields, message, listed, folder, tiny_checkpoint, monkeypatch
):
    monkeypatch.setattr(evaluation, "_evaluate", None)
    change(listed, **fields)
    with pytest.raises(UserError, match=message):
        evaluate(settings_for(tiny_checkpoint, folder, listed))


def test_damaged_clips_are_refused(listed, folder, smaller, tiny_config):
    (smaller / "down.mp4").write_bytes((folder / "down.mp4").read_bytes()[:200])
    with pytest.raises(UserError, match=r"down\.mp4.* The clip is required by .*clips\.json"):
        check_clips(open_data(smaller, tiny_config), read_clip_list(listed), smaller)


@pytest.mark.parametrize("text", ["{", "[]", '{"clips": []}', '{"clips": [{"file": "a"}, {"file": "b"}]}'])
def test_other_files_are_not_lists(text, tmp_path):
    file = tmp_path / "list.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"list\.json (cannot be read as|is not) a list of"):
        read_clip_list(file)


def test_a_lists_rate_is_used_and_another_one_is_refused(folder, tiny_config, tiny_checkpoint, tmp_path):
    clips = read_clips(open_data(folder, tiny_config, rate=12, nominal_height=48), 2)
    write_clip_list(tmp_path / NAME, clips.sources, 12, 48)
    settings = settings_for(tiny_checkpoint, folder, tmp_path / NAME)
    data = settings.open_data(tiny_config)
    assert (data.rate, data.nominal_height) == (12, 48)
    with pytest.raises(UserError, match=r"--rate is 4, but .*clips\.json uses 12\. Leave out --rate"):
        replace(settings, rate=4).open_data(tiny_config)


def test_shards_are_listed_by_their_videos(folder, tiny_config, tmp_path):
    options = PrepareOptions(folder, 3, (tiny_config.height, tiny_config.width), layout="dense")
    prepare(options, read_captions(folder), tmp_path / "shards")
    data = open_data(tmp_path / "shards", tiny_config)
    clips = read_clips(data, 2)
    assert clips.sources[0]["file"].startswith("shard-000000.tar:") and clips.sources[0]["text"] == "a scene, right"
    assert clip_names(clips)[0].startswith(f"{read_captions(folder)[0].file} at ")
    write_clip_list(tmp_path / NAME, clips.sources, None, None)
    listed = read_clip_list(tmp_path / NAME)
    check_clips(data, listed, tmp_path / "shards")
    change(tmp_path / NAME, sha256="0" * 64)
    with pytest.raises(UserError, match="in its sha256"):
        check_clips(data, read_clip_list(tmp_path / NAME), tmp_path / "shards")


def test_the_command_writes_a_list_that_it_accepts(folder, tiny_checkpoint, tmp_path, capsys):
    words = [str(tiny_checkpoint), "--data", str(folder), "--seeds", "1", "--steps", "1", "--jobs", "1"]
    words += ["--only", "first_frame"]
    assert program.main([*words, "--clips", "2", "-o", str(tmp_path / "a")]) == 0
    assert program.main([*words, "--clip-list", str(tmp_path / "a" / NAME), "-o", str(tmp_path / "b")]) == 0
    assert (tmp_path / "a" / NAME).read_bytes() == (tmp_path / "b" / NAME).read_bytes()
    first, second = (json.loads((tmp_path / out / "evaluation.json").read_text())["checkpoints"] for out in "ab")
    assert first == second
    assert json.loads((tmp_path / "b" / "evaluation.json").read_text())["settings"]["clips"] == 2
    assert f"those of {NAME}" in (tmp_path / "b" / "table.md").read_text()
    capsys.readouterr()
    assert program.main([*words, "--clip-list", str(tmp_path / "a" / NAME), "--clips", "2"]) == 2
    assert "Leave out --clips." in capsys.readouterr().err


def test_scenes_have_no_list(tmp_path):
    with pytest.raises(UserError, match="--clip-list works only with --data"):
        EvaluationSettings(clip_list=tmp_path / NAME)
