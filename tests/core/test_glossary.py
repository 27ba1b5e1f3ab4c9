"""No text and no name of the project uses the words that CONTRIBUTING.md's glossary replaces."""

import ast
import re
from pathlib import Path

import pytest

FOLDERS = ("vc_core", "nodes", "training", "web", "locales", "workflows", "docs", "benchmarks", "launcher", "tests")
ENDINGS = {".py", ".md", ".js", ".mjs", ".yaml"}
NOT_NOUNS = {"told", "found", "made", "anew", "mended", "said", "wanted", "asked", "meant", "taken", "whole"}
"""Words that are no part of a name, such as `found_files`. Names of tests are sentences, which may contain them."""
NOT_ALONE = {"one", "there", "held", "share", "way"}
"""Words that are not a name alone: `one_thread` is fine."""
WORD = re.compile(r'"(?P<word>[^"]+)"(?P<pages> in pages)?(?P<exceptions>, except "[^"]+"( and "[^"]+")*)?')
"""A word in the column "not" of the glossary: where it is searched for, and phrases in which it is fine."""
PAGES = {".md", ".json"}


@pytest.fixture(scope="module")
def texts(repository):
    """Path -> text, of all that people read. The locales' JSON in English is one of them, data files are not."""
    paths = [path for folder in FOLDERS for path in (repository / folder).rglob("*") if path.suffix in ENDINGS]
    paths += [*(repository / "locales" / "en").glob("*.json"), repository / "vc", repository / "README.md"]
    paths += (repository / "workflows").glob("*.json")
    paths = [path for path in paths if path != Path(__file__)]
    return {path.relative_to(repository): path.read_text(encoding="utf-8") for path in paths}


def matches_of(phrase, text):
    """Yield the matches of a phrase in a text, also across lines and as a part of a name, such as `as_a_whole`."""
    words = r"[\s_]+".join(map(re.escape, phrase.split()))
    return re.finditer(rf"(?<![^\W_]){words}(?![^\W_])", text, re.I)  # not \b: an underscore belongs to a word


def test_replaced_words(texts, repository):
    page = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = page.partition("| write | not |\n| --- | --- |\n")[2].split("\n\n")[0].splitlines()
    assert len(rows) >= 10
    lines = []
    for row in rows:
        words = list(WORD.finditer(row))
        assert words, f"This row has no word in quotation marks, so nothing tests it: {row}"
        for word in words:
            for path, text in texts.items():
                if word["pages"] and path.suffix not in PAGES:
                    continue
                phrases = re.findall(r'"([^"]+)"', word["exceptions"] or "")
                spans = [match.span() for phrase in phrases for match in matches_of(phrase, text)]
                for match in matches_of(word["word"], text):
                    if not any(start <= match.start() and match.end() <= end for start, end in spans):
                        number = text.count("\n", 0, match.start()) + 1
                        lines.append(f"{path}:{number}: {text.splitlines()[number - 1].strip()[:100]}")
    assert not lines, "\n".join(lines)


def is_noun(name):
    parts = name.strip("_").lower().split("_")
    return parts[0] == "test" or not (NOT_NOUNS.intersection(parts) or set(parts) <= NOT_ALONE)


def test_names_are_nouns(texts):
    names = [
        f"{path}:{node.lineno}: {name}"
        for path, text in texts.items()
        if path.suffix == ".py"
        for node in ast.walk(ast.parse(text))
        for field in ("id", "arg", "attr", "name")
        if isinstance(name := getattr(node, field, None), str) and not is_noun(name)
    ]
    assert not names, "\n".join(names)
