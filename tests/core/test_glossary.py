"""No text and no name of the project uses the words that CONTRIBUTING.md's glossary replaces."""

import ast
import re
from pathlib import Path

import pytest

FOLDERS = ("vc_core", "nodes", "training", "web", "locales", "workflows", "docs", "benchmarks", "launcher", "tests")
ENDINGS = {".py", ".md", ".js", ".mjs", ".yaml"}
NOUNS = {"told", "found", "made", "one", "there", "anew", "mended"}


@pytest.fixture(scope="module")
def texts(repository):
    """Path -> text, of all that people read. The locales' JSON in English is one of them, data files are not."""
    paths = [path for folder in FOLDERS for path in (repository / folder).rglob("*") if path.suffix in ENDINGS]
    paths += [*(repository / "locales" / "en").glob("*.json"), repository / "vc", repository / "README.md"]
    paths += (repository / "workflows").glob("*.json")
    paths = [path for path in paths if path != Path(__file__)]
    return {path.relative_to(repository): path.read_text(encoding="utf-8") for path in paths}


def test_replaced_words(texts, repository):
    table = (
        (repository / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("| write | not |")[2].split("\n\n")[0]
    )
    words = re.findall(r'"([^"]+)"', table)
    assert len(words) >= 10
    # Not \b: in test_what_users_are_reported, the underscore would belong to the word.
    pattern = re.compile(rf"(?<![^\W_])({'|'.join(words)})(?![^\W_])", re.I)
    lines = [
        f"{path}:{number}: {line.strip()[:100]}"
        for path, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert not lines, "\n".join(lines)


def test_names_are_nouns(texts):
    names = [
        f"{path}:{node.lineno}: {name}"
        for path, text in texts.items()
        if path.suffix == ".py"
        for node in ast.walk(ast.parse(text))
        for field in ("id", "arg", "attr", "name")
        if isinstance(name := getattr(node, field, None), str) and name.strip("_") in NOUNS
    ]
    assert not names, "\n".join(names)
