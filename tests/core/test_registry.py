"""The requirements of ComfyUI's registry, checked as its command line does: from pyproject.toml alone."""

import re
import sys

import pytest
from PIL import Image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # a dependency of pytest


@pytest.fixture(scope="module")
def pyproject(repository):
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def project(pyproject):
    return pyproject["project"]


def requirements(file):
    """Return the lines of a requirements file without comments."""
    lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def test_dependencies_are_those_of_the_requirements_file(project, repository):
    assert "dynamic" not in project
    assert project["dependencies"] == requirements(repository / "requirements.txt")


def test_the_extra_dependencies_have_the_ranges_of_the_requirements_file(project, repository):
    assert set(project["optional-dependencies"]["standalone"]) <= set(requirements(repository / "requirements-dev.txt"))


def test_the_registry_accepts_the_name(project):
    assert re.fullmatch(r"[A-Za-z]+([-_.][A-Za-z0-9]+)*", project["name"]) and len(project["name"]) < 100
    assert "comfy" not in project["name"].lower()


def test_the_owners_entries_are_filled_in_together(pyproject):
    """The publisher, the repository and the addresses of both images: all of them or none."""
    comfy, urls = pyproject["tool"]["comfy"], pyproject["project"].get("urls", {})
    filled = [urls.get("Repository"), *(comfy.get(key) for key in ("PublisherId", "Icon", "Banner"))]
    if not any(filled):
        return
    assert all(filled), filled
    owner_and_name = urls["Repository"].removeprefix("https://github.com/").removesuffix(".git")
    branch = f"https://raw.githubusercontent.com/{re.escape(owner_and_name)}/[^/]+"
    assert re.fullmatch(rf"{branch}/docs/icon\.png", comfy["Icon"])
    assert re.fullmatch(rf"{branch}/docs/banner\.png", comfy["Banner"])


def test_icon_and_banner_have_the_sizes_of_the_registry(repository):
    files = [repository / "docs" / f"{name}.png" for name in ("icon", "banner")]
    (width, height), banner = (Image.open(file).size for file in files)
    assert width == height <= 400
    assert banner[0] * 9 == banner[1] * 21
    assert all(file.stat().st_size < 60 * 1024 for file in files)


def test_the_changelog_begins_with_unreleased_or_this_version(project, repository):
    versions = re.findall(r"^## \[?([^\]\s]+)", (repository / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    released = [version for version in versions if version != "Unreleased"]
    assert released[0] == project["version"]
    assert versions in (released, ["Unreleased", *released])
    numbers = [tuple(map(int, version.split("."))) for version in released]
    assert numbers == sorted(numbers, reverse=True) and {len(number) for number in numbers} == {3}
