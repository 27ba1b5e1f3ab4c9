"""`./vc train RECIPE [OPTIONS]`, or `python -m training RECIPE`: trains by a recipe, such as those in training/recipes.

With torchrun on several ranks:

    ./vc python -m torch.distributed.run --nproc-per-node 8 -m training RECIPE [OPTIONS]
"""

import sys
import warnings
from importlib import import_module
from pathlib import Path

from vc_core.errors import UserError

RECIPES = Path(__file__).parent / "recipes"
PARTS = {
    "autoencoder": "the bundled checkpoint's autoencoder, on frames of synthetic scenes",
    "towers": "its text and image towers, on frames and captions",
    "network": "the network of version 0 of it",
}
"""What trained the rest of the bundled checkpoint, with options of its own instead of a recipe."""


def main() -> int:
    """Runs what the command line says. Returns its exit status, see `training.trainer.train`; 2 for users' errors."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0].startswith("-"):
        print(usage(), file=sys.stderr)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    try:
        if arguments[0] in PARTS:
            sys.argv = [f"vc train {arguments[0]}", *arguments[1:]]
            import_module(f"training.{arguments[0]}").main()
            return 0
        from training.recipe import read_recipe

        recipe = read_recipe(arguments[0], arguments[1:])  # before the libraries that take seconds to import
        from training.trainer import train

        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"vc: {message}", file=sys.stderr)
            return train(recipe)
    except UserError as error:
        print(f"vc: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vc: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def usage() -> str:
    lines = ["usage: vc train RECIPE [OPTIONS]   (vc train RECIPE --help lists all settings with the recipe's values)"]
    lines += ["", *(f"  {path.relative_to(RECIPES.parents[1])}" for path in sorted(RECIPES.glob("*.yaml")))]
    lines += ["", "       vc train PART [OPTIONS]", "", *(f"  {part:12} {what}" for part, what in PARTS.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
