"""The commands of docs/protocol.md exist, with their options and names."""

import re
import shlex
from itertools import pairwise

import pytest

from tests.training.test_words import WORDS
from training.evaluate.evaluation import EvaluationSettings
from training.evaluate.measures import MEASURES
from vc_core.diffusion.samplers import SAMPLERS
from vc_core.published import MODELS


@pytest.fixture(scope="module")
def commands(repository):
    page = (repository / "docs" / "protocol.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^    (.*)", page, re.M)).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in code.splitlines() if line.startswith("./vc ")]


def test_options_and_names_exist(commands):
    options = {name for names in WORDS["help"]["evaluate"] for name in names[:-1] if name.startswith("-")}
    evaluations = [words for words in commands if words[1] == "evaluate"]
    assert len(evaluations) == 4
    for words in evaluations:
        assert {word for word in words if word.startswith("-")} <= options
        pairs = dict(pairwise(words))
        assert pairs.get("--sampler", "ddim_released") in SAMPLERS
        assert EvaluationSettings(only=tuple(pairs["--only"].split(",")), raft="x").measures()


def test_the_table_names_measures_of_the_report(commands, repository):
    page = (repository / "docs" / "protocol.md").read_text(encoding="utf-8")
    table = page[page.index("## 4.") : page.index("## 5.")]
    labels = [row.label for row in MEASURES.values()]
    for name in set(re.findall(r"\*(motion control error|similarity of neighbouring frames)\*", table)):
        assert any(name in label for label in labels)


def test_files_can_be_downloaded(commands):
    names = {words[2] for words in commands if words[1] == "get"}
    assert len(names) == 3 and names <= {file.name for file in MODELS}
