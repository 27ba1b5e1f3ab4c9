"""`./vc train RECIPE [OPTIONS]`, or `python -m training RECIPE`: train with a recipe such as those in training/recipes.

On a CPU it starts its own ranks, see `training.ranks.ranks_for`. For several GPUs, use torchrun:

    ./vc python -m torch.distributed.run --nproc-per-node 8 -m training RECIPE [OPTIONS]
"""

import os
import sys

from training.launch import cores, launch
from vc_core.terminal import run_program

BUNDLED = "bundled"
"""Used in place of a recipe, it trains the bundled checkpoint, with its own options."""


def main() -> int:
    """Run the command line. Returns its exit status, see `training.trainer.train`; 2 for user errors."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0].startswith("-"):
        if arguments in (["-h"], ["--help"]):
            print(usage(), file=sys.stderr)
            return 0
        print(f"vc: The recipe is missing. It comes first.\n{usage()}", file=sys.stderr)
        return 2
    return run_program(
        lambda: _run(arguments), "interrupted; run the same command to continue from the last checkpoint"
    )


def _run(arguments: list[str]) -> int | None:
    if arguments[0] == BUNDLED:
        from training.bundled.__main__ import main

        return main(arguments[1:])
    from training.recipe import read_recipe

    recipe = read_recipe(arguments[0], arguments[1:])  # before importing libraries that take seconds
    from training.ranks import ranks_for

    if "RANK" not in os.environ and (ranks := ranks_for(recipe, cores())) > 1:
        return launch("training", arguments, ranks)
    from training.trainer import train

    return train(recipe)


def usage() -> str:
    from training.recipe import RECIPES

    lines = ["usage: vc train RECIPE [OPTIONS]   (vc train RECIPE --help lists all settings with the recipe's values)"]
    lines += ["", *(f"  {path.relative_to(RECIPES.parents[1])}" for path in sorted(RECIPES.glob("*.yaml")))]
    lines += [
        "",
        f"       vc train {BUNDLED} --minutes N [OPTIONS]   (the bundled checkpoint, within a time budget)",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
