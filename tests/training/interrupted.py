"""Runs that a signal interrupts in the middle of a step, for the tests of the trainer.

As a program, `python interrupted.py STEP RECIPE [OPTIONS]`: a run that is killed (SIGKILL) in that step.
"""

import signal
import sys
from unittest.mock import patch

from training.distillation import ConsistencyStep
from training.recipe import read_recipe
from training.step import Step
from training.trainer import train


def train_interrupted(recipe, number, step):
    """Train with a recipe and raise a signal in a step; the first step is 1. Returns the exit status."""

    kind = ConsistencyStep if recipe.distils else Step

    class Interrupted(kind):
        def __call__(self, batch):
            if batch.after == step * self.recipe.data[0].batch:  # one rank, first domain
                signal.raise_signal(number)
            return super().__call__(batch)

    with patch(f"training.trainer.{kind.__name__}", Interrupted):
        return train(recipe)


if __name__ == "__main__":
    train_interrupted(read_recipe(sys.argv[2], sys.argv[3:]), signal.SIGKILL, int(sys.argv[1]))
