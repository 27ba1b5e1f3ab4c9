"""The page for contributors names what it should: all environment variables, and all parts of the core."""

import re

import pytest

_READ = re.compile(r"\"((?:VC|COMFYUI|HF|MODELSCOPE|PLAYWRIGHT|CHROMIUM|OMP|ONEDNN)_[A-Z_]+)\"|process\.env\.([A-Z_]+)")
_NOT_VARIABLES = {"VC_CONDITION"}  # the type of a socket


@pytest.fixture(scope="module")
def page(repository):
    return (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_every_environment_variable_is_on_the_page(page, repository):
    files = [path for folder in ("vc_core", "nodes", "training", "tests") for path in (repository / folder).rglob("*")]
    texts = [path.read_text(encoding="utf-8") for path in files if path.suffix in (".py", ".js")]
    names = {name for text in texts for pair in _READ.findall(text) for name in pair if name} - _NOT_VARIABLES
    table = page.partition("| environment variable |")[2].partition("\n\n")[0]
    assert names | {"VC_PYTHON"} == set(re.findall(r"`([A-Z]+_[A-Z_]+)`", table))  # ./vc reads VC_PYTHON


def test_every_part_of_the_core_is_on_the_page(page, repository):
    table = page.partition("## Where things are")[2].partition("\n## ")[0]
    parts = [
        path for path in (repository / "vc_core").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    ]
    names = {f"{path.name}/" if path.is_dir() else path.name for path in parts if not path.name.startswith("__")}
    assert sorted(names - set(re.findall(r"`([\w.]+/?)`", table))) == []
