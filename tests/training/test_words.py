"""Texts of the command lines, settings, recipes and configs, word for word. words.json contains the options with their
help texts, and wrong input with its exit status and message."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

from vc_core import cli
from vc_core.config import Config
from vc_core.errors import UserError

WORDS = json.loads((Path(__file__).parent / "words.json").read_text(encoding="utf-8"))
PROGRAMS = {
    "train bundled": "training.bundled.__main__",
    "prepare": "training.data.prepare",
    "export": "training.export",
    "evaluate": "training.evaluate.__main__",
}
RECIPE = "recipe.yaml"


def run(words):
    """Run a command line in this process. Returns its exit status."""
    for name, module in PROGRAMS.items():
        if words[: len(name.split())] == name.split():
            return import_module(module).main(words[len(name.split()) :])
    if words[0] != "train":
        return cli.main(words)
    from training import __main__ as train

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        return train.main()


def status_of(words):
    try:
        return run(words)
    except SystemExit as ended:
        return ended.code


def squeezed(text):
    """Return a text without its layout: spaces, line breaks and boxes."""
    return "".join(text.translate(dict.fromkeys(map(ord, "│╭╮╰╯─"), " ")).split())


@pytest.mark.parametrize("command", WORDS["help"])
def test_help(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Path(RECIPE).write_text("data: [{}]")
    assert status_of([*command.split(), *([RECIPE] if command == "train" else []), "--help"]) == 0
    output = squeezed(capsys.readouterr().out)
    for *names, help in WORDS["help"][command]:
        assert [name for name in names if squeezed(name).lower() not in output.lower()] == [], names
        assert squeezed(help) in output, names


@pytest.mark.parametrize("case", WORDS["errors"], ids=lambda case: " ".join(case["words"])[:60])
def test_wrong_input(case, tmp_path, monkeypatch, capsys):
    """`says` is the complete message. For messages of a parser, only `names` must be in them."""
    monkeypatch.chdir(tmp_path)
    for name, text in case.get("files", {}).items():
        Path(name).write_text(text)
    if case["words"] == ["config"]:
        with pytest.raises(UserError) as raised:
            Config.from_json(case["files"]["config.json"])
        assert str(raised.value) == case["says"]
        return
    assert status_of(case["words"]) == case["status"]
    output = capsys.readouterr().err.strip()
    if "names" in case:
        assert squeezed(case["names"]) in squeezed(output) and "Traceback" not in output
    else:
        assert output.splitlines()[-1] == f"vc: {case['says']}"
