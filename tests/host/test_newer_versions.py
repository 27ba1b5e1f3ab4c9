"""Behaviour of other ComfyUI versions, simulated in a ComfyUI's Python: of versions in between, or only on a GPU.

The tests of the other files test what the newest version does everywhere.
"""

import subprocess

import pytest

from tests.host.server import REPOSITORY, environment

BEGINNING = f"""
import importlib, importlib.util, sys
from types import SimpleNamespace as Some
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
spec = importlib.util.spec_from_file_location(
    "pack", {str(REPOSITORY / "__init__.py")!r}, submodule_search_locations=[{str(REPOSITORY)!r}])
sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["pack"])
def module(name):
    return importlib.import_module("pack." + name)
"""


@pytest.fixture
def run(comfyui):
    folder, python, _ = comfyui

    def run(script, *arguments):
        command = [python, "-c", BEGINNING + script, *arguments]
        done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]

    return run


def test_a_cache_that_asks_outputs_what_they_are(run):
    run("""
missing = module("nodes.host.towers").Missing("It is missing.")
assert not hasattr(missing, "is_dynamic") and not hasattr(missing, "get_ram_usage")
try:
    missing.encode_image
except module("vc_core.errors").UserError as error:
    assert str(error) == "It is missing."
else:
    raise AssertionError
import comfy_execution.caching as caching
if hasattr(caching, "all_outputs_dynamic"):
    assert not caching.all_outputs_dynamic([missing])
""")


def test_a_copy_of_a_model_without_loading_on_demand(run):
    """On an NVIDIA GPU, newer versions replace ModelPatcher by a class that creates its copies like this."""
    run("""
import comfy.model_patcher as patchers
class CoreModelPatcher(patchers.ModelPatcher):
    pass
patchers.CoreModelPatcher = CoreModelPatcher
core = module("vc_core.checkpoint.reading")
model = module("nodes.host.model").load_model(core.read_checkpoint(core.BUNDLED))
assert type(model) is CoreModelPatcher
again, arguments = model.cached_patcher_init
assert type(again(*arguments)) is CoreModelPatcher
assert type(again(*arguments, disable_dynamic=True)) is patchers.ModelPatcher
""")
