"""The package for ComfyUI's registry: git's files without those of .comfyignore. It contains everything that the nodes
need, and they run from it."""

import ast
import os
import subprocess
import sys
import zipfile

import pytest

from tests.host.scene import Scene
from tests.host.server import Host

NAME = "videocomposer"  # the registry's installers name the folder so
LEFT_OUT = ("tests", "training", "benchmarks", "launcher", "docs")
MOST_BYTES = 45e6  # 42 MB now, of which the bundled checkpoint and its LoRA have 40


def git_files(repository, *options):
    command = ["git", "-C", repository, "-c", "core.excludesFile=", "ls-files", "-z", *options]
    try:
        done = subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(
            "the package consists of the files of a git checkout, but this is not a checkout, or git is missing"
        )
    return set(done.stdout.decode().split("\0")) - {""}


@pytest.fixture(scope="module")
def packed(repository, tmp_path_factory):
    """The unpacked package."""
    folder = tmp_path_factory.mktemp("registry")
    ignored = git_files(repository, "--cached", "--ignored", "--exclude-from=.comfyignore")
    with zipfile.ZipFile(folder / "node.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in sorted(git_files(repository) - ignored):
            if (repository / name).is_file():  # git also lists files that are deleted but not committed
                archive.write(repository / name, name)
    with zipfile.ZipFile(folder / "node.zip") as archive:
        archive.extractall(folder / NAME)
    return folder / NAME


@pytest.fixture(scope="module")
def packed_host(packed, comfyui, tmp_path_factory):
    """A ComfyUI in which the package is installed."""
    running = Host.start(tmp_path_factory.mktemp("comfyui"), NAME, comfyui, packed)
    yield running
    running.stop()


def test_it_contains_what_the_nodes_need_and_nothing_else(packed, repository):
    assert {path.name for path in packed.iterdir()} == {
        *("__init__.py", "nodes", "vc_core", "web", "locales", "workflows"),
        *("pyproject.toml", "requirements.txt", "requirements-dev.txt", "README.md", "CHANGELOG.md", "LICENSE"),
    }
    files = {path.relative_to(packed).as_posix(): path.stat().st_size for path in packed.rglob("*") if path.is_file()}
    assert sum(files.values()) < MOST_BYTES
    assert not [path for folder in ("web", "locales", "workflows") for path in (packed / folder).rglob("*.py")]
    for folder in ("nodes", "vc_core", "web"):  # these folders are complete
        expected = {name for name in git_files(repository, folder) if (repository / name).is_file()}
        assert {name for name in files if name.startswith(f"{folder}/")} == expected


def test_nothing_in_it_imports_what_is_left_out(packed):
    for path in packed.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            assert not [name for name in names if name.partition(".")[0] in LEFT_OUT], (path, names)


@pytest.mark.parametrize("command", ["train", "bench"])
def test_a_command_whose_folder_is_left_out_says_so(packed, command):
    vc = [sys.executable, "-m", "vc_core", command]
    environment = {**os.environ, "PYTHONPATH": str(packed)}
    done = subprocess.run(vc, cwd=packed, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"vc: The command {command} requires the folder ")


def test_a_video_is_composed_from_it(packed_host):
    assert "Traceback" not in packed_host.start_log
    scene = Scene(packed_host)
    motion = scene.add("MotionVectorExtract", video=scene.add("VCExampleClip"), frame_rate=8.0)
    sampled = scene.sample(scene.encode(motion=motion))
    pictures = scene.add("SaveImage", images=scene.add("VAEDecode", samples=sampled, vae=scene.loader[3]))
    assert len(packed_host.run(scene.graph).files_of(pictures)) == 16


def test_the_page_gets_its_scripts_templates_and_texts_from_it(packed_host, packed):
    scripts = {f"/extensions/{NAME}/{path.name}" for path in (packed / "web").glob("*.js")}
    assert scripts and scripts <= set(packed_host.get("/extensions"))
    templates = sorted(path.stem for path in (packed / "workflows").glob("*.json"))
    assert templates and sorted(packed_host.get("/workflow_templates")[NAME]) == templates
    assert "VCExampleClip" in packed_host.get("/i18n")["zh"]["nodeDefs"]
