"""What versions of ComfyUI newer than the one at hand do, simulated in a process of its Python."""

import os
import subprocess

import pytest

from tests.host.server import REPOSITORY

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
    folder, python = comfyui
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH", "PYTHONHOME")}

    def run(script, *arguments):
        command = [python, "-c", BEGINNING + script, *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]

    return run


def test_a_window_with_a_frame_before_it(run):
    """For causal networks they put one before each window but the first; where it is, its conditions are taken."""
    run("""
frames_of = module("nodes.host.embedding").frames_of
assert frames_of(Some(index_list=[8, 9])) == (8, 9)
assert frames_of(Some(index_list=[8, 9], causal_anchor_index=7)) == (7, 8, 9)
assert frames_of(Some(index_list=[0, 1], causal_anchor_index=-1)) == (0, 1)
model = Some(model_options={}, clone=lambda: model, add_wrapper_with_key=lambda *_: None)
module("nodes.host.sampling").with_windows(model, module("vc_core.diffusion.windows").Windows(8))
assert model.model_options["context_handler"].causal_window_fix is False  # none in our own windows, as in the core
""")


def test_a_cache_that_asks_outputs_what_they_are(run):
    run("""
missing = module("nodes.host.towers").Missing("There is none.")
assert not hasattr(missing, "is_dynamic") and not hasattr(missing, "get_ram_usage")
try:
    missing.encode_image
except module("vc_core.errors").UserError as error:
    assert str(error) == "There is none."
""")


def test_a_trimmed_video_is_that_part_alone(run, tmp_path):
    from vc_core.demo import draw_clip
    from vc_core.video import write_video

    write_video(tmp_path / "clip.mp4", draw_clip(), 8)
    run(f"""
from fractions import Fraction
from comfy_api.latest import InputImpl
inputs = module("nodes.inputs")
config = module("vc_core.checkpoint").read_checkpoint(module("vc_core.checkpoint").BUNDLED).config
goal = inputs.Target(config, 4, (64, 64))

class Trimmed(InputImpl.VideoFromFile):
    as_trimmed = None
    def get_duration(self):
        return 0.5
    def get_components(self):
        whole = super().get_components()
        return Some(images=whole.images[12:], frame_rate=whole.frame_rate)

whole, part = InputImpl.VideoFromFile({str(tmp_path / "clip.mp4")!r}), Trimmed({str(tmp_path / "clip.mp4")!r})
taken = inputs.footage(part, goal, 0.0, 8.0)
assert taken.count == 4
last = inputs.channels_first(whole.get_components().images[12:])
assert (taken.source == last).all()
Trimmed.get_duration = lambda self: 2.0
assert inputs.footage(part, goal, 0.0, 8.0).count == 16
""")


def test_a_copy_of_a_model_without_loading_on_demand(run):
    run("""
import comfy.model_patcher as patchers
class CoreModelPatcher(patchers.ModelPatcher):
    pass
patchers.CoreModelPatcher = CoreModelPatcher
core = module("vc_core.checkpoint")
model = module("nodes.host.model").load_model(core.read_checkpoint(core.BUNDLED))
assert type(model) is CoreModelPatcher
again, arguments = model.cached_patcher_init
assert type(again(*arguments)) is CoreModelPatcher
assert type(again(*arguments, disable_dynamic=True)) is patchers.ModelPatcher
""")
