"""Importing the core is fast, silent and without side effects, and never loads another room."""

import ast
import json
import os
import subprocess
import sys

import pytest

HEAVY = {"av", "diffusers", "kornia", "open_clip", "torchvision", "transformers"}
OTHER_ROOMS = {"comfy", "comfy_api", "folder_paths", "nodes", "training"}


def run_python(repository, code: str, *arguments: str) -> str:
    """The output (stdout and stderr) of a new interpreter that runs the code and can import the project."""
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=repository)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


# The modules that a new interpreter has loaded after each of these stages, and the state that imports must not change.
IMPORT_EVERYTHING = """
import importlib, importlib.util, json, pkgutil, random, sys

loaded = {}

def note(stage):
    loaded[stage] = sorted({name.partition(".")[0] for name in sys.modules})

root = importlib.util.spec_from_file_location("root", sys.argv[1])
root.loader.exec_module(importlib.util.module_from_spec(root))
note("root")

import numpy, torch

def state():
    return [torch.get_num_threads(), torch.is_grad_enabled(), str(torch.get_default_dtype()),
            torch.get_rng_state().sum().item(), torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32,
            hash(random.getstate()), int(numpy.random.get_state()[1].sum()), len(sys.path)]

before = state()
for name in ("vc_core", "vc_core.conditions", "vc_core.config", "vc_core.cli"):
    importlib.import_module(name)
    note(name)
import vc_core
names = [m.name for m in pkgutil.walk_packages(vc_core.__path__, "vc_core.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
note("everything")
print(json.dumps({"names": names, "before": before, "after": state(), "loaded": loaded}))
"""


@pytest.fixture(scope="module")
def imports(repository):
    """The output of IMPORT_EVERYTHING."""
    return json.loads(run_python(repository, IMPORT_EVERYTHING, str(repository / "__init__.py")))


def test_the_root_package_loads_nothing_without_comfyui(imports):
    assert {"torch", "vc_core"}.isdisjoint(imports["loaded"]["root"])


@pytest.mark.parametrize("module", ["vc_core", "vc_core.conditions", "vc_core.config", "vc_core.cli"])
def test_import_is_light(imports, module):
    assert (HEAVY | OTHER_ROOMS).isdisjoint(imports["loaded"][module])


def test_importing_every_module_changes_nothing_and_stays_in_its_room(imports):
    assert "vc_core.conditions" in imports["names"]
    assert imports["before"] == imports["after"]
    assert OTHER_ROOMS.isdisjoint(imports["loaded"]["everything"])


def test_training_needs_little(repository):
    """A machine that trains has torch. open_clip, diffusers and kornia are imported only when they are used."""
    code = "import sys, json, training.trainer, training.bundled.towers; print(json.dumps(sorted(sys.modules)))"
    loaded = {name.partition(".")[0] for name in json.loads(run_python(repository, code))}
    assert loaded.isdisjoint(HEAVY | {"comfy", "nodes", "PIL"}), loaded & HEAVY


def imported(path):
    """The modules that a file imports, as written: relative imports begin with dots."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_nodes_import_only_the_core_and_by_relative_imports(repository):
    """ComfyUI has its own module `nodes`, and a pack's folder may have any name, so all imports are relative."""
    files = list((repository / "nodes").rglob("*.py"))
    assert len(files) > 10
    for file in files:
        up = len(file.relative_to(repository).parts)  # number of dots up to the project's folder
        for name in imported(file):
            room = name.lstrip(".")
            assert not name.startswith(("vc_core", "nodes", "training")), f"{file}: {name}"
            if name.startswith("." * up):
                assert room.split(".")[0] == "vc_core", f"{file}: {name}"


def test_the_core_imports_itself_by_relative_imports(repository):
    for file in (repository / "vc_core").rglob("*.py"):
        assert not [name for name in imported(file) if name.split(".")[0] in ("vc_core", "training", "nodes")], file
