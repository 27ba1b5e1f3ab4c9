"""What ComfyUI's registry asks of the project, read as its command line reads it: from pyproject.toml alone."""

import re
import sys

import pytest
from PIL import Image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it


@pytest.fixture(scope="module")
def pyproject(repository):
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def project(pyproject):
    return pyproject["project"]


def requirements(file):
    """The lines of a requirements file without their comments."""
    lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def test_dependencies_are_those_of_the_requirements_file(project, repository):
    assert "dynamic" not in project
    assert project["dependencies"] == requirements(repository / "requirements.txt")


def test_the_extra_dependencies_have_the_ranges_of_the_requirements_file(project, repository):
    assert set(project["optional-dependencies"]["standalone"]) <= set(requirements(repository / "requirements-dev.txt"))


def test_the_name_is_one_that_the_registry_takes(project):
    assert re.fullmatch(r"[A-Za-z]+([-_.][A-Za-z0-9]+)*", project["name"]) and len(project["name"]) < 100
    assert "comfy" not in project["name"].lower()


def test_what_is_left_to_the_owner_is_filled_in_at_once(pyproject):
    """The publisher, the repository and the addresses of both pictures: all of them or none."""
    comfy, urls = pyproject["tool"]["comfy"], pyproject["project"].get("urls", {})
    filled = [urls.get("Repository"), *(comfy.get(key) for key in ("PublisherId", "Icon", "Banner"))]
    if not any(filled):
        return
    assert all(filled), filled
    owner_and_name = urls["Repository"].removeprefix("https://github.com/").removesuffix(".git")
    branch = f"https://raw.githubusercontent.com/{re.escape(owner_and_name)}/[^/]+"
    assert re.fullmatch(rf"{branch}/docs/icon\.png", comfy["Icon"])
    assert re.fullmatch(rf"{branch}/docs/banner\.png", comfy["Banner"])


def test_icon_and_banner_have_the_registrys_sizes(repository):
    files = [repository / "docs" / f"{name}.png" for name in ("icon", "banner")]
    (width, height), banner = (Image.open(file).size for file in files)
    assert width == height <= 400
    assert banner[0] * 9 == banner[1] * 21
    assert all(file.stat().st_size < 60 * 1024 for file in files)


def test_the_changelog_begins_with_what_is_not_released_or_this_version(project, repository):
    versions = re.findall(r"^## \[?([^\]\s]+)", (repository / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    released = [version for version in versions if version != "Unreleased"]
    assert released[0] == project["version"]
    assert versions in (released, ["Unreleased", *released])
    numbers = [tuple(map(int, version.split("."))) for version in released]
    assert numbers == sorted(numbers, reverse=True) and {len(number) for number in numbers} == {3}
