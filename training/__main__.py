"""`./vc train RECIPE [OPTIONS]`, or `python -m training RECIPE`: trains by a recipe, such as those in training/recipes.

On a CPU it starts ranks by itself, see `training.ranks.ranks_for`. On several GPUs, with torchrun:

    ./vc python -m torch.distributed.run --nproc-per-node 8 -m training RECIPE [OPTIONS]
"""

import os
import sys
from pathlib import Path

from training.launch import cores, launch
from vc_core.terminal import run_program

RECIPES = Path(__file__).parent / "recipes"
BUNDLED = "bundled"
"""Trains the bundled checkpoint, with options of its own instead of a recipe."""


def main() -> int:
    """Runs what the command line says. Returns its exit status, see `training.trainer.train`; 2 for users' errors."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0].startswith("-"):
        print(usage(), file=sys.stderr)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    return run_program(lambda: _run(arguments), "interrupted; the same command goes on from the last checkpoint")


def _run(arguments: list[str]) -> int | None:
    if arguments[0] == BUNDLED:
        from training.bundled.__main__ import main

        return main(arguments[1:])
    from training.recipe import read_recipe

    recipe = read_recipe(arguments[0], arguments[1:])  # before the libraries that take seconds to import
    from training.ranks import ranks_for

    if "RANK" not in os.environ and (ranks := ranks_for(recipe, cores())) > 1:
        return launch("training", arguments, ranks)
    from training.trainer import train

    return train(recipe)


def usage() -> str:
    lines = ["usage: vc train RECIPE [OPTIONS]   (vc train RECIPE --help lists all settings with the recipe's values)"]
    lines += ["", *(f"  {path.relative_to(RECIPES.parents[1])}" for path in sorted(RECIPES.glob("*.yaml")))]
    lines += [
        "",
        f"       vc train {BUNDLED} --minutes N [OPTIONS]   (the bundled checkpoint, by a budget of time)",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
