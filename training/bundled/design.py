"""The design of the bundled checkpoint, frozen in `training/recipes/bundled.json`, and the division of a budget."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path

from training.recipe import message_of
from training.trainer import changed
from vc_core.config import Config
from vc_core.configuration import build, checked
from vc_core.disk import make_folder, written_beside
from vc_core.errors import UserError
from vc_core.parsing import parse_json

RECIPE = Path(__file__).parents[1] / "recipes" / "bundled.json"
FILE = "design.json"
"""In a run's folder: the design that the run started with."""
PARTS = ("autoencoder", "towers", "network", "student")
SLACK = 0.5
"""Tolerance in minutes, because parts may run a step or two longer than planned."""
_FREE = ("shares", "most_minutes", "least_minutes", "student")
"""Keys that may change during a run, because they do not change the checkpoint's design."""


@checked(message_of)
class PartPlan:
    """How a part is trained. `batch` is the number of frames or pairs per step of all ranks, by device type."""

    batch: dict[str, int]
    learning_rate: float


@checked(message_of)
class NetworkPlan:
    """How the network is trained. Numbers are for all ranks together; dictionaries are by device type."""

    lengths: tuple[int, ...]  # clip lengths in frames; each step picks one, with more clips if they are shorter
    batch: dict[str, int]  # clips of 16 frames per step
    scenes: dict[str, int]  # scenes in memory at a time
    uses: dict[str, float]  # how many clips' worth of frames are used per scene, roughly; more for the first scenes
    learning_rate: float
    weight_decay: float
    lone: dict[str, float]  # by condition, see `training.objective.draw_kept`
    moving_gain: float  # this and `no_style`: see `training.recipe.Loss`
    no_style: float


@checked(message_of)
class StudentPlan:
    """How the student for four steps is distilled from the network. Scenes and conditions are the network's."""

    batch: dict[str, int]  # clips of 16 frames per step of all ranks, by device type
    learning_rate: float
    rank: int  # of the LoRA
    guidance: float  # of the teacher, see `training.recipe.Distillation`


@checked(message_of)
class Design:
    """Everything about a run except its budget, its device and its start."""

    config: str  # JSON file with the checkpoint's `Config`, in the recipe's folder
    autoencoder: PartPlan
    towers: PartPlan
    network: NetworkPlan
    student: StudentPlan
    shares: dict[str, float]  # fractions of the budget for all parts but the network, which gets the rest
    most_minutes: dict[str, float]  # maximum minutes of these parts
    least_minutes: float  # minimum budget, in which every part makes at least some steps on a CPU


def read_design(path: Path = RECIPE) -> tuple[Design, Config]:
    """Read a design and the config of its checkpoint.

    Raises:
        UserError: a file cannot be read, or a key or value is wrong or missing.
    """
    try:
        design = build(Design, parse_json(path.read_text(encoding="utf-8")), message_of)
        return design, Config.from_json((path.parent / design.config).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:  # TypeError for missing keys
        raise UserError(f"Cannot read {path} as a design ({error}). Pass a JSON file such as {RECIPE}.") from error


def keep_design(out: Path, design: Design, config: Config) -> None:
    """Write the design into a run's folder, or check that it is the one that the run started with.

    Raises:
        UserError: the designs differ; the message names the first difference.
    """
    plain = json.loads(json.dumps(asdict(design) | {"config": json.loads(config.to_json())}))
    path = out / FILE
    if not path.exists():
        make_folder(out)
        with written_beside(path) as part:
            part.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
        return
    for name, (before, now) in changed(json.loads(path.read_text(encoding="utf-8")), plain).items():
        if not name.startswith(_FREE):
            raise UserError(
                f"The run in {out} has another design: {name} is {before} there, but {now} now. Pass another folder "
                "with --out."
            )


def budget(design: Design, minutes: float, used: Mapping[str, float], done: Collection[str] = ()) -> dict[str, float]:
    """Return the minutes for each part of `PARTS`. A complete part gets what it has used, the network gets the rest.

    Args:
        used: minutes that each part has used.
        done: parts that are complete, from an earlier start or from the file that the run starts with.

    Raises:
        UserError: the budget is too small; the message says how much is enough.
    """
    if minutes < design.least_minutes:
        raise UserError(
            f"--minutes {minutes:g} is too short to train the autoencoder, the towers and the network. Use --minutes "
            f"{design.least_minutes:g} or more."
        )
    parts = {}
    for name in design.shares:
        planned = 0.0 if name in done else min(design.shares[name] * minutes, design.most_minutes[name])
        parts[name] = max(planned, used.get(name, 0.0))
    others = sum(parts.values())
    enough = others + used.get("network", design.least_minutes * (1 - sum(design.shares.values())))
    if minutes < enough - SLACK:
        raise UserError(
            f"--minutes {minutes:g} is too short to continue, because the run has already used "
            f"{sum(used.values()):.1f} minutes. Use --minutes {math.ceil(10 * enough) / 10:g} or more."
        )
    return parts | {"network": minutes - others}
