"""The SLURM scripts of training/README.md, with stand-ins for SLURM and ./vc that record what would run."""

import os
import re
import shutil
import subprocess

import pytest

from training.recipe import read_recipe

pytestmark = pytest.mark.skipif(os.name == "nt" or shutil.which("bash") is None, reason="requires bash")

STANDINS = {
    "vc": 'printf "%s\\n" "$@" > ../ran',
    "srun": '"$@"',
    "scontrol": '[ "$*" = "show hostnames node[1-4]" ] && printf "node%s\\n" 1 2 3 4',
}


@pytest.fixture(scope="module")
def scripts(repository):
    guide = (repository / "training" / "README.md").read_text(encoding="utf-8")
    prepare, train = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", guide, re.DOTALL)
    return {"prepare": prepare, "train": train}


def ran(tmp_path, script, **variables):
    """Run a script. Returns the arguments of ./vc."""
    project = tmp_path / "project"
    for name, text in STANDINS.items():
        path = project / name if name == "vc" else tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", **variables}
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    subprocess.run(["bash", "-eu"], input=script, text=True, check=True, cwd=project, env=environment)
    return (tmp_path / "ran").read_text().splitlines()


def test_the_tasks_of_the_array_are_all_parts(tmp_path, scripts):
    (first, last) = map(int, re.search(r"^#SBATCH --array=(\d+)-(\d+)$", scripts["prepare"], re.MULTILINE).groups())
    parts = [ran(tmp_path, scripts["prepare"], SLURM_ARRAY_TASK_ID=str(task))[-2:] for task in range(first, last + 1)]
    assert parts == [["--part", f"{part}/{last}"] for part in range(1, last + 1)]


def test_torchrun_and_the_recipe_accept_the_options_of_the_training(tmp_path, scripts):
    from torch.distributed.run import parse_args

    slurm = {"SLURM_JOB_NODELIST": "node[1-4]", "SLURM_NNODES": "4", "SLURM_JOB_ID": "77"}
    python, *words = ran(tmp_path, scripts["train"], **slurm)
    assert (python, words[:2]) == ("python", ["-m", "torch.distributed.run"])
    options = parse_args(words[2:])
    assert (options.nnodes, options.nproc_per_node, options.rdzv_id) == ("4", "8", "77")
    assert (options.rdzv_backend, options.rdzv_endpoint, options.module) == ("c10d", "node1:29500", True)
    assert "#SBATCH --gpus-per-node=8\n" in scripts["train"] and options.training_script == "training"
    recipe = read_recipe(options.training_script_args[0], options.training_script_args[1:])
    assert (recipe.engine.parallel, recipe.data[0].kind) == ("hsdp", "shards")
