"""`pip install .` installs a core that composes in an environment with nothing else of this project."""

import json
import os
import shutil
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path

import pytest

COMPOSE = """
import importlib.util, json, vc_core
from vc_core.cli import main
status = main("compose --text circle --frames 2 --size 64x64 --scale 1 --steps 1 -o out.mp4".split())
rooms = [name for name in ("training", "nodes", "tests") if importlib.util.find_spec(name)]
print(json.dumps({"status": status, "core": vc_core.__file__, "rooms": rooms}))
"""


def run(command, folder) -> str:
    """Run a command in a folder, without the variables that lead to this checkout; return its output."""
    hidden = ("PYTHONPATH", "PYTHONSAFEPATH", "VC_MODELS")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def installed(repository, tmp_path) -> Path:
    """The folder of a new environment with the core. It uses the libraries of the environment that runs the tests."""
    if not (find_spec("pip") and find_spec("setuptools")):
        pytest.skip("installing without a network requires pip and setuptools in this environment")
    checkout, environment = tmp_path / "checkout", tmp_path / "environment"
    shutil.copytree(repository, checkout, ignore=shutil.ignore_patterns(".*", "__pycache__", "tests", "shared"))
    venv.create(environment)
    lent = [f"site.addsitedir({path!r})" for path in sys.path if path.endswith("-packages")]
    (packages,) = environment.rglob("site-packages")
    (packages / "lent.pth").write_text("; ".join(["import site", *lent]), encoding="utf-8")
    install = ["install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "."]
    run([sys.executable, "-m", "pip", "--python", environment, *install], checkout)
    return environment


def test_the_installed_core_composes_from_any_folder(installed, tmp_path):
    shutil.rmtree(tmp_path / "checkout")
    (elsewhere := tmp_path / "elsewhere").mkdir()
    python = next(path for name in ("bin/python", "Scripts/python.exe") if (path := installed / name).exists())
    result = json.loads(run([python, "-c", COMPOSE], elsewhere).splitlines()[-1])
    assert Path(result["core"]).is_relative_to(installed)
    assert result["status"] == 0 and result["rooms"] == []
    assert (elsewhere / "out.mp4").stat().st_size > 500
