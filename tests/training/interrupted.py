"""Runs that a signal interrupts in the middle of a step: what the tests of the trainer share.

As a program, `python interrupted.py STEP RECIPE [OPTIONS]`: a run that is killed (SIGKILL) in that step.
"""

import signal
import sys
from dataclasses import replace

from training.recipe import read_recipe
from training.trainer import assembled, train


def interrupted(number, step):
    """What puts a run together (see `training.trainer.train`) that gets a signal in a step, the first one being 1."""

    def assemble(recipe, world):
        parts, per_step = assembled(recipe, world), recipe.data[0].batch

        def learn(batch):
            if batch.after == step * per_step:  # of one rank on the first domain
                signal.raise_signal(number)
            return parts.step(batch)

        return replace(parts, step=learn)

    return assemble


if __name__ == "__main__":
    train(read_recipe(sys.argv[2], sys.argv[3:]), interrupted(signal.SIGKILL, int(sys.argv[1])))
