"""Texts of the command lines, settings, recipes and configs, word for word. words.json contains the options with their
help texts, and wrong input with its exit status and message.

After changing a message, run `./vc python -m tests.training.test_words` to write the new ones into words.json; change
help texts there by hand. Read the difference before you commit it.
"""

import io
import json
import os
import sys
from contextlib import redirect_stderr
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from vc_core import cli
from vc_core.config import Config
from vc_core.errors import UserError

FILE = Path(__file__).with_name("words.json")
WORDS = json.loads(FILE.read_text(encoding="utf-8"))
PROGRAMS = {
    "train bundled": "training.bundled.__main__",
    "clean": "training.data.clean",
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
def test_wrong_input(case, tmp_path, monkeypatch):
    """`says` is the complete message. For messages of a parser, only `names` must be in them."""
    monkeypatch.chdir(tmp_path)
    status, output = answer_to(case)
    assert status == case.get("status")
    if "names" in case:
        assert squeezed(case["names"]) in squeezed(output) and "Traceback" not in output
    else:
        assert output.splitlines()[-1] == f"vc: {case['says']}"


def answer_to(case):
    """Run a case in the current folder. Returns its exit status and its output on standard error."""
    for name, text in case.get("files", {}).items():
        Path(name).write_text(text)
    with redirect_stderr(io.StringIO()) as output:
        if case["words"] != ["config"]:
            return status_of(case["words"]), output.getvalue().strip()
        with pytest.raises(UserError) as raised:
            Config.from_json(case["files"]["config.json"])
        return None, f"vc: {raised.value}"


def main():
    text = FILE.read_text(encoding="utf-8")
    for case in WORDS["errors"]:
        with TemporaryDirectory() as folder:
            os.chdir(folder)
            _, output = answer_to(case)
            os.chdir(FILE.parent)
        says = output.splitlines()[-1].removeprefix("vc: ")
        if "names" not in case and says != case["says"]:
            print(f"- {case['says']}\n+ {says}")
            text = text.replace(json.dumps(case["says"]), json.dumps(says))
    FILE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
