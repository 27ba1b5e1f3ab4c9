"""What the command lines, settings, recipes and configs say, word for word: words.json beside this holds the options
with their help texts, and wrong input with the exit status and the sentence that it gets."""

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
    """The exit status of a command line in this process."""
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
    except SystemExit as left:
        return left.code


def squeezed(text):
    """A text without its layout: spaces, line breaks and boxes."""
    return "".join(text.translate(dict.fromkeys(map(ord, "│╭╮╰╯─"), " ")).split())


@pytest.mark.parametrize("command", WORDS["help"])
def test_help(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Path(RECIPE).write_text("data: [{}]")
    assert status_of([*command.split(), *([RECIPE] if command == "train" else []), "--help"]) == 0
    told = squeezed(capsys.readouterr().out)
    for *names, help in WORDS["help"][command]:
        assert [name for name in names if squeezed(name).lower() not in told.lower()] == [], names
        assert squeezed(help) in told, names


@pytest.mark.parametrize("case", WORDS["errors"], ids=lambda case: " ".join(case["words"])[:60])
def test_wrong_input(case, tmp_path, monkeypatch, capsys):
    """`says` is the whole sentence, or where it ends in ... what it begins with; a parser's own words are not held, but
    that they name what is wrong."""
    monkeypatch.chdir(tmp_path)
    for name, text in case.get("files", {}).items():
        Path(name).write_text(text)
    if case["words"] == ["config"]:
        with pytest.raises(UserError) as raised:
            Config.from_json(case["files"]["config.json"])
        assert str(raised.value) == case["says"]
        return
    assert status_of(case["words"]) == case["status"]
    told = capsys.readouterr().err.strip()
    if "names" in case:
        assert squeezed(case["names"]) in squeezed(told) and "Traceback" not in told
    else:
        assert told.splitlines()[-1] == f"vc: {case['says']}"
