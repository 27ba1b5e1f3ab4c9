"""Untrusted texts and values: parsed within limits, and shown in one line."""

import json
import os
from pathlib import Path

import pytest
import torch

from vc_core.checkpoint.files import save_tensors
from vc_core.checkpoint.inspection import inspect
from vc_core.commands.record import read_record
from vc_core.commands.settings import Settings, read_yaml
from vc_core.config import Config
from vc_core.demo import draw_clip
from vc_core.errors import LINE, UserError, brief, reason, shown, spelled
from vc_core.extract.motion.tracks import read_tracks
from vc_core.parsing import DEEPEST, LONGEST_YAML, parse_json, parse_yaml
from vc_core.video import write_video

DEEP = "[" * 100_000
KEYS = ("tile", "chunk", "compile", "offload", "compute", "dtype", "device", "parts", "carry")
LAUGHS = 'tile: &k0 ["xxxxxxxxxx"]\n' + "".join(
    f"{name}: &k{i} [{', '.join([f'*k{i - 1}'] * 10)}]\n" for i, name in enumerate(KEYS[1:], 1)
)
"""A billion values in a few hundred bytes."""
MERGED = "a0: &k0 {" + ", ".join(f"x{i}: 1" for i in range(10)) + "}\n"
MERGED += "".join(f"a{i}: &k{i}\n  <<: [{', '.join([f'*k{i - 1}'] * 10)}]\n" for i in range(1, 10))
CHAIN = "a0: &k0 [x]\n" + "".join(f"a{i}: &k{i} [*k{i - 1}]\n" for i in range(1, 500))


def test_normal_yaml_and_json():
    text = "# a recipe\nout: run\nrates: [1e-4, 0.5]\nbase: &base {kind: folder, count: 8}\ndata:\n- *base\n"
    text += "- <<: *base\n  count: 9\nempty:\nname: 'ÄÖ 天鹅'\n"
    read = parse_yaml(text)
    assert read["data"] == [{"kind": "folder", "count": 8}, {"kind": "folder", "count": 9}]
    assert read["name"] == "ÄÖ 天鹅" and read["empty"] is None and parse_yaml("") is None and parse_yaml("# x") is None
    assert parse_json(' {"a": [1, 2.5, null, "ä"]} ') == {"a": [1, 2.5, None, "ä"]} and parse_json(b"3") == 3
    nested = "[" * DEEPEST + "]" * DEEPEST
    assert parse_json(nested) == parse_yaml(nested)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (DEEP, "deeper than 64 levels"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "deeper than 64 levels"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "deeper than 64 levels"),
        ("9" * 5000, "digits"),
        ("{'a': 1}", "line 1 column 2"),
        ('{"a": ' + "x" * 100_000, "line 1"),
        (b'{"a": "\xff"}', "utf-8"),
        ("", "Expecting value"),
    ],
)
def test_json_that_cannot_be_read(text, says):
    with pytest.raises(ValueError, match=says) as raised:
        parse_json(text)
    assert len(str(raised.value)) <= 200


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LAUGHS, "more than 65536 values"),
        (MERGED, "more than 65536 values"),
        (CHAIN, "deeper than 64 levels"),
        (DEEP, "deeper than 64 levels"),
        ("- " * 50_000, "deeper than 64 levels"),
        ("a: &a [1, *a]", "an alias contains itself"),
        ("a: &a {b: {c: *a}}", "an alias contains itself"),
        ("a: *nothing", "undefined alias"),
        ("a: " + "x" * LONGEST_YAML, "characters"),
        ("a: [1, 2", "expected"),
        ("a: b: c", "not allowed here"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("a: !" + "x" * 50_000, "could not determine a constructor"),
        ("a: !!timestamp x", "its YAML tag"),
        ("a: !!int ''", "its YAML tag"),
        ("a: !!bool x", "its YAML tag"),
        ("a: 2026-99-99", "month"),
        ("? [a]\n: b", "unhashable"),
        ("a\0b", "special characters"),
        ("a: 1\n---\nb: 2", "single document"),
    ],
)
def test_yaml_that_cannot_be_read(text, says):
    with pytest.raises(ValueError, match=says) as raised:
        parse_yaml(text)
    assert len(str(raised.value)) <= 200 and str(raised.value).isprintable()


def test_a_value_is_shown_in_one_line():
    huge = [["x" * 10_000] * 1000] * 1000
    odd = type("A", (), {"__repr__": lambda _: "y" * 9999})()
    for value in (
        huge, tuple(huge[0]), {"a" * 9999: huge}, "x" * 10_000, "\x1b[31m\n\0" * 100, 10**9000, -(16**100_000), object,
        {"a": {"b": {"c": [[[]]]}}}, float("nan"), {*range(1000)}, odd, "\ud800", b"x" * 9999,
    ):  # fmt: skip
        for text in (shown(value), spelled(value), spelled([value] * 1000), spelled([value, [value]], ", ")):
            assert 0 < len(text) <= LINE and text.isprintable(), value
    assert shown({"b": 1, "a": [1, "x"]}) == "{'b': 1, 'a': [1, 'x']}" and spelled(["a", "b", 3]) == "a b 3"
    assert brief("a\tb\x1b[0m") == "a\\tb\\x1b[0m" and brief("ab" * 50) == "ab" * 38 + "a..."
    assert reason(ValueError("a\n  b")) == "a b" and reason(EOFError()) == "EOFError"
    assert reason(KeyError(1), named=True) == "KeyError 1" and len(reason(ValueError("x" * 9999))) == 200
    assert len(str(UserError("x" * 10**6))) < 5000 and str(UserError("a b")) == "a b"
    assert str(UserError("天\u3000鹅 \x1b[2J\r\udc80 é")) == "天\u3000鹅 \\x1b[2J\\r\\udc80 é"


# --- In files -------------------------------------------------------------------------------------------------------


def error_of(call, *args):
    with pytest.raises(UserError) as raised:
        call(*args)
    assert len(str(raised.value)) < 1000 and str(raised.value).isprintable()
    return str(raised.value)


LONG = "x" * 100_000
SETTINGS = {
    "laughs.yaml": LAUGHS + "video: *k8\n",
    "some.yaml": "".join(LAUGHS.splitlines(keepends=True)[:4]) + "video: *k3\nout: a.mp4\n",
    "merged.yaml": MERGED,
    "deep.yaml": DEEP,
    "deep.json": DEEP,
    "key.yaml": f"{LONG}: 1",
    "keys.json": json.dumps({"nosuch": [[LONG] * 9] * 9}),
    "text.yaml": f"device: {LONG}",
    "number.yaml": "frames: 0x" + "f" * 10_000,
    "list.json": json.dumps({"use": [LONG] * 9}),
    "lists.json": json.dumps({"use": [[["motion"]]]}),
    "pan.json": json.dumps({"pan": [LONG, {LONG: 1}]}),
    "strength.json": json.dumps({"strength": {LONG: 1}}),
    "size.json": json.dumps({"size": {"a": [LONG]}}),
    "bool.yaml": "offload: [[[[[[no]]]]]]",
    "scalar.yaml": LONG,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(tmp_path, name):
    (tmp_path / name).write_text(SETTINGS[name])
    assert str(tmp_path / name) in error_of(Settings.from_yaml, tmp_path / name)


RECORDS = {
    "deep": DEEP,
    "deep inputs": '{"format": 1, "inputs": ' + "[" * 900 + "]" * 900 + "}",
    "long": json.dumps(
        {"format": 1, "inputs": {}, "settings": {LONG: LONG}, "made": {}, "versions": {}, "machine": {}}
    ),
    "another format": json.dumps({"format": [LONG]}),
    "a list": "[]",
}


@pytest.mark.parametrize("ending", ["mp4", "webm", "gif", "webp", ""])
@pytest.mark.parametrize("name", RECORDS)
def test_damaged_records_in_a_video(tmp_path, ending, name):
    path = tmp_path / (f"a.{ending}" if ending else "folder")
    write_video(path, draw_clip(frames=2), 8, metadata={"videocomposer": RECORDS[name]})
    error_of(read_record, path)


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_a_deeply_nested_comment(tmp_path, ending, monkeypatch):
    for module in ("metadata", "formats"):
        monkeypatch.setattr(f"vc_core.video.{module}.comment", lambda metadata: DEEP.encode())
    write_video(tmp_path / f"a.{ending}", draw_clip(frames=2), 8, metadata={"videocomposer": "x"})
    error_of(read_record, tmp_path / f"a.{ending}")


@pytest.mark.parametrize(
    "text", [DEEP, f'[[{{"x": "{LONG}", "y": 1}}]]', f'{{"box": "{LONG}"}}', f'["{LONG}"]', LONG], ids=range(5)
)
def test_tracks(tmp_path, text):
    (tmp_path / "tracks.json").write_text(text)
    assert "tracks.json" in error_of(read_tracks, tmp_path / "tracks.json")


CONFIGS = [DEEP, "9" * 5000, *map(json.dumps, ({LONG: 1}, {"unet": {"width": [[LONG]]}}, {"name": [LONG]}))]


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_the_config_of_a_checkpoint(tmp_path, config):
    error_of(Config.from_json, config)
    save_tensors(tmp_path / "a.safetensors", {"model.a": torch.ones(2)}, {"config": config})
    assert "a.safetensors" in error_of(inspect, tmp_path / "a.safetensors")


def test_the_training_record_of_a_checkpoint(tiny_checkpoint, tmp_path):
    from safetensors import safe_open

    with safe_open(tiny_checkpoint, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_tensors(tmp_path / "a.safetensors", tensors, metadata | {"training": DEEP})
    assert inspect(tmp_path / "a.safetensors").training == DEEP  # from another program: shown unchanged


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("read", [read_tracks, read_yaml])
def test_pipes_and_devices_are_not_read(tmp_path, monkeypatch, read):
    os.mkfifo(tmp_path / "pipe.json")
    monkeypatch.setattr(Path, "read_text", lambda path, **options: pytest.fail("the pipe would be read"))
    for path in (tmp_path / "pipe.json", Path(os.devnull)):
        with pytest.raises(UserError, match=f"{path}"):
            read(path)


def test_impossible_file_names(tmp_path):
    from vc_core.checkpoint.files import open_tensors
    from vc_core.commands.checks import check_inputs
    from vc_core.commands.settings import as_option
    from vc_core.video import probe, read_image
    from vc_core.video.metadata import read_metadata

    for name in ("a" * 300, "a/" * 200 + "a", "a\0b", "\ud800"):
        for read in (probe, read_image, open_tensors, read_metadata, read_tracks):
            error_of(read, tmp_path / name)
        error_of(check_inputs, Settings(video=name), as_option)
    for settings in (Settings(video="x" * 10**5), Settings(models=("x" * 10**5,))):
        with pytest.raises(UserError, match=r"^--\w+: There is no (file|folder) x+\.{4} Check the path\.$") as caught:
            check_inputs(settings, as_option)
        assert len(str(caught.value)) < 500
